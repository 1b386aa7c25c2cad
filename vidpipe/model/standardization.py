"""The standardization of features at the start of a head: mean and variance are computed once, then fixed."""

from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from vidpipe.model.heads import STANDARDIZE, feature_extractor


def adapt_standardization(
    model: keras.Model, batches: Iterable[Mapping[str, np.ndarray | tf.Tensor]]
) -> None:
    """Sets a head's standardization to the mean and variance of the features of real frames.

    Does nothing if the head has no standardization. Call it before the training step is traced.

    Args:
      model: `FusedModel.fused` or `FusedModel.trained`.
      batches: inputs of that model.
    """
    layer = _standardization_layer(model)
    if layer is None:
        return
    extractor = feature_extractor(model)
    extract = tf.function(lambda inputs: tf.cast(extractor(inputs, training=False), tf.float32))
    count, total, squares = 0, np.float64(0), np.float64(0)
    for inputs in batches:
        real = extract(inputs).numpy()[np.asarray(inputs["mask"])].astype(np.float64)
        count += len(real)
        total = total + real.sum(axis=0)
        squares = squares + np.square(real).sum(axis=0)
    mean = total / count
    variance = squares / count - np.square(mean)
    layer.adapt_mean.assign(mean)
    # A feature that is (almost) always zero must not be divided by (almost) zero.
    layer.adapt_variance.assign(variance + 1e-3 * variance.mean())
    layer.finalize_state()


def refresh_standardization(model: keras.Model) -> None:
    """Makes a head use its mean and variance after these variables were assigned, as from a checkpoint.

    Args:
      model: `FusedModel.fused`, `FusedModel.trained`, or a loaded model.keras.
    """
    layer = _standardization_layer(model)
    if layer is not None:
        layer.finalize_state()


def _standardization_layer(model: keras.Model) -> keras.layers.Normalization | None:
    return next((layer for layer in model.get_layer("head").layers if layer.name == STANDARDIZE), None)
