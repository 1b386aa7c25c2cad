"""A TFLite file answers as the model does and carries its labels."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import QUANTIZATIONS, ClipConfig, ExportConfig
from vidpipe.inference import export_check, export_tflite
from vidpipe.inference.export_files import ExportError
from vidpipe.model.model_file import ModelMetadata

Config = Callable[..., ExportConfig]


@pytest.mark.parametrize(
    ("head", "quantization"),
    [("motion", "none"), pytest.param("notebook", "dynamic_range", marks=pytest.mark.slow)],
)
def test_the_tflite_interpreter_answers_as_the_model(
    tmp_path: Path,
    save_run: Callable[..., keras.Model],
    export_config: Config,
    read_clips: Callable[..., dict[str, np.ndarray]],
    probabilities_of: Callable[..., np.ndarray],
    head: str,
    quantization: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model, clips = save_run(tmp_path, head), read_clips()
    path = tmp_path / "model.tflite"
    capfd.readouterr()
    config = export_config(tmp_path, path, "tflite", quantization=quantization)
    (check,) = export_tflite.export_tflite(config)
    assert check.name == f"TFLite, quantization {quantization}"
    assert capfd.readouterr() == ("", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(path))
    assert not [op for op in interpreter._get_ops_details() if op["op_name"].startswith(("Flex", "CUSTOM"))]
    shapes = {values["name"]: values["shape"].tolist() for values in interpreter.get_input_details()}
    assert sorted(shapes.values()) == [[1, 4], [1, 4, 32, 32, 3]]
    runner = interpreter.get_signature_runner()
    rows = [
        runner(frames=frames[np.newaxis], mask=mask[np.newaxis])["probabilities"][0]
        for frames, mask in zip(clips["frames"], clips["mask"], strict=True)
    ]
    expected = probabilities_of(model, clips)
    assert not clips["mask"].all()
    np.testing.assert_allclose(rows, expected, atol=1e-4 if quantization == "none" else 0.02)
    assert check.largest_difference == pytest.approx(np.abs(rows - expected).max(), abs=1e-6)
    relative_size = path.stat().st_size / (4 * model.count_params())
    assert 0.99 < relative_size < 1.05 if quantization == "none" else 0.24 < relative_size < 0.3
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"long\nshort\n"
        assert json.loads(archive.read("vidpipe.json"))["clip"]["image_size"] == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "model.tflite"]


@pytest.mark.slow
def test_a_model_of_half_precision_and_fewer_frames_is_compared_with_both(
    tmp_path: Path, save_run: Callable[..., keras.Model], export_config: Config
) -> None:
    """With its float32 version, which is exported, and with itself."""
    save_run(tmp_path, num_frames=2, dtype_policy="mixed_bfloat16")
    config = export_config(tmp_path, tmp_path / "model.tflite", "tflite")
    tflite, half = export_tflite.export_tflite(config)
    assert tflite.largest_difference < 1e-4
    assert half.name == "float32 and the run's mixed_bfloat16"
    assert 1e-4 < half.largest_difference < 0.05


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_tflite_file_that_does_not_agree_with_the_model_is_not_kept(
    run_dir: Path,
    model: keras.Model,
    export_config: Config,
    tmp_path: Path,
    quantization: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = np.tile([0.7, 0.3], (6, 1))
    offset = 1.01 * export_tflite.TOLERANCES[quantization]

    def classify_all(name: str, *_: object) -> np.ndarray:
        return expected + offset if name == "TFLite" else expected

    monkeypatch.setattr(export_tflite, "_write_tflite", lambda *given: given[-1].write_text("file"))
    monkeypatch.setattr(export_tflite, "_by_tflite", lambda _: None)
    monkeypatch.setattr(export_tflite, "portable_model", lambda trained: trained)
    metadata = ModelMetadata(("long", "short"), ClipConfig(num_frames=4, image_size=32), 4)
    monkeypatch.setattr(export_check, "load_model_for", lambda *_: (model, metadata))
    monkeypatch.setattr(export_check, "classify_all", classify_all)
    config = export_config(run_dir, tmp_path / "out", "tflite", quantization=quantization)
    message = (
        "^The export does not agree with the model and was not written. TFLite, quantization "
        f"{quantization}: .*; the tolerance is"
    )
    with pytest.raises(ExportError, match=message):
        export_tflite.export_tflite(config)
    assert list(tmp_path.iterdir()) == []
    offset *= 0.98
    (check,) = export_tflite.export_tflite(config)
    assert (check.same_class, check.largest_difference) == (6, pytest.approx(offset))
    assert (tmp_path / "out").read_text() == "file"
