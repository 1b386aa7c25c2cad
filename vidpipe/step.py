"""One optimiser step and one look at a batch, traced once and run on every replica."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vidpipe.config import TrainConfig
from vidpipe.model import member_logits

Inputs = dict[str, tf.Tensor]
# What a step adds up over the clips of all replicas: see `Steps.train`.
NUM_SUMS = 4


def balanced_class_weights(counts: np.ndarray) -> np.ndarray:
    """Clips / classes / clips of the class, so that each class weighs the same; scikit-learn's "balanced".

    >>> balanced_class_weights(np.array([1, 3])).tolist()
    [2.0, 0.6666666865348816]
    """
    return (counts.sum() / len(counts) / np.maximum(counts, 1)).astype(np.float32)


def clip_losses(label: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """The cross-entropy of each clip.

    Args:
      label: int32 [B], or float32 [B, C], the shares of the classes in mixed clips.
      logits: float32 [B, C].
      label_smoothing: the share of each label that is spread over all classes (Szegedy et al., "Rethinking
        the Inception Architecture for Computer Vision", 2016).

    Returns:
      float32 [B].
    """
    shares = _shares(label, logits.shape[1])
    return keras.losses.categorical_crossentropy(shares, logits, True, label_smoothing)


class Steps:
    """The two traced functions of a run, over the model that it trains.

    Args:
      config: `accumulate`, `label_smoothing`, `optimizer.clip_norm`.
      model: as `member_logits` takes it. Each member is trained by a loss of its own.
      optimizer: built for the model's trainable variables.
      strategy: in whose scope both were made.
      class_weights: float32 [C].
    """

    def __init__(
        self,
        config: TrainConfig,
        model: keras.Model,
        optimizer: keras.Optimizer,
        strategy: tf.distribute.Strategy,
        class_weights: np.ndarray,
    ) -> None:
        self._config, self._model, self._optimizer = config, model, optimizer
        self._members = member_logits(model)
        self._strategy, self._class_weights = strategy, class_weights
        self.train = tf.function(self._train)
        self.evaluate = tf.function(self._evaluate)

    def _train(self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, note: tf.Tensor) -> tf.Tensor:
        """One optimiser update.

        Args:
          inputs: with label and weight a batch, as `input_pipeline.train_dataset` gives it.
          label: int32 [B] or float32 [B, C].
          weight: float32 [B].
          note: float32 []; what one worker notes, all of them read in the sum.

        Returns:
          float32 [4]: over all clips the sums of loss (the mean of the members'), of right answers and of
          weights, and the notes'. The first is not finite where the loss or a gradient is not, unless loss
          scaling deals with the latter.
        """
        sums = self._strategy.run(self._update, args=(inputs, label, weight, note))
        return self._strategy.reduce("SUM", sums, axis=None)

    def _evaluate(
        self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The logits float32 [B, C] of a batch, its labels and weights, from all replicas in their order."""
        logits = self._strategy.run(self._look, args=(inputs,))
        return tuple(self._strategy.gather(part, axis=0) for part in (logits, label, weight))

    def _look(self, inputs: Inputs) -> tf.Tensor:
        return self._model(inputs, training=False)

    def _update(self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, note: tf.Tensor) -> tf.Tensor:
        replicas = tf.distribute.get_replica_context()
        # Divided by the weight of the whole step, replicas' and parts' gradients add up to its gradient.
        whole = replicas.all_reduce("SUM", tf.reduce_sum(weight))
        gradients, sums = self._in_parts(inputs, label, weight, whole)
        if not isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer):
            sums += [0.0 * tf.linalg.global_norm(gradients), 0.0, 0.0]
        if self._config.optimizer.clip_norm is not None:
            # Of the step's gradient, not of a replica's. The optimizer adds the replicas' up itself.
            added_up = (
                replicas.all_reduce("SUM", gradients) if replicas.num_replicas_in_sync > 1 else gradients
            )
            limit = self._config.optimizer.clip_norm * self._optimizer.scale_loss(1.0)
            shrink = limit / tf.maximum(limit, tf.linalg.global_norm(added_up))
            gradients = [gradient * shrink for gradient in gradients]
        self._optimizer.apply(gradients)
        return tf.concat([sums, [note]], axis=0)

    def _in_parts(
        self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, whole: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        num_parts = self._config.accumulate
        if num_parts == 1:
            return self._gradients(inputs, label, weight, whole)

        def cut(values: tf.Tensor) -> tf.Tensor:
            return tf.reshape(values, [num_parts, values.shape[0] // num_parts, *values.shape[1:]])

        parts = tf.nest.map_structure(cut, (inputs, label, weight))
        gradients = [tf.zeros(variable.shape) for variable in self._model.trainable_variables]
        sums = tf.zeros(NUM_SUMS - 1)
        for place in tf.range(num_parts):
            part = tf.nest.map_structure(lambda values: values[place], parts)  # noqa: B023
            (part_inputs, part_label, part_weight) = part
            more, part_sums = self._gradients(part_inputs, part_label, part_weight, whole)
            gradients = [total + gradient for total, gradient in zip(gradients, more)]  # noqa: B905
            sums += part_sums
        return gradients, sums

    def _gradients(
        self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, whole: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        with tf.GradientTape() as tape:
            each = self._members(inputs, training=True)
            _, num_members, num_classes = each.shape
            shares = _shares(label, num_classes)
            weighted = weight * tf.linalg.matvec(shares, self._class_weights)
            member_losses = clip_losses(
                tf.repeat(shares, num_members, axis=0),
                tf.reshape(each, [-1, num_classes]),
                self._config.label_smoothing,
            )
            losses = weighted * tf.reduce_mean(tf.reshape(member_losses, [-1, num_members]), axis=1)
            loss = self._optimizer.scale_loss(tf.reduce_sum(losses) / whole)
        gradients: list[tf.Tensor] = tape.gradient(loss, self._model.trainable_variables)
        right = tf.cast(
            tf.argmax(shares, axis=1) == tf.argmax(tf.reduce_mean(each, axis=1), axis=1), tf.float32
        )
        return gradients, tf.stack(
            [tf.reduce_sum(losses), tf.reduce_sum(weight * right), tf.reduce_sum(weight)]
        )


def _shares(label: Any, num_classes: int) -> tf.Tensor:
    """float32 [B, C]: one-hot, or what mixing made of it."""
    return tf.one_hot(label, num_classes) if label.shape.rank == 1 else label
