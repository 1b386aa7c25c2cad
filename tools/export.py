"""Writes what a run's best model makes of a dataset into a file for other programs.

    python tools/export.py --run_dir=run --data_dir=records --split=train --format=features --output=train.npz

features: of every frame, as they enter the model's head, with masks and labels. In an .npz for numpy.load, or
in a .csv with a row per frame.
"""

from absl import flags

import cli
from vidpipe.spec import SPLITS

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run of tools/train.py.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "A dataset of tools/convert_videos.py.", required=True)
_SPLIT = flags.DEFINE_enum("split", None, SPLITS, "Which clips.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, ["features"], "What is written.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The file: PATH.npz or PATH.csv.", required=True)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Copy a remote --data_dir here once.")


def main(arguments: list[str]) -> None:
    """Flags -> export_features; prints what was written."""
    cli.no_arguments(arguments)
    cli.load_tensorflow()
    from vidpipe import export

    num_clips, num_frames, depth = export.export_features(
        _RUN_DIR.value, _DATA_DIR.value, _SPLIT.value, _OUTPUT.value, cache_dir=_CACHE_DIR.value
    )
    print(
        f"{_OUTPUT.value}: {num_clips} {_SPLIT.value} clips of up to {num_frames} frames, "
        f"{depth} features each."
    )


if __name__ == "__main__":
    cli.run(main)
