"""The training loop on a tiny model: resumption, selection, stopping, and what it reports."""

import ast
import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from training.stub_run import FEATURES, LABEL, NUM_CLIPS, StubRun, epoch_order, stub_run

from vidpipe.config import ClipSpec, ModelConfig, OptimizerConfig, to_dict
from vidpipe.errors import VidpipeError
from vidpipe.model.fused import build_model
from vidpipe.training import distribution, loop, saved_state
from vidpipe.training.checkpoint import CheckpointError, read_state
from vidpipe.training.profiler import Profiler
from vidpipe.training.run_folder import RunFolder, TrainError
from vidpipe.training.step import clip_losses
from vidpipe.training.stop_signal import StoppedError, stop_signal
from vidpipe.training.validation import Validation

LOOP_MODULES = ("loop", "epoch_steps", "step", "validation", "run_log", "saved_state")


@pytest.fixture(autouse=True, scope="module")
def deterministic() -> None:
    """As `train.train` sets it on a CPU."""
    tf.config.experimental.enable_op_determinism()


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Arranges a call with the number of each step, counted from 1, before it is taken."""
    original = Profiler.before_step

    def arrange(call: Callable[[int], None]) -> None:
        def called(self: Profiler, number: int) -> None:
            original(self, number)
            call(number)

        monkeypatch.setattr(Profiler, "before_step", called)

    return arrange


@pytest.fixture
def val_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[np.ndarray]], None]:
    """Arranges the losses of the clips in each validation."""

    def arrange(epochs: list[np.ndarray]) -> None:
        remaining = iter(epochs)
        original = Validation.__init__

        def patched(self: Validation, *arguments: Any) -> None:
            original(self, *arguments)
            self.__dict__["losses"] = next(remaining)  # what the cached property holds

        monkeypatch.setattr(Validation, "__init__", patched)

    return arrange


def _layer_names(model: keras.Model) -> set[str]:
    names = {layer.name for layer in model.layers}
    return names.union(*(_layer_names(layer) for layer in model.layers if isinstance(layer, keras.Model)))


@pytest.mark.parametrize("module", LOOP_MODULES)
def test_the_modules_of_the_loop_know_no_layers(module: str) -> None:
    path = Path(loop.__file__).with_name(f"{module}.py")
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in imported if name.startswith("vidpipe.model")]
    model = build_model(
        ModelConfig(backbone_weights="none"),
        spec=ClipSpec(num_frames=2, height=32, width=32),
        num_classes=2,
        stored_frames=2,
    )
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert not strings & (_layer_names(model.fused) - {"frames", "mask"})
    assert not [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "get_layer"]


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    run = stub_run(tmp_path)
    metrics = run.loop.run()
    assert run.events == ["start"]
    (prepared_on,) = run.prepared_on
    assert (prepared_on["features"] == FEATURES[:NUM_CLIPS]).all()
    history = run.folder.read_history()
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]
    selected = history[metrics["selected_epoch"] - 1]
    assert metrics == {"selected_epoch": selected.pop("epoch"), "epochs": 3, **selected}
    assert run.folder.read_metrics() == metrics
    assert [call["is_last"] for call in run.log.calls] == [False, False, True]
    assert run.checkpoint_names() == ["step-00000006.npz", "step-00000009.npz"]


def test_the_history_of_an_epoch_is_recomputed(tmp_path: Path) -> None:
    """With a learning rate of nearly 0 all steps see the same weights."""
    run = stub_run(tmp_path, epochs=1, optimizer=OptimizerConfig(learning_rate=1e-12, ema=0.0))
    model = run.trainee.model
    logits = model({"features": FEATURES[NUM_CLIPS:]}, training=False)
    losses = clip_losses(tf.constant(LABEL[NUM_CLIPS:]), logits).numpy()
    run.loop.run()
    (row,) = run.folder.read_history()
    assert row["val_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert row["val_loss_error"] == pytest.approx(losses.std(ddof=1) / np.sqrt(len(losses)), rel=1e-5)
    assert row["val_accuracy"] == np.mean(logits.numpy().argmax(axis=1) == LABEL[NUM_CLIPS:])
    assert row["learning_rate"] == pytest.approx(1e-12)
    assert row["seconds"] > 0
    assert 0 <= row["data_wait"] <= 1
    # Eight of nine rows are clips; their mean is divided by eight.
    assert row["accuracy"] in [count / 8 for count in range(9)]


def test_without_validation_the_last_epoch_is_selected(tmp_path: Path) -> None:
    run = stub_run(tmp_path, has_val=False, epochs=2)
    metrics = run.loop.run()
    assert (metrics["selected_epoch"], metrics["val_loss"], metrics["val_accuracy"]) == (2, None, None)
    assert len(run.saved) == 1
    assert run.log.calls[-1]["validation"] is None


def test_the_last_epoch_within_a_standard_error_of_the_lowest_loss_is_selected(
    tmp_path: Path, val_losses: Callable[[list[np.ndarray]], None]
) -> None:
    """The standard error of losses 0 and 2 * mean is the mean: the lowest loss is 1 +- 1."""
    val_losses([np.array([0, 2]) * mean for mean in (4.0, 1.0, 1.75, 2.25)])
    run = stub_run(tmp_path, epochs=4)
    metrics = run.loop.run()
    assert (metrics["selected_epoch"], metrics["val_loss"]) == (3, 1.75)
    assert metrics["val_loss_error"] == pytest.approx(1.75)


def test_the_model_of_the_selected_epoch_is_saved_meanwhile_and_at_the_end(
    tmp_path: Path, val_losses: Callable[[list[np.ndarray]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [np.full(4, loss) for loss in (2.0, 1.0, 3.0, 0.5, 4.0)]
    val_losses(2 * losses)
    seldom = stub_run(tmp_path / "seldom", epochs=5)
    seldom.loop.run()
    monkeypatch.setattr(loop, "_SAVE_MODEL_EVERY_SEC", -1)
    often = stub_run(tmp_path / "often", epochs=5)
    assert often.loop.run()["selected_epoch"] == 4
    assert (len(seldom.saved), len(often.saved)) == (1, 3)
    for ours, theirs in zip(seldom.saved[-1], often.saved[-1], strict=True):
        assert (ours == theirs).all()
    assert any((first != last).any() for first, last in zip(often.saved[0], often.saved[-1], strict=True))


def test_early_stopping(
    tmp_path: Path,
    val_losses: Callable[[list[np.ndarray]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    val_losses([np.full(4, loss) for loss in (3.0, 2.0, 2.5, 2.0, 1.0)])
    run = stub_run(tmp_path, epochs=5, patience=2)
    with caplog.at_level(logging.INFO):
        metrics = run.loop.run()
    assert (metrics["selected_epoch"], metrics["epochs"], metrics["val_loss"]) == (4, 4, 2.0)
    assert "Early stopping: val_loss has not improved for 2 epochs." in caplog.text
    assert [call["is_last"] for call in run.log.calls] == [False, False, False, True]


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = stub_run(tmp_path, checkpoint_every=1, keep_checkpoints=4)
    run.loop.run()
    assert run.checkpoint_names() == [f"step-{step:08d}.npz" for step in (6, 7, 8, 9)]


ALL_STATE = {
    "accumulate": 3, "label_smoothing": 0.1,
    "optimizer": OptimizerConfig(
        name="sgd", learning_rate=0.05, schedule="cosine", warmup_epochs=0.5, weight_decay=0.01,
        clip_norm=1.0, ema=0.9,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=[{}, ALL_STATE], ids=["adam", "all state"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StubRun:
    run = stub_run(tmp_path_factory.mktemp("uninterrupted"), epochs=2, checkpoint_every=1, **request.param)
    run.loop.run()
    return run


def _again(run: StubRun, run_dir: Path) -> StubRun:
    """A new process's run with the settings of another."""
    settings = {
        name: value for name, value in vars(run.config).items() if name not in ("data_dir", "run_dir")
    }
    return stub_run(run_dir, **settings)


def _checkpoint(run: StubRun) -> dict[str, np.ndarray]:
    """The newest one, but for the measured times in its state."""
    with np.load(run.folder.checkpoint_paths()[-1]) as saved:
        return {name: saved[name] for name in saved.files if name != "state"}


@pytest.mark.parametrize(
    ("kill_at", "is_saved"),
    [
        pytest.param(1, False, id="before the first checkpoint"),
        pytest.param(2, True, id="inside an epoch"),
        pytest.param(3, False, id="before the checkpoint of an epoch"),
        pytest.param(5, False, id="inside the second epoch"),
        pytest.param(6, True, id="after the last checkpoint"),
    ],
)
def test_a_run_that_was_killed_ends_bit_identical(
    tmp_path: Path,
    uninterrupted: StubRun,
    kill_at: int,
    is_saved: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = saved_state.save_checkpoint

    def save_and_die(folder: RunFolder, *, step: int, **rest: Any) -> None:
        if step != kill_at or is_saved:
            original(folder, step=step, **rest)
        if step == kill_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(saved_state, "save_checkpoint", save_and_die)
        _again(uninterrupted, tmp_path).loop.run()
    assert not RunFolder(tmp_path).is_finished
    resumed = _again(uninterrupted, tmp_path)
    metrics = resumed.loop.run()
    assert resumed.events == (["start"] if kill_at == 1 else ["refresh", "resume"])
    assert resumed.history() == uninterrupted.history()
    ours, theirs = _checkpoint(resumed), _checkpoint(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    for our, their in zip(
        resumed.trainee.model.get_weights(), uninterrupted.trainee.model.get_weights(), strict=True
    ):
        assert (our == their).all()
    expected = uninterrupted.folder.read_metrics()
    assert all(metrics[name] == expected[name] for name in metrics if name not in ("seconds", "data_wait"))


def test_a_longer_run_goes_on_from_the_last_epoch(tmp_path: Path) -> None:
    """With a constant learning rate it equals one that was as long from the start."""
    straight = stub_run(tmp_path / "straight", epochs=3)
    straight.loop.run()
    stub_run(tmp_path / "longer", epochs=1).loop.run()
    longer = stub_run(tmp_path / "longer", epochs=3)
    longer.loop.run()
    assert longer.events == ["refresh", "resume"]
    assert longer.history() == straight.history()
    assert longer.folder.read_metrics()["epochs"] == 3


def test_a_checkpoint_holds_the_settings(tmp_path: Path) -> None:
    run = stub_run(tmp_path, epochs=1)
    run.loop.run()
    state = read_state(run.folder)
    assert state is not None
    assert state["settings"] == to_dict(run.config)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_lost_model_is_made_again(
    tmp_path: Path, ema: float, val_losses: Callable[[list[np.ndarray]], None]
) -> None:
    """The checkpoint of the selected epoch is kept besides the newest one."""
    val_losses([np.full(4, loss) for loss in (2.0, 1.0, 3.0, 4.0)])
    optimizer = OptimizerConfig(learning_rate=0.05, ema=ema)
    run = stub_run(tmp_path, epochs=4, keep_checkpoints=1, optimizer=optimizer)
    run.loop.run()
    assert run.checkpoint_names() == ["step-00000006.npz", "step-00000012.npz"]
    run.folder.model.unlink()
    run.folder.metrics.unlink()
    run.folder.history.unlink()
    again = stub_run(tmp_path, epochs=4, keep_checkpoints=1, optimizer=optimizer)
    metrics = again.loop.run()
    assert metrics["selected_epoch"] == 2
    assert run.folder.read_metrics() == metrics
    assert again.history() == [
        {name: value for name, value in row.items() if name not in ("seconds", "data_wait")}
        for row in read_state(run.folder)["history"]  # type: ignore[index]
    ]
    (weights,) = again.saved
    assert all((ours == theirs).all() for ours, theirs in zip(weights, run.saved[-1], strict=True))


def test_a_model_whose_checkpoint_is_gone_is_not_made_up(
    tmp_path: Path, val_losses: Callable[[list[np.ndarray]], None]
) -> None:
    val_losses([np.full(4, loss) for loss in (1.0, 2.0)])
    run = stub_run(tmp_path, epochs=2)
    run.loop.run()
    run.folder.model.unlink()
    run.folder.metrics.unlink()
    run.folder.checkpoint(3).unlink()
    again = stub_run(tmp_path, epochs=2)
    with pytest.raises(CheckpointError, match=r"step-00000003.npz cannot be read"):
        again.loop.run()
    assert not run.folder.is_finished


@pytest.mark.parametrize("long_epochs", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_validation(
    tmp_path: Path, number: signal.Signals, long_epochs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run resumes before it, to the same end."""
    straight = stub_run(tmp_path / "straight")
    straight.loop.run()
    monkeypatch.setattr(loop, "_LONG_EPOCH_SEC", 0 if long_epochs else 1e9)
    calls = []

    with stop_signal() as stop:
        run = stub_run(tmp_path / "stopped", stop=stop)
        original = run.loop._epoch_steps.steps.evaluate

        def evaluate(*batch: Any) -> Any:
            calls.append(batch)
            if len(calls) == 3:  # the first batch of the second validation
                newest = run.folder.checkpoint_paths()[-1].name
                assert newest == ("step-00000006.npz" if long_epochs else "step-00000003.npz")
                os.kill(os.getpid(), number)
            return original(*batch)

        monkeypatch.setattr(run.loop._epoch_steps.steps, "evaluate", evaluate)
        with pytest.raises(
            StoppedError, match=f"^{number.name}: stopped in the validation of epoch 2. The same command"
        ) as raised:
            run.loop.run()
    assert raised.value.exit_code == 128 + number
    assert len(calls) == 3
    stopped = stub_run(tmp_path / "stopped")
    assert stopped.checkpoint_names()[-1] == "step-00000006.npz"
    stopped.loop.run()
    assert stopped.history() == straight.history()


def test_a_signal_stops_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_signal() as stop:
        run = stub_run(tmp_path, stop=stop)
        start = run.head_fit.start

        def interrupted(first_inputs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            start(first_inputs)

        monkeypatch.setattr(run.head_fit, "start", interrupted)
        with pytest.raises(StoppedError, match="^SIGINT: stopped. The same command starts again"):
            run.loop.run()
    assert run.events == []
    assert run.checkpoint_names() == []


def test_resuming_is_reported(
    tmp_path: Path, before_step: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    stopped = stub_run(tmp_path, checkpoint_every=1)
    before_step(lambda number: stopped.stop.receive(signal.SIGTERM, None) if number == 5 else None)
    with pytest.raises(StoppedError):
        stopped.loop.run()
    with caplog.at_level(logging.INFO):
        stub_run(tmp_path, checkpoint_every=1).loop.run()
    assert "Resuming from epoch 2, step 2." in caplog.text


def test_weights_of_another_run_are_not_prepared(tmp_path: Path) -> None:
    run = stub_run(tmp_path, epochs=1, init_from="another_run")
    run.loop.run()
    assert run.events == []


@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(signal.SIGTERM, 5, id="SIGTERM inside an epoch"),
        pytest.param(signal.SIGINT, 6, id="Ctrl-C in the last step of an epoch"),
    ],
)
def test_a_signal_saves_a_checkpoint_from_which_the_run_resumes(
    tmp_path: Path, before_step: Callable[..., None], number: signal.Signals, step: int
) -> None:
    """Without checkpoint_every: nothing else saves one inside an epoch."""
    straight = stub_run(tmp_path / "straight")
    straight.loop.run()
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    send_at = [step]
    before_step(lambda taken: os.kill(os.getpid(), number) if [taken] == send_at else None)
    with (
        stop_signal() as stop,
        pytest.raises(
            StoppedError, match=f"{number.name}: stopped at epoch 2, step {step - 3}.*from here"
        ) as e,
    ):
        stub_run(tmp_path / "stopped", stop=stop).loop.run()
    assert e.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    send_at.clear()
    stopped = stub_run(tmp_path / "stopped")
    assert stopped.checkpoint_names()[-1] == f"step-{step:08d}.npz"
    stopped.loop.run()
    assert stopped.history() == straight.history()


def test_a_run_on_a_data_service_keeps_the_checkpoint_of_its_last_epoch(
    tmp_path: Path, before_step: Callable[..., None]
) -> None:
    """The service decides the order of clips, so no step inside an epoch can be resumed."""
    run = stub_run(tmp_path, data_service="host:1", augment="flip")
    before_step(lambda number: run.stop.receive(signal.SIGTERM, None) if number == 5 else None)
    with pytest.raises(StoppedError, match=r"at epoch 2, step 2\. .* resumes from the last checkpoint"):
        run.loop.run()
    assert run.checkpoint_names() == ["step-00000003.npz"]


@pytest.mark.parametrize("checkpoint_every", [None, 1])
def test_workers_stop_after_the_step_in_which_all_have_read_the_request(
    tmp_path: Path,
    before_step: Callable[..., None],
    checkpoint_every: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distribution, "num_workers", lambda _: 2)
    monkeypatch.setattr(distribution, "check_agreement", lambda strategy, step: None)
    run = stub_run(tmp_path, checkpoint_every=checkpoint_every)
    before_step(lambda number: run.stop.receive(signal.SIGTERM, None) if number == 4 else None)
    with pytest.raises(StoppedError, match="at epoch 2, step 2"):
        run.loop.run()
    assert run.checkpoint_names()[-1] == "step-00000005.npz"


def test_a_worker_that_is_not_the_chief_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "is_chief", lambda _: False)
    run = stub_run(tmp_path, log=lambda _: None, profile_steps=(1, 9))  # type: ignore[arg-type, return-value]
    assert run.loop.run()["epochs"] == 3
    assert list(tmp_path.rglob("*")) == []
    assert run.saved == []


@pytest.mark.parametrize("poisoned", [0, 5, 7])
def test_a_non_finite_loss_names_its_step_and_clips(tmp_path: Path, poisoned: int) -> None:
    features = FEATURES.copy()
    features[poisoned] = np.nan
    run = stub_run(tmp_path, features=features, checkpoint_every=1)
    with pytest.raises(TrainError, match="^Non-finite loss or gradient") as raised:
        run.loop.run()
    step = int(np.flatnonzero(epoch_order(run.config, 0) == poisoned)[0]) // 3 + 1
    clips = run.batches.clips_of_step(0, step - 1)
    assert f"clip_{poisoned}" in clips.split(", ")
    assert re.search(
        rf"in epoch 1, step {step}, on {clips}\. Earlier checkpoints are kept in {tmp_path}\. "
        "In a new run_dir try a smaller --learning_rate, --clip_norm=1 or --precision=float32",
        str(raised.value),
    )
    assert run.checkpoint_names()[-1:] == ([f"step-{step - 1:08d}.npz"] if step > 1 else [])


def test_a_model_with_a_non_finite_validation_loss_is_not_saved(tmp_path: Path) -> None:
    """The loss of the only step is finite; the weights after it are not."""
    features = FEATURES * 1e3
    optimizer = OptimizerConfig(name="sgd", learning_rate=1e38, ema=0.0)
    run = stub_run(tmp_path, features=features, batch_size=8, epochs=1, optimizer=optimizer)
    with pytest.raises(
        TrainError, match="^Non-finite validation loss .nan. in epoch 1.*smaller --learning_rate"
    ):
        run.loop.run()
    assert run.saved == []
    assert not run.folder.checkpoints.exists()


def test_weights_that_are_non_finite_are_not_saved(tmp_path: Path) -> None:
    """Without a validation split the checkpoint is the first to see them."""
    optimizer = OptimizerConfig(name="sgd", learning_rate=1e38, ema=0.0)
    run = stub_run(
        tmp_path, features=FEATURES * 1e3, has_val=False, batch_size=8, epochs=1, optimizer=optimizer
    )
    with pytest.raises(VidpipeError, match=r"is non-finite \(NaN or Inf\) after step 1"):
        run.loop.run()
    assert run.checkpoint_names() == []


def test_averaged_weights_are_validated_and_saved(tmp_path: Path) -> None:
    own, averaged = (
        stub_run(
            tmp_path / str(ema), epochs=1, checkpoint_every=1,
            optimizer=OptimizerConfig(learning_rate=0.05, ema=ema),
        )
        for ema in (0.0, 0.5)
    )  # fmt: skip
    own.loop.run()
    averaged.loop.run()
    ((first,), (second,)) = own.history(), averaged.history()
    assert first["loss"] == second["loss"]  # the same steps were taken
    assert first["val_loss"] != second["val_loss"]
    for our, their in zip(own.trainee.model.get_weights(), averaged.trainee.model.get_weights(), strict=True):
        assert (our == their).all()
    averaged.trainee.model.set_weights(averaged.saved[-1])
    logits = averaged.trainee.model({"features": FEATURES[NUM_CLIPS:]}, training=False)
    loss = clip_losses(tf.constant(LABEL[NUM_CLIPS:]), logits).numpy().mean()
    assert second["val_loss"] == pytest.approx(loss, rel=1e-5)


def test_loss_scaling_is_logged_and_part_of_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = stub_run(tmp_path, epochs=1, precision="mixed_float16")
    with caplog.at_level(logging.INFO):
        run.loop.run()
    found = re.search(r"Epoch 1/1: .*; loss scale (\d+), (\d) steps skipped so far\.", caplog.text)
    assert found is not None
    optimizer = run.trainee.optimizer
    assert float(found[1]) == float(optimizer.dynamic_scale) == run.log.calls[0]["loss_scale"]
    assert int(found[2]) == 3 - int(optimizer.iterations)
    saved = {id(variable) for variable in run.trainee.checkpointed}
    assert {id(optimizer.dynamic_scale), id(optimizer.step_counter)} <= saved


def test_steps_that_loss_scaling_skips_do_not_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first scale is 2 ** 15: gradients of features of 1e35 overflow, the loss does not."""
    run = stub_run(
        tmp_path,
        features=FEATURES * np.float32(1e35),
        epochs=1,
        has_val=False,
        precision="mixed_float16",
        optimizer=OptimizerConfig(learning_rate=1e-30, ema=0.0),
    )
    with caplog.at_level(logging.INFO):
        run.loop.run()
    assert "3 steps skipped so far" in caplog.text


def test_progress_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vidpipe.progress._LOG_EVERY_SEC", 0)
    run = stub_run(tmp_path, epochs=1)
    with caplog.at_level(logging.INFO):
        run.loop.run()
    assert re.search(
        r"Epoch 1/1: 6/8 clips in \d+ s, [\d.]+ clips/s, \d+ s left, loss \d\.\d{4}, accuracy [01]\.\d{3}, "
        r"learning rate 0\.05, \d+ % waiting for data",
        caplog.text,
    )


def test_the_progress_bar_is_closed_before_an_error_is_reported(
    tmp_path: Path, before_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr("vidpipe.progress.Progress.__exit__", lambda *_: closed.append("bar"))
    run = stub_run(tmp_path)
    before_step(lambda number: run.stop.receive(signal.SIGTERM, None))
    with pytest.raises(StoppedError) as raised:  # the error holds the frames of the loop alive
        run.loop.run()
    assert raised.value.exit_code == 143
    assert closed == ["bar"]


@pytest.mark.parametrize(
    ("profile_steps", "resumed_after", "expected"),
    [
        pytest.param((2, 2), 0, ["1", "start", "2", "stop", "3"], id="inside"),
        pytest.param((1, 3), 1, ["start", "2", "3", "stop"], id="resumed inside"),
        pytest.param((1, 2), 2, ["3"], id="resumed after"),
        pytest.param((3, 9), 0, ["1", "2", "start", "3", "stop"], id="longer than the run"),
    ],
)
def test_a_profile_is_of_the_steps_asked_for(
    tmp_path: Path, before_step: Callable[..., None], profile_steps: tuple[int, int], resumed_after: int,
    expected: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    events: list[str] = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda _: events.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: events.append("stop"))
    for _ in range(resumed_after):
        first = stub_run(tmp_path, epochs=1)
        first.stop.receive(signal.SIGTERM, None)
        with pytest.raises(StoppedError):
            first.loop.run()
    events.clear()
    before_step(lambda number: events.append(str(number)))
    stub_run(tmp_path, epochs=1, profile_steps=profile_steps).loop.run()
    assert events == expected
