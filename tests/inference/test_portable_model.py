"""The portable model has the same weights and computes in float32 without cuDNN."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.inference.export_files import ExportError, replaced
from vidpipe.inference.export_saved_model import _is_saved_model
from vidpipe.inference.portable_model import portable_model, save_module


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_portable_model_computes_in_float32_and_without_cudnn(
    tmp_path: Path,
    save_run: Callable[..., keras.Model],
    read_clips: Callable[..., dict[str, np.ndarray]],
    probabilities_of: Callable[..., np.ndarray],
    policy: str,
) -> None:
    half = save_run(tmp_path, dtype_policy=policy)
    portable = portable_model(half)
    assert "float16" in half.to_json()
    assert "float16" not in portable.to_json()
    assert {layer.use_cudnn for layer in portable.get_layer("head").layers if "lstm" in layer.name} == {False}
    for weight, expected in zip(portable.get_weights(), half.get_weights(), strict=True):
        assert (weight == expected).all()
    clips = read_clips()
    difference = np.abs(probabilities_of(portable, clips) - probabilities_of(half, clips)).max()
    assert 0 < difference < 0.05


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "{{function_node}} No space left")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    message = rf"^Cannot write {tmp_path}/1 \(No space left on device\)\. Its folder must be writable"
    with (
        pytest.raises(ExportError, match=message),
        replaced(f"{tmp_path}/1", _is_saved_model) as new,
    ):
        save_module(tf.Module(), new, {})
    assert list(tmp_path.iterdir()) == []
