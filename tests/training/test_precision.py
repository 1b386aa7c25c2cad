"""The dtype policy by device."""

import keras
import pytest
import tensorflow as tf

from vidpipe.training.precision import dtype_policy, resolve_precision
from vidpipe.training.run_folder import TrainError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A GPU of the compute capability that the test is parametrized with."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["a GPU"])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda _: {"compute_capability": request.param}
    )


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    assert resolve_precision("auto") == "float32"
    assert resolve_precision("float32") == "float32"
    with pytest.raises(TrainError, match="--precision=mixed_float16 needs a GPU.*--precision=float32"):
        resolve_precision("mixed_float16")


@pytest.mark.parametrize(
    ("gpu", "one", "several"),
    [
        ((9, 0), "mixed_bfloat16", "mixed_bfloat16"),
        ((8, 0), "mixed_bfloat16", "mixed_bfloat16"),
        ((7, 5), "mixed_float16", "float32"),
        ((6, 1), "float32", "float32"),
    ],
    indirect=["gpu"],
)
def test_auto_is_the_fastest_that_the_gpu_supports(gpu: None, one: str, several: str) -> None:
    assert resolve_precision("auto") == one
    assert resolve_precision("auto", num_replicas=2) == several
    assert resolve_precision("mixed_float16") == "mixed_float16"


@pytest.mark.parametrize("gpu", [(8, 0)], indirect=True)
def test_float16_is_rejected_on_several_replicas(gpu: None) -> None:
    with pytest.raises(TrainError, match="not supported on several replicas.*=mixed_bfloat16"):
        resolve_precision("mixed_float16", num_replicas=2)


def test_the_policy_is_set_inside_the_block_only() -> None:
    before = keras.config.dtype_policy()
    with pytest.raises(ValueError, match="inside"), dtype_policy("mixed_bfloat16"):
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise ValueError("inside")
    assert keras.config.dtype_policy() == before
