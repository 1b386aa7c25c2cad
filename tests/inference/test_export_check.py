"""An export that differs from its model by more than the tolerance is rejected."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from vidpipe.data.dataset import Dataset
from vidpipe.evaluation.evaluate import EvaluateError
from vidpipe.inference import export_check
from vidpipe.inference.export_files import ExportError
from vidpipe.model.model_file import ModelError

EXPECTED = np.array([[0.9, 0.1], [0.4, 0.6]])


def test_a_difference_within_the_tolerance_is_measured() -> None:
    found = EXPECTED + np.array([[0.05, -0.05], [0.15, -0.15]])
    check = export_check.check("frames", expected=EXPECTED, found=found, tolerance=0.151)
    assert (check.largest_difference, check.same_class, check.num_clips) == (pytest.approx(0.15), 1, 2)
    assert str(check) == (
        "frames: largest difference of a probability 1.5e-01, same predicted class for 1 of 2 clips"
    )


@pytest.mark.parametrize("wrong", [0.2, np.nan, np.inf])
def test_a_larger_or_non_finite_difference_is_rejected(wrong: float) -> None:
    found = EXPECTED + np.array([[0, 0], [0, wrong]])
    message = (
        "^The export does not agree with the model and was not written. frames: .*; the tolerance is 0.19.$"
    )
    with pytest.raises(ExportError, match=message):
        export_check.check("frames", expected=EXPECTED, found=found, tolerance=0.19)


def test_checks_run_without_tf32() -> None:
    """TF32 is enabled by default, and on a GPU its results would be too far from those of a CPU."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    found = export_check.classify_all("model", lambda batch: np.array([[enabled()]]), [{}])
    assert (found.tolist(), enabled()) == ([[False]], True)


def test_the_first_clips_are_real_ones(
    dataset: Dataset, read_clips: Callable[..., dict[str, np.ndarray]]
) -> None:
    """Six clips in two batches, without the clips that fill the second batch."""
    batches = export_check.first_clips(dataset, "test", 4)
    assert [len(batch["frames"]) for batch in batches] == [4, 2]
    for name, expected in read_clips().items():
        assert (np.concatenate([batch[name] for batch in batches]) == expected).all()


def test_a_run_without_a_model_or_with_other_classes_is_rejected(
    dataset: Dataset, tmp_path: Path, other_classes_run: Path
) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}/model.keras"):
        export_check.load_model_for(str(tmp_path), dataset)
    with pytest.raises(EvaluateError, match="they differ in short, tall"):
        export_check.load_model_for(str(other_classes_run), dataset)
