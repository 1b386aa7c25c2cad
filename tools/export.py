"""Writes a run's model, or what it makes of a dataset, for other programs.

    python tools/export.py --run_dir=run --data_dir=records --format=saved_model --output=models/fights/1
    python tools/export.py --run_dir=run --data_dir=records --format=tflite --output=fights.tflite
    python tools/export.py --run_dir=run --data_dir=records --format=features --split=train --output=train.npz

saved_model: for TensorFlow Serving and tf.saved_model.load. Its signature `jpeg`, the default, takes JPEG
files; `frames` takes pixels.
tflite: for phones and small machines; one clip at a time, with the zip archive of its labels behind it.
features: of every frame, as they enter the model's head, with masks and labels. In an .npz for numpy.load, or
in a .csv with a row per frame.

The first two are compared with the model on the first clips of the split, and kept only if they agree.
"""

import logging

from absl import flags

import cli
from vidpipe.spec import SPLITS

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run of tools/train.py.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "A dataset of tools/convert_videos.py.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Its features, or the clips that a model is checked on.")
_FORMAT = flags.DEFINE_enum(
    "format", None, ["saved_model", "tflite", "features"], "See above.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "A folder for saved_model; PATH.npz or PATH.csv for features.", required=True
)
_QUANTIZATION = flags.DEFINE_enum(
    "quantization", None, ["none", "dynamic_range"], "With tflite; dynamic_range: weights of 8 bits."
)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Copy a remote --data_dir here once.")


def main(arguments: list[str]) -> None:
    """Flags -> the exporter of the format; prints what was written."""
    cli.no_arguments(arguments)
    if _QUANTIZATION.value is not None and _FORMAT.value != "tflite":
        cli.usage_error(f"--quantization goes with --format=tflite; got --format={_FORMAT.value}")
    cli.load_tensorflow()
    from vidpipe import export, export_features

    # TensorFlow tells of every step of its saving, and sets the level for that.
    logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.ERROR)
    places = (_RUN_DIR.value, _DATA_DIR.value, _SPLIT.value, _OUTPUT.value)
    if _FORMAT.value == "features":
        num_clips, num_frames, depth = export_features.export_features(*places, cache_dir=_CACHE_DIR.value)
        print(
            f"{_OUTPUT.value}: {num_clips} {_SPLIT.value} clips of up to {num_frames} frames, "
            f"{depth} features each."
        )
        return
    if _FORMAT.value == "saved_model":
        checks = export.export_saved_model(*places, cache_dir=_CACHE_DIR.value)
    else:
        quantization = _QUANTIZATION.value or "none"
        checks = export.export_tflite(*places, quantization, cache_dir=_CACHE_DIR.value)
    for check in checks:
        print(f"{check}.")
    print(f"Written to {_OUTPUT.value}.")


if __name__ == "__main__":
    cli.run(main)
