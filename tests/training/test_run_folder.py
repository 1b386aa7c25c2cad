"""The files of a run: what is written can be read, and what cannot be read gets one line."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidpipe.config import TrainConfig, to_dict
from vidpipe.training.epoch_selection import run_metrics
from vidpipe.training.run_folder import HISTORY_COLUMNS, EvaluationFolder, RunFolder, RunFolderError

ROW = dict.fromkeys(HISTORY_COLUMNS) | {
    "epoch": 1, "loss": 0.1 + 0.2, "accuracy": 0.5, "val_loss": None, "val_loss_error": None,
    "val_accuracy": None, "learning_rate": 1e-3, "seconds": 1.5, "data_wait": 0.25,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


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
    settings = to_dict(TrainConfig(data_dir="d", run_dir="r", profile_steps=(1, 2)))
    folder.write_settings(settings)
    assert folder.read_settings() == settings
    assert folder.settings.read_text().endswith("}\n")


def test_history_round_trip(folder: RunFolder) -> None:
    rows = [ROW, ROW | {"epoch": 2, "val_loss": 1 / 3, "val_loss_error": 0.0, "val_accuracy": 1.0}]
    folder.write_history(rows)
    assert folder.read_history() == rows
    header = folder.history.read_text().splitlines()[0]
    assert header == ",".join(HISTORY_COLUMNS)
    assert header == (
        "epoch,loss,accuracy,val_loss,val_loss_error,val_accuracy,linear_val_accuracy,cv_loss,cv_loss_error,"
        "cv_accuracy,linear_cv_accuracy,network_share,learning_rate,seconds,data_wait"
    )


def test_a_history_of_an_earlier_version_lacks_columns(folder: RunFolder) -> None:
    names = ["epoch", "loss", "accuracy", "val_loss", "val_loss_error", "val_accuracy", "learning_rate"]
    names += ["seconds", "data_wait"]
    values = ",".join("" if ROW[name] is None else str(ROW[name]) for name in names)
    folder.history.write_text(f"{','.join(names)}\n{values}\n")
    (row,) = folder.read_history()
    assert row == dict.fromkeys(HISTORY_COLUMNS) | {name: ROW[name] for name in names}


def test_metrics_round_trip(folder: RunFolder) -> None:
    assert not folder.is_finished
    metrics = run_metrics([ROW, ROW | {"epoch": 2}])
    folder.write_metrics(metrics)
    assert folder.is_finished
    assert folder.read_metrics() == metrics


def test_metrics_of_version_0_1(folder: RunFolder) -> None:
    folder.metrics.write_text('{"kept_epoch": 3, "epochs": 5}')
    missing = dict.fromkeys(HISTORY_COLUMNS[1:])
    assert folder.read_metrics() == {"selected_epoch": 3, "epochs": 5} | missing


@pytest.mark.parametrize(
    "edit", [{"selected_epoch": "3"}, {"epochs": None}, {"epochs": 0}, {"loss": "0.5"}, {"accuracy": True}]
)
def test_metrics_of_other_types_get_one_line(folder: RunFolder, edit: dict[str, Any]) -> None:
    folder.write_metrics(run_metrics([ROW]) | edit)
    ((name, value),) = edit.items()
    with pytest.raises(RunFolderError, match=rf"metrics.json cannot be read \({name} is {value!r}\)\.$"):
        folder.read_metrics()


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
        {"video_id": "a,b.avi", "label": "run", "predicted": "walk", "p(run)": "0.25", "p(walk)": "0.75"},
        {"video_id": "c.avi", "label": "walk", "predicted": "run", "p(run)": "0.5", "p(walk)": "0.5"},
    ]


def test_a_class_may_have_the_name_of_a_column(evaluation: EvaluationFolder) -> None:
    scores = {"video_id": 0.1, "label": 0.2, "predicted": 0.3, '=1+"a"': 0.4}
    evaluation.write_predictions(["c.avi"], ["label"], [scores])
    assert evaluation.read_predictions() == [
        {
            "video_id": "c.avi", "label": "label", "predicted": '=1+"a"',
            "p(video_id)": "0.1", "p(label)": "0.2", "p(predicted)": "0.3", 'p(=1+"a")': "0.4",
        }
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1'])
def test_corrupt_json_gets_one_line(folder: RunFolder, evaluation: EvaluationFolder, text: str) -> None:
    for path in (folder.settings, folder.metrics, evaluation.metrics):
        path.write_text(text)
    with pytest.raises(RunFolderError, match=r"config.json cannot be read \(.*\)\.$"):
        folder.read_settings()
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
        pytest.param(lambda text: text.replace("cv_loss_error,", "y,"), "unknown column 'y'", id="name"),
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


def test_one_training_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    message = f"^Another training is writing to {folder.path}. Wait for it, or choose another run_dir.$"
    with folder.lock(), pytest.raises(RunFolderError, match=message), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_corrupt_model_is_noticed(folder: RunFolder) -> None:
    assert not folder.has_intact_model
    with zipfile.ZipFile(folder.model, "w") as archive:
        archive.writestr("weights", b"0123456789")
    assert folder.has_intact_model
    data = bytearray(folder.model.read_bytes())
    for broken in (data[:-1], data[:40], b"", data.replace(b"345", b"344", 1)):
        folder.model.write_bytes(broken)
        assert not folder.has_intact_model, broken
