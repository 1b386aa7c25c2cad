"""How weights are updated: the learning rate of each step and layer, weight decay, and averaged weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from vidpipe.config import OptimizerConfig


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run's steps, before the scale of a layer.

    It rises linearly during the warm-up (Goyal et al., "Accurate, Large Minibatch SGD", 2017), and is then
    constant, or decays along half a cosine to zero (Loshchilov and Hutter, "SGDR", 2017).

    Attributes:
      config: `learning_rate`, `schedule`, `warmup_epochs`.
      epochs: of the run.
      steps_per_epoch: of the run.

    >>> config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_epochs=1.0)
    >>> rate = LearningRate(config, epochs=3, steps_per_epoch=2)
    >>> [round(rate.at(step), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """

    config: OptimizerConfig
    epochs: int
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        warmup_steps = round(self.config.warmup_epochs * self.steps_per_epoch)
        if step < warmup_steps:
            return self.config.learning_rate * (step + 1) / warmup_steps
        if self.config.schedule == "constant":
            return self.config.learning_rate
        progress = (step - warmup_steps) / max(1, self.epochs * self.steps_per_epoch - warmup_steps)
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def layer_scales(backbone: keras.Model, *, backbone_lr_scale: float, layer_decay: float) -> dict[int, float]:
    """Computes the factors of the learning rate of a backbone's trained variables, by id of the variable.

    The topmost layer has `backbone_lr_scale`, each layer below it `layer_decay` times that of the layer above
    (Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018).
    """
    # Not layer.trainable_variables: batch normalization that keeps its statistics is not trainable as a
    # layer, but its scale and offset are.
    of_layers = [
        [variable for variable in layer.variables if variable.trainable] for layer in backbone.layers
    ]
    return {
        id(variable): backbone_lr_scale * layer_decay**depth
        for depth, variables in enumerate(reversed([found for found in of_layers if found]))
        for variable in variables
    }


def build_optimizer(
    config: OptimizerConfig,
    variables: Sequence[keras.Variable],
    *,
    scales: Mapping[int, float],
    precision: str,
) -> keras.Optimizer:
    """Builds an optimizer for `variables`.

    Args:
      config: its name and settings.
      variables: those that are trained.
      scales: factors of the learning rate, by id of the variable; 1 where one is missing.
      precision: a dtype policy; float16 adds loss scaling (Micikevicius et al., "Mixed Precision Training",
        2018).
    """
    if config.name == "sgd":
        optimizer: Any = _SGD(config.learning_rate, momentum=0.9, nesterov=True, name="sgd")
    else:
        optimizer = _AdamW(config.learning_rate, name="adamw")
    optimizer.configure(config, [scales.get(id(variable), 1.0) for variable in variables])
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


class _Extended:
    """What Keras's optimizers lack: a learning rate per variable, and averages that tf.distribute can update.

    Weight decay is here too. Keras's own uses the optimizer's learning rate; it must use that of the
    variable (decoupled: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019). Biases and
    scales, which have one dimension, do not decay.
    """

    def configure(self, config: OptimizerConfig, scales: list[float]) -> None:
        """Sets the settings; call it before `build`.

        Args:
          config: `weight_decay` and `ema`.
          scales: a factor of the learning rate per variable.
        """
        self._scales, self._decay, self._ema = scales, config.weight_decay, config.ema
        self.averages: list[keras.Variable] = []

    def build(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)  # type: ignore[misc]
        if self._ema > 0:
            self.averages = [
                self.add_variable_from_reference(variable, "average")  # type: ignore[attr-defined]
                for variable in variables
            ]

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)  # type: ignore[attr-defined]
        learning_rate = tf.cast(learning_rate, variable.dtype) * self._scales[index]
        if self._decay > 0 and len(variable.shape) > 1:
            self.assign_sub(variable, variable * learning_rate * self._decay)  # type: ignore[attr-defined]
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
        if self._ema > 0:
            # A smaller decay at first, as in TensorFlow's ExponentialMovingAverage: the first average is the
            # first weights, and not a hundredth of them.
            step = tf.cast(self.iterations, variable.dtype)  # type: ignore[attr-defined]
            decay = tf.minimum(tf.cast(self._ema, variable.dtype), step / (step + 9))
            average = self.averages[index]
            self.assign(average, decay * average + (1 - decay) * variable)  # type: ignore[attr-defined]


class _AdamW(_Extended, keras.optimizers.Adam):
    pass


class _SGD(_Extended, keras.optimizers.SGD):
    pass


@contextmanager
def averaged(optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Gives the variables their averages inside a block, if the optimizer has any.

    Args:
      optimizer: made by `build_optimizer`.
      variables: those it was built for.
    """
    averages = getattr(optimizer, "inner_optimizer", optimizer).averages
    if not averages:
        yield
        return
    own = [variable.numpy() for variable in variables]
    for variable, average in zip(variables, averages, strict=True):
        variable.assign(average.numpy())
    try:
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)
