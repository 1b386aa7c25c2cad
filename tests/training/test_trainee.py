"""What is trained: the whole model, or the blocks above the cached features; and what a checkpoint holds."""

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from vidpipe.config import TrainConfig
from vidpipe.data.dataset import Dataset
from vidpipe.model import memory
from vidpipe.model.fused import FusedModel
from vidpipe.training.precision import dtype_policy
from vidpipe.training.run_folder import TrainError
from vidpipe.training.trainee import Trainee, build_trainee

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def build(dataset: Dataset, train_config: MakeConfig) -> Callable[..., tuple[Trainee, FusedModel]]:
    def make(**settings: object) -> tuple[Trainee, FusedModel]:
        config = train_config(Path("run"), **settings)
        return build_trainee(
            config,
            dataset,
            num_frames=4,
            strategy=tf.distribute.get_strategy(),
            precision="float32",
        )

    return make


def test_a_clip_that_no_call_can_take_is_rejected(
    build: Callable[..., tuple[Trainee, FusedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "clips_per_call", lambda model: 0)
    with pytest.raises(
        TrainError, match="clip of 4 frames of 32 x 32 pixels has a tensor of more than 2.31 .*num_frames"
    ):
        build()


def _ids(variables: list[keras.Variable]) -> set[int]:
    return {id(variable) for variable in variables}


def test_over_cached_features_the_model_is_the_trained_part(
    build: Callable[..., tuple[Trainee, FusedModel]],
) -> None:
    trainee, fused = build(fine_tune="block5")
    assert trainee.model is fused.trained
    assert trainee.saved is fused.fused
    assert fused.trained is not None
    assert fused.frozen is not None
    checkpointed = _ids([*trainee.checkpointed])
    assert checkpointed == _ids([*fused.trained.variables, *trainee.optimizer.variables])
    assert not checkpointed & _ids(fused.frozen.network.variables)
    assert trainee.ensemble.output.shape == (None, 2, 2)
    assert _ids(trainee.ensemble.trainable_variables) == _ids(fused.trained.trainable_variables)


def test_over_frames_the_model_is_the_whole_one_and_frozen_weights_are_not_checkpointed(
    build: Callable[..., tuple[Trainee, FusedModel]],
) -> None:
    trainee, fused = build(fine_tune="block5", cache_features="off")
    assert trainee.model is trainee.saved is fused.fused
    assert fused.frozen is not None
    checkpointed = _ids([*trainee.checkpointed])
    assert not checkpointed & _ids(fused.frozen.network.variables)
    expected = _ids([*fused.fused.variables, *trainee.optimizer.variables]) - _ids(
        fused.frozen.network.variables
    )
    assert checkpointed == expected


def test_a_backbone_that_is_trained_as_a_whole_is_checkpointed(
    build: Callable[..., tuple[Trainee, FusedModel]],
) -> None:
    trainee, fused = build(fine_tune="all")
    assert fused.frozen is None
    assert _ids([*trainee.checkpointed]) == _ids([*fused.fused.variables, *trainee.optimizer.variables])


def test_lower_layers_have_a_smaller_learning_rate_and_the_head_has_none(
    build: Callable[..., tuple[Trainee, FusedModel]], train_config: MakeConfig
) -> None:
    trainee, fused = build(fine_tune="block4", cache_features="off")
    scales = dict(zip(_paths(trainee.model.trainable_variables), trainee.optimizer._scales, strict=True))
    scale = train_config(Path("run")).optimizer.backbone_lr_scale
    assert {value for name, value in scales.items() if name.startswith("block")} == {scale}
    assert {value for name, value in scales.items() if not name.startswith("block")} == {1.0}
    assert len([name for name in scales if name.startswith("block")]) == 4
    assert fused.frozen is not None


def _paths(variables: list[keras.Variable]) -> list[str]:
    return [variable.path for variable in variables]


def test_float16_scales_the_loss_and_a_checkpoint_has_the_scale(
    dataset: Dataset, train_config: MakeConfig
) -> None:
    with dtype_policy("mixed_float16"):
        trainee, fused = build_trainee(
            train_config(Path("run")),
            dataset,
            num_frames=4,
            strategy=tf.distribute.get_strategy(),
            precision="mixed_float16",
        )
    optimizer = trainee.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert _ids([optimizer.dynamic_scale, optimizer.step_counter]) <= _ids([*trainee.checkpointed])
    assert fused.fused.get_layer("backbone").compute_dtype == "float16"
    assert trainee.ensemble.output.dtype == trainee.model.output.dtype == "float32"


def test_features_beyond_the_disk_space_are_not_cached(
    build: Callable[..., tuple[Trainee, FusedModel]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainee, fused = build(fine_tune="block5", cache_gb=1e-6)
    assert trainee.model is fused.fused
    assert (
        "The features of the frozen blocks would take 0.0 GiB; cache_gb is 1e-06: the whole backbone runs in "
        "every step." in caplog.text
    )


def test_features_that_must_be_cached_need_the_disk_space(
    build: Callable[..., tuple[Trainee, FusedModel]],
) -> None:
    with pytest.raises(
        TrainError,
        match=r"would take 0.0 GiB; cache_gb is 1e-06. Give a larger --cache_gb, or --cache_features",
    ):
        build(fine_tune="block5", cache_gb=1e-6, cache_features="on")
