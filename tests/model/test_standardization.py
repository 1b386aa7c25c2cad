"""A head standardizes by the features of real frames, whichever part of the model they are computed with."""

from collections.abc import Callable

import numpy as np
import pytest

from vidpipe.model.fused import FusedModel
from vidpipe.model.standardization import adapt_standardization, refresh_standardization

Build = Callable[..., FusedModel]
Inputs = dict[str, np.ndarray]


def test_mean_and_variance_are_those_of_real_frames(build: Build) -> None:
    model = build("motion")
    random = np.random.default_rng(0)
    features = random.normal(5, [0.1] * 256 + [10] * 256, (16, 4, 512)).astype(np.float32)
    mask = np.ones((16, 4), bool)
    mask[:, 3] = False
    features[:, 3] = 1e6
    batches = [{"features": features[rows], "mask": mask[rows]} for rows in (slice(0, 9), slice(9, 16))]
    adapt_standardization(model.trained, batches)
    layer = model.fused.get_layer("head").get_layer("standardize")
    np.testing.assert_allclose(layer.adapt_mean, features[:, :3].mean((0, 1)), rtol=1e-4)
    standardized = layer(features[:, :3]).numpy()
    np.testing.assert_allclose(standardized[..., 256:].std(), 1, atol=0.02)


@pytest.mark.parametrize("fine_tune", ["none", "block5"])
def test_either_model_standardizes_by_the_features_of_the_whole_backbone(
    build: Build, inputs: Inputs, fine_tune: str
) -> None:
    model, mask = build("motion", fine_tune=fine_tune), inputs["mask"]
    assert model.frozen is not None and model.trained is not None
    layer = model.fused.get_layer("head").get_layer("standardize")
    backbone, preprocess = (model.fused.get_layer(name) for name in ("backbone", "preprocess"))
    expected = backbone(preprocess(inputs["frames"][mask])).numpy().mean(axis=0)
    cached = {"features": model.frozen(inputs["frames"], mask), "mask": mask}
    for part, batch in ((model.fused, inputs), (model.trained, cached)):
        layer.adapt_mean.assign(np.zeros(512))
        adapt_standardization(part, [batch])
        np.testing.assert_allclose(layer.adapt_mean, expected, rtol=1e-4, atol=1e-7)


def test_assigned_values_are_used_after_a_refresh(build: Build, inputs: Inputs) -> None:
    model = build("motion").fused
    layer = model.get_layer("head").get_layer("standardize")
    before = model(inputs).numpy()
    layer.adapt_mean.assign(np.ones(512))
    layer.adapt_variance.assign(np.full(512, 4.0))
    refresh_standardization(model)
    np.testing.assert_allclose(
        layer(np.full((1, 4, 512), 5, np.float32)), np.full((1, 4, 512), 2.0), rtol=1e-5
    )
    assert not np.allclose(model(inputs).numpy(), before, atol=1e-4)


def test_a_head_without_standardization_is_left_as_it_is(build: Build, inputs: Inputs) -> None:
    model = build("notebook").fused
    before = model.get_weights()
    adapt_standardization(model, [inputs])
    refresh_standardization(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert (old == new).all()
