"""The model that is exported: it computes alike on every machine, and is saved without Keras."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vidpipe.model.model_file import in_float32


def portable_model(model: keras.Model) -> keras.Model:
    """Builds the same layers with the same weights in float32 and without cuDNN's LSTM.

    Without a GPU for it, half precision is slow or not supported. An LSTM that is traced on a machine with a
    GPU becomes cuDNN's, which other machines lack.
    """
    portable = in_float32(model)
    for layer in portable.get_layer("head").layers:
        if isinstance(layer, keras.layers.LSTM):
            layer.use_cudnn = False
    return portable


def as_module(model: keras.Model) -> tf.Module:
    """Returns a module that tracks a model's variables; the functions to save are set as its attributes."""
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    return module


def as_signature(function: Callable[..., dict[str, tf.Tensor]], *inputs: tf.TensorSpec) -> Any:
    """Wraps a function with fixed input specs, to be saved as a signature."""
    return tf.function(function, input_signature=inputs, autograph=False)


def save_module(module: tf.Module, folder: Path, signatures: dict[str, Any]) -> None:
    """Writes a SavedModel.

    Raises:
      OSError: the disk is full.
    """
    try:
        tf.saved_model.save(module, str(folder), signatures)
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
