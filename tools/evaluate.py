"""Evaluates the model of a run on a split: metrics with 95 % intervals, predictions and an HTML report.

    python tools/evaluate.py --run_dir=/runs/1 --data_dir=/data/records
    python tools/evaluate.py --run_dir=/runs/2 --data_dir=/data/records --temporal_crops=4 --spatial_crops=3

Writes RUN_DIR/eval_SPLIT/: report.html, metrics.json, predictions.csv and classification_report.txt.
"""

import sys

from vidpipe import command_line, devices
from vidpipe.config import EvaluationConfig

_COMMAND = command_line.Command(__doc__)
_read_config = _COMMAND.settings(EvaluationConfig)


def main(arguments: list[str]) -> None:
    """Flags -> EvaluationConfig -> evaluate; prints the metrics of each class and of the split."""
    del arguments
    config = _read_config()
    command_line.load_tensorflow()
    devices.prepare(takes_all_memory=False)
    from vidpipe.evaluation import evaluate

    evaluation = evaluate.evaluate(config)
    metrics = evaluation.metrics
    print(evaluation.classification_report)
    print(
        f"{config.split} accuracy {metrics['accuracy']:.4f} on {metrics['num_clips']} clips "
        f"({_interval(metrics['accuracy_ci95'])}); "
        f"always predicting {metrics['majority_class']} gives {metrics['majority_accuracy']:.4f}"
    )
    print(
        f"mean class accuracy {metrics['mean_class_accuracy']:.4f} "
        f"({_interval(metrics['mean_class_accuracy_ci95'])}), "
        f"mean average precision {metrics['mean_average_precision']:.4f}, "
        f"calibration error {metrics['calibration_error']:.4f}"
    )
    if metrics["linear_part"] is not None:
        low, high = metrics["linear_part"]["difference_ci95"]
        print(
            f"its linear part alone {metrics['linear_part']['accuracy']:.4f}; the whole model "
            f"{metrics['linear_part']['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
        )
    print(f"Report: {evaluation.folder.report}")


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


def _interval(bounds: list[float]) -> str:
    low, high = bounds
    return f"95 % interval {low:.4f} to {high:.4f}"


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
