"""Compares runs that were evaluated on the same clips.

    python tools/compare_runs.py runs/frozen runs/block5 --split=test --output_dir=compared

Prints accuracies and their differences to the baseline, with 95 % intervals and p-values, and groups runs
that differ only in the seed. With --output_dir it also writes a page, comparison.html, and a list of the
clips for which predictions differ, differences.csv.
"""

import sys
from dataclasses import dataclass

from vidpipe import command_line
from vidpipe.config import SPLITS, EvaluationConfig, check, setting

_COMMAND = command_line.Command(__doc__, arguments="RUN_DIR RUN_DIR...")
_GROUP = "Input and output"


@dataclass(frozen=True, kw_only=True)
class _ComparisonConfig:
    split: str = setting(
        EvaluationConfig.split,
        help="The split that the runs were evaluated on.",
        group=_GROUP,
        choices=SPLITS,
    )
    baseline: str | None = setting(
        None, help="The RUN_DIR that the others are compared with; left out, the first.", group=_GROUP
    )
    output_dir: str | None = setting(
        None, help="Write comparison.html and differences.csv into this folder.", group=_GROUP
    )

    def __post_init__(self) -> None:
        check(self)


_read_config = _COMMAND.settings(_ComparisonConfig)


def main(arguments: list[str]) -> None:
    """Runs -> compare; prints tables and writes the page."""
    config = _read_config()
    if len(arguments) < 2:
        _COMMAND.usage_error("give at least two runs")
    command_line.load_tensorflow()
    from vidpipe.evaluation import compare, comparison_report

    comparison = compare.compare(arguments, split=config.split, baseline=config.baseline)
    print(comparison_report.text(comparison))
    if config.output_dir is not None:
        print(f"Report: {comparison_report.write(comparison, config.output_dir)}")


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
