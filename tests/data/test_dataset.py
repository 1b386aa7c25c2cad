"""Opening a dataset: its properties, and the errors of a block that reads it."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from synthetic import committed_bytes, flip_bit
from vidpipe.data import shards
from vidpipe.data.dataset import Dataset, open_dataset
from vidpipe.data.input_pipeline import eval_dataset

SHARD = "train-00000-of-00002.tfrecord"


def test_properties_of_a_dataset(dataset: Dataset, data_dir: str, info: shards.DatasetInfo) -> None:
    assert (dataset.data_dir, dataset.read_dir, dataset.info) == (data_dir, data_dir, info)
    assert (dataset.classes, dataset.clip) == (info.classes, info.clip)
    assert [dataset.num_clips(split) for split in ("train", "val", "test")] == [8, 2, 6]
    assert dataset.train_splits == ("train", "val")
    assert dataset.clip_rows("test") == shards.clip_rows(data_dir, "test")
    assert dataset.video_ids("test") == [row["video_id"] for row in dataset.clip_rows("test")]
    assert dataset.shard_paths("test") == shards.shard_paths(data_dir, info, "test")


def test_without_validation_clips_training_reads_one_split(data_dir: str, info: shards.DatasetInfo) -> None:
    without = dataclasses.replace(info, splits=info.splits | {"val": ()})
    assert Dataset(data_dir, data_dir, without).train_splits == ("train",)


def test_a_folder_that_is_no_dataset_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(shards.ShardError, match="not a finished dataset"), open_dataset(str(tmp_path)):
        pytest.fail("the block ran")


def test_a_missing_shard_is_named_by_fetch(data_dir: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    (folder / SHARD).unlink()
    with open_dataset(str(folder)) as dataset:
        dataset.fetch("test")
        with pytest.raises(shards.ShardError, match=f"{SHARD} is missing"):
            dataset.fetch("train")


def _read_train(dataset: Dataset) -> None:
    for _ in eval_dataset(dataset, batch_size=4, split="train", num_frames=4):
        pass


def test_a_corrupt_record_is_named(data_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    flip_bit(folder / SHARD, 2)
    video_id = shards.clip_rows(folder, "train")[2]["video_id"]
    message = (
        rf"A shard of {folder} is corrupt: {SHARD}, position 2, {video_id}: corrupted record; the rest .*"
        rf"inspect_shards.py --data_dir={folder} --verify names every .*convert_videos.py command .* repairs"
    )
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(shards.ShardError, match=message) as raised,
        open_dataset(str(folder)) as dataset,
    ):
        _read_train(dataset)
    assert isinstance(raised.value.__cause__, tf.errors.DataLossError)
    assert f"A record of {folder} cannot be read (corrupted record); searching for it." in caplog.text


def test_a_record_that_is_valid_at_the_second_read_is_reported(data_dir: str) -> None:
    message = r"could not be read \(corrupted record\), but a second read found every record valid. Run"
    with pytest.raises(shards.ShardError, match=message), open_dataset(data_dir):
        raise tf.errors.DataLossError(None, None, "corrupted record at 12")


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[3] [Op:Conv2D]"),
        tf.errors.UnknownError(None, None, "Object gone [Op:IteratorGetNext]"),
        ValueError("corrupted record"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_of_a_block_are_not_changed(data_dir: str, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, open_dataset(data_dir):
        raise error
    assert raised.value is error


@pytest.fixture(scope="module")
def remote_data(data_dir: str) -> str:
    """A copy of `data_dir` on TensorFlow's file system in memory."""
    address = "ram://opened/records"
    for name, content in committed_bytes(Path(data_dir)).items():
        with tf.io.gfile.GFile(f"{address}/{name}", "wb") as file:
            file.write(content)
    return address


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "{{function_node __wrapped__IteratorGetNext_CPU:0}} : curlCode: 52, nothing [Op:IteratorGetNext]",
            "curlCode: 52, nothing",
        ),
        ("Object ram://opened/records/a does not exist", "Object ram://opened/records/a does not exist"),
    ],
)
def test_read_errors_of_a_remote_dataset_are_explained(remote_data: str, message: str, reason: str) -> None:
    with pytest.raises(shards.ShardError) as raised, open_dataset(remote_data):
        raise tf.errors.UnknownError(None, None, message)
    assert str(raised.value) == (
        f"{remote_data} can no longer be read ({reason}). When it can be reached again, run the same "
        "command; training resumes from its last checkpoint."
    )


def test_an_error_of_the_model_is_not_a_read_error(remote_data: str) -> None:
    message = "{{function_node __wrapped__Conv2D_GPU:0}} no algorithm [Op:Conv2D]"
    with pytest.raises(tf.errors.UnknownError), open_dataset(remote_data):
        raise tf.errors.UnknownError(None, None, message)


def test_a_corrupt_local_copy_is_named(remote_data: str, tmp_path: Path) -> None:
    message = (
        f"A local copy of {remote_data} in {tmp_path}/.* is corrupt: {SHARD}, position 0, train/.*: "
        "corrupted record; .*copies that shard again, and training resumes from its last checkpoint"
    )
    with pytest.raises(shards.ShardError, match=message), open_dataset(remote_data, str(tmp_path)) as dataset:
        dataset.fetch("train")
        assert Path(dataset.read_dir).parent == tmp_path
        flip_bit(Path(dataset.read_dir) / SHARD)
        _read_train(dataset)
