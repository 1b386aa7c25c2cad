"""Summarizes a converted dataset and checks it for corruption.

    python tools/inspect_shards.py --data_dir=/data/ucf101-records --verify --contact_sheet=clips.png

--verify reads every record and frame, names each problem, and exits with 1 if there is one.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from vidpipe import command_line
from vidpipe.config import SPLITS, setting

if TYPE_CHECKING:
    from vidpipe.data.dataset import Dataset

_COMMAND = command_line.Command(__doc__)
_GROUP = "Input and output"


@dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """What to show and to check of a dataset."""

    data_dir: str = setting(
        help="The dataset: a folder or remote address made by convert_videos.", group=_GROUP
    )
    verify: bool = setting(False, help="Read every record and name each problem.", group=_GROUP)
    contact_sheet: str | None = setting(
        None, help="Write a PNG with frames of some clips to this file.", group=_GROUP
    )


_read_config = _COMMAND.settings(InspectionConfig)


def main(arguments: list[str]) -> int:
    """Flags -> summary; with --verify, the problems."""
    del arguments
    config = _read_config()
    command_line.load_tensorflow()
    from vidpipe.data.dataset import open_dataset

    if config.verify and not _verify(config.data_dir):
        return 1
    with open_dataset(config.data_dir) as dataset:
        _print_summary(dataset)
        if config.verify:
            print("Verified: no problems found.")
        if config.contact_sheet is not None:
            from vidpipe.display import figures

            figures.contact_sheet(dataset, Path(config.contact_sheet))
            print(f"Contact sheet: {config.contact_sheet}")
    return 0


def _verify(data_dir: str) -> bool:
    """Prints each problem of the dataset; returns whether there is none."""
    from vidpipe.data.verify import verify

    num_problems = 0
    for problem in verify(data_dir):
        print(problem)
        num_problems += 1
    if num_problems:
        print(
            f"{data_dir}: problems found: {num_problems}. To repair the dataset, run the "
            "tools/convert_videos.py command that made it again."
        )
    return num_problems == 0


def _print_summary(dataset: "Dataset") -> None:
    from vidpipe.data import shards

    info, clip = dataset.info, dataset.clip
    rows = shards.read_videos(dataset.read_dir)
    stride = f" (frame_stride {clip.frame_stride})" if clip.frame_stride else ""
    frame_size = f"{clip.image_size} x {clip.image_size}"
    if clip.resize == "short_side":
        frame_size = f"{clip.image_size} pixels on the short side"
    print(
        f"{dataset.data_dir}: {clip.num_frames} frames of {frame_size}, {clip.sampling}{stride}, "
        f"{info.encoding}; {len(info.classes)} classes; decoded by {info.settings.get('decoder', 'OpenCV')}; "
        f"fingerprint {info.fingerprint[:16]}"
    )
    for split in SPLITS:
        size_mib = sum(shard.bytes for shard in info.splits[split]) / 2**20
        print(
            f"  {split:5}  {info.num_clips(split):7,} clips  {len(info.splits[split]):4} shards  "
            f"{size_mib:9.1f} MiB"
        )
    clips = [row for row in rows if row["status"] == "ok"]
    # Datasets of the decoder before PyAV have a column `frames_decoded` instead.
    lengths = [int(row.get("frames_shown") or row["frames_decoded"]) for row in clips]
    if lengths:
        print(f"  source videos: {min(lengths)} to {max(lengths)} frames, median {median(lengths):g}")
    num_short = sum(int(row["frames_kept"]) < clip.num_frames for row in clips)
    num_damaged = sum(row.get("frames_damaged", "0") != "0" for row in clips)
    print(
        f"  {num_short} clips shorter than {clip.num_frames} frames; {num_damaged} videos with damaged frames"
    )
    for what, count in Counter(row.get("unconverted") for row in clips).items():
        if what:
            print(f"  {count} videos are {what}, which is not converted")
    width = max(len(name) for name in info.classes)
    counts = Counter((row["label"], row["split"]) for row in clips)
    for name in info.classes:
        print(f"  {name:{width}}  " + "  ".join(f"{split} {counts[name, split]:5}" for split in SPLITS))
    # A dataset of an earlier version has no column `message`, and a sentence in `reason`.
    reasons = Counter(
        ": ".join(filter(None, (row["reason"], row.get("message")))) for row in rows if row["status"] != "ok"
    )
    print(f"  skipped: {sum(reasons.values())}")
    for reason, count in reasons.most_common():
        print(f"    {count:5}  {reason}")


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
