"""A path is replaced by a complete export only, and never where it holds something else."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vidpipe.inference.export_files import ExportError, replaced
from vidpipe.inference.export_saved_model import _is_saved_model
from vidpipe.inference.export_tflite import _is_tflite


def _write_archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "old")


def _write_saved_model(path: Path) -> None:
    (path / "assets").mkdir(parents=True)
    (path / "assets" / "vidpipe.json").write_text("old")


@pytest.mark.parametrize(
    ("write_old", "is_export"),
    [
        pytest.param(
            lambda path: _write_archive(path, "labels.txt", "vidpipe.json"), _is_tflite, id="TFLite file"
        ),
        pytest.param(_write_saved_model, _is_saved_model, id="SavedModel folder"),
    ],
)
def test_an_older_export_is_replaced_by_a_complete_one_only(
    tmp_path: Path, write_old: Callable[[Path], None], is_export: Callable[[Path], bool]
) -> None:
    path = tmp_path / "1"
    write_old(path)
    was_folder = path.is_dir()
    with pytest.raises(ExportError, match="does not agree"), replaced(str(path), is_export) as new:
        new.write_text("incomplete")
        raise ExportError("does not agree")
    assert path.is_dir() == was_folder
    assert is_export(path)
    with replaced(str(path), is_export) as new:
        new.write_text("new")
        assert is_export(path)
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def _write_model(path: Path) -> None:
    _write_archive(path, "vidpipe.json", "model.weights.h5")


def _write_other_folder(path: Path) -> None:
    (path / "other").mkdir(parents=True)
    (path / "other" / "vidpipe.json").write_text("{}")


@pytest.mark.parametrize(
    ("write", "is_export"),
    [
        pytest.param(write, is_export, id=f"{name}, {format}")
        for name, write in (
            ("model.keras", _write_model),
            ("text file", lambda path: path.write_text("mine")),
            ("other folder", _write_other_folder),
        )
        for format, is_export in (("TFLite", _is_tflite), ("SavedModel", _is_saved_model))
    ]
    + [pytest.param(_write_saved_model, _is_tflite, id="SavedModel, TFLite")],
)
def test_anything_else_is_never_replaced(
    tmp_path: Path, write: Callable[[Path], None], is_export: Callable[[Path], bool]
) -> None:
    path = tmp_path / "mine"
    write(path)
    message = f"^{path} exists and is not an export of this format by vidpipe"
    with pytest.raises(ExportError, match=message), replaced(str(path), is_export):
        pytest.fail("the block was entered")
    assert path.exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file/1", r"^Cannot write file/1 \(File exists\)\. Its folder must be writable"),
        ("s3://bucket/1", "^A model cannot be exported to s3://bucket/1. Choose a local path"),
    ],
)
def test_a_path_that_cannot_be_written_is_reported_before_the_work(
    tmp_path: Path, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ExportError, match=message), replaced(path, _is_tflite):
        pytest.fail("the block was entered")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "exports" / "a [1]" / "model.tflite"
    with replaced(str(path), _is_tflite) as new:
        new.write_text("new")
    assert path.read_text() == "new"
