"""The files of a dataset folder (shards, dataset_info.json, videos.csv), and checks that read no records.

TFRecord's own checksums do not detect a file that was cut at the end of a record or a few bytes after it. The
counts, sizes and digests in dataset_info.json do.
"""

import csv
import hashlib
import io
import itertools
import json
import posixpath
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import tensorflow as tf

from vidpipe.config import SPLITS, ClipConfig, fingerprint, from_dict
from vidpipe.data.record_encoding import SCHEMA_VERSION
from vidpipe.errors import VidpipeError, first_line
from vidpipe.storage import files, remote
from vidpipe.storage.remote import Address

INFO_NAME = "dataset_info.json"
VIDEOS_NAME = "videos.csv"
VIDEO_COLUMNS = (
    "video_id", "split", "label", "group", "status", "reason", "message", "shard", "position",
    "frames_shown", "frames_damaged", "frames_kept", "fps", "height", "width", "unconverted",
    "start_sec", "end_sec",
)  # fmt: skip


_NEEDED_COLUMNS = (
    "video_id", "split", "label", "group", "status", "reason", "shard", "position", "frames_kept", "height",
    "width",
)  # fmt: skip
_WRITE_AGAIN = "Run the same tools/convert_videos.py command again: it rewrites this file."


class ShardError(VidpipeError):
    """A dataset folder is incomplete, corrupt or of another schema version."""


class UnreachableError(ShardError):
    """The dataset's address does not answer: there is no such folder, or its server is down."""


@dataclass(frozen=True)
class ShardInfo:
    """One shard file: its name in the folder, its number of clips (records), size in bytes and sha256."""

    name: str
    clips: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetInfo:
    """The content of dataset_info.json.

    Attributes:
      schema_version: of the records.
      classes: ordered; a label is an index into it.
      clip: how videos became clips.
      encoding: encoding of the frames: jpeg, png or raw.
      splits: the shards of each split, in order; empty for a split without videos.
      fingerprint: `fingerprint_of` the settings and the shards.
      settings: everything that decides the bytes of the shards.
      videos_sha256: sha256 of videos.csv.
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
        """Returns the number of clips in a split."""
        return sum(shard.clips for shard in self.splits[split])


def fingerprint_of(settings: dict[str, Any], splits: Mapping[str, Sequence[ShardInfo]]) -> str:
    """Returns a digest that changes with the settings of a dataset and with the content of its records."""
    return fingerprint([settings, {split: [shard.sha256 for shard in splits[split]] for split in SPLITS}])


def shard_name(split: str, index: int, count: int) -> str:
    """Returns a name such as `train-00003-of-00016.tfrecord`."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def write_shard(address: Address, examples: Iterable[bytes]) -> ShardInfo:
    """Writes a shard; the file appears under its name when it is complete and flushed to the disk.

    Args:
      address: address of the shard; an older file there is replaced.
      examples: serialized clips.
    """
    clips = size = 0
    digest = hashlib.sha256()
    with files.staged(address) as temporary:
        with temporary.open("wb") as file:
            for example in examples:
                for part in _tfrecord(example):
                    file.write(part)
                    digest.update(part)
                    size += len(part)
                clips += 1
        return ShardInfo(posixpath.basename(address), clips, size, digest.hexdigest())


def _tfrecord(example: bytes) -> tuple[bytes, bytes, bytes]:
    """Frames a record as tensorflow/core/lib/io/record_writer.h says: length, data, and a checksum of each.

    Written here and not by tf.io.TFRecordWriter, to compute the digest of the shard without reading it again.
    """
    length = struct.pack("<Q", len(example))
    return length + _masked_crc(length), example, _masked_crc(example)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def shard_names_in(data_dir: Address) -> list[str]:
    """Lists the names of the files in a folder that look like shards, sorted."""
    return sorted(name for name in tf.io.gfile.listdir(data_dir) if ".tfrecord" in Path(name).suffixes)


def write_info(data_dir: Address, info: DatasetInfo) -> None:
    """Commits a dataset: dataset_info.json is written last, and a folder without it is not a dataset."""
    files.write_text(posixpath.join(data_dir, INFO_NAME), _text_of(info))


def is_committed(data_dir: Address, info: DatasetInfo) -> bool:
    """Whether a folder with a dataset_info.json is the dataset that `info` describes, with its videos.csv."""
    is_same = files.read_bytes(posixpath.join(data_dir, INFO_NAME)) == _text_of(info).encode()
    table = posixpath.join(data_dir, VIDEOS_NAME)
    return is_same and files.size_of(table) is not None and files.sha256_of(table) == info.videos_sha256


def _text_of(info: DatasetInfo) -> str:
    return json.dumps(asdict(info), indent=2) + "\n"


def read_info(data_dir: Address) -> DatasetInfo:
    """Reads dataset_info.json.

    Raises:
      UnreachableError: there is no such folder, or its server does not answer.
      ShardError: the folder is not a finished dataset, or has a schema that this version cannot read.
      RemoteError: this installation cannot reach the address.
    """
    remote.connect(data_dir)
    address = posixpath.join(data_dir, INFO_NAME)
    try:
        values = json.loads(files.read_text(address))
        version = values["schema_version"]
    except tf.errors.NotFoundError:
        if not tf.io.gfile.isdir(data_dir):
            or_wrong = ", or credentials or endpoint are wrong" if remote.is_remote(data_dir) else ""
            raise UnreachableError(f"There is no folder {data_dir}{or_wrong}.") from None
        raise ShardError(
            f"{data_dir} has no {INFO_NAME}, so it is not a finished dataset. If its conversion was "
            "interrupted, run the same tools/convert_videos.py command again."
        ) from None
    except tf.errors.OpError as error:
        raise UnreachableError(f"Cannot read {address}: {first_line(error)}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ShardError(f"{address} is corrupt ({error!r}). Convert the videos again.") from None
    if version != SCHEMA_VERSION:
        raise ShardError(
            f"{address} has schema version {version}; this vidpipe reads version {SCHEMA_VERSION}. "
            "Convert the videos again, or use the version of vidpipe that wrote it."
        )
    try:
        values["clip"] = from_dict(ClipConfig, values["clip"])
        values["classes"] = tuple(values["classes"])
        values["splits"] = {
            split: tuple(ShardInfo(**shard) for shard in shards) for split, shards in values["splits"].items()
        }
        info = DatasetInfo(**values)
        _check_types(info)
    except (KeyError, TypeError, AttributeError, VidpipeError) as error:
        raise ShardError(f"{address} is corrupt ({error!r}). Convert the videos again.") from None
    if set(info.splits) != set(SPLITS):
        raise ShardError(f"{address} is corrupt: its splits are {', '.join(info.splits)}.")
    return info


def _check_types(info: DatasetInfo) -> None:
    """Raises a TypeError where JSON gave another type than `DatasetInfo` says."""
    expected: list[tuple[object, type]] = [(info.settings, dict)]
    expected += [(text, str) for text in (info.encoding, info.fingerprint, info.videos_sha256, *info.classes)]
    for shard in itertools.chain(*info.splits.values()):
        expected += [(shard.name, str), (shard.sha256, str), (shard.clips, int), (shard.bytes, int)]
    for value, kind in expected:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")


def shard_paths(data_dir: Address, info: DatasetInfo, split: str) -> list[str]:
    """Lists the paths of a split's shards, in order, after checking that each exists and has its size.

    Raises:
      ShardError: a shard is missing or has another size, or the split has no clips.
    """
    if info.num_clips(split) == 0:
        raise ShardError(f"{data_dir} has no {split} clips.")
    paths = []
    for shard in info.splits[split]:
        path = posixpath.join(data_dir, shard.name)
        found = files.size_of(path)
        if found != shard.bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ShardError(
                f"{path} {state}; {INFO_NAME} says {shard.bytes} bytes, {shard.clips} clips. "
                "Run tools/inspect_shards.py --verify to list all problems, and the same "
                "tools/convert_videos.py command again to repair the dataset."
            )
        paths.append(path)
    return paths


def read_videos(data_dir: Address, *, sha256: str | None = None) -> list[dict[str, str]]:
    """Reads the rows of videos.csv, one per source video, in the order of the shards.

    Datasets of earlier versions have no column `message`, and a sentence in `reason`.

    Args:
      data_dir: the dataset.
      sha256: what the digest of the file must be; None for any.

    Raises:
      ShardError: the file is missing or corrupt.
    """
    path = posixpath.join(data_dir, VIDEOS_NAME)
    try:
        data = files.read_bytes(path)
    except tf.errors.NotFoundError:
        raise ShardError(f"{path} is missing. {_WRITE_AGAIN}") from None
    except tf.errors.OpError as error:
        raise UnreachableError(f"Cannot read {path}: {first_line(error)}.") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(f"{path} was edited or is corrupt: {INFO_NAME} has another sha256. {_WRITE_AGAIN}")
    try:
        reader = csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{path} is corrupt ({error}). {_WRITE_AGAIN}") from None
    missing = [name for name in _NEEDED_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ShardError(f"{path} is corrupt: it has no column {missing[0]}. {_WRITE_AGAIN}")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values() or not _has_numbers(row):
            raise ShardError(f"{path} is corrupt in its row {number}. {_WRITE_AGAIN}")
    return rows


def duration_of(row: Mapping[str, str]) -> float:
    """Returns the duration of a clip, seconds, from its row of videos.csv; 0 if it is unknown."""
    try:
        if row.get("end_sec"):
            return float(row["end_sec"]) - float(row["start_sec"])
        return float(row["frames_shown"]) / float(row["fps"])
    except (KeyError, ValueError, ZeroDivisionError):  # tables of earlier versions have other columns
        return 0.0


def clip_rows(data_dir: Address, split: str, *, sha256: str | None = None) -> list[dict[str, str]]:
    """Lists the rows of videos.csv that became clips of `split`, in the order of its records."""
    rows = read_videos(data_dir, sha256=sha256)
    return [row for row in rows if row["split"] == split and row["status"] == "ok"]


def _has_numbers(row: dict[str, str]) -> bool:
    numbers = [row[name] for name in ("position", "frames_kept", "height", "width")]
    return row["status"] != "ok" or all(text.isascii() and text.isdigit() for text in numbers)
