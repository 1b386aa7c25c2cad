"""Local copies of a remote dataset equal its files, or are copied again. ram:// is the remote file system."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf

from synthetic import committed_bytes, flip_bit
from vidpipe.config import SPLITS, EvaluationConfig, TrainConfig
from vidpipe.data import convert, input_pipeline, shard_cache, shards
from vidpipe.data.dataset import Dataset, open_dataset
from vidpipe.evaluation import evaluate
from vidpipe.training import train

ADDRESS = "ram://cached/records"
SHARD = "train-00000-of-00002.tfrecord"


def _put(folder: Path) -> None:
    _remove()  # ram:// appends to a file that is written again
    for name, content in committed_bytes(folder).items():
        with tf.io.gfile.GFile(f"{ADDRESS}/{name}", "wb") as file:
            file.write(content)


def _remove() -> None:
    """Deletes the files one by one, since ram:// has no recursive removal."""
    for name in tf.io.gfile.glob(f"{ADDRESS}/*"):
        tf.io.gfile.remove(name)


@pytest.fixture
def remote_data(data_dir: str) -> str:
    _put(Path(data_dir))
    return ADDRESS


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the copied files, in order."""
    addresses: list[str] = []
    original = shard_cache._copy

    def copy(address: str, path: Path) -> str:
        addresses.append(address.rpartition("/")[2])
        return original(address, path)

    monkeypatch.setattr(shard_cache, "_copy", copy)
    return addresses


def _fetch(cache_dir: Path) -> Path:
    """Copies all shards; returns the folder of the copies."""
    with open_dataset(ADDRESS, str(cache_dir)) as dataset:
        for split in SPLITS:
            dataset.fetch(split)
        return Path(dataset.read_dir)


def test_files_are_copied_once_and_equal_the_originals(
    tmp_path: Path, data_dir: str, remote_data: str, copied: list[str]
) -> None:
    folder = _fetch(tmp_path)
    assert folder.parent == tmp_path
    names = set(committed_bytes(Path(data_dir)))
    assert {name: (folder / name).read_bytes() for name in names} == committed_bytes(Path(data_dir))
    assert not list(folder.glob("*.tmp"))
    assert sorted(copied) == sorted(names - {shards.INFO_NAME})
    _fetch(tmp_path)
    assert len(copied) == len(names) - 1


def test_a_local_dataset_is_not_copied(tmp_path: Path, data_dir: str) -> None:
    with open_dataset(data_dir, str(tmp_path / "cache")) as dataset:
        dataset.fetch("train")
        assert dataset.read_dir == data_dir
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "corrupt",
    [
        pytest.param(flip_bit, id="flipped bit"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-300]), id="truncated"),
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    ],
)
def test_a_corrupt_copy_is_copied_again(
    tmp_path: Path, data_dir: str, remote_data: str, copied: list[str], corrupt: Callable[[Path], object]
) -> None:
    folder = _fetch(tmp_path)
    copied.clear()
    corrupt(folder / SHARD)
    _fetch(tmp_path)
    assert copied == [SHARD]
    assert (folder / SHARD).read_bytes() == (Path(data_dir) / SHARD).read_bytes()


def test_a_copy_with_another_digest_is_not_kept(tmp_path: Path, data_dir: str, remote_data: str) -> None:
    tf.io.gfile.remove(f"{ADDRESS}/{SHARD}")
    with tf.io.gfile.GFile(f"{ADDRESS}/{SHARD}", "wb") as file:
        file.write((Path(data_dir) / SHARD).read_bytes()[:-1])
    message = f"{ADDRESS}/{SHARD} was copied, but its sha256 differs .* --data_dir={ADDRESS} --verify names"
    with pytest.raises(shards.ShardError, match=message):
        _fetch(tmp_path)
    assert not list(tmp_path.rglob("train-00000*"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_changed_dataset_is_copied_to_another_folder(
    tmp_path: Path, remote_data: str, conversion: Callable, copied: list[str]
) -> None:
    old = _fetch(tmp_path / "cache")
    convert.convert(conversion(tmp_path / "other", encoding="raw"))
    _put(tmp_path / "other")
    new = _fetch(tmp_path / "cache")
    assert new != old
    expected = committed_bytes(tmp_path / "other")
    assert {name: (new / name).read_bytes() for name in expected} == expected


def test_two_readers_copy_each_file_once(tmp_path: Path, remote_data: str, copied: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(_fetch, [tmp_path, tmp_path])
    assert first == second
    assert len(copied) == len(set(copied)) == 6


def test_the_copies_are_read_when_the_server_does_not_answer(
    tmp_path: Path, remote_data: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _fetch(tmp_path)
    _remove()
    with caplog.at_level(logging.WARNING):
        assert _fetch(tmp_path) == folder
    assert f"There is no folder {ADDRESS}" in caplog.text
    assert f"Reading the local copies in {folder} instead." in caplog.text
    with pytest.raises(shards.UnreachableError, match="There is no folder"):
        _fetch(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["edited", "deleted", "another folder"])
def test_copies_are_checked_when_the_server_does_not_answer(
    tmp_path: Path, remote_data: str, damage: str
) -> None:
    folder = Path(_fetch(tmp_path))
    _remove()
    info = folder / shards.INFO_NAME
    if damage == "edited":
        info.write_text(info.read_text().replace('"short"', '"tall"'))
    elif damage == "deleted":
        info.unlink()
    else:
        next(tmp_path.glob("last-seen-*")).write_bytes(b"\xff")
    message = f"dataset_info.json is missing or corrupt, and {ADDRESS} does not answer"
    with pytest.raises(shard_cache.ShardCacheError, match=message):
        _fetch(tmp_path)


def test_a_corrupt_copy_is_not_read_when_the_server_does_not_answer(tmp_path: Path, remote_data: str) -> None:
    folder = Path(_fetch(tmp_path))
    _remove()
    flip_bit(next(folder.glob("train-*.tfrecord")))
    with pytest.raises(shards.ShardError, match=f"^{ADDRESS} can no longer be read"):
        _fetch(tmp_path)


def test_copies_of_an_unfinished_dataset_are_not_read(tmp_path: Path, remote_data: str) -> None:
    _fetch(tmp_path)
    tf.io.gfile.remove(f"{ADDRESS}/{shards.INFO_NAME}")
    with pytest.raises(shards.ShardError, match="is not a finished dataset"):
        _fetch(tmp_path)


def test_a_cache_dir_that_cannot_be_written_is_named(tmp_path: Path, remote_data: str) -> None:
    (tmp_path / "cache").touch()
    message = "Cannot write local copies to .*choose another --cache_dir"
    with pytest.raises(shard_cache.ShardCacheError, match=message):
        _fetch(tmp_path / "cache")


def test_batches_from_copies_equal_batches_from_the_remote_dataset(tmp_path: Path, remote_data: str) -> None:
    batches = []
    for cache_dir in (None, str(tmp_path)):
        with open_dataset(ADDRESS, cache_dir) as dataset:
            dataset.fetch("train")
            epoch = input_pipeline.train_dataset(dataset, batch_size=8, seed=1, epoch=0, num_frames=3)
            ((inputs, label, _),) = epoch
            batches.append((inputs["frames"].numpy().tolist(), label.numpy().tolist()))
    assert batches[0] == batches[1]


@pytest.mark.slow
def test_a_run_with_copies_equals_a_run_without(
    tmp_path: Path,
    remote_data: str,
    train_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy that is corrupted during the run is named, and copied again at the next start.

    The run resumes with or without `cache_dir`, which is not a setting of the run.
    """
    config = replace(
        train_config(tmp_path / "run", epochs=1, cache_features="off"),
        data_dir=ADDRESS, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    original = Dataset.fetch

    def fetch_then_corrupt(dataset: Dataset, split: str) -> None:
        original(dataset, split)
        if split == "train":
            flip_bit(Path(dataset.shard_paths("train")[0]))

    monkeypatch.setattr(Dataset, "fetch", fetch_then_corrupt)
    message = f"A local copy of {ADDRESS} in .* is corrupt: {SHARD}, position 0, train/.*: corrupted"
    with pytest.raises(shards.ShardError, match=message):
        train.train(config)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "direct")
    with_copies = train.train(config).metrics
    direct = train.train(replace(config, cache_dir=None, run_dir=str(tmp_path / "direct"))).metrics
    for name in ("loss", "val_loss"):
        assert with_copies[name] == direct[name]
    evaluations = [
        evaluate.evaluate(EvaluationConfig(run_dir=config.run_dir, data_dir=ADDRESS, cache_dir=cache)).metrics
        for cache in (None, config.cache_dir)
    ]
    assert evaluations[0] == evaluations[1]
