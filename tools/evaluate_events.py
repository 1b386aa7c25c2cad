"""Compares the events that a model finds in long videos with labelled moments.

    python tools/evaluate_events.py --run_dir=/runs/1 --data_dir=/data/records --video_dir=/data/videos --fit
    python tools/evaluate_events.py --run_dir=/runs/1 --data_dir=/data/records --video_dir=/data/videos

The dataset was converted from a list of moments; time of its videos in which nothing is listed counts as time
without events. --fit chooses the rule that merges windows into events on the val split, and writes
RUN_DIR/event_rule.json, which predict.py reads too. Without it the events of --split are compared, and
RUN_DIR/events_SPLIT/ gets events.html, events.csv and metrics.json.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidpipe import command_line, devices
from vidpipe.config import EventEvaluationConfig, setting

_COMMAND = command_line.Command(__doc__)


@dataclass(frozen=True, kw_only=True)
class _Job:
    fit: bool = setting(False, help="Fit the event rule to the val split.", group="Job")


_read_config = _COMMAND.settings(EventEvaluationConfig)
_read_job = _COMMAND.settings(_Job)


def main(arguments: list[str]) -> None:
    """Flags -> EventEvaluationConfig -> a fitted rule, or the metrics of events."""
    del arguments
    config, is_fit = _read_config(), _read_job().fit
    if is_fit and _COMMAND.given("split"):
        _COMMAND.usage_error("--fit uses the val split; leave --split out")
    command_line.load_tensorflow()
    devices.prepare(takes_all_memory=False)
    from vidpipe.inference import event_evaluation

    if is_fit:
        fit = event_evaluation.fit_events(config)
        rule = fit.rule
        print(
            f"Best of {fit.num_rules} rules on val: smoothing {rule.smoothing_sec:g} s, high {rule.high:g}, "
            f"low {rule.low:g}, shortest {rule.min_sec:g} s."
        )
        print(f"F1 {fit.f1:.3f} (mean over classes and tIoU 0.3, 0.5, 0.7); naive merging {fit.naive_f1:.3f}")
        print(f"Written: {config.run_dir}/event_rule.json")
        return
    found = event_evaluation.evaluate_events(config)
    metrics, naive = found.metrics, found.naive_metrics
    print(f"{'':28} {'AP':>6} {'labelled':>9} {'predicted':>9} {'precision':>9} {'recall':>7} {'F1':>6}")
    for row in metrics["per_class"]:
        print(_line(row["class"], row["ap_50_95"], row))
    print(_line("all", metrics["map_50_95"], metrics))
    print(_line("all, naive merging", naive["map_50_95"], naive))
    print(
        f"mAP {_with_interval(metrics, 'map_50_95')} at tIoU 0.5 to 0.95, "
        f"{_with_interval(metrics, 'map_10_50')} at 0.1 to 0.5"
    )
    print(f"F1 {_with_interval(metrics, 'f1')} at tIoU 0.5; {metrics['num_videos']} videos")
    print(f"Report: {found.page}")


def _line(name: str, ap: float | None, row: Mapping[str, Any]) -> str:
    ratios = [_number(row[key]) for key in ("precision", "recall", "f1")]
    return (
        f"{name[:28]:28} {_number(ap):>6} {row['num_labelled']:>9} {row['num_predicted']:>9} "
        f"{ratios[0]:>9} {ratios[1]:>7} {ratios[2]:>6}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(metrics: Mapping[str, Any], key: str) -> str:
    bounds = metrics[f"{key}_ci95"]
    interval = "" if bounds is None else f" (95 % interval {bounds[0]:.3f} to {bounds[1]:.3f})"
    return _number(metrics[key]) + interval


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
