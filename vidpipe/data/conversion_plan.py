"""Decides which video goes into which shard, from the manifest and the settings alone.

The plan is made before the first video is read. So any number of workers writes the same bytes, and an
interrupted conversion resumes with the missing shards.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vidpipe.config import SPLITS, ConversionConfig, fingerprint, to_dict
from vidpipe.data.record_encoding import SCHEMA_VERSION
from vidpipe.data.shards import shard_name
from vidpipe.data.video import DECODER
from vidpipe.data.video_row import VideoRow

# Measured on natural frames of 224 pixels; JPEG with quality 95. The number of shards follows from it.
_BYTES_PER_PIXEL = {"jpeg": 0.4, "png": 2.0, "raw": 3.0}


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be written: its file name and its videos in the order of the records."""

    name: str
    rows: tuple[VideoRow, ...]


def plan_conversion(rows: Sequence[VideoRow], config: ConversionConfig) -> dict[str, list[ShardPlan]]:
    """Plans the shards of every split."""
    num_videos = Counter(row.split for row in rows)
    return {
        split: plan_shards(rows, split=split, num_shards=_num_shards(config, num_videos[split]))
        for split in SPLITS
    }


def plan_shards(rows: Iterable[VideoRow], *, split: str, num_shards: int) -> list[ShardPlan]:
    """Distributes the videos of a split over its shards.

    The videos are sorted by a hash of their name, which mixes the classes in every shard and does not
    depend on the order of the manifest, and then divided into `num_shards` parts of equal size (+-1). The
    moments of a video stay together, in order of time, so that it is opened once.
    """

    def position(row: VideoRow) -> tuple[bytes, float, float]:
        digest = hashlib.sha256(row.video.encode()).digest()
        return (digest, 0, 0) if row.moment is None else (digest, row.moment.start, row.moment.end)

    ordered = sorted((row for row in rows if row.split == split), key=position)
    bounds = [index * len(ordered) // max(1, num_shards) for index in range(num_shards + 1)]
    return [
        ShardPlan(shard_name(split, index, num_shards), tuple(ordered[start:stop]))
        for index, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def dataset_settings(
    config: ConversionConfig, rows: Sequence[VideoRow], classes: Sequence[str]
) -> dict[str, Any]:
    """Collects everything that decides the bytes of the dataset; paths and the number of workers do not."""
    listed = [[row.video_id, row.label_name, row.split, row.group] for row in rows]
    return {
        "schema_version": SCHEMA_VERSION,
        "decoder": DECODER,
        "clip": to_dict(config.clip),
        "encoding": config.encoding,
        "jpeg_quality": config.jpeg_quality if config.encoding == "jpeg" else None,
        "shard_size_mb": config.shard_size_mb,
        "classes": list(classes),
        "videos": dict(sorted(Counter(row.split for row in rows).items())),
        "val_fraction": config.manifest.val_fraction,
        "seed": config.manifest.seed,
        "manifest_sha256": fingerprint(sorted(listed))[:16],
    } | ({} if config.manifest.background is None else {"background": config.manifest.background})


def _num_shards(config: ConversionConfig, num_videos: int) -> int:
    if num_videos == 0:
        return 0
    height, width = config.clip.frame_size(3, 4)  # assumes 4:3; the sizes of the videos are not known yet
    pixels = num_videos * config.clip.num_frames * height * width
    size_bytes = pixels * _BYTES_PER_PIXEL[config.encoding]
    return min(num_videos, max(1, round(size_bytes / (config.shard_size_mb * 2**20))))
