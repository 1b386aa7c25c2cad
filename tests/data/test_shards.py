"""Committed files are complete, and an incomplete or corrupt dataset is rejected with the next step."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from vidpipe.data import shards
from vidpipe.storage import files


@pytest.fixture
def copy(data_dir: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_dir, tmp_path / "copy"))


def test_a_shard_that_fails_midway_leaves_no_file(tmp_path: Path) -> None:
    def examples() -> Iterator[bytes]:
        yield b"one"
        raise RuntimeError("cannot decode")

    with pytest.raises(RuntimeError):
        shards.write_shard(tmp_path / "a.tfrecord", examples())
    assert list(tmp_path.iterdir()) == []


def test_the_info_of_a_shard_describes_its_file(tmp_path: Path) -> None:
    info = shards.write_shard(tmp_path / "a.tfrecord", [b"one", b"three"])
    assert (info.clips, info.bytes) == (2, (tmp_path / "a.tfrecord").stat().st_size)
    assert info.sha256 == files.sha256_of(tmp_path / "a.tfrecord")
    records = tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord"))
    assert [record.numpy() for record in records] == [b"one", b"three"]
    with tf.io.TFRecordWriter(str(tmp_path / "b.tfrecord")) as writer:
        writer.write(b"one")
        writer.write(b"three")
    assert (tmp_path / "a.tfrecord").read_bytes() == (tmp_path / "b.tfrecord").read_bytes()


def test_info_round_trip(data_dir: str, info: shards.DatasetInfo, tmp_path: Path, synced: set[int]) -> None:
    shards.write_info(tmp_path, info)
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / shards.INFO_NAME)} <= synced
    assert shards.read_info(tmp_path) == info
    assert (tmp_path / shards.INFO_NAME).read_bytes() == (Path(data_dir) / shards.INFO_NAME).read_bytes()


def test_a_folder_without_info_is_not_a_dataset(copy: Path) -> None:
    (copy / shards.INFO_NAME).unlink()
    with pytest.raises(shards.ShardError, match=r"not a finished dataset.*run the same .*convert_videos.py"):
        shards.read_info(copy)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(shards.UnreachableError, match="There is no folder .*nowhere"):
        shards.read_info(tmp_path / "nowhere")


def test_another_schema_version_is_rejected(copy: Path) -> None:
    path = copy / shards.INFO_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(shards.ShardError, match="schema version 99; this vidpipe reads version 1"):
        shards.read_info(copy)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}'])
def test_corrupt_info_is_rejected(copy: Path, text: str) -> None:
    (copy / shards.INFO_NAME).write_text(text)
    with pytest.raises(shards.ShardError, match=r"dataset_info.json is corrupt"):
        shards.read_info(copy)


def test_a_missing_videos_csv_is_named(copy: Path) -> None:
    (copy / shards.VIDEOS_NAME).unlink()
    with pytest.raises(
        shards.ShardError, match=r"videos.csv is missing. Run the same tools/convert_videos.py command"
    ):
        list(shards.read_videos(copy))


def test_missing_and_truncated_shards_are_found_before_reading(copy: Path, info: shards.DatasetInfo) -> None:
    shard = info.splits["train"][1]
    path = copy / shard.name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    message = f"{shard.name} has {shard.bytes - 1} bytes; .* {shard.bytes} bytes"
    with pytest.raises(shards.ShardError, match=message):
        shards.shard_paths(copy, info, "train")
    path.unlink()
    with pytest.raises(shards.ShardError, match=f"{shard.name} is missing"):
        shards.shard_paths(copy, info, "train")


def test_an_empty_split_is_rejected(data_dir: str, info: shards.DatasetInfo) -> None:
    without = dataclasses.replace(info, splits=info.splits | {"val": ()})
    with pytest.raises(shards.ShardError, match="has no val clips"):
        shards.shard_paths(data_dir, without, "val")


def test_clip_rows_have_the_order_of_the_records(data_dir: str, info: shards.DatasetInfo) -> None:
    paths = shards.shard_paths(data_dir, info, "test")
    examples = [tf.train.SequenceExample.FromString(r.numpy()) for r in tf.data.TFRecordDataset(paths)]
    names = [e.context.feature["video/filename"].bytes_list.value[0].decode() for e in examples]
    assert [row["video_id"] for row in shards.clip_rows(data_dir, "test")] == names
