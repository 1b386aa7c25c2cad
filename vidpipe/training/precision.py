"""The dtype policy of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from vidpipe.training.run_folder import TrainError


def resolve_precision(precision: str, *, num_replicas: int = 1) -> str:
    """Returns the dtype policy of a run; `auto` is the fastest one that the device supports.

    That is bfloat16, float16 on one GPU that lacks bfloat16, or float32.

    Args:
      precision: one of `config.PRECISIONS`.
      num_replicas: devices that share a batch.

    Raises:
      TrainError: half precision without a GPU, or float16 on several replicas.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if precision not in ("auto", "float32") and not gpus:
        raise TrainError(
            f"--precision={precision} needs a GPU, and TensorFlow sees none. Use --precision=float32, or "
            "install vidpipe[gpu] and check the driver with nvidia-smi."
        )
    if precision == "auto":
        return _fastest(gpus, num_replicas)
    if precision == "mixed_float16" and num_replicas > 1:
        raise TrainError(
            "mixed_float16 is not supported on several replicas: Keras's loss scaling fails under "
            "tf.distribute (Keras issue 18666). Use --precision=mixed_bfloat16 or float32, or --strategy=one."
        )
    return precision


def _fastest(gpus: list, num_replicas: int) -> str:
    if not gpus:
        return "float32"
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    # Tensor cores came with 7.0, bfloat16 in them with 8.0.
    if capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= (7, 0) and num_replicas == 1 else "float32"


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Sets Keras's global dtype policy, in which layers are built, inside a block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
