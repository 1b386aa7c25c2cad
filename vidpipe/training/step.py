"""One optimizer step and one forward pass, traced once and run on every replica."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from vidpipe.config import TrainConfig

Inputs = dict[str, tf.Tensor]


class StepSums(NamedTuple):
    """Sums over the clips of one step, or of all steps of an epoch.

    Attributes:
      loss: of the clips' losses, the mean over ensemble members; non-finite where the loss or a gradient is.
      correct: of the weights of clips whose prediction is correct.
      weight: of the clips' weights.
    """

    loss: float = 0.0
    correct: float = 0.0
    weight: float = 0.0

    @property
    def mean_loss(self) -> float:
        """The loss per clip."""
        return self.loss / self.weight

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions."""
        return self.correct / self.weight

    def plus(self, other: "StepSums") -> "StepSums":
        """Adds two sums."""
        return StepSums(self.loss + other.loss, self.correct + other.correct, self.weight + other.weight)


class StepResult(NamedTuple):
    """What a step found.

    Attributes:
      sums: over its clips.
      stop_requested: whether any worker was asked to stop before it.
    """

    sums: StepSums
    stop_requested: bool


class PendingStep:
    """A step that may still run: reading its result waits for it.

    Args:
      values: float32 [4], the fields of StepSums and the number of workers that were asked to stop.
    """

    def __init__(self, values: tf.Tensor) -> None:
        self._values = values

    def read(self) -> StepResult:
        """Waits for the step and returns its result."""
        *sums, stop_requests = self._values.numpy().tolist()
        return StepResult(StepSums(*sums), stop_requests > 0)


def balanced_class_weights(counts: np.ndarray) -> np.ndarray:
    """Computes class weights by which each class has the same total weight: scikit-learn's "balanced".

    Args:
      counts: clips of each class, int [C].

    Returns:
      float32 [C], the number of clips / the number of classes / the clips of the class.

    >>> balanced_class_weights(np.array([1, 3])).tolist()
    [2.0, 0.6666666865348816]
    """
    return (counts.sum() / len(counts) / np.maximum(counts, 1)).astype(np.float32)


def clip_losses(label: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Computes the cross-entropy of each clip.

    Args:
      label: int32 [B], or float32 [B, C], the weights of the classes in mixed clips.
      logits: float32 [B, C].
      label_smoothing: the fraction of each label that is spread over all classes (Szegedy et al., "Rethinking
        the Inception Architecture for Computer Vision", 2016).

    Returns:
      float32 [B].
    """
    target = _target(label, logits.shape[1])
    return keras.losses.categorical_crossentropy(target, logits, True, label_smoothing)


class Steps:
    """The two traced functions of a run.

    Args:
      config: `accumulate`, `label_smoothing`, `optimizer.clip_norm`.
      model: the inputs of a batch -> logits float32 [B, C].
      ensemble: the same inputs -> logits float32 [B, M, C] of its M members, each with its own loss.
      answers: the same inputs -> logits of the model and of its linear part alone, both float32 [B, C].
      optimizer: built for the model's trainable variables.
      strategy: in whose scope they were made.
      class_weights: float32 [C].
      clips_per_call: a larger batch, or microbatch, is divided into equal microbatches of at most so many.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: keras.Model,
        ensemble: keras.Model,
        answers: keras.Model,
        optimizer: keras.Optimizer,
        strategy: tf.distribute.Strategy,
        class_weights: np.ndarray,
        clips_per_call: int,
    ) -> None:
        self._config, self._model, self._ensemble, self._answers = config, model, ensemble, answers
        self._optimizer, self._strategy, self._class_weights = optimizer, strategy, class_weights
        self._clips_per_call = clips_per_call
        self._train = tf.function(self._train_step)
        self.evaluate = tf.function(self._evaluate)

    def train(
        self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, *, stop_requested: bool
    ) -> PendingStep:
        """Takes one optimizer step.

        Args:
          inputs: with label and weight a batch, as `input_pipeline.train_dataset` gives it.
          label: int32 [B] or float32 [B, C].
          weight: float32 [B], or [B, M] where a clip has a weight for each member.
          stop_requested: whether this worker was asked to stop; all workers read the sum.
        """
        return PendingStep(self._train(inputs, label, weight, tf.constant(float(stop_requested))))

    def _train_step(self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        """Takes a step on all replicas; returns the values of PendingStep."""
        sums = self._strategy.run(self._update, args=(inputs, label, weight, stop))
        return self._strategy.reduce("SUM", sums, axis=None)

    def _evaluate(
        self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns a batch's logits and those of the linear part alone, labels and weights.

        The logits are float32 [B, C]; all replicas' rows come in order.
        """
        logits, linear_logits = self._strategy.run(self._forward, args=(inputs,))
        rows = logits, linear_logits, label, weight
        return tuple(self._strategy.gather(values, axis=0) for values in rows)

    def _forward(self, inputs: Inputs) -> list[tf.Tensor]:
        num_clips = tf.nest.flatten(inputs)[0].shape[0]
        num_microbatches = self._num_microbatches(num_clips, at_least=1)
        if num_microbatches == 1:
            return self._answers(inputs, training=False)
        size = num_clips // num_microbatches
        microbatches = _divided(inputs, num_microbatches)
        # Over indices: TensorFlow cannot loop over uint8 frames on a GPU.
        answers = tf.map_fn(
            lambda index: self._answers(
                tf.nest.map_structure(lambda values: values[index], microbatches), training=False
            ),
            tf.range(num_microbatches),
            parallel_iterations=1,
            fn_output_signature=[
                tf.TensorSpec([size, *output.shape[1:]], output.dtype) for output in self._answers.outputs
            ],
        )
        return [tf.reshape(values, [num_clips, *values.shape[2:]]) for values in answers]

    def _num_microbatches(self, num_clips: int, at_least: int) -> int:
        """Returns the smallest multiple of `at_least` that divides the clips into small enough parts."""
        return next(
            number
            for number in range(at_least, num_clips + 1, at_least)
            if num_clips % number == 0 and num_clips // number <= self._clips_per_call
        )

    def _update(self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        replicas = tf.distribute.get_replica_context()
        # Divided by the weight of the whole step, the gradients of replicas and microbatches add up to its
        # gradient.
        ensemble_size = 1 if weight.shape.rank == 1 else weight.shape[1]
        total_weight = replicas.all_reduce("SUM", tf.reduce_sum(weight)) / ensemble_size
        gradients, sums = self._accumulated_gradients(inputs, label, weight, total_weight)
        if not isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer):
            # A non-finite gradient makes the loss that is read non-finite too; loss scaling handles its own.
            sums += [0.0 * tf.linalg.global_norm(gradients), 0.0, 0.0]
        if self._config.optimizer.clip_norm is not None:
            # The norm of the step's gradient, not of a replica's. The optimizer sums the replicas' gradients.
            summed = replicas.all_reduce("SUM", gradients) if replicas.num_replicas_in_sync > 1 else gradients
            limit = self._config.optimizer.clip_norm * self._optimizer.scale_loss(1.0)
            scale = limit / tf.maximum(limit, tf.linalg.global_norm(summed))
            gradients = [gradient * scale for gradient in gradients]
        self._optimizer.apply(gradients)
        return tf.concat([sums, [stop]], axis=0)

    def _accumulated_gradients(
        self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, total_weight: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        num_microbatches = self._num_microbatches(label.shape[0], at_least=self._config.accumulate)
        if num_microbatches == 1:
            return self._gradients(inputs, label, weight, total_weight)
        microbatches = _divided((inputs, label, weight), num_microbatches)
        gradients = [tf.zeros(variable.shape) for variable in self._model.trainable_variables]
        sums = tf.zeros(3)
        for index in tf.range(num_microbatches):
            microbatch = tf.nest.map_structure(lambda values: values[index], microbatches)  # noqa: B023
            (some_inputs, some_label, some_weight) = microbatch
            more, more_sums = self._gradients(some_inputs, some_label, some_weight, total_weight)
            gradients = [total + gradient for total, gradient in zip(gradients, more)]  # noqa: B905
            sums += more_sums
        return gradients, sums

    def _gradients(
        self, inputs: Inputs, label: tf.Tensor, weight: tf.Tensor, total_weight: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the gradients, and float32 [3], the fields of StepSums."""
        with tf.GradientTape() as tape:
            each = self._ensemble(inputs, training=True)
            _, ensemble_size, num_classes = each.shape
            target = _target(label, num_classes)
            of_members = weight if weight.shape.rank == 2 else weight[:, tf.newaxis]
            weighted = of_members * tf.linalg.matvec(target, self._class_weights)[:, tf.newaxis]
            weight = tf.reduce_mean(of_members, axis=1)
            member_losses = clip_losses(
                tf.repeat(target, ensemble_size, axis=0),
                tf.reshape(each, [-1, num_classes]),
                self._config.label_smoothing,
            )
            losses = tf.reduce_mean(weighted * tf.reshape(member_losses, [-1, ensemble_size]), axis=1)
            loss = self._optimizer.scale_loss(tf.reduce_sum(losses) / total_weight)
        gradients: list[tf.Tensor] = tape.gradient(loss, self._model.trainable_variables)
        predicted = tf.argmax(tf.reduce_mean(each, axis=1), axis=1)
        correct = tf.cast(tf.argmax(target, axis=1) == predicted, tf.float32)
        return gradients, tf.stack(
            [tf.reduce_sum(losses), tf.reduce_sum(weight * correct), tf.reduce_sum(weight)]
        )


def _divided(batch: Any, num_microbatches: int) -> Any:
    """Divides the first axis of each tensor of a batch: [B, ...] -> [microbatches, clips, ...]."""

    def divide(values: tf.Tensor) -> tf.Tensor:
        size = values.shape[0] // num_microbatches
        return tf.reshape(values, [num_microbatches, size, *values.shape[1:]])

    return tf.nest.map_structure(divide, batch)


def _target(label: Any, num_classes: int) -> tf.Tensor:
    """Returns float32 [B, C]: one-hot, or the weights of the classes in a mixed clip."""
    return tf.one_hot(label, num_classes) if label.shape.rank == 1 else label
