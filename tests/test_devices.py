"""Which GPUs TensorFlow can use: warnings and errors, on machines that are made up."""

import logging
import types
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from vidpipe import devices

WHEEL = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine whose GPUs are `seen` by TensorFlow; `growing` are those that get memory as needed."""
    made = types.SimpleNamespace(seen=[], built_for=WHEEL, growing=[])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: made.seen)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: gpu)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, enable: made.growing.append((gpu, enable))
    )
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"cuda_compute_capabilities": made.built_for})
    return made


def _gpu(capability: tuple[int, int], name: str = "NVIDIA Made Up") -> dict[str, Any]:
    return {"device_name": name, "compute_capability": capability}


@pytest.mark.parametrize(
    ("files", "hidden", "expected"),
    [
        (["nvidia0"], None, True),
        (["nvidia0", "nvidia1"], "0", True),
        (["nvidia0"], "-1", False),
        (["nvidia0"], "", False),
        (["nvidiactl"], None, False),
        ([], None, False),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see_is_a_warning(
    machine: types.SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: list[str],
    hidden: str | None,
    expected: bool,
) -> None:
    del machine
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "_DRIVER_FILES", (f"{tmp_path}/nvidia[0-9]*", "/none/libcuda.so.1"))
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with caplog.at_level(logging.WARNING):
        devices.prepare(takes_all_memory=True)
    assert [line[:54] for line in caplog.messages] == expected * [
        "This machine has an NVIDIA GPU, but TensorFlow does no"
    ]


@pytest.mark.parametrize("capability", [(6, 0), (6, 1), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0)])
def test_a_gpu_with_kernels_is_used(machine: types.SimpleNamespace, capability: tuple[int, int]) -> None:
    machine.seen = [_gpu(capability)]
    devices.prepare(takes_all_memory=True)
    assert machine.growing == []


@pytest.mark.parametrize("capability", [(3, 5), (10, 0), (12, 0)])
def test_a_gpu_without_kernels_is_an_error(
    machine: types.SimpleNamespace, capability: tuple[int, int]
) -> None:
    machine.seen = [_gpu((8, 0)), _gpu(capability)]
    with pytest.raises(devices.DeviceError) as caught:
        devices.prepare(takes_all_memory=True)
    assert str(caught.value).startswith(
        f"NVIDIA Made Up has compute capability {capability[0]}.{capability[1]}, and TensorFlow "
        f"{tf.__version__} has kernels for 6.0 to 9.x. Install a TensorFlow that was built for it "
    )


@pytest.mark.parametrize("built_for", [[], ["sm_90", "sm_100a", "compute_120"]])
def test_a_tensorflow_that_was_built_for_a_new_gpu_uses_it(
    machine: types.SimpleNamespace, built_for: list[str]
) -> None:
    machine.seen, machine.built_for = [_gpu((12, 0)), _gpu((10, 0))], built_for
    devices.prepare(takes_all_memory=True)


def test_memory_is_taken_as_needed(machine: types.SimpleNamespace) -> None:
    machine.seen = [_gpu((8, 0)), _gpu((9, 0))]
    devices.prepare(takes_all_memory=False)
    assert machine.growing == [(gpu, True) for gpu in machine.seen]


def test_the_devices_of_a_run_are_named(machine: types.SimpleNamespace) -> None:
    assert (devices.names(1), devices.names(2)) == ("CPU", "2 x CPU")
    machine.seen = [_gpu((8, 0), "NVIDIA L4"), _gpu((8, 0), "NVIDIA L4")]
    assert (devices.names(1), devices.names(2)) == ("NVIDIA L4", "2 x NVIDIA L4")
