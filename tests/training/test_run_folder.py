"""The files of a run: what is written can be read, and what cannot be read gets one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidpipe.config import ModelConfig, OptimizerConfig, TrainConfig, to_dict
from vidpipe.training.run_folder import (
    HISTORY_COLUMNS,
    MAY_CHANGE,
    EvaluationFolder,
    RunFolder,
    RunFolderError,
)

ROW = {
    "epoch": 1, "loss": 0.1 + 0.2, "accuracy": 0.5, "val_loss": None, "val_loss_error": None,
    "val_accuracy": None, "learning_rate": 1e-3, "seconds": 1.5, "data_wait": 0.25,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def _config(**changes: Any) -> dict[str, Any]:
    config = TrainConfig(data_dir="d", run_dir="r", **changes)
    return to_dict(config) | {"dataset": "0123", "start_weights": None}


def test_file_names(folder: RunFolder) -> None:
    """Other programs rely on them."""
    names = [
        "config.json", "history.csv", "metrics.json", "model.keras", "history.png", "checkpoints",
        "tensorboard",
    ]  # fmt: skip
    paths = [
        folder.settings, folder.history, folder.metrics, folder.model, folder.learning_curves,
        folder.checkpoints, folder.tensorboard,
    ]  # fmt: skip
    assert [str(path.relative_to(folder.path)) for path in paths] == names
    evaluation = folder.evaluation("val")
    paths = [
        evaluation.metrics, evaluation.predictions, evaluation.report, evaluation.classification_report
    ]  # fmt: skip
    assert [str(path.relative_to(folder.path)) for path in paths] == [
        "eval_val/metrics.json", "eval_val/predictions.csv", "eval_val/report.html",
        "eval_val/classification_report.txt",
    ]  # fmt: skip


def test_settings_round_trip(folder: RunFolder) -> None:
    folder.write_settings(_config(profile_steps=(1, 2)))
    assert folder.read_settings() == _config(profile_steps=(1, 2))
    assert folder.settings.read_text().endswith("}\n")


def test_history_round_trip(folder: RunFolder) -> None:
    rows = [ROW, ROW | {"epoch": 2, "val_loss": 1 / 3, "val_loss_error": 0.0, "val_accuracy": 1.0}]
    folder.write_history(rows)
    assert folder.read_history() == rows
    header = folder.history.read_text().splitlines()[0]
    assert header == ",".join(HISTORY_COLUMNS)
    assert (
        header == "epoch,loss,accuracy,val_loss,val_loss_error,val_accuracy,learning_rate,seconds,data_wait"
    )


def test_metrics_round_trip(folder: RunFolder) -> None:
    assert not folder.is_finished
    folder.write_metrics({"selected_epoch": 3, "val_loss": None})
    assert folder.is_finished
    assert folder.read_metrics() == {"selected_epoch": 3, "val_loss": None}


def test_metrics_of_version_0_1(folder: RunFolder) -> None:
    folder.metrics.write_text('{"kept_epoch": 3, "epochs": 5}')
    assert folder.read_metrics() == {"selected_epoch": 3, "epochs": 5}


@pytest.fixture
def evaluation(folder: RunFolder) -> EvaluationFolder:
    evaluation = folder.evaluation("test")
    evaluation.path.mkdir()
    return evaluation


def test_evaluation_round_trip(evaluation: EvaluationFolder) -> None:
    evaluation.write_metrics({"accuracy": 0.5})
    assert evaluation.read_metrics() == {"accuracy": 0.5}
    evaluation.write_predictions(
        ["a,b.avi", "c.avi"], ["run", "walk"], [{"run": 0.25, "walk": 0.75}, {"run": 0.5, "walk": 0.5}]
    )
    assert evaluation.read_predictions() == [
        {"video_id": "a,b.avi", "label": "run", "predicted": "walk", "run": "0.25", "walk": "0.75"},
        {"video_id": "c.avi", "label": "walk", "predicted": "run", "run": "0.5", "walk": "0.5"},
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1'])
def test_corrupt_json_gets_one_line(folder: RunFolder, evaluation: EvaluationFolder, text: str) -> None:
    for path in (folder.settings, folder.metrics, evaluation.metrics):
        path.write_text(text)
    with pytest.raises(RunFolderError, match=r"config.json cannot be read \(.*\)\.$"):
        folder.read_settings()
    with pytest.raises(RunFolderError, match=r"config.json cannot be read .* Choose another run_dir\.$"):
        folder.earlier_settings(_config())
    with pytest.raises(RunFolderError, match=r"metrics.json cannot be read \("):
        folder.read_metrics()
    with pytest.raises(ValueError, match="."):
        evaluation.read_metrics()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda text: text[:-20], "row 1 of history.csv does not have a value", id="cut"),
        pytest.param(lambda text: text.replace("0.5", "half"), "could not convert.*'half'", id="text"),
        pytest.param(lambda text: text.replace("val_loss,", "x,"), "no column 'val_loss'", id="column"),
        pytest.param(lambda text: text.encode("utf-16"), "cannot be read", id="bytes"),
    ],
)  # fmt: skip
def test_a_corrupt_history_gets_one_line(
    folder: RunFolder, edit: Callable[[str], str | bytes], message: str
) -> None:
    folder.write_history([ROW])
    edited = edit(folder.history.read_text())
    folder.history.write_bytes(edited if isinstance(edited, bytes) else edited.encode())
    with pytest.raises(RunFolderError, match=message):
        folder.read_history()


def test_corrupt_predictions_are_a_value_error(evaluation: EvaluationFolder) -> None:
    evaluation.predictions.write_text("video_id,label\na.avi,run,walk\n")
    with pytest.raises(ValueError, match="row 1 of predictions.csv"):
        evaluation.read_predictions()


def test_missing_files(folder: RunFolder) -> None:
    for read in (folder.read_settings, folder.read_history):
        with pytest.raises(FileNotFoundError):
            read()
    with pytest.raises(RunFolderError, match="metrics.json cannot be read"):
        folder.read_metrics()


def test_a_file_without_permission_gets_one_line(folder: RunFolder) -> None:
    """A folder in its place, since root may read everything."""
    folder.settings.mkdir()
    with pytest.raises(RunFolderError, match="config.json cannot be read .*Is a directory"):
        folder.read_settings()


def test_checkpoints_are_listed_by_step(folder: RunFolder) -> None:
    assert folder.checkpoint_paths() == []
    folder.checkpoints.mkdir()
    for step in (10, 9, 100):
        folder.checkpoint(step).touch()
    assert [path.name for path in folder.checkpoint_paths()] == [
        "step-00000009.npz", "step-00000010.npz", "step-00000100.npz",
    ]  # fmt: skip


def _start(folder: RunFolder, **changes: Any) -> None:
    folder.write_settings(_config(**changes) | {"resolved_batch_size": 16})
    folder.checkpoints.mkdir(exist_ok=True)
    folder.checkpoint(1).touch()


def test_an_empty_folder_has_no_earlier_settings(folder: RunFolder) -> None:
    assert folder.earlier_settings(_config()) is None
    assert RunFolder(folder.path / "nowhere").earlier_settings(_config()) is None


def test_a_run_without_a_checkpoint_may_start_again_with_other_settings(folder: RunFolder) -> None:
    folder.write_settings(_config(epochs=99))
    assert folder.earlier_settings(_config()) is None


def test_the_resolved_batch_size_is_among_the_earlier_settings(folder: RunFolder) -> None:
    _start(folder)
    earlier = folder.earlier_settings(_config())
    assert earlier is not None
    assert earlier["resolved_batch_size"] == 16


@pytest.mark.parametrize("is_finished", [False, True])
def test_changed_settings_are_named(folder: RunFolder, is_finished: bool) -> None:
    _start(folder)
    if is_finished:
        folder.write_metrics({})
        folder.checkpoint(1).unlink()
    changed = _config(
        epochs=4, model=ModelConfig(fine_tune="block5"), optimizer=OptimizerConfig(learning_rate=0.5)
    )
    with pytest.raises(
        RunFolderError,
        match=r"holds a run with other settings \(epochs: 30 -> 4; model.fine_tune: none -> block5; "
        r"optimizer.learning_rate: 0.001 -> 0.5\). Choose another run_dir",
    ):
        folder.earlier_settings(changed)


@pytest.mark.parametrize("name", ["dataset", "start_weights"])
def test_other_data_or_initial_weights_are_named(folder: RunFolder, name: str) -> None:
    _start(folder)
    with pytest.raises(RunFolderError, match=rf"\({name}: (0123|None) -> 4567\)"):
        folder.earlier_settings(_config() | {name: "4567"})


def test_settings_that_no_weight_depends_on_may_change(folder: RunFolder) -> None:
    _start(folder)
    changed = {
        "run_dir": "moved", "data_dir": "moved", "cache_dir": "c", "init_from": "moved", "input_ram_gb": 1.0,
        "checkpoint_every": 5, "keep_checkpoints": 9, "profile_steps": [1, 2],
    }  # fmt: skip
    assert set(changed) == set(MAY_CHANGE)
    assert folder.earlier_settings(_config() | changed) is not None


def test_every_other_setting_may_not_change(folder: RunFolder) -> None:
    _start(folder)
    for name in _config().keys() - set(MAY_CHANGE):
        with pytest.raises(RunFolderError, match=rf"\({name}: "):
            folder.earlier_settings(_config() | {name: "another"})


def test_settings_of_another_version_are_named(folder: RunFolder) -> None:
    _start(folder)
    folder.settings.write_text(json.dumps(_config() | {"retired": 1}))
    with pytest.raises(RunFolderError, match=r"\(retired: 1 -> None\)"):
        folder.earlier_settings(_config())
