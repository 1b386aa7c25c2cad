"""Recipes against the configs whose defaults they are made of."""

import dataclasses

import pytest

from vidpipe.config import ClipConfig, ModelConfig, OptimizerConfig, TrainConfig
from vidpipe.training.recipes import RECIPES, Recipe


def test_the_recipe_frozen_is_the_defaults() -> None:
    config = RECIPES["frozen"].train_config(data_dir="d", run_dir="r")
    assert config == TrainConfig(data_dir="d", run_dir="r")
    assert RECIPES["frozen"].clip == ClipConfig()
    assert (config.epochs, config.batch_size, config.label_smoothing, config.optimizer.ema) == (
        30,
        16,
        0.1,
        0.99,
    )


def test_the_recipe_notebook_is_the_method_of_the_notebook() -> None:
    recipe = RECIPES["notebook"]
    config = recipe.train_config(data_dir="d", run_dir="r")
    assert recipe.clip == ClipConfig(sampling="head")
    assert recipe.clip.num_frames == 20
    assert config == TrainConfig(
        data_dir="d",
        run_dir="r",
        model=ModelConfig(head="notebook"),
        optimizer=OptimizerConfig(ema=0.0),
        epochs=10,
        batch_size=64,
        label_smoothing=0.0,
    )
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (0.001, "constant")


def test_the_recipe_fine_tune_trains_the_last_block() -> None:
    config = RECIPES["fine_tune"].train_config(data_dir="d", run_dir="r")
    assert config.model == ModelConfig(fine_tune="block5")
    assert (config.epochs, config.batch_size, config.label_smoothing) == (20, 16, 0.1)
    optimizer = config.optimizer
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 1.0)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.ema) == (0.01, 1.0, 0.99)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_all_that_it_names(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe.train_config(data_dir="d", run_dir="r")
    for field in dataclasses.fields(Recipe):
        if field.name != "clip":
            assert getattr(config, field.name) == getattr(recipe, field.name)


def test_a_recipe_has_no_setting_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        Recipe(learning_rate=1.0)  # type: ignore[call-arg]
