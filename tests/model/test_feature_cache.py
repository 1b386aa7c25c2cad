"""Cached features are the output of the frozen blocks; only missing or corrupt chunks are computed."""

import errno
import gc
import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from filelock import FileLock

from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.model import feature_cache, fused
from vidpipe.model.feature_cache import FeatureCacheError, FeatureTable, cached_features
from vidpipe.model.feature_dataset import eval_feature_dataset
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.model.fused import FusedModel

Build = Callable[..., FusedModel]


def frozen_of(model: FusedModel) -> FrameEncoder:
    assert model.frozen is not None
    return model.frozen


@pytest.fixture(scope="module", params=["none", "block5"])
def fine_tune(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(build: Build, fine_tune: str) -> FusedModel:
    return build(fine_tune=fine_tune, num_classes=2)


@pytest.fixture(scope="module")
def counted(build: Build) -> tuple[FrameEncoder, list[int]]:
    """A frozen backbone, and the number of frames that are not black in each of its calls."""
    counts: list[int] = []
    original = fused.build_backbone

    class Counter(keras.layers.Layer):
        def call(self, frames: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(self._count, [frames], tf.uint8), frames.shape)

        def _count(self, frames: np.ndarray) -> np.ndarray:
            counts.append(int(frames.any(axis=(1, 2, 3)).sum()))
            return frames

    def counting(*arguments: Any) -> tuple[keras.Model, keras.Model]:
        preprocess, backbone = original(*arguments)
        frames = keras.Input((32, 32, 3), dtype="uint8")
        return keras.Model(frames, preprocess(Counter(dtype="uint8")(frames)), name="preprocess"), backbone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "build_backbone", counting)
        return frozen_of(build()), counts


@pytest.fixture(scope="module")
def frozen(counted: tuple[FrameEncoder, list[int]]) -> FrameEncoder:
    return counted[0]


@pytest.fixture
def counts(counted: tuple[FrameEncoder, list[int]], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of real frames in each call of `frozen` during a test; chunks have 2 clips."""
    monkeypatch.setattr(feature_cache, "_CHUNK_CLIPS", 2)
    counted[1].clear()
    return counted[1]


@pytest.fixture(scope="module")
def intact_dir(frozen: FrameEncoder, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the features of train and val, in chunks of 2 clips."""
    folder = tmp_path_factory.mktemp("intact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "_CHUNK_CLIPS", 2)
        for split in ("train", "val"):
            cached_features(frozen, dataset, split=split, cache_dirs=[str(folder)])
    return folder


@pytest.fixture
def cache_dir(intact_dir: Path, tmp_path: Path) -> Path:
    """A copy of `intact_dir` to be changed."""
    return shutil.copytree(intact_dir, tmp_path / "copy")


def read_intact(intact_dir: Path, split: str) -> FeatureTable:
    (folder,) = intact_dir.glob(f"features/{split}-*/")
    return FeatureTable(*(np.load(folder / f"{field}.npy") for field in ("features", "mask", "label")))


def assert_same(table: FeatureTable, expected: FeatureTable) -> None:
    for field in ("features", "mask", "label"):
        assert (getattr(table, field) == getattr(expected, field)).all()


def test_the_table_holds_the_output_of_the_frozen_blocks(
    model: FusedModel, fine_tune: str, dataset: Dataset, tmp_path: Path
) -> None:
    assert model.frozen is not None and model.trained is not None
    table = cached_features(frozen_of(model), dataset, split="test", cache_dirs=[str(tmp_path)])
    ((inputs, label, _),) = eval_dataset(dataset, batch_size=6, split="test", num_frames=4)
    assert table.features.shape == ((6, 4, 512) if fine_tune == "none" else (6, 4, 2, 2, 512))
    assert table.features.dtype == (np.float32 if fine_tune == "none" else np.float16)
    # Features are stored exactly, feature maps with the three digits of float16.
    relative, absolute = (1e-7, 1e-5) if fine_tune == "none" else (1e-3, 1e-6)
    expected = model.frozen(inputs["frames"].numpy(), inputs["mask"].numpy())
    np.testing.assert_allclose(table.features, expected, rtol=relative, atol=absolute)
    assert (table.mask == inputs["mask"].numpy()).all()
    assert (table.features[~table.mask] == 0).all()
    assert (table.label == label.numpy()).all()
    ((cached, cached_label, weight),) = eval_feature_dataset(table, batch_size=6, num_frames=4)
    assert (cached["features"].numpy() == table.features).all()
    assert (cached_label.numpy() == table.label).all()
    assert weight.numpy().tolist() == [1] * 6
    logits = model.fused(inputs).numpy()
    tolerance = 1e-4 if fine_tune == "none" else 1e-3
    np.testing.assert_allclose(model.trained(cached).numpy(), logits, rtol=tolerance, atol=tolerance)
    assert not table.features.flags.writeable


def test_the_size_is_known_in_advance(
    model: FusedModel, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        table = cached_features(frozen_of(model), dataset, split="val", cache_dirs=[str(tmp_path)])
    expected = feature_cache.size_bytes(frozen_of(model), dataset, ["val"])
    header = 128
    assert expected == sum(path.stat().st_size - header for path in tmp_path.rglob("*.npy"))
    assert expected == table.features.nbytes + 2 * 4 + 2 * 4
    assert expected < feature_cache.size_bytes(frozen_of(model), dataset, ["train", "val"])
    shape = " x ".join(map(str, table.features.shape[1:]))
    size = f"{expected / 1e6:.1f} MB in {tmp_path}"
    assert f"Features of val: 2 clips of {shape} {table.features.dtype}, {size}" in caplog.text


def test_the_second_run_reads(
    frozen: FrameEncoder, dataset: Dataset, intact_dir: Path, cache_dir: Path, counts: list[int]
) -> None:
    table = cached_features(frozen, dataset, split="train", cache_dirs=[str(cache_dir)])
    assert_same(table, read_intact(intact_dir, "train"))
    assert counts == []


def test_features_of_other_weights_are_computed_beside_the_shards(
    build: Build, dataset: Dataset, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("features")
    copy = shutil.copytree(dataset.data_dir, tmp_path / "records", ignore=ignored)
    dataset = replace(dataset, data_dir=str(copy), read_dir=str(copy))
    tables = [
        cached_features(frozen_of(build(seed=seed)), dataset, split="val", cache_dirs=[dataset.read_dir])
        for seed in (3, 4)
    ]
    assert not np.allclose(tables[0].features, tables[1].features)
    assert len(list(copy.glob("features/val-*/features.npy"))) == 2


def assert_it_resumes(
    frozen: FrameEncoder, dataset: Dataset, folder: Path, intact_dir: Path, counts: list[int]
) -> None:
    """Asserts that a computation of `train` that ended after 5 of 8 clips, in chunk 3 of 4, resumes there."""
    (chunks,) = folder.rglob("chunks.json")
    assert [chunk is not None for chunk in json.loads(chunks.read_text())] == [True, True, False, False]
    counts.clear()
    table = cached_features(frozen, dataset, split="train", cache_dirs=[str(folder)])
    assert sum(counts) == table.mask[4:].sum()
    assert None not in json.loads(chunks.read_text())
    expected = read_intact(intact_dir, "train")
    np.testing.assert_allclose(table.features, expected.features, rtol=1e-4, atol=1e-5)
    assert (table.mask == expected.mask).all() and (table.label == expected.label).all()


def test_an_interrupted_computation_resumes_after_its_last_complete_chunk(
    frozen: FrameEncoder,
    dataset: Dataset,
    tmp_path: Path,
    intact_dir: Path,
    counts: list[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> Iterator[Any]:
        yield from eval_dataset(*arguments, **settings).take(5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "eval_dataset", interrupted)
        patch.setattr(FrameEncoder, "clips_per_call", 1)
        with pytest.raises(KeyboardInterrupt):
            cached_features(frozen, dataset, split="train", cache_dirs=[str(tmp_path)])
    assert_it_resumes(frozen, dataset, tmp_path, intact_dir, counts)
    assert "are corrupt" not in caplog.text


KILLED = """
import os, signal, sys
from dataclasses import replace

import keras

from conftest import shallow_vgg16
from vidpipe.config import ClipSpec, ModelConfig
from vidpipe.data.dataset import open_dataset
from vidpipe.model import backbone, feature_cache, frame_encoder
from vidpipe.model.fused import build_model

data_dir, cache_dir = sys.argv[1:]
feature_cache._CHUNK_CLIPS = 2
original = feature_cache.eval_dataset

def killing(*arguments, **settings):
    yield from original(*arguments, **settings).take(5)
    os.kill(os.getpid(), signal.SIGKILL)

feature_cache.eval_dataset = killing
frame_encoder.FrameEncoder.clips_per_call = 1
backbone.BACKBONES["vgg16"] = replace(backbone.BACKBONES["vgg16"], application=shallow_vgg16)
keras.utils.set_random_seed(1)
config = ModelConfig(backbone_weights="none", ensemble_size=2)
spec = ClipSpec(num_frames=4, height=32, width=32)
frozen = build_model(config, spec=spec, num_classes=3, stored_frames=4).frozen
with open_dataset(data_dir) as dataset:
    feature_cache.cached_features(frozen, dataset, split="train", cache_dirs=[cache_dir])
"""


@pytest.mark.processes
def test_a_killed_computation_resumes_after_its_last_complete_chunk(
    frozen: FrameEncoder,
    dataset: Dataset,
    tmp_path: Path,
    intact_dir: Path,
    counts: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path.cwd())])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, dataset.data_dir, str(tmp_path)],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths},
    )
    assert killed.returncode == -signal.SIGKILL
    assert_it_resumes(frozen, dataset, tmp_path, intact_dir, counts)
    assert "are corrupt" not in caplog.text


@pytest.mark.parametrize(("name", "clips"), [("features", [3]), ("mask", [0]), ("label", [1, 7])])
def test_a_corrupt_chunk_is_computed_again(
    frozen: FrameEncoder,
    dataset: Dataset,
    intact_dir: Path,
    cache_dir: Path,
    counts: list[int],
    caplog: pytest.LogCaptureFixture,
    name: str,
    clips: list[int],
) -> None:
    intact = read_intact(intact_dir, "train")
    (path,) = cache_dir.glob(f"features/train-*/{name}.npy")
    array = np.load(path, mmap_mode="r+")
    array.view(np.uint8).reshape(8, -1)[clips, 0] ^= 1
    array.flush()
    table = cached_features(frozen, dataset, split="train", cache_dirs=[str(cache_dir)])
    assert_same(table, intact)
    computed_clips = sorted({clip // 2 * 2 + offset for clip in clips for offset in (0, 1)})
    assert sum(counts) == intact.mask[computed_clips].sum()
    warning = f"{path}: {len(clips)} of 4 chunks are corrupt and will be computed again."
    assert warning in caplog.text
    assert caplog.text.count("are corrupt") == 1


@pytest.mark.parametrize("change", ["truncated", "emptied", "deleted", "reshaped"])
def test_a_file_that_is_not_a_table_is_replaced(
    frozen: FrameEncoder, dataset: Dataset, intact_dir: Path, cache_dir: Path, counts: list[int], change: str
) -> None:
    (path,) = cache_dir.glob("features/val-*/features.npy")
    if change == "deleted":
        path.unlink()
    elif change == "reshaped":
        np.save(path, np.zeros((2, 4, 7), np.float32))
    else:
        os.truncate(path, 0 if change == "emptied" else path.stat().st_size - 1)
    table = cached_features(frozen, dataset, split="val", cache_dirs=[str(cache_dir)])
    assert_same(table, read_intact(intact_dir, "val"))


@pytest.mark.parametrize("text", [None, "[", "[]"], ids=["missing", "truncated", "empty"])
def test_a_table_without_its_digests_is_computed_again(
    frozen: FrameEncoder, dataset: Dataset, cache_dir: Path, counts: list[int], text: str | None
) -> None:
    (path,) = cache_dir.glob("features/val-*/chunks.json")
    path.unlink() if text is None else path.write_text(text)
    table = cached_features(frozen, dataset, split="val", cache_dirs=[str(cache_dir)])
    assert sum(counts) == table.mask.sum()


def test_values_that_float16_cannot_hold_are_an_error(build: Build, dataset: Dataset, tmp_path: Path) -> None:
    model = build(fine_tune="block5")
    bias = model.fused.get_layer("backbone").get_layer("block4_conv1").bias

    def compute(value: float, folder: Path) -> None:
        bias.assign(np.full(512, value))
        cached_features(frozen_of(model), dataset, split="val", cache_dirs=[str(folder)])

    compute(65000.0, tmp_path / "fits")
    with pytest.raises(
        FeatureCacheError, match="the value 656[0-9.]+, but .* float16, at most 65504.*--cache_features=off"
    ):
        compute(65600.0, tmp_path)
    assert not list(tmp_path.glob("features/*/*.npy"))


def test_features_that_are_no_numbers_are_not_kept(build: Build, dataset: Dataset, tmp_path: Path) -> None:
    model = build()
    model.fused.get_layer("backbone").get_layer("block5_conv1").bias.assign(np.full(512, np.inf))
    with pytest.raises(
        FeatureCacheError,
        match=f"of {dataset.video_ids('val')[0]} are NaN or Inf.*weights of the backbone.*precision=float32",
    ):
        cached_features(frozen_of(model), dataset, split="val", cache_dirs=[str(tmp_path)])
    assert not list(tmp_path.glob("features/*/*.npy"))


@pytest.mark.parametrize(("clip", "value"), [(0, np.nan), (2, -np.inf), (1, 7e4)])
def test_the_clip_that_cannot_be_kept_is_named(clip: int, value: float) -> None:
    features = np.ones((3, 2, 4), np.float32)
    feature_cache._check_range(features, np.dtype(np.float16), "abc")
    features[clip, 1, 2] = value
    with pytest.raises(FeatureCacheError, match=f"of {'abc'[clip]} "):
        feature_cache._check_range(features, np.dtype(np.float16), "abc")


@pytest.mark.parametrize("clip", [0, 4, 7])
def test_a_disk_that_is_full_in_the_middle_is_an_error(
    frozen: FrameEncoder, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: int
) -> None:
    """Also in the last chunk, which a thread writes after all clips were read."""
    original = feature_cache._Chunks.write

    def write(chunks: Any, start: int, *values: np.ndarray) -> None:
        if start == clip:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(chunks, start, *values)

    monkeypatch.setattr(feature_cache._Chunks, "write", write)
    monkeypatch.setattr(FrameEncoder, "clips_per_call", 1)
    with pytest.raises(FeatureCacheError, match="No space left on device.*Free disk space"):
        cached_features(frozen, dataset, split="train", cache_dirs=[str(tmp_path)])


def test_a_full_disk_is_an_error_before_anything_is_computed(
    frozen: FrameEncoder,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counts: list[int],
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(FeatureCacheError, match="No space left on device.*Free disk space"):
        cached_features(frozen, dataset, split="val", cache_dirs=[str(tmp_path)])
    assert not list(tmp_path.rglob("*.npy")) and not counts


def test_a_folder_that_cannot_be_written_is_named(
    frozen: FrameEncoder, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "features").touch()
    with pytest.raises(FeatureCacheError, match=f"Cannot write features to {tmp_path}.*--cache_features=off"):
        cached_features(frozen, dataset, split="val", cache_dirs=[str(tmp_path)])


def _become(user: str) -> None:
    """Root may write everywhere, so a test for root goes on as nobody."""
    if os.getuid() == 0:
        os.seteuid(pwd.getpwnam(user).pw_uid)


@pytest.fixture
def intact_val(intact_dir: Path) -> FeatureTable:
    return read_intact(intact_dir, "val")


@pytest.fixture
def read_only(intact_dir: Path, dataset: Dataset) -> Iterator[Path]:
    """A copy of `intact_dir` without write permission, beside a dataset and an empty folder `run`."""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        copy = shutil.copytree(intact_dir, parent / "records")
        shutil.copytree(dataset.data_dir, parent / "data")
        (parent / "run").mkdir()
        parent.chmod(0o755)
        (parent / "run").chmod(0o777)
        for path in copy.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        copy.chmod(0o555)
        _become("nobody")
        try:
            yield copy
        finally:
            _become("root")
            for path in [copy, *copy.rglob("*")]:
                path.chmod(0o755)


def _cached(frozen: FrameEncoder, dataset: Dataset, *folders: Path, **options: Any) -> FeatureTable:
    return cached_features(
        frozen, dataset, split="val", cache_dirs=[str(folder) for folder in folders], **options
    )


def test_complete_features_of_a_read_only_folder_are_read(
    frozen: FrameEncoder, dataset: Dataset, intact_val: FeatureTable, read_only: Path, counts: list[int]
) -> None:
    run = read_only.with_name("run")
    assert_same(_cached(frozen, dataset, read_only, run), intact_val)
    assert counts == []
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("name", ["features.npy", "chunks.json"])
def test_without_complete_ones_the_next_folder_gets_the_features(
    frozen: FrameEncoder,
    dataset: Dataset,
    intact_val: FeatureTable,
    read_only: Path,
    counts: list[int],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _become("root")
    (path,) = read_only.glob(f"features/val-*/{name}")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    path.chmod(0o444)
    _become("nobody")
    data = str(read_only.with_name("data"))
    dataset = replace(dataset, data_dir=data, read_dir=data)
    run = read_only.with_name("run")
    with caplog.at_level(logging.INFO):
        assert_same(_cached(frozen, dataset, read_only, run), intact_val)
    assert counts
    assert len(list(run.glob("features/val-*/features.npy"))) == 1
    assert f"{read_only}/features is read-only: features are kept in {run}/features." in caplog.messages
    counts.clear()
    _cached(frozen, dataset, read_only, run)
    assert counts == []
    with pytest.raises(FeatureCacheError, match=f"Cannot write features to {read_only}/features .Permission"):
        _cached(frozen, dataset, read_only)


@pytest.fixture
def three_tables(cache_dir: Path, frozen: FrameEncoder, dataset: Dataset) -> dict[str, Path]:
    """Val's features, and two copies under other keys: `old` was used before `new`."""
    (val,) = cache_dir.glob("features/val-*/")
    folders = {name: shutil.copytree(val, val.with_name(f"val-{name}")) for name in ("old", "new")}
    for name, age in (("old", 7200), ("new", 3600)):
        mark = folders[name] / "in_use"
        os.utime(mark, (mark.stat().st_mtime - age,) * 2)
    shutil.rmtree(next(cache_dir.glob("features/train-*/")))
    return folders | {"val": val}


def _gib(*folders: Path) -> float:
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir()) / 2**30


def test_the_oldest_features_make_room(
    frozen: FrameEncoder,
    dataset: Dataset,
    cache_dir: Path,
    three_tables: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is room for two tables and a half."""
    room = 2.5 * _gib(three_tables["val"])
    with caplog.at_level(logging.INFO):
        _cached(frozen, dataset, cache_dir, cache_gb=room)
    assert [name for name, folder in three_tables.items() if folder.exists()] == ["new", "val"]
    assert caplog.messages[0].startswith("Deleted the features val-old, the oldest of")
    caplog.clear()
    _cached(frozen, dataset, cache_dir, cache_gb=room)
    assert not [message for message in caplog.messages if "Deleted" in message]


def test_features_in_use_are_not_deleted(
    frozen: FrameEncoder, dataset: Dataset, cache_dir: Path, three_tables: dict[str, Path]
) -> None:
    """`old` is held by another process, `new` is being computed by another thread."""
    holder = subprocess.Popen(
        ["flock", "--shared", three_tables["old"] / "in_use", "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    room = 1.5 * _gib(three_tables["val"])
    refused = pytest.raises(FeatureCacheError, match=r"other trainings use .*Wait for them, give a larger")
    with FileLock(f"{three_tables['new']}.lock"), refused:
        _cached(frozen, dataset, cache_dir, cache_gb=room)
    assert all(folder.exists() for folder in three_tables.values())
    holder.communicate(b"\n")
    _cached(frozen, dataset, cache_dir, cache_gb=room)
    assert [name for name, folder in three_tables.items() if folder.exists()] == ["val"]


def test_a_table_is_in_use_as_long_as_it_is_referred_to(
    frozen: FrameEncoder, dataset: Dataset, cache_dir: Path, three_tables: dict[str, Path]
) -> None:
    table = _cached(frozen, dataset, cache_dir)
    assert not feature_cache._delete_unless_in_use(three_tables["val"])
    view = table.features[1:]
    del table
    gc.collect()
    assert not feature_cache._delete_unless_in_use(three_tables["val"])
    del view
    gc.collect()
    assert feature_cache._delete_unless_in_use(three_tables["val"])


def test_the_splits_of_a_run_do_not_make_room_for_each_other(
    frozen: FrameEncoder, dataset: Dataset, cache_dir: Path
) -> None:
    (val,) = cache_dir.glob("features/val-*/")
    with pytest.raises(FeatureCacheError, match="give a larger --cache_gb"):
        cached_features(frozen, dataset, split="train", cache_dirs=[str(cache_dir)], cache_gb=_gib(val))
    assert val.exists()
