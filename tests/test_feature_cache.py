"""Features computed once are the features, in the order in which clips would have come."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import feature_cache, model, shards
from vidpipe.config import ModelConfig
from vidpipe.input_pipeline import eval_dataset, train_dataset
from vidpipe.model import FusedModel, build_model
from vidpipe.spec import ClipSpec


@pytest.fixture(scope="module")
def folder(data_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shutil.copytree(data_dir, tmp_path_factory.mktemp("cache") / "records"))


def _build(seed: int = 1, fine_tune: str = "none") -> FusedModel:
    keras.utils.set_random_seed(seed)
    return build_model(ModelConfig(backbone_weights="none", fine_tune=fine_tune), ClipSpec(4, 32, 32), 2)


def _assert_same(table: np.ndarray, computed: np.ndarray) -> None:
    """Features are kept as they are, feature maps to float16's three digits."""
    relative, absolute = (1e-7, 1e-5) if table.dtype == np.float32 else (1e-3, 1e-6)
    np.testing.assert_allclose(table, computed, rtol=relative, atol=absolute)


@pytest.fixture(scope="module", params=["none", "block5"])
def fine_tune(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(fine_tune: str) -> FusedModel:
    return _build(fine_tune=fine_tune)


def test_the_table_holds_what_the_frozen_part_gives(
    built: FusedModel, fine_tune: str, folder: str, info: shards.DatasetInfo
) -> None:
    assert built.frozen is not None and built.trained is not None
    table = feature_cache.cached_features(built.frozen, folder, info, "test", 4)
    ((inputs, label, _),) = eval_dataset(folder, info, 6, "test")
    assert table.features.shape == ((6, 4, 512) if fine_tune == "none" else (6, 4, 2, 2, 512))
    assert table.features.dtype == (np.float32 if fine_tune == "none" else np.float16)
    _assert_same(table.features, built.frozen(inputs).numpy())
    assert (table.mask == inputs["mask"].numpy()).all()
    assert (table.features[~table.mask] == 0).all()
    assert (table.label == label.numpy()).all()
    ((stored, again, weight),) = feature_cache.eval_feature_dataset(table, 6)
    assert (stored["features"].numpy() == table.features).all()
    assert (again.numpy() == table.label).all()
    assert weight.numpy().tolist() == [1] * 6
    expected = built.fused(inputs).numpy()
    np.testing.assert_allclose(built.trained(stored).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert not table.features.flags.writeable


def _assert_same_batches(built: FusedModel, cached: tf.data.Dataset, frames: tf.data.Dataset) -> int:
    """That features are those of the frames, in the same batches; returns the number of clips."""
    assert built.frozen is not None
    count = 0
    for (features, label, weight), (inputs, true_label, true_weight) in zip(cached, frames, strict=True):
        real, num_frames = true_weight.numpy() > 0, inputs["mask"].shape[1]
        missing = [[0, 0], [0, 4 - num_frames]]  # the frozen part takes all stored frames
        padded = {
            "frames": tf.pad(inputs["frames"], [*missing, *[[0, 0]] * 3]),
            "mask": tf.pad(inputs["mask"], missing),
        }
        expected = built.frozen(padded).numpy()[:, :num_frames]
        _assert_same(features["features"].numpy()[real], expected[real])
        assert (features["mask"].numpy() == inputs["mask"].numpy()).all()
        assert (label.numpy() == true_label.numpy()).all()
        assert (weight.numpy() == true_weight.numpy()).all()
        count += int(real.sum())
    return count


@pytest.mark.parametrize(("skip_batches", "num_frames"), [(0, None), (1, None), (0, 3), (1, 2)])
def test_an_epoch_of_features_is_that_of_frames(
    built: FusedModel, folder: str, info: shards.DatasetInfo, skip_batches: int, num_frames: int | None
) -> None:
    """Of some clips there are fewer frames than are drawn."""
    table = feature_cache.cached_features(built.frozen, folder, info, "train", 4)
    video_ids = [row["video_id"] for row in shards.clip_rows(folder, "train")]
    cached = feature_cache.train_feature_dataset(table, info, video_ids, 3, 1, 5, skip_batches, num_frames)
    frames = train_dataset(folder, info, 3, 1, 5, skip_batches, num_frames=num_frames)
    assert _assert_same_batches(built, cached, frames) == 8 - 3 * skip_batches


@pytest.mark.parametrize(("num_frames", "num_clips"), [(3, 1), (2, 2), (1, 3), (None, 2)])
def test_views_of_features_are_those_of_frames(
    built: FusedModel, folder: str, info: shards.DatasetInfo, num_frames: int | None, num_clips: int
) -> None:
    table = feature_cache.cached_features(built.frozen, folder, info, "test", 4)
    cached = feature_cache.eval_feature_dataset(table, 4, num_frames, num_clips)
    frames = eval_dataset(folder, info, 4, "test", num_frames, num_clips)
    assert _assert_same_batches(built, cached, frames) == 6 * num_clips


def test_what_it_takes_is_known_before(
    built: FusedModel, folder: str, info: shards.DatasetInfo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        table = feature_cache.cached_features(built.frozen, folder, info, "val", 2, str(tmp_path))
    announced = feature_cache.size_bytes(built.frozen, info, ["val"])
    header = 128
    assert announced == sum(path.stat().st_size - header for path in tmp_path.rglob("*.npy"))
    assert announced == table.features.nbytes + 2 * 4 + 2 * 4
    assert announced < feature_cache.size_bytes(built.frozen, info, ["train", "val"])
    shape = " x ".join(map(str, table.features.shape[1:]))
    size = f"{announced / 1e6:.1f} MB in {tmp_path}"
    assert f"Features of val: 2 clips of {shape} {table.features.dtype}, {size}" in caplog.text


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of frames in each call of the backbone of models that are built from now on."""
    counts: list[int] = []
    original = model.build_backbone

    class Counter(keras.layers.Layer):
        def call(self, frames: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(self._count, [frames], tf.uint8), frames.shape)

        def _count(self, frames: np.ndarray) -> np.ndarray:
            counts.append(len(frames))
            return frames

    def counting(*arguments: object) -> tuple[keras.Model, keras.Model]:
        preprocess, backbone = original(*arguments)  # type: ignore[arg-type]
        frames = keras.Input((32, 32, 3), dtype="uint8")
        return keras.Model(frames, preprocess(Counter(dtype="uint8")(frames)), name="preprocess"), backbone

    monkeypatch.setattr(model, "build_backbone", counting)
    monkeypatch.setattr(feature_cache, "_PART_CLIPS", 2)
    return counts


def test_the_second_run_reads_and_other_weights_do_not(
    folder: str, info: shards.DatasetInfo, seen: list[int]
) -> None:
    first = feature_cache.cached_features(_build(3).frozen, folder, info, "val", 2)
    assert sum(seen) == first.mask.sum()
    again = feature_cache.cached_features(_build(3).frozen, folder, info, "val", 1)
    assert (first.features == again.features).all()
    assert sum(seen) == first.mask.sum()
    feature_cache.cached_features(_build(4).frozen, folder, info, "val", 2)
    assert sum(seen) == 2 * first.mask.sum()


KILLED = """
import os, signal, sys
import keras
from vidpipe import feature_cache, shards
from vidpipe.config import ModelConfig
from vidpipe.model import build_model
from vidpipe.spec import ClipSpec

folder, kept_in = sys.argv[1:]
feature_cache._PART_CLIPS = 2
original = feature_cache.eval_dataset

def killing(*arguments, **settings):
    for number, batch in enumerate(original(*arguments, **settings)):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

feature_cache.eval_dataset = killing
keras.utils.set_random_seed(1)
model = build_model(ModelConfig(backbone_weights="none", fine_tune="block5"), ClipSpec(4, 32, 32), 2)
feature_cache.cached_features(model.frozen, folder, shards.read_info(folder), "train", 1, kept_in)
"""


def test_a_killed_computation_goes_on_behind_its_last_finished_part(
    folder: str, info: shards.DatasetInfo, tmp_path: Path, seen: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed after 5 of 8 clips, in the third part of two clips."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, folder, str(tmp_path)], env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    assert killed.returncode == -signal.SIGKILL
    (parts,) = tmp_path.rglob("parts.json")
    assert [part is not None for part in json.loads(parts.read_text())] == [True, True, False, False]
    built = _build(fine_tune="block5")
    table = feature_cache.cached_features(built.frozen, folder, info, "train", 2, str(tmp_path))
    assert sum(seen) == table.mask[4:].sum()
    assert None not in json.loads(parts.read_text())
    expected = feature_cache.cached_features(built.frozen, folder, info, "train", 2, str(tmp_path / "other"))
    np.testing.assert_allclose(table.features, expected.features, rtol=1e-2, atol=1e-6)
    assert (table.mask == expected.mask).all() and (table.label == expected.label).all()
    assert "is damaged in" not in caplog.text


@pytest.mark.parametrize(("name", "clips"), [("features", [3]), ("mask", [0]), ("label", [1, 7])])
def test_a_damaged_part_is_computed_again(
    folder: str,
    info: shards.DatasetInfo,
    tmp_path: Path,
    seen: list[int],
    caplog: pytest.LogCaptureFixture,
    name: str,
    clips: list[int],
) -> None:
    frozen = _build().frozen
    table = feature_cache.cached_features(frozen, folder, info, "train", 2, str(tmp_path))
    sound = {field: getattr(table, field).copy() for field in ("features", "mask", "label")}
    (path,) = tmp_path.rglob(f"{name}.npy")
    damaged = np.load(path, mmap_mode="r+")
    damaged.view(np.uint8).reshape(8, -1)[clips, 0] ^= 1
    damaged.flush()
    seen.clear()
    again = feature_cache.cached_features(frozen, folder, info, "train", 2, str(tmp_path))
    again_clips = sorted({clip // 2 * 2 + place for clip in clips for place in (0, 1)})
    assert sum(seen) == sound["mask"][again_clips].sum()
    for field, values in sound.items():
        assert (getattr(again, field) == values).all()
    assert f"{path} is damaged in {len(clips)} of its 4 parts; these are computed again." in caplog.text
    assert caplog.text.count("is damaged in") == 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "deleted", "of another shape"])
def test_a_file_that_is_no_table_is_made_anew(
    folder: str, info: shards.DatasetInfo, tmp_path: Path, damage: str
) -> None:
    frozen = _build().frozen
    sound = feature_cache.cached_features(frozen, folder, info, "val", 2, str(tmp_path)).features.copy()
    (path,) = tmp_path.rglob("features.npy")
    if damage == "deleted":
        path.unlink()
    elif damage == "of another shape":
        np.save(path, np.zeros((2, 4, 7), np.float32))
    else:
        os.truncate(path, 0 if damage == "emptied" else path.stat().st_size - 1)
    again = feature_cache.cached_features(frozen, folder, info, "val", 2, str(tmp_path))
    assert (again.features == sound).all()


def test_a_table_without_its_digests_is_not_trusted(
    folder: str, info: shards.DatasetInfo, tmp_path: Path, seen: list[int]
) -> None:
    frozen = _build().frozen
    sound = feature_cache.cached_features(frozen, folder, info, "val", 2, str(tmp_path))
    (path,) = tmp_path.rglob("parts.json")
    for text in (None, "[", "[]"):
        path.unlink() if text is None else path.write_text(text)
        seen.clear()
        feature_cache.cached_features(frozen, folder, info, "val", 2, str(tmp_path))
        assert sum(seen) == sound.mask.sum()


def test_what_float16_cannot_hold_is_refused(folder: str, info: shards.DatasetInfo, tmp_path: Path) -> None:
    built = _build(fine_tune="block5")
    bias = built.fused.get_layer("backbone").get_layer("block4_conv3").bias
    bias.assign(np.full(512, 65000.0))
    feature_cache.cached_features(built.frozen, folder, info, "val", 2, str(tmp_path / "fits"))
    bias.assign(np.full(512, 65600.0))
    with pytest.raises(
        feature_cache.FeatureCacheError, match="holds 656[0-9.]+, more .* float16 .*--cache_features=off"
    ):
        feature_cache.cached_features(built.frozen, folder, info, "val", 2, str(tmp_path))
    assert not list(tmp_path.glob("features/*/*.npy"))


def test_a_full_disk_is_noticed_before_anything_is_computed(
    folder: str, info: shards.DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[int]
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(feature_cache.FeatureCacheError, match="No space left on device.*Make room"):
        feature_cache.cached_features(_build().frozen, folder, info, "val", 2, str(tmp_path))
    assert not list(tmp_path.rglob("*.npy")) and not seen


def test_batches_that_do_not_fill_a_part_are_refused(folder: str, info: shards.DatasetInfo) -> None:
    with pytest.raises(ValueError, match="64 clips, which batches of 3 do not fill"):
        feature_cache.cached_features(_build().frozen, folder, info, "val", 3)


def test_a_folder_that_cannot_be_written_is_named(
    folder: str, info: shards.DatasetInfo, tmp_path: Path
) -> None:
    (tmp_path / "features").touch()
    with pytest.raises(
        feature_cache.FeatureCacheError, match="Cannot write features to .*--cache_features=off"
    ):
        feature_cache.cached_features(_build().frozen, str(tmp_path), info, "val", 4)
