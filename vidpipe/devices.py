"""The GPUs that TensorFlow computes on, and whether they are those of the machine."""

import logging
import os
from pathlib import Path
from typing import Any

from vidpipe.errors import VidpipeError

# Device files of the driver; under WSL 2 its library.
_DRIVER_FILES = ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so.1")
_log = logging.getLogger(__name__)


class DeviceError(VidpipeError):
    """The installed TensorFlow has no kernels for a GPU of this machine."""


def prepare(*, takes_all_memory: bool) -> None:
    """Checks the GPUs before their first use, and warns of one that TensorFlow does not see.

    Args:
      takes_all_memory: whether TensorFlow takes the memory of the GPUs at its start, its default, which keeps
        the memory in one piece. Otherwise it takes what it needs, and can run beside another process.

    Raises:
      DeviceError: the installed TensorFlow has no kernels for a GPU.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and _machine_has_gpu() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        _log.warning(
            "This machine has an NVIDIA GPU, but TensorFlow does not see it and runs on the CPU. Install its "
            "CUDA libraries with pip install 'vidpipe[gpu]', and check the driver with nvidia-smi. "
            "CUDA_VISIBLE_DEVICES=-1 switches this warning off."
        )
    built_for = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", [])
    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        _check_kernels(details, built_for, tf.__version__)
        if not takes_all_memory:
            tf.config.experimental.set_memory_growth(gpu, True)


def names(num_replicas: int) -> str:
    """Names the devices of a run, such as `2 x NVIDIA L4` or `CPU`.

    Args:
      num_replicas: how many it uses; they are of one kind.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    name = "CPU"
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return name if num_replicas == 1 else f"{num_replicas} x {name}"


def _machine_has_gpu() -> bool:
    return any(any(Path("/").glob(pattern.removeprefix("/"))) for pattern in _DRIVER_FILES)


def _check_kernels(details: dict[str, Any], built_for: list[str], version: str) -> None:
    """Checks that a GPU runs kernels that TensorFlow was built with.

    Kernels run on GPUs of their own major compute capability and at least their minor one. Newer GPUs could
    compile the PTX code that the wheels contain, but some of their kernels fail then (tensorflow issues 97387
    and 101746). Older GPUs are ignored by TensorFlow.

    Args:
      details: of the GPU, as TensorFlow gives them.
      built_for: such as sm_80 and compute_90.
      version: of TensorFlow.

    Raises:
      DeviceError: it does not.
    """
    capability = details.get("compute_capability")
    if capability is None or not built_for:
        return
    digits = [name.rpartition("_")[2].rstrip("af") for name in built_for]
    known = sorted((int(name[:-1]), int(name[-1])) for name in digits)
    if any(major == capability[0] and minor <= capability[1] for major, minor in known):
        return
    (first_major, first_minor), (last_major, _) = known[0], known[-1]
    name = details.get("device_name", "The GPU")
    raise DeviceError(
        f"{name} has compute capability {capability[0]}.{capability[1]}, and "
        f"TensorFlow {version} has kernels for {first_major}.{first_minor} to {last_major}.x. Install a "
        "TensorFlow that was built for it (NVIDIA's container nvcr.io/nvidia/tensorflow is), or set "
        "CUDA_VISIBLE_DEVICES=-1 to run on the CPU."
    )
