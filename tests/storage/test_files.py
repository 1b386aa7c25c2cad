"""Files are complete or absent, on the local disk and on ram://, TensorFlow's file system in memory."""

import csv
import hashlib
from pathlib import Path

import pytest
import tensorflow as tf

from vidpipe.storage import files


@pytest.fixture(params=["local", "ram://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the local disk, or on a remote file system."""
    return str(tmp_path) if request.param == "local" else f"ram://files/{tmp_path.name}"


def test_a_text_file_is_written_and_read(folder: str) -> None:
    files.write_text(f"{folder}/a.txt", "ä\n")
    assert files.read_text(f"{folder}/a.txt") == "ä\n"
    assert tf.io.gfile.listdir(folder) == ["a.txt"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    for text in ("first", "2"):  # not on ram://, which appends to a file that is written again
        files.write_text(tmp_path / "a.txt", text)
        assert files.read_text(tmp_path / "a.txt") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_block_that_fails_writes_nothing_and_keeps_the_old_file(folder: str) -> None:
    files.write_text(f"{folder}/a.txt", "old")
    with pytest.raises(ZeroDivisionError), files.staged(f"{folder}/a.txt") as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert files.read_text(f"{folder}/a.txt") == "old"
    assert tf.io.gfile.listdir(folder) == ["a.txt"]


def test_a_file_appears_at_the_end_of_the_block(folder: str) -> None:
    with files.staged(f"{folder}/a.txt") as temporary:
        temporary.write_text("new")
        assert files.size_of(f"{folder}/a.txt") is None
    assert files.size_of(f"{folder}/a.txt") == 3


def test_a_committed_file_and_its_folder_are_flushed_to_the_disk(tmp_path: Path, synced: set[int]) -> None:
    files.write_text(tmp_path / "a.txt", "text")
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "a.txt")} <= synced


def test_a_csv_file_has_the_columns_and_ignores_other_keys(folder: str) -> None:
    with files.staged_csv(f"{folder}/a.csv", ("name", "reason")) as writer:
        writer.writerow({"name": "a,b", "reason": "ä", "other": 1})
        writer.writerow({"name": "c"})
    text = files.read_text(f"{folder}/a.csv")
    assert text == 'name,reason\n"a,b",ä\nc,\n'
    assert [row["name"] for row in csv.DictReader(text.splitlines())] == ["a,b", "c"]


def test_size_and_sha256(folder: str) -> None:
    content = "x" * (2**20 + 1)  # more than one block
    files.write_text(f"{folder}/a", content)
    assert files.size_of(f"{folder}/a") == len(content)
    assert files.sha256_of(f"{folder}/a") == hashlib.sha256(content.encode()).hexdigest()


def test_what_is_not_a_file_has_no_size(folder: str) -> None:
    tf.io.gfile.makedirs(f"{folder}/inner")
    files.write_text(f"{folder}/inner/a", "")
    assert files.size_of(f"{folder}/inner/a") == 0
    assert files.size_of(f"{folder}/inner") is None
    assert files.size_of(f"{folder}/other") is None


def test_deleting_a_missing_file_does_nothing_and_reading_it_fails(folder: str) -> None:
    with pytest.raises(tf.errors.NotFoundError):
        files.read_text(f"{folder}/a")
    files.delete(f"{folder}/a")
    files.write_text(f"{folder}/a", "")
    files.delete(f"{folder}/a")
    assert files.size_of(f"{folder}/a") is None
