"""Features computed once are the features, in the order in which clips would have come."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from vidpipe import feature_cache, shards
from vidpipe.config import ModelConfig
from vidpipe.input_pipeline import eval_dataset, train_dataset
from vidpipe.model import build_model
from vidpipe.spec import ClipSpec


@pytest.fixture(scope="module")
def folder(data_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shutil.copytree(data_dir, tmp_path_factory.mktemp("cache") / "records"))


def _encoder(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return build_model(ModelConfig(backbone_weights="none"), ClipSpec(4, 32, 32), 2).encoder


@pytest.fixture(scope="module")
def encoder() -> keras.Model:
    return _encoder()


def test_the_table_holds_the_encoder_s_output(
    encoder: keras.Model, folder: str, info: shards.DatasetInfo
) -> None:
    table = feature_cache.cached_features(encoder, folder, info, "test", 4)
    ((inputs, label, _),) = eval_dataset(folder, info, 6, "test")
    np.testing.assert_allclose(table.features, encoder(inputs).numpy(), atol=1e-5)
    assert (table.mask == inputs["mask"].numpy()).all()
    assert (table.label == label.numpy()).all()
    ((features, again, weight),) = feature_cache.eval_feature_dataset(table, 6)
    assert (features["features"].numpy() == table.features).all()
    assert (again.numpy() == table.label).all()
    assert weight.numpy().tolist() == [1] * 6


@pytest.mark.parametrize("skip_batches", [0, 1])
def test_an_epoch_of_features_is_that_of_frames(
    encoder: keras.Model, folder: str, info: shards.DatasetInfo, skip_batches: int
) -> None:
    table = feature_cache.cached_features(encoder, folder, info, "train", 4)
    cached = feature_cache.train_feature_dataset(table, info, 3, 1, 5, skip_batches)
    frames = train_dataset(folder, info, 3, 1, 5, skip_batches)
    count = 0
    for (features, label, weight), (inputs, true_label, true_weight) in zip(cached, frames, strict=True):
        real = true_weight.numpy() > 0
        np.testing.assert_allclose(features["features"][real], encoder(inputs).numpy()[real], atol=1e-5)
        assert (features["mask"].numpy() == inputs["mask"].numpy()).all()
        assert (label.numpy() == true_label.numpy()).all()
        assert (weight.numpy() == true_weight.numpy()).all()
        count += real.sum()
    assert count == 8 - 3 * skip_batches


def test_the_second_run_reads_and_other_weights_do_not(
    folder: str, info: shards.DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = feature_cache.cached_features(_encoder(3), folder, info, "val", 4)
    monkeypatch.setattr(feature_cache, "_compute", lambda *_: pytest.fail("computed again"))
    again = feature_cache.cached_features(_encoder(3), folder, info, "val", 4)
    assert (first.features == again.features).all()
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        feature_cache.cached_features(_encoder(4), folder, info, "val", 4)


def test_an_interrupted_computation_leaves_no_table(
    folder: str, info: shards.DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _encoder(5)
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        feature_cache.cached_features(encoder, folder, info, "val", 4)
    monkeypatch.undo()
    table = feature_cache.cached_features(encoder, folder, info, "val", 4)
    assert table.label.shape == (2,)
    assert not list(Path(folder, "features").glob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_named(
    encoder: keras.Model, folder: str, info: shards.DatasetInfo, tmp_path: Path
) -> None:
    (tmp_path / "features").touch()
    with pytest.raises(
        feature_cache.FeatureCacheError, match="Cannot write features to .*--cache_features=off"
    ):
        feature_cache.cached_features(encoder, str(tmp_path), info, "val", 4)
