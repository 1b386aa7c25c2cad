"""Shards: their names, the writer that never leaves half a file, dataset_info.json and its checks.

A folder is a local path or a remote address (`vidpipe.remote`); tf.io.gfile serves both.

TFRecord's own checksums do not see a file cut at a record's border, or a few bytes after one; the counts,
sizes and digests in dataset_info.json do.
"""

import csv
import hashlib
import json
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from vidpipe import remote
from vidpipe.config import ClipConfig, from_dict
from vidpipe.records import SCHEMA_VERSION
from vidpipe.remote import Address
from vidpipe.spec import SPLITS, VidpipeError

INFO_NAME = "dataset_info.json"
VIDEOS_NAME = "videos.csv"
VIDEO_COLUMNS = (
    "video_id", "split", "label", "group", "status", "reason", "shard", "position",
    "frames_claimed", "frames_decoded", "read_to_end", "frames_kept", "fps", "height", "width",
)  # fmt: skip


class ShardError(VidpipeError):
    """A dataset folder is incomplete, damaged or of another schema."""


class UnreachableError(ShardError):
    """Nothing answers for a dataset at its address: it is not there, or its server is not."""


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


def write_shard(address: Address, examples: Iterable[bytes]) -> ShardInfo:
    """Writes a shard that appears under its name once it is whole and durable.

    Args:
      address: where the shard goes; an older file there is replaced.
      examples: serialized clips.
    """
    clips = 0
    with staged(address) as temporary:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for example in examples:
                writer.write(example)
                clips += 1
        return ShardInfo(posixpath.basename(address), clips, temporary.stat().st_size, sha256_of(temporary))


def write_text(address: Address, text: str) -> None:
    """Writes a small file so that at any moment there is the old one or the new one, whole."""
    with staged(address) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def committed_csv(address: Address, columns: Sequence[str]) -> Iterator["csv.DictWriter[str]"]:
    """Opens a table that appears under its name, whole, when the block ends well; other keys are left out."""
    with staged(address) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        yield writer


@contextmanager
def staged(address: Address) -> Iterator[Path]:
    """Gives a local file to write, which becomes `address` when the block ends well, and vanishes otherwise.

    A process that is killed in the block leaves `*.tmp` files of its own, which nobody else writes to.
    """
    if remote.is_remote(address):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "staged"
            yield temporary
            remote.upload(temporary, address)
        return
    path = Path(address)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_text(address: Address) -> str:
    """Reads a small file.

    Raises:
      tf.errors.OpError: it cannot be read; NotFoundError when it is not there.
    """
    with tf.io.gfile.GFile(address, "rb") as file:
        return file.read().decode()


def size_of(address: Address) -> int | None:
    """A file's size in bytes; None when there is no such file."""
    try:
        found = tf.io.gfile.stat(address)
    except tf.errors.NotFoundError:
        return None
    return None if found.is_directory else found.length


def sha256_of(address: Address) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(address, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shard_names_in(folder: Address) -> list[str]:
    """The names of the files in `folder` that look like shards, sorted."""
    return sorted(name for name in tf.io.gfile.listdir(folder) if ".tfrecord" in Path(name).suffixes)


def write_info(data_dir: Address, info: DatasetInfo) -> None:
    """Commits a dataset: without this file, written last, the folder is not one."""
    write_text(posixpath.join(data_dir, INFO_NAME), json.dumps(asdict(info), indent=2) + "\n")


def read_info(data_dir: Address) -> DatasetInfo:
    """Reads dataset_info.json.

    Raises:
      UnreachableError: there is no such folder, or its server does not answer.
      ShardError: the folder is not a finished dataset, or of a schema that this version does not read.
      RemoteError: the address is of a file system that cannot be reached.
    """
    remote.connect(data_dir)
    path = posixpath.join(data_dir, INFO_NAME)
    try:
        values = json.loads(read_text(path))
        version = values["schema_version"]
    except tf.errors.NotFoundError:
        if not tf.io.gfile.isdir(data_dir):
            else_wrong = ", or credentials or endpoint are wrong" if remote.is_remote(data_dir) else ""
            raise UnreachableError(f"There is no folder {data_dir}{else_wrong}.") from None
        raise ShardError(
            f"{data_dir} has no {INFO_NAME}, so it is not a finished dataset. If its conversion was "
            "interrupted, run the same tools/convert_videos.py command again."
        ) from None
    except tf.errors.OpError as error:
        raise UnreachableError(f"Cannot read {path}: {first_line(error)}.") from error
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


def shard_paths(data_dir: Address, info: DatasetInfo, split: str) -> list[str]:
    """The paths of a split's shards, in order, after the cheap checks: each is there and has its size.

    Raises:
      ShardError: one is not, or the split has no clips.
    """
    if info.num_clips(split) == 0:
        raise ShardError(f"{data_dir} has no {split} clips.")
    paths = []
    for shard in info.splits[split]:
        path = posixpath.join(data_dir, shard.name)
        found = size_of(path)
        if found != shard.bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ShardError(
                f"{path} {state}; {INFO_NAME} says {shard.bytes} bytes, {shard.clips} clips. "
                "Run tools/inspect_shards.py --verify to see all that is wrong, and the same "
                "tools/convert_videos.py command again to repair it."
            )
        paths.append(path)
    return paths


def damage_in(error: tf.errors.OpError) -> str | None:
    """What TensorFlow says of a damaged record, in a few words; None where it speaks of something else."""
    found = re.search(
        r"(corrupted|truncated) record|contained only \d+ elements|a frame of another size"
        r"|(Invalid PNG|Invalid protocol|Unknown image|jpeg::|DecodeRaw).*",
        error.message,
    )
    return found.group() if found else None


def read_videos(data_dir: Address) -> Iterator[dict[str, str]]:
    """Yields the rows of videos.csv, one per source video, in the order of the shards."""
    path = posixpath.join(data_dir, VIDEOS_NAME)
    try:
        with tf.io.gfile.GFile(path) as file:
            yield from csv.DictReader(file)
    except tf.errors.NotFoundError:
        raise ShardError(f"{path} is missing. Convert the videos again.") from None


def clip_rows(data_dir: Address, split: str) -> list[dict[str, str]]:
    """The rows of videos.csv that became clips of `split`, in the order of its records."""
    return [row for row in read_videos(data_dir) if row["split"] == split and row["status"] == "ok"]


def first_line(error: BaseException) -> str:
    """What an error says, without what TensorFlow puts below its first line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
