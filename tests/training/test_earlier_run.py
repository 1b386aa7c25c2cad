"""What is in a run folder: what may change, what is repaired from the checkpoint, and what stops a start."""

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.config import ModelConfig, OptimizerConfig, TrainConfig, to_dict
from vidpipe.errors import VidpipeError
from vidpipe.training.checkpoint import CheckpointError
from vidpipe.training.earlier_run import EarlierRun, read_earlier_run
from vidpipe.training.epoch_selection import run_metrics
from vidpipe.training.run_folder import HISTORY_COLUMNS, MAY_CHANGE, RunFolder, RunFolderError

STEPS_PER_EPOCH = 4


def _config(**changes: Any) -> dict[str, Any]:
    config = TrainConfig(data_dir="d", run_dir="r", **({"epochs": 3} | changes))
    return to_dict(config) | {"dataset": "0123", "start_weights": None}


def _history(num_epochs: int) -> list[dict[str, Any]]:
    """The lowest val_loss is that of the first epoch."""
    row = dict.fromkeys(HISTORY_COLUMNS, 0.25)
    return [row | {"epoch": epoch, "val_loss": float(epoch)} for epoch in range(1, num_epochs + 1)]


def _write_checkpoint(folder: RunFolder, state: dict[str, Any]) -> None:
    folder.checkpoints.mkdir(exist_ok=True)
    encoded = np.frombuffer(json.dumps(state).encode(), np.uint8)
    with folder.checkpoint(state["step"]).open("wb") as file:
        np.savez(file, v00000=np.zeros(3), state=encoded)


def _write_run(path: Path, num_epochs: int = 3, **changes: Any) -> RunFolder:
    """Writes a run of `num_epochs` of 3 epochs, finished if that is all of them."""
    path.mkdir(exist_ok=True)
    folder, history = RunFolder(path), _history(num_epochs)
    recorded = _config(**changes) | {"resolved_batch_size": 16, "caches_features": True}
    folder.write_settings(recorded)
    folder.write_history(history)
    with zipfile.ZipFile(folder.model, "w") as archive:
        archive.writestr("weights", b"0123456789")
    if num_epochs == 3:
        folder.write_metrics(run_metrics(history))
    step = num_epochs * STEPS_PER_EPOCH
    _write_checkpoint(folder, {"step": step, "history": history, "settings": recorded})
    return folder


def _read(folder: RunFolder, **changes: Any) -> EarlierRun:
    earlier = read_earlier_run(folder, _config(**changes))
    assert earlier is not None
    return earlier


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    return _write_run(tmp_path / "finished")


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    return _write_run(tmp_path / "begun", num_epochs=2)


@pytest.fixture
def without_checkpoints(finished: RunFolder) -> RunFolder:
    for path in finished.checkpoint_paths():
        path.unlink()
    return finished


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    """In an empty folder, in none, and after a start that stopped before its first checkpoint."""
    folder = RunFolder(tmp_path)
    assert read_earlier_run(folder, _config()) is None
    assert read_earlier_run(RunFolder(tmp_path / "nowhere"), _config()) is None
    folder.write_settings(_config(seed=99))
    folder.write_history(_history(1))
    assert read_earlier_run(folder, _config()) is None


def test_a_begun_run_goes_on(begun: RunFolder) -> None:
    earlier = _read(begun)
    assert earlier.settings["resolved_batch_size"] == 16
    assert (earlier.num_steps, earlier.history, earlier.metrics) == (8, _history(2), None)


def test_a_finished_run_has_its_metrics(finished: RunFolder) -> None:
    assert _read(finished).metrics == finished.read_metrics() == run_metrics(_history(3))


@pytest.mark.parametrize("folder", ["begun", "finished", "without_checkpoints"])
def test_changed_settings_are_named(folder: str, request: pytest.FixtureRequest) -> None:
    changed = _config(
        seed=4, model=ModelConfig(fine_tune="block5"), optimizer=OptimizerConfig(learning_rate=0.5)
    )
    with pytest.raises(
        RunFolderError,
        match=r"holds a run with other settings \(model.fine_tune: none -> block5; "
        r"optimizer.learning_rate: 0.001 -> 0.5; seed: 1 -> 4\). Choose another run_dir",
    ):
        read_earlier_run(request.getfixturevalue(folder), changed)


@pytest.mark.parametrize("name", ["dataset", "start_weights"])
def test_other_data_or_initial_weights_are_named(begun: RunFolder, name: str) -> None:
    with pytest.raises(RunFolderError, match=rf"\({name}: (0123|None) -> 4567\)"):
        read_earlier_run(begun, _config() | {name: "4567"})


def test_settings_that_no_weight_depends_on_may_change(begun: RunFolder) -> None:
    changed = {
        "run_dir": "moved", "data_dir": "moved", "cache_dir": "c", "init_from": "moved", "input_ram_gb": 1.0,
        "checkpoint_every": 5, "keep_checkpoints": 9, "profile_steps": [1, 2], "cache_gb": 1.0, "epochs": 9,
        "patience": 5,
    }  # fmt: skip
    assert set(changed) == set(MAY_CHANGE)
    assert read_earlier_run(begun, _config() | changed) is not None


def test_every_other_setting_may_not_change(begun: RunFolder) -> None:
    for name in _config().keys() - set(MAY_CHANGE):
        with pytest.raises(RunFolderError, match=rf"\({name}: "):
            read_earlier_run(begun, _config() | {name: "another"})


def test_a_finished_run_goes_on_for_more_epochs(finished: RunFolder) -> None:
    """config.json tells that the learning rate has followed two schedules."""
    earlier = _read(finished, epochs=5)
    assert (earlier.metrics, earlier.num_steps, len(earlier.history)) == (None, 12, 3)
    cosine, constant = (
        _config(epochs=5, optimizer=OptimizerConfig(schedule=schedule)) for schedule in ("cosine", "constant")
    )
    assert earlier.has_other_schedule(cosine)
    assert earlier.resolved_settings(cosine) == cosine | {"earlier_epochs": [3]}
    assert not earlier.has_other_schedule(constant)
    assert earlier.resolved_settings(constant) == constant


def test_epochs_are_recorded_for_good(tmp_path: Path) -> None:
    folder = _write_run(tmp_path / "run")
    state = {"step": 20, "history": _history(5)}
    recorded = folder.read_settings() | {"epochs": 5, "earlier_epochs": [3]}
    _write_checkpoint(folder, state | {"settings": recorded})
    cosine = _config(epochs=9, optimizer=OptimizerConfig(schedule="cosine"))
    earlier = read_earlier_run(folder, _config(epochs=9))
    assert earlier is not None
    assert earlier.resolved_settings(cosine)["earlier_epochs"] == [3, 5]
    assert earlier.resolved_settings(cosine | {"epochs": 5})["earlier_epochs"] == [3]


def test_fewer_epochs_than_are_trained_are_rejected(finished: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="has trained 3 epochs already; got epochs=2. Give at least"):
        _read(finished, epochs=2)


def test_a_new_patience_decides(tmp_path: Path) -> None:
    """The lowest val_loss is that of epoch 1: after 3 epochs a patience of 2 is at its end."""
    folder = _write_run(tmp_path / "run", epochs=9, patience=2)
    assert _read(folder, epochs=9, patience=2).metrics == folder.read_metrics()
    assert _read(folder, epochs=9, patience=3).metrics is None
    assert _read(folder, epochs=9).metrics is None


@pytest.mark.parametrize("changes", [{"epochs": 4}, {"epochs": 9, "patience": 3}])
def test_without_a_checkpoint_no_run_goes_on(without_checkpoints: RunFolder, changes: dict[str, Any]) -> None:
    assert _read(without_checkpoints).metrics == run_metrics(_history(3))
    with pytest.raises(RunFolderError, match="ended after 3 epochs and has no checkpoint"):
        _read(without_checkpoints, **changes)


def test_epochs_without_a_checkpoint_are_not_trained_again(begun: RunFolder) -> None:
    """As after somebody has deleted checkpoints/: history.csv and model.keras would be overwritten."""
    begun.checkpoint(8).unlink()
    with pytest.raises(RunFolderError, match="holds 2 epochs but no checkpoint, so the run cannot go on"):
        _read(begun)


@pytest.mark.parametrize("folder", ["begun", "finished"])
def test_a_run_whose_checkpoints_are_all_corrupt_stops(folder: str, request: pytest.FixtureRequest) -> None:
    run: RunFolder = request.getfixturevalue(folder)
    for path in run.checkpoint_paths():
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=f"^All checkpoints of {run.path} are corrupt.*Restore them"):
        _read(run)


def test_a_corrupt_checkpoint_leaves_the_one_before_it(begun: RunFolder) -> None:
    begun.checkpoint(9).write_bytes(b"corrupt")
    assert _read(begun).num_steps == 8


Edit = Callable[[RunFolder], object]
EDITS: dict[str, Edit] = {
    "config.json": lambda run: run.settings.write_text(run.settings.read_text()[:100]),
    "no config.json": lambda run: run.settings.unlink(),
    "edited config.json": lambda run: run.settings.write_text(
        run.settings.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.5')
    ),
    "metrics.json": lambda run: run.metrics.write_text(run.metrics.read_text()[:50]),
    "edited metrics.json": lambda run: run.metrics.write_text(run.metrics.read_text().replace("0.25", "1")),
    "history.csv": lambda run: run.history.write_text(run.history.read_text()[:-20]),
    "edited history.csv": lambda run: run.history.write_text(run.history.read_text().replace("0.25", "1")),
    "no history.csv": lambda run: run.history.unlink(),
    "model.keras": lambda run: run.model.write_bytes(run.model.read_bytes()[:-1]),
    "no model.keras": lambda run: run.model.unlink(),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_damaged_is_made_again(finished: RunFolder, name: str) -> None:
    """A run is not finished where a file has to be made again."""
    expected = _read(finished)
    before = finished.settings.read_text(), finished.metrics.read_text(), finished.history.read_text()
    EDITS[name](finished)
    if "no " not in name and "model" not in name:
        assert (
            finished.settings.read_text(), finished.metrics.read_text(), finished.history.read_text()
        ) != before  # fmt: skip
    found = _read(finished)
    (message,) = found.repairs
    assert name.split()[-1] in message
    assert "writing" in message and "again from the checkpoint" in message
    assert (found.settings, found.history) == (expected.settings, expected.history)
    assert (expected.repairs, found.metrics) == ([], None)


@pytest.mark.parametrize(
    "name",
    ["config.json", "metrics.json", "edited metrics.json", "model.keras", "no model.keras", "no config.json"],
)
def test_without_a_checkpoint_damage_stops_a_start(without_checkpoints: RunFolder, name: str) -> None:
    EDITS[name](without_checkpoints)
    with pytest.raises(RunFolderError, match=name.split()[-1]):
        _read(without_checkpoints)


def test_checkpoints_without_settings_need_config_json(begun: RunFolder) -> None:
    """Those of earlier versions."""
    _write_checkpoint(begun, {"step": 8, "history": _history(2)})
    assert _read(begun).settings["resolved_batch_size"] == 16
    for edit, message in (("config.json", "cannot be read"), ("no config.json", "There is no")):
        EDITS[edit](begun)
        with pytest.raises(RunFolderError, match=rf"{message}.*Choose another run_dir\.$"):
            _read(begun)


@pytest.mark.parametrize("value", [None, "3", 2.5, True])
def test_settings_of_a_wrong_type_get_one_line(begun: RunFolder, value: object) -> None:
    _write_checkpoint(begun, {"step": 8, "history": _history(2)})
    begun.write_settings(begun.read_settings() | {"epochs": value})
    with pytest.raises(RunFolderError, match=rf"config.json has epochs={value!r}. Choose another run_dir"):
        _read(begun)


def test_settings_of_another_version_are_named(begun: RunFolder) -> None:
    _write_checkpoint(begun, {"step": 8, "history": _history(2)})
    begun.write_settings(begun.read_settings() | {"retired": 1})
    with pytest.raises(RunFolderError, match=r"\(retired: 1 -> None\)"):
        _read(begun)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["config.json", "metrics.json", "history.csv"]),
    start=st.integers(0, 1400),
    length=st.integers(0, 30),
    text=st.text(max_size=8) | st.sampled_from(['"', "{", "null", "NaN", "[[", "1e999", ",", "-1"]),
    has_checkpoint=st.booleans(),
)
def test_no_edit_ends_in_a_traceback_or_changes_the_run_in_silence(
    name: str, start: int, length: int, text: str, has_checkpoint: bool
) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = _write_run(Path(parent) / "run")
        expected = _read(folder)
        if not has_checkpoint:
            folder.checkpoint(12).unlink()
        path = folder.path / name
        content = path.read_text(encoding="utf-8")
        path.write_bytes((content[:start] + text + content[start + length :]).encode("utf-8", "replace"))
        is_same = path.read_text(encoding="utf-8", errors="replace") == content
        try:
            found = _read(folder)
        except VidpipeError as error:
            assert not is_same
            assert "\n" not in str(error)
            return
        if has_checkpoint:
            assert (found.settings, found.history) == (expected.settings, expected.history)
            assert found.metrics == (None if found.repairs else expected.metrics)
        elif name == "metrics.json":
            assert found.metrics == expected.metrics
