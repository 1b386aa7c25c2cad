"""Shards on disk: their names, the writer that never leaves half a file, dataset_info.json and its checks.

TFRecord's own checksums do not see a file cut at a record's border, or a few bytes after one; the counts,
sizes and digests in dataset_info.json do.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from vidpipe.config import ClipConfig, from_dict
from vidpipe.records import SCHEMA_VERSION
from vidpipe.spec import SPLITS, VidpipeError

INFO_NAME = "dataset_info.json"
VIDEOS_NAME = "videos.csv"
VIDEO_COLUMNS = (
    "video_id", "split", "label", "group", "status", "reason", "shard", "position",
    "frames_claimed", "frames_decoded", "read_to_end", "frames_kept", "fps", "height", "width",
)  # fmt: skip


class ShardError(VidpipeError):
    """A dataset folder is incomplete, damaged or of another schema."""


@dataclass(frozen=True)
class ShardInfo:
    """One shard file: its name in the folder, its clips (records), size in bytes and sha256."""

    name: str
    clips: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset_info.json holds.

    Attributes:
      schema_version: of the records.
      classes: ordered; a label is an index into it.
      clip: how videos became clips.
      encoding: of the frames: jpeg, png or raw.
      splits: per split its shards, in order. A split without videos has none.
      fingerprint: sha256 of everything that decides the shards' bytes.
      settings: those settings, readable.
      videos_sha256: digest of videos.csv.
    """

    schema_version: int
    classes: tuple[str, ...]
    clip: ClipConfig
    encoding: str
    splits: dict[str, tuple[ShardInfo, ...]]
    fingerprint: str
    settings: dict[str, Any]
    videos_sha256: str

    def num_clips(self, split: str) -> int:
        """Clips in a split."""
        return sum(shard.clips for shard in self.splits[split])


def shard_name(split: str, index: int, count: int) -> str:
    """`train-00003-of-00016.tfrecord`."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def write_shard(path: Path, examples: Iterable[bytes]) -> ShardInfo:
    """Writes a shard under a temporary name and gives it its own once it is whole and on the disk.

    Args:
      path: where the shard goes; an older file there is replaced.
      examples: serialized clips.
    """
    temporary = path.with_name(path.name + ".tmp")
    clips = 0
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for example in examples:
            writer.write(example)
            clips += 1
    info = ShardInfo(path.name, clips, temporary.stat().st_size, sha256_of(temporary))
    commit(temporary, path)
    return info


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that at any moment there is the old one or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    commit(temporary, path)


@contextmanager
def committed_csv(path: Path, columns: Sequence[str]) -> Iterator["csv.DictWriter[str]"]:
    """Opens a table that appears under its name, whole, when the block ends well; other keys are left out."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        yield writer
    commit(temporary, path)


def commit(temporary: Path, path: Path) -> None:
    """Makes a finished temporary file durable under its own name: fsync, rename, fsync of the folder."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_info(data_dir: Path, info: DatasetInfo) -> None:
    """Commits a dataset: without this file, written last, the folder is not one."""
    write_text(data_dir / INFO_NAME, json.dumps(asdict(info), indent=2) + "\n")


def read_info(data_dir: str | Path) -> DatasetInfo:
    """Reads dataset_info.json.

    Raises:
      ShardError: the folder is not a finished dataset, or of a schema that this version does not read.
    """
    path = Path(data_dir) / INFO_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
    except FileNotFoundError:
        if not Path(data_dir).is_dir():
            raise ShardError(f"There is no folder {data_dir}.") from None
        raise ShardError(
            f"{data_dir} has no {INFO_NAME}, so it is not a finished dataset. If its conversion was "
            "interrupted, run the same tools/convert_videos.py command again."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged ({error!r}). Convert the videos again.") from None
    if version != SCHEMA_VERSION:
        raise ShardError(
            f"{path} has schema version {version}; this vidpipe reads version {SCHEMA_VERSION}. "
            "Convert the videos again, or use the version of vidpipe that wrote it."
        )
    try:
        values["clip"] = from_dict(ClipConfig, values["clip"])
        values["classes"] = tuple(values["classes"])
        values["splits"] = {
            split: tuple(ShardInfo(**shard) for shard in shards) for split, shards in values["splits"].items()
        }
        info = DatasetInfo(**values)
    except (KeyError, TypeError, AttributeError, VidpipeError) as error:
        raise ShardError(f"{path} is damaged ({error!r}). Convert the videos again.") from None
    if set(info.splits) != set(SPLITS):
        raise ShardError(f"{path} is damaged: its splits are {', '.join(info.splits)}.")
    return info


def shard_paths(data_dir: str | Path, info: DatasetInfo, split: str) -> list[str]:
    """The paths of a split's shards, in order, after the cheap checks: each is there and has its size.

    Raises:
      ShardError: one is not, or the split has no clips.
    """
    if info.num_clips(split) == 0:
        raise ShardError(f"{data_dir} has no {split} clips.")
    paths = []
    for shard in info.splits[split]:
        path = Path(data_dir) / shard.name
        found = path.stat().st_size if path.is_file() else None
        if found != shard.bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ShardError(
                f"{path} {state}; {INFO_NAME} says {shard.bytes} bytes, {shard.clips} clips. "
                "Run tools/inspect_shards.py --verify to see all that is wrong, and the same "
                "tools/convert_videos.py command again to repair it."
            )
        paths.append(str(path))
    return paths


@contextmanager
def named_damage(data_dir: str | Path) -> Iterator[None]:
    """Turns what TensorFlow says of a damaged record in the block into a ShardError with the next step."""
    try:
        yield
    except (
        tf.errors.DataLossError,
        tf.errors.FailedPreconditionError,
        tf.errors.InvalidArgumentError,
    ) as error:
        damage = re.search(
            r"(corrupted|truncated) record|contained only \d+ elements|(?i:jpeg|png).*", error.message
        )
        if damage is None:
            raise
        raise ShardError(
            f"A shard of {data_dir} is damaged ({damage.group()}). tools/inspect_shards.py "
            f"--data_dir={data_dir} --verify names every damaged record; the tools/convert_videos.py command "
            "that made it repairs it."
        ) from error


def read_videos(data_dir: str | Path) -> Iterator[dict[str, str]]:
    """Yields the rows of videos.csv, one per source video, in the order of the shards."""
    path = Path(data_dir) / VIDEOS_NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing. Convert the videos again.") from None


def clip_rows(data_dir: str | Path, split: str) -> list[dict[str, str]]:
    """The rows of videos.csv that became clips of `split`, in the order of its records."""
    return [row for row in read_videos(data_dir) if row["split"] == split and row["status"] == "ok"]
