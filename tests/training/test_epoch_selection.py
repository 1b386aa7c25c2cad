"""The one-standard-error rule and early stopping, by table."""

from collections.abc import Sequence
from typing import Any

import pytest

from vidpipe.training.epoch_selection import is_out_of_patience, run_metrics, selected_epoch


def _history(losses: Sequence[float | None], errors: Sequence[float] | None = None) -> list[dict[str, Any]]:
    errors = errors or [0.0] * len(losses)
    return [
        {"epoch": epoch, "loss": 1 / epoch, "val_loss": loss, "val_loss_error": error}
        for epoch, (loss, error) in enumerate(zip(losses, errors, strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("losses", "errors", "expected"),
    [
        pytest.param([3, 2, 1], [0, 0, 0], 3, id="still falling"),
        pytest.param([3, 1, 2], [0, 0, 0], 2, id="no error: the lowest"),
        pytest.param([3, 1, 1], [0, 0, 0], 3, id="of equal ones the latest"),
        pytest.param([3, 1, 1.4, 1.6], [9, 0.5, 9, 9], 3, id="within the error of the lowest only"),
        pytest.param([1, 5, 1.5], [0.5, 0, 0], 3, id="an epoch between may be worse"),
        pytest.param([None, None], [0, 0], 2, id="without validation the last"),
    ],
)
def test_the_selected_epoch(losses: list[float | None], errors: list[float], expected: int) -> None:
    assert selected_epoch(_history(losses, errors))["epoch"] == expected


def test_of_two_losses_that_of_cross_validation_selects() -> None:
    history = [
        row | {"cv_loss": loss, "cv_loss_error": 0.25}
        for row, loss in zip(_history([1, 2, 3, 4]), [2, 1, 1.25, 1.5], strict=True)
    ]
    assert selected_epoch(history)["epoch"] == 3


def test_the_metrics_of_a_run_are_those_of_its_selected_epoch() -> None:
    metrics = run_metrics(_history([2, 1, 3], [0, 0.5, 0]))
    assert metrics == {"selected_epoch": 2, "epochs": 3, "loss": 0.5, "val_loss": 1, "val_loss_error": 0.5}


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        pytest.param([], 1, False, id="no epoch yet"),
        pytest.param([3, 2, 2.5], 2, False, id="one epoch without improvement"),
        pytest.param([3, 2, 2.5, 2], 2, True, id="an equal loss is no improvement"),
        pytest.param([3, 2, 2.5, 1], 2, False, id="improved in time"),
        pytest.param([3, 4, 5, 6], None, False, id="no patience set"),
    ],
)
def test_early_stopping(losses: list[float], patience: int | None, expected: bool) -> None:
    assert is_out_of_patience(_history(losses), patience) is expected
