"""What a run shows: a row and a line per epoch, TensorBoard's events and the pictures."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.training import run_log
from vidpipe.training.epoch_steps import EpochTime
from vidpipe.training.head_fit import CrossValidation
from vidpipe.training.run_folder import HISTORY_COLUMNS, RunFolder
from vidpipe.training.run_log import SHOWN_CLIPS, RunLog, history_row, log_epoch, loss_scale
from vidpipe.training.step import StepSums
from vidpipe.training.validation import Validation

CLASSES = ("run", "walk")
VALIDATION = Validation(
    np.array([0, 1, 1], np.int32),
    np.array([[2, 0], [1, 0], [0, 3]], np.float32),
    np.array([[0, 1], [0, 1], [0, 1]], np.float32),
)
CROSS_VALIDATION = CrossValidation(0.5, 0.1, 0.75, 0.625, 0.25)


def _row(
    epoch: int,
    validation: Validation | None = VALIDATION,
    cross_validation: CrossValidation | None = CROSS_VALIDATION,
) -> dict[str, Any]:
    sums, spent = StepSums(loss=4.0 / epoch, correct=3.0, weight=8.0), EpochTime(2.0, 0.5, 8)
    return history_row(epoch, sums, validation, cross_validation, learning_rate=1e-3, spent=spent)


def _shown_clips() -> tuple[dict[str, tf.Tensor], np.ndarray]:
    num_clips = min(SHOWN_CLIPS, len(VALIDATION.label))
    frames = tf.zeros([num_clips, 2, 32, 32, 3], tf.uint8)
    return {"frames": frames, "mask": tf.ones([num_clips, 2], tf.bool)}, VALIDATION.label[:num_clips]


def _events(folder: RunFolder) -> Iterator[tuple[int, str, np.ndarray]]:
    for path in folder.tensorboard.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                yield event.step, value.tag, tf.make_ndarray(value.tensor)


def test_the_row_of_an_epoch() -> None:
    row = _row(2)
    assert tuple(row) == HISTORY_COLUMNS
    assert row == {
        "epoch": 2, "loss": 0.25, "accuracy": 0.375, **VALIDATION.metrics(), "cv_loss": 0.5,
        "cv_loss_error": 0.1, "cv_accuracy": 0.75, "linear_cv_accuracy": 0.625, "network_share": 0.25,
        "learning_rate": 1e-3, "seconds": 2.0, "data_wait": 0.25,
    }  # fmt: skip


def test_the_row_of_an_epoch_without_validation() -> None:
    row = _row(1, validation=None, cross_validation=None)
    assert tuple(row) == HISTORY_COLUMNS
    given = {"epoch", "loss", "accuracy", "learning_rate", "seconds", "data_wait"}
    assert {name for name, value in row.items() if value is not None} == given


def _scaled_optimizer() -> keras.Optimizer:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=1024)
    optimizer.build([keras.Variable(0.0)])
    return optimizer


@pytest.mark.parametrize(
    ("validation", "make_optimizer", "expected"),
    [
        pytest.param(
            VALIDATION, keras.optimizers.SGD,
            "Epoch 2/5: loss 0.2500, accuracy 0.375, val_loss 0.4963, val_accuracy 0.667, cv_loss 0.5000, "
            "cv_accuracy 0.750, network's share 0.25; learning rate 0.001, 123.5 clips/s, 25 % of the time "
            "waiting for data.",
            id="usual",
        ),
        pytest.param(
            None, keras.optimizers.SGD,
            "Epoch 2/5: loss 0.2500, accuracy 0.375; learning rate 0.001, 123.5 clips/s, 25 % of the time "
            "waiting for data.",
            id="without validation",
        ),
        pytest.param(
            None, _scaled_optimizer,
            "Epoch 2/5: loss 0.2500, accuracy 0.375; learning rate 0.001, 123.5 clips/s, 25 % of the time "
            "waiting for data; loss scale 1024, 7 steps skipped so far.",
            id="float16",
        ),
    ],
)  # fmt: skip
def test_the_line_of_an_epoch(
    validation: Validation | None,
    make_optimizer: Callable[[], keras.Optimizer],
    expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        row = _row(2, validation, CROSS_VALIDATION if validation else None)
        log_epoch(row, epochs=5, clips_per_sec=123.46, optimizer=make_optimizer(), num_steps=7)
    assert caplog.messages == [expected]


def test_the_loss_scale_is_that_of_float16_only() -> None:
    assert loss_scale(keras.optimizers.SGD()) is None
    assert loss_scale(_scaled_optimizer()) == 1024.0


def test_history_and_scalars_are_written_after_each_epoch(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = RunLog(folder, CLASSES, _shown_clips)
    history = [_row(1), _row(2)]
    log.write(history[:1], VALIDATION, is_last=False, loss_scale=2048.0)
    log.write(history, VALIDATION, is_last=False, loss_scale=1024.0)
    assert folder.read_history() == history
    found: dict[str, list[tuple[int, float]]] = {}
    for step, tag, value in _events(folder):
        found.setdefault(tag, []).append((step, float(value)))
    for name in HISTORY_COLUMNS[1:]:
        assert [step for step, _ in found[name]] == [1, 2]
        np.testing.assert_allclose(
            [value for _, value in found[name]], [row[name] for row in history], rtol=1e-6
        )
    assert found["loss_scale"] == [(1, 2048.0), (2, 1024.0)]
    assert not folder.learning_curves.exists()


def test_pictures_are_drawn_after_the_last_epoch(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    RunLog(folder, CLASSES, _shown_clips).write([_row(1)], VALIDATION, is_last=True, loss_scale=None)
    images = {
        tag: tf.io.decode_image(value[2]).numpy()
        for _, tag, value in _events(folder)
        if value.dtype == object
    }
    # A row of frames per clip, and a matrix of two classes.
    assert images["validation/clips"].shape[1] == 1320
    assert images["validation/confusion"].std() > 1
    assert tf.io.decode_png(folder.learning_curves.read_bytes()).shape[2] >= 3


def test_pictures_are_drawn_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    drawn: list[float] = []
    monkeypatch.setattr(run_log.figures, "learning_curves", lambda *_: drawn.append(now[0]))
    log = RunLog(RunFolder(tmp_path), CLASSES, _shown_clips)
    for seconds in (30.0, 61.0, 100.0, 122.0):
        now[0] = seconds
        log.write([_row(1, None)], None, is_last=False, loss_scale=None)
    assert drawn == [61.0, 122.0]


def test_without_validation_only_the_curves_are_drawn(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    RunLog(folder, CLASSES, _shown_clips).write([_row(1, None, None)], None, is_last=True, loss_scale=None)
    assert folder.learning_curves.exists()
    tags = {tag for _, tag, _ in _events(folder)}
    assert tags == {"loss", "accuracy", "learning_rate", "seconds", "data_wait"}
