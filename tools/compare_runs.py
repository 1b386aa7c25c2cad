"""Compares runs that were evaluated on the same clips.

    python tools/compare_runs.py runs/frozen runs/block5 --split=test --output_dir=compared

Prints accuracies, and how sure their differences are; with --output_dir also a page, comparison.html, and the
clips on which the runs differ, differences.csv. Runs that differ only in their seed are also taken together.
"""

from absl import flags

import cli
from vidpipe.spec import SPLITS

_SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "The clips of the evaluations.")
_BASELINE = flags.DEFINE_string("baseline", None, "The run that others are compared with, if not the first.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The page and the table of clips go here.")


def main(arguments: list[str]) -> None:
    """Runs -> compare; prints its tables."""
    if len(arguments) < 2:
        cli.usage_error("name at least two runs")
    cli.load_tensorflow()
    from vidpipe import compare

    comparison = compare.compare(arguments, _SPLIT.value, _BASELINE.value)
    print(compare.text(comparison))
    if _OUTPUT_DIR.value is not None:
        print(f"Written to {compare.write(comparison, _OUTPUT_DIR.value)}.")


if __name__ == "__main__":
    cli.run(main)
