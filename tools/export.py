"""Exports a trained model, or the features of a dataset, for other programs.

    python tools/export.py --run_dir=run --data_dir=records --format=saved_model --output=models/fights/1
    python tools/export.py --run_dir=run --data_dir=records --format=tflite --output=fights.tflite
    python tools/export.py --run_dir=run --data_dir=records --format=features --split=train --output=train.npz

saved_model: for TensorFlow Serving and tf.saved_model.load. Its default signature `jpeg` takes JPEG files;
the signature `frames` takes pixels.
tflite: for phones and small machines; one clip at a time. `unzip` extracts its class names.
features: the backbone's output for every frame, with masks and labels: a .npz file for numpy.load, or a .csv
file with a row per frame.

A model is compared with its export on the first clips of the split; the export is kept only if they agree.
"""

import logging
import sys

from vidpipe import command_line, devices
from vidpipe.config import ExportConfig

_COMMAND = command_line.Command(__doc__)
_read_config = _COMMAND.settings(ExportConfig)


def main(arguments: list[str]) -> None:
    """Flags -> ExportConfig -> the exporter of the format; prints what was written."""
    del arguments
    config = _read_config()
    command_line.load_tensorflow()
    devices.prepare(takes_all_memory=False)
    # TensorFlow logs each step of saving, and resets the logger's level for that.
    logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.ERROR)
    if config.format == "features":
        _export_features(config)
    else:
        _export_model(config)


def _export_features(config: ExportConfig) -> None:
    from vidpipe.inference.export_features import export_features

    num_clips, num_frames, depth = export_features(config)
    print(
        f"{config.output}: {num_clips} {config.split} clips of up to {num_frames} frames, "
        f"{depth} features per frame."
    )


def _export_model(config: ExportConfig) -> None:
    from vidpipe.inference.export_saved_model import export_saved_model
    from vidpipe.inference.export_tflite import export_tflite

    export = export_saved_model if config.format == "saved_model" else export_tflite
    for check in export(config):
        print(f"{check}.")
    print(f"{config.output}: written.")


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
