"""Copies of a remote dataset are the dataset's bytes, or are made again; ram:// is the remote file system."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf

from synthetic import committed_bytes
from vidpipe import evaluate, input_pipeline, shard_cache, shards, train
from vidpipe.config import TrainConfig
from vidpipe.spec import SPLITS

ADDRESS = "ram://cached/records"
SHARD = "train-00000-of-00002.tfrecord"


def _put(folder: Path) -> None:
    _remove()  # ram:// does not shorten a file that is written again
    for name, content in committed_bytes(folder).items():
        with tf.io.gfile.GFile(f"{ADDRESS}/{name}", "wb") as file:
            file.write(content)


def _remove() -> None:
    """ram:// has no recursive removal, and a folder is gone with its last file."""
    for name in tf.io.gfile.glob(f"{ADDRESS}/*"):
        tf.io.gfile.remove(name)


@pytest.fixture
def remote_data(data_dir: str) -> str:
    _put(Path(data_dir))
    return ADDRESS


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were copied, one after the other."""
    addresses: list[str] = []
    original = shard_cache._copy

    def copy(address: str, path: Path) -> str:
        addresses.append(address.rpartition("/")[2])
        return original(address, path)

    monkeypatch.setattr(shard_cache, "_copy", copy)
    return addresses


def _fetch(cache_dir: Path) -> Path:
    """Everything, as two runs would."""
    folder = shard_cache.open_dataset(ADDRESS, str(cache_dir))
    info = shards.read_info(folder)
    for split in SPLITS:
        shard_cache.fetch_shards(ADDRESS, folder, info, split)
    return Path(folder)


def test_the_copies_are_the_files_and_are_made_once(
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


def test_a_local_dataset_is_its_own_folder(tmp_path: Path, data_dir: str, info: shards.DatasetInfo) -> None:
    assert shard_cache.open_dataset(data_dir, str(tmp_path / "cache")) == data_dir
    shard_cache.fetch_shards(data_dir, data_dir, info, "train")
    assert not (tmp_path / "cache").exists()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_flip, id="flipped"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-300]), id="cut"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    ],
)
def test_a_damaged_copy_is_made_again(
    tmp_path: Path, data_dir: str, remote_data: str, copied: list[str], damage: Callable[[Path], object]
) -> None:
    folder = _fetch(tmp_path)
    copied.clear()
    damage(folder / SHARD)
    _fetch(tmp_path)
    assert copied == [SHARD]
    assert (folder / SHARD).read_bytes() == (Path(data_dir) / SHARD).read_bytes()


def test_a_copy_that_arrives_damaged_is_not_kept(tmp_path: Path, data_dir: str, remote_data: str) -> None:
    tf.io.gfile.remove(f"{ADDRESS}/{SHARD}")
    with tf.io.gfile.GFile(f"{ADDRESS}/{SHARD}", "wb") as file:
        file.write((Path(data_dir) / SHARD).read_bytes()[:-1])
    with pytest.raises(shards.ShardError, match=f"{ADDRESS}/{SHARD}: what arrives has not the sha256"):
        _fetch(tmp_path)
    assert not list(tmp_path.rglob("train-00000*"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_changed_dataset_never_reads_old_bytes(
    tmp_path: Path, remote_data: str, conversion: Callable, copied: list[str]
) -> None:
    from vidpipe import convert

    old = _fetch(tmp_path / "cache")
    convert.convert(conversion(tmp_path / "other", encoding="raw"))
    _put(tmp_path / "other")
    new = _fetch(tmp_path / "cache")
    assert new != old
    expected = committed_bytes(tmp_path / "other")
    assert {name: (new / name).read_bytes() for name in expected} == expected


def test_two_readers_at_once_copy_each_file_once(tmp_path: Path, remote_data: str, copied: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(_fetch, [tmp_path, tmp_path])
    assert first == second
    assert len(copied) == len(set(copied)) == 6


def test_when_the_server_is_gone_the_copies_are_read(
    tmp_path: Path, remote_data: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _fetch(tmp_path)
    _remove()
    with caplog.at_level(logging.WARNING):
        assert _fetch(tmp_path) == folder
    assert f"There is no folder {ADDRESS}" in caplog.text
    assert f"Reading on from the copy in {folder}" in caplog.text
    with pytest.raises(shards.UnreachableError, match="There is no folder"):
        _fetch(tmp_path / "empty")


def test_a_dataset_under_repair_is_not_read_from_its_copies(tmp_path: Path, remote_data: str) -> None:
    _fetch(tmp_path)
    tf.io.gfile.remove(f"{ADDRESS}/{shards.INFO_NAME}")
    with pytest.raises(shards.ShardError, match="is not a finished dataset"):
        _fetch(tmp_path)


def test_a_cache_dir_that_cannot_be_written_is_named(tmp_path: Path, remote_data: str) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(shard_cache.ShardCacheError, match="Cannot write copies to .*another --cache_dir"):
        _fetch(tmp_path / "cache")


def test_a_run_through_copies_and_its_resumption_without_them(
    tmp_path: Path,
    remote_data: str,
    train_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy damaged during the run is named, copied again at the next start; cache_dir is no setting."""
    from dataclasses import replace

    config = replace(
        train_config(tmp_path / "run", epochs=1, cache_features="off"),
        data_dir=ADDRESS, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip

    def checked_then_damaged(data_dir: str, info: shards.DatasetInfo, split: str) -> list[str]:
        paths = shards.shard_paths(data_dir, info, split)
        assert paths[0].startswith(str(tmp_path / "cache"))
        if split == "train":
            _flip(Path(paths[0]))
        return paths

    monkeypatch.setattr(input_pipeline, "shard_paths", checked_then_damaged)
    with pytest.raises(
        shards.ShardError,
        match=f"A copy of {ADDRESS} in .* is damaged: {SHARD}, position 0, train/.*: corrupted",
    ):
        train.train(config)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "direct")
    through = train.train(config).metrics
    direct = train.train(replace(config, cache_dir=None, run_dir=str(tmp_path / "direct"))).metrics
    for name in ("loss", "val_loss"):
        assert through[name] == direct[name]
    evaluations = [
        evaluate.evaluate(config.run_dir, ADDRESS, "test", cache_dir=cache).metrics
        for cache in (None, config.cache_dir)
    ]
    assert evaluations[0] == evaluations[1]
