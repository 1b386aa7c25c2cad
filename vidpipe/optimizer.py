"""How weights are updated: the learning rate of each step and layer, weight decay, and averaged weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from vidpipe.config import OptimizerConfig


def learning_rate_at(step: int, num_steps: int, warmup_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step, before what its layer makes of it.

    It rises in a line over the warm-up (Goyal et al., "Accurate, Large Minibatch SGD", 2017), and then stays,
    or falls along half a cosine to zero (Loshchilov and Hutter, "SGDR", 2017).

    Args:
      step: from 0.
      num_steps: of the whole run.
      warmup_steps: the first so many.
      config: `learning_rate` and `schedule`.

    >>> config = OptimizerConfig(learning_rate=1.0, schedule="cosine")
    >>> [round(learning_rate_at(step, 6, 2, config), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def layer_scales(backbone: keras.Model, backbone_lr_scale: float, layer_decay: float) -> dict[int, float]:
    """What the learning rate of a backbone's trained variables is multiplied by, by id of the variable.

    The topmost layer has `backbone_lr_scale`, each one below it `layer_decay` times the one above (Howard and
    Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018).
    """
    # Not layer.trainable_variables: batch normalization that keeps to its statistics is not trainable as a
    # layer, and its scale and offset are.
    of_layers = [
        [variable for variable in layer.variables if variable.trainable] for layer in backbone.layers
    ]
    return {
        id(variable): backbone_lr_scale * layer_decay**depth
        for depth, variables in enumerate(reversed([found for found in of_layers if found]))
        for variable in variables
    }


def build_optimizer(
    config: OptimizerConfig, variables: Sequence[keras.Variable], scales: dict[int, float], precision: str
) -> keras.Optimizer:
    """The optimizer that `config` asks for, built for `variables`.

    Args:
      config: see there.
      variables: what is trained.
      scales: of the learning rate, by id of the variable; 1 where one is missing.
      precision: a dtype policy; float16 brings loss scaling (Micikevicius et al., "Mixed Precision Training",
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

    Weight decay is here too, and not Keras's own, since it must shrink a variable by that variable's learning
    rate (decoupled: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019). It leaves out
    biases and scales: everything of one dimension.
    """

    def configure(self, config: OptimizerConfig, scales: list[float]) -> None:
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
        place = self._get_variable_index(variable)  # type: ignore[attr-defined]
        learning_rate = tf.cast(learning_rate, variable.dtype) * self._scales[place]
        if self._decay > 0 and len(variable.shape) > 1:
            self.assign_sub(variable, variable * learning_rate * self._decay)  # type: ignore[attr-defined]
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
        if self._ema > 0:
            # A short memory at first, as in TensorFlow's ExponentialMovingAverage: the first average is the
            # first weights, not a tenth of them.
            step = tf.cast(self.iterations, variable.dtype)  # type: ignore[attr-defined]
            keep = tf.minimum(tf.cast(self._ema, variable.dtype), step / (step + 9))
            average = self.averages[place]
            self.assign(average, keep * average + (1 - keep) * variable)  # type: ignore[attr-defined]


class _AdamW(_Extended, keras.optimizers.Adam):
    pass


class _SGD(_Extended, keras.optimizers.SGD):
    pass


@contextmanager
def averaged(optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Inside the block the model has its averaged weights, if they are kept; after it its own again."""
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
