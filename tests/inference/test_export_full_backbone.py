"""The complete VGG16 passes the check of both model exports."""

from collections.abc import Callable
from pathlib import Path

import keras
import pytest

from vidpipe.config import ExportConfig
from vidpipe.inference.export_saved_model import export_saved_model
from vidpipe.inference.export_tflite import export_tflite

pytestmark = pytest.mark.full_backbone


def test_the_complete_vgg16_can_be_exported(
    run_dir: Path, model: keras.Model, export_config: Callable[..., ExportConfig]
) -> None:
    assert len(model.get_layer("backbone").layers) > 18
    checks = [
        *export_saved_model(export_config(run_dir, run_dir / "1", "saved_model")),
        *export_tflite(export_config(run_dir, run_dir / "model.tflite", "tflite")),
    ]
    assert [check.name for check in checks] == ["frames", "jpeg", "TFLite, quantization none"]
    assert all(check.same_class == 6 for check in checks)
