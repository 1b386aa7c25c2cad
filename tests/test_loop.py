"""What a run says, draws and does when it is asked to end."""

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from vidpipe import input_pipeline, loop, model, shards, train
from vidpipe.config import OptimizerConfig, TrainConfig
from vidpipe.step import clip_losses

MakeConfig = Callable[..., TrainConfig]


def _history(run_dir: str) -> list[dict[str, str]]:
    with Path(run_dir, "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name not in ("seconds", "data_wait")} for row in rows]


def _summaries(run_dir: Path) -> Iterator[Any]:
    for path in (run_dir / "tensorboard").glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            yield from tf.compat.v1.Event.FromString(record.numpy()).summary.value


@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(signal.SIGTERM, 5, id="SIGTERM in an epoch"),
        pytest.param(signal.SIGINT, 6, id="Ctrl-C in the last step of one"),
    ],
)
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on_from_it(
    tmp_path: Path, train_config: MakeConfig, number: signal.Signals, step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without checkpoint_every, so that nothing else writes one inside an epoch."""
    straight, stopped = (train_config(tmp_path / name) for name in ("straight", "stopped"))
    train.train(straight)
    original = loop.Loop._step

    def asked(self: loop.Loop, batch: tuple) -> bool:
        if self._state.step == step - 1:
            os.kill(os.getpid(), number)
        return original(self, batch)

    monkeypatch.setattr(loop.Loop, "_step", asked)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(
        loop.StoppedError, match=f"{number.name} after epoch 2, step {step - 3}.*goes on there"
    ) as raised:
        train.train(stopped)
    assert raised.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert Path(stopped.run_dir, "checkpoints", f"step-{step:08d}.npz").exists()
    monkeypatch.undo()
    train.train(stopped)
    assert _history(stopped.run_dir) == _history(straight.run_dir)


def test_a_second_signal_ends_at_once() -> None:
    stop = loop.StopSignal()
    stop.receive(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGTERM, None)


def test_the_tool_leaves_with_the_signal_s_code(tmp_path: Path, data_dir: str) -> None:
    command = [sys.executable, "tools/train.py", f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}"]
    command += ["--backbone_weights=none", "--epochs=100000", "--batch_size=3"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("Epoch 2/"):
            process.send_signal(signal.SIGTERM)
            break
    lines += process.stderr.readlines()
    assert process.wait() == 143
    assert re.search(
        r"train.py: SIGTERM after epoch \d+, step \d\. The same command goes on there", lines[-1]
    )


def test_no_lower_loss_for_a_while_ends_the_run(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(loop._Validation, "losses", property(lambda _: np.full(4, next(losses))))
    result = train.train(train_config(tmp_path, epochs=5, patience=2))
    assert (result.metrics["kept_epoch"], result.metrics["epochs"], result.metrics["val_loss"]) == (4, 4, 2.0)


def test_the_last_epoch_within_an_error_of_the_lowest_loss_is_kept(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of losses 0 and 2 * mean, the standard error is the mean's: the lowest is 1 +- 1."""
    means = iter([4.0, 1.0, 1.75, 2.25])
    monkeypatch.setattr(loop._Validation, "losses", property(lambda _: np.array([0, 2]) * next(means)))
    save = mock.Mock(wraps=loop.save_model)
    monkeypatch.setattr(loop, "save_model", save)
    result = train.train(train_config(tmp_path, epochs=4))
    assert (result.metrics["kept_epoch"], result.metrics["val_loss"]) == (3, 1.75)
    assert result.metrics["val_loss_error"] == pytest.approx(1.75)
    assert save.call_count == 3


def test_checkpoints_are_kept_as_many_as_asked_for(tmp_path: Path, train_config: MakeConfig) -> None:
    train.train(train_config(tmp_path, checkpoint_every=1, keep_checkpoints=4))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.npz" for step in (6, 7, 8, 9)]


def test_tensorboard_and_the_folder_show_the_run(tmp_path: Path, train_config: MakeConfig) -> None:
    train.train(train_config(tmp_path, profile_steps=(2, 3)))
    history = _history(str(tmp_path))
    scalars: dict[str, list[float]] = {}
    images: dict[str, np.ndarray] = {}
    for value in _summaries(tmp_path):
        tensor = tf.make_ndarray(value.tensor)
        if tensor.dtype == object:
            images[value.tag] = tf.io.decode_image(tensor[2]).numpy()
        else:
            scalars.setdefault(value.tag, []).append(float(tensor))
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"):
        np.testing.assert_allclose(scalars[name], [float(row[name]) for row in history], rtol=1e-6)
    # Two rows of clips; a matrix of two classes.
    assert images["validation/clips"].shape[1] == 1320
    assert images["validation/confusion"].std() > 1
    assert tf.io.decode_png((tmp_path / "history.png").read_bytes()).shape[2] >= 3
    assert list((tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))


def test_what_validation_found_by_hand() -> None:
    validation = loop._Validation(
        np.array([0, 0, 1, 2], np.int32),
        np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.3, 0.4, 0.3]], np.float32)),
    )
    np.testing.assert_allclose(validation.losses, -np.log([0.5, 0.1, 0.6, 0.3]), rtol=1e-6)
    assert validation.accuracy == 0.5
    assert validation.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_averaged_weights_are_what_is_validated_and_saved(
    tmp_path: Path, train_config: MakeConfig, data_dir: str, info: shards.DatasetInfo
) -> None:
    own, averaged = (
        train_config(tmp_path / name, epochs=1, optimizer=OptimizerConfig(ema=ema))
        for name, ema in (("own", 0.0), ("averaged", 0.5))
    )
    train.train(own)
    train.train(averaged)
    first, second = (_history(config.run_dir)[0] for config in (own, averaged))
    assert first["loss"] == second["loss"]  # the same steps were taken
    assert first["val_loss"] != second["val_loss"]
    saved, _ = model.load_model(Path(averaged.run_dir, "model.keras"))
    ((inputs, label, _),) = input_pipeline.eval_dataset(data_dir, info, 2, "val")
    loss = clip_losses(label, saved(inputs)).numpy().mean()
    np.testing.assert_allclose(loss, float(second["val_loss"]), rtol=1e-4)


def test_a_line_tells_of_loss_scaling(
    tmp_path: Path,
    train_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And a checkpoint holds the scale."""
    loops: list[loop.Loop] = []
    original = loop.Loop.run

    def kept(self: loop.Loop) -> dict[str, Any]:
        loops.append(self)
        return original(self)

    monkeypatch.setattr(loop.Loop, "run", kept)
    monkeypatch.setattr(train, "resolve_precision", lambda _: "mixed_float16")
    with caplog.at_level(logging.INFO):
        train.train(train_config(tmp_path, epochs=1))
    saved = {id(variable) for variable in loops[0]._saved}
    assert {id(loops[0]._optimizer.dynamic_scale), id(loops[0]._optimizer.step_counter)} <= saved
    assert re.search(r"Epoch 1/1: .*; loss scale \d+, \d steps skipped so far\.", caplog.text)
    assert any(value.tag == "loss_scale" for value in _summaries(tmp_path))


def test_progress_says_what_training_is_doing(
    tmp_path: Path,
    train_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("vidpipe.progress._LOG_EVERY_SEC", 0)
    with caplog.at_level(logging.INFO):
        train.train(train_config(tmp_path, epochs=1))
    assert re.search(
        r"Epoch 1/1: 6/8 clips in \d+ s, [\d.]+ clips/s, \d+ s left, loss \d\.\d{4}, accuracy 0\.\d{3}, "
        r"learning rate 0\.001, \d+ % waiting for data",
        caplog.text,
    )


@pytest.mark.parametrize(
    ("profile_steps", "resumed_after", "expected"),
    [
        pytest.param((2, 2), 0, ["0", "start", "1", "stop", "2"], id="inside"),
        pytest.param((1, 3), 1, ["start", "1", "2", "stop"], id="gone on in the middle"),
        pytest.param((1, 2), 2, ["2"], id="gone on behind"),
        pytest.param((3, 9), 0, ["0", "1", "start", "2", "stop"], id="longer than the run"),
    ],
)
def test_a_profile_is_of_the_steps_asked_for(
    tmp_path: Path, train_config: MakeConfig, profile_steps: tuple[int, int], resumed_after: int,
    expected: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = train_config(tmp_path, epochs=1, checkpoint_every=1)
    original = loop.Loop._step

    def stopped(self: loop.Loop, batch: tuple) -> bool:
        if self._state.step == resumed_after:
            raise KeyboardInterrupt
        return original(self, batch)

    if resumed_after:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(loop.Loop, "_step", stopped)
            train.train(config)
    events: list[str] = []

    def noted(self: loop.Loop, batch: tuple) -> bool:
        self._learning_rate = lambda step: events.append(str(step)) or 1e-3  # type: ignore
        stop = original(self, batch)
        del self._learning_rate
        return stop

    monkeypatch.setattr(loop.Loop, "_step", noted)
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda _: events.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: events.append("stop"))
    train.train(replace(config, profile_steps=profile_steps))
    assert events == expected


def test_settings_that_change_no_weight_may_change(tmp_path: Path, train_config: MakeConfig) -> None:
    config = train_config(tmp_path, epochs=1)
    train.train(config)
    (tmp_path / "metrics.json").unlink()
    result = train.train(replace(config, checkpoint_every=1, keep_checkpoints=5, profile_steps=(1, 1)))
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.metrics
