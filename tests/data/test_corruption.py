"""The search for a corrupt record, and which errors of TensorFlow mean that a record is corrupt."""

import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from synthetic import flip_bit
from vidpipe.data import corruption, shards

SHARDS = ("train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord")


@pytest.fixture
def copy(data_dir: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_dir, tmp_path / "copy"))


def test_a_valid_dataset_has_no_corrupt_record(data_dir: str) -> None:
    assert corruption.find_corrupt_record(data_dir) is None


def test_the_corrupt_record_is_found_and_missing_shards_are_skipped(copy: Path) -> None:
    (copy / SHARDS[0]).unlink()
    flip_bit(copy / SHARDS[1], 2)
    row = shards.clip_rows(copy, "train")[6]
    assert corruption.find_corrupt_record(str(copy)) == (
        f"{SHARDS[1]}, position 2, {row['video_id']}: corrupted record; the rest of the shard cannot be read"
    )


def test_shards_with_a_wrong_digest_are_searched_first(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_bit(copy / SHARDS[1])
    searched: list[str] = []
    original = corruption.check_records

    def check_records(address: str, *arguments: object) -> object:
        searched.append(Path(address).name)
        return original(address, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(corruption, "check_records", check_records)
    assert corruption.find_corrupt_record(str(copy)) is not None
    assert searched == [SHARDS[1]]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("corrupted record at 12 [Op:IteratorGetNext]", "corrupted record"),
        ("truncated record at 12", "truncated record"),
        ("expected to contain 8 elements but contained only 5 elements.", "contained only 5 elements"),
        ("assertion failed: [a frame of another size] [Condition x == y", "a frame of another size"),
        ("{{function_node f}} Invalid PNG data, size 50", "Invalid PNG data, size 50"),
        ("Unknown image file format. One of JPEG", "Unknown image file format. One of JPEG"),
        ("jpeg::Uncompress failed.", "jpeg::Uncompress failed."),
        ("OOM when allocating tensor with shape[3]", None),
        ("curlCode: 52, nothing", None),
    ],
)
def test_symptoms(message: str, expected: str | None) -> None:
    assert corruption.symptom(tf.errors.UnknownError(None, None, message)) == expected
