"""Evaluates a run's model on a split of a dataset.

python tools/evaluate.py --run_dir=/runs/1 --data_dir=/data/ucf101-records --split=test
"""

from absl import flags

import cli
from vidpipe.spec import SPLITS

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run of tools/train.py.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "A dataset of tools/convert_videos.py.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which clips.")
_NUM_CLIPS = flags.DEFINE_integer(
    "num_clips", 1, "Views of each video in time, for a model of fewer frames than are stored.", lower_bound=1
)
_NUM_CROPS = flags.DEFINE_integer(
    "num_crops", 1, "Views in space: 3 looks at both ends of the long side too.", lower_bound=1
)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Copy a remote --data_dir here once.")


def main(arguments: list[str]) -> None:
    """Flags -> evaluate; prints the report per class, the headline and the page to open."""
    cli.no_arguments(arguments)
    cli.load_tensorflow()
    from vidpipe import evaluate

    evaluation = evaluate.evaluate(
        _RUN_DIR.value,
        _DATA_DIR.value,
        _SPLIT.value,
        num_clips=_NUM_CLIPS.value,
        num_crops=_NUM_CROPS.value,
        cache_dir=_CACHE_DIR.value,
    )
    metrics = evaluation.metrics
    print(evaluation.text)
    print(
        f"{metrics['split']} accuracy {metrics['accuracy']:.4f} of {metrics['num_clips']} clips "
        f"({_interval(metrics['accuracy_ci95'])}; the commonest class alone gives "
        f"{metrics['majority_accuracy']:.3f}), mean class accuracy {metrics['mean_class_accuracy']:.4f} "
        f"({_interval(metrics['mean_class_accuracy_ci95'])}), mean average precision "
        f"{metrics['mean_average_precision']:.3f}, calibration error {metrics['calibration_error']:.3f}."
    )
    print(f"Open next: {evaluation.report}")


def _interval(bounds: list[float]) -> str:
    return f"95 % interval {bounds[0]:.3f} to {bounds[1]:.3f}"


if __name__ == "__main__":
    cli.run(main)
