"""Batches of cached features equal the features of the frames that the input pipeline gives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import eval_dataset, train_dataset
from vidpipe.model.feature_cache import FeatureTable, cached_features
from vidpipe.model.feature_dataset import eval_feature_dataset, train_feature_dataset
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.model.fused import FusedModel

Tables = dict[str, FeatureTable]


@pytest.fixture(scope="module", params=["none", "block5"])
def frozen(request: pytest.FixtureRequest, build: Callable[..., FusedModel]) -> FrameEncoder:
    """Gives features, or feature maps."""
    encoder = build(fine_tune=request.param).frozen
    assert encoder is not None
    return encoder


@pytest.fixture(scope="module")
def tables(frozen: FrameEncoder, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = str(tmp_path_factory.mktemp("cache"))
    return {
        split: cached_features(frozen, dataset, split=split, cache_dirs=[folder])
        for split in ("train", "test")
    }


def assert_same_batches(frozen: FrameEncoder, cached: tf.data.Dataset, frames: tf.data.Dataset) -> int:
    """Asserts that the features are those of the frames, in the same batches; returns the number of clips."""
    num_clips = 0
    for (features, label, weight), (inputs, true_label, true_weight) in zip(cached, frames, strict=True):
        real = true_weight.numpy() > 0
        expected = frozen(inputs["frames"].numpy(), inputs["mask"].numpy())
        found = features["features"].numpy()
        # float16 has three digits.
        relative, absolute = (1e-7, 1e-5) if found.dtype == np.float32 else (1e-3, 1e-6)
        np.testing.assert_allclose(found[real], expected[real], rtol=relative, atol=absolute)
        assert (features["mask"].numpy() == inputs["mask"].numpy()).all()
        assert (label.numpy() == true_label.numpy()).all()
        assert (weight.numpy() == true_weight.numpy()).all()
        num_clips += int(real.sum())
    return num_clips


@pytest.mark.parametrize(("skip_batches", "num_frames"), [(0, 4), (1, 4), (0, 3), (1, 2)])
def test_an_epoch_of_features_is_an_epoch_of_frames(
    frozen: FrameEncoder, tables: Tables, dataset: Dataset, skip_batches: int, num_frames: int
) -> None:
    """Some clips have fewer frames than are sampled."""
    settings: dict[str, Any] = {
        "batch_size": 3, "seed": 1, "epoch": 5, "num_frames": num_frames, "skip_batches": skip_batches,
    }  # fmt: skip
    video_ids = dataset.video_ids("train")
    cached = train_feature_dataset(tables["train"], dataset, video_ids=video_ids, **settings)
    frames = train_dataset(dataset, **settings)
    assert assert_same_batches(frozen, cached, frames) == 8 - 3 * skip_batches


@pytest.mark.parametrize("num_frames", [4, 3])
def test_each_clip_has_its_own_weight_for_each_member(
    tables: Tables, dataset: Dataset, num_frames: int
) -> None:
    """The label of each clip is its index here, and its weights are 100 and 200 more."""
    index = np.arange(len(tables["train"].label), dtype=np.int32)
    batches = train_feature_dataset(
        dataclasses.replace(tables["train"], label=index),
        dataset,
        video_ids=dataset.video_ids("train"),
        batch_size=3,
        seed=1,
        epoch=0,
        num_frames=num_frames,
        weight=np.stack([index + 100, index + 200], axis=1).astype(np.float32),
    )
    assert batches.element_spec[2].shape == (3, 2)
    label = np.concatenate([batch[1] for batch in batches])
    weight = np.concatenate([batch[2] for batch in batches])
    assert sorted(label[:8].tolist()) == index.tolist()
    assert (weight[:8] - label[:8, np.newaxis] == [100, 200]).all()
    assert (weight[8:] == 0).all()


@pytest.mark.parametrize(("num_frames", "temporal_crops"), [(4, 1), (3, 1), (2, 2), (1, 3), (4, 2)])
def test_temporal_crops_of_features_are_those_of_frames(
    frozen: FrameEncoder, tables: Tables, dataset: Dataset, num_frames: int, temporal_crops: int
) -> None:
    settings = {"batch_size": 4, "num_frames": num_frames, "temporal_crops": temporal_crops}
    cached = eval_feature_dataset(tables["test"], **settings)
    frames = eval_dataset(dataset, split="test", **settings)
    assert assert_same_batches(frozen, cached, frames) == 6 * temporal_crops
