"""Says what a dataset holds, and whether it is all there.

    python tools/inspect_shards.py --data_dir=/data/ucf101-records --verify --contact_sheet=clips.png

--verify reads every byte, names each thing that is wrong, and exits with 1 if anything is.
"""

from collections import Counter
from pathlib import Path
from statistics import median

from absl import flags

import cli
from vidpipe.spec import SPLITS

_DATA_DIR = flags.DEFINE_string("data_dir", None, "A dataset of tools/convert_videos.py.", required=True)
_VERIFY = flags.DEFINE_bool("verify", False, "Read everything again and name what is wrong.")
_CONTACT_SHEET = flags.DEFINE_string("contact_sheet", None, "Write a PNG of some clips here.")


def main(arguments: list[str]) -> int:
    """Prints the summary; with --verify, the problems."""
    cli.no_arguments(arguments)
    cli.load_tensorflow()
    from vidpipe import verify

    with verify.named_damage(_DATA_DIR.value):
        return _inspect()


def _inspect() -> int:
    from vidpipe import verify

    if _VERIFY.value:
        problems = list(verify.verify(_DATA_DIR.value))
        for problem in problems:
            print(problem)
        if problems:
            print(
                f"{_DATA_DIR.value}: {len(problems)} problems. Run the tools/convert_videos.py command that "
                "made it again: it repairs its own files."
            )
            return 1
    _print_summary(_DATA_DIR.value)
    if _VERIFY.value:
        print("Verified: nothing is wrong.")
    if _CONTACT_SHEET.value is not None:
        from vidpipe import report

        report.contact_sheet(_DATA_DIR.value, Path(_CONTACT_SHEET.value))
        print(f"Contact sheet: {_CONTACT_SHEET.value}")
    return 0


def _print_summary(data_dir: str) -> None:
    from vidpipe import shards

    info = shards.read_info(data_dir)
    rows = list(shards.read_videos(data_dir))
    clip = info.clip
    stride = f" (frame_stride {clip.frame_stride})" if clip.frame_stride else ""
    frame_size = f"{clip.image_size} x {clip.image_size}"
    if clip.resize == "short_side":
        frame_size = f"{clip.image_size} pixels on the short side"
    print(
        f"{data_dir}: {clip.num_frames} frames of {frame_size}, "
        f"{clip.sampling}{stride}, {info.encoding}; {len(info.classes)} classes; "
        f"fingerprint {info.fingerprint[:16]}"
    )
    for split in SPLITS:
        size = sum(shard.bytes for shard in info.splits[split])
        print(
            f"  {split:5}  {info.num_clips(split):7,} clips  {len(info.splits[split]):4} shards  "
            f"{size / 2**20:9.1f} MiB"
        )
    kept = [row for row in rows if row["status"] == "ok"]
    lengths = [int(row["frames_decoded"]) for row in kept if row["read_to_end"] == "True"]
    if lengths:
        print(f"  source videos: {min(lengths)} to {max(lengths)} frames, median {median(lengths):g}")
    padded = sum(int(row["frames_kept"]) < clip.num_frames for row in kept)
    wrong = sum(
        row["frames_claimed"] != row["frames_decoded"] for row in kept if row["read_to_end"] == "True"
    )
    print(f"  {padded} clips shorter than {clip.num_frames} frames; {wrong} headers with another frame count")
    width = max(len(name) for name in info.classes)
    counts = Counter((row["label"], row["split"]) for row in kept)
    for name in info.classes:
        print(f"  {name:{width}}  " + "  ".join(f"{split} {counts[name, split]:5}" for split in SPLITS))
    reasons = Counter(row["reason"] for row in rows if row["status"] != "ok")
    print(f"  skipped: {sum(reasons.values())}")
    for reason, count in reasons.most_common():
        print(f"    {count:5}  {reason}")


if __name__ == "__main__":
    cli.run(main)
