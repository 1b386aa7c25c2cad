"""The files of a folder: each folder once whatever links lead to it, nothing lost without a word."""

import os
from pathlib import Path

import pytest

from synthetic import touch
from vidpipe.data import video_tree
from vidpipe.data.video_tree import FolderError, list_files


def _names(folder: Path, **named: list[str]) -> list[str]:
    return list(list_files(folder, **named).files)


def test_files_of_all_folders_are_listed_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.avi", "a/deep/er/1.avi", "top.avi", "a/notes.txt", ".hidden/3.avi", "a/._1.avi")
    assert _names(tmp_path) == ["a/deep/er/1.avi", "a/notes.txt", "b/2.avi", "top.avi"]


@pytest.mark.parametrize(
    "name", ["@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information"]
)
def test_folders_of_the_system_are_left_out(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/1.avi", f"run/{name}/1.avi", "run/1.avi")
    assert _names(tmp_path) == ["run/1.avi"]


def test_folders_to_leave_out(tmp_path: Path) -> None:
    touch(tmp_path, "run/1.avi", "records/sheet.mp4", "records2/1.avi")
    (tmp_path / "again").symlink_to(tmp_path / "records")
    assert _names(tmp_path, left_out=[str(tmp_path / "records")]) == ["records2/1.avi", "run/1.avi"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "videos/run/1.avi", "elsewhere/2.avi")
    (tmp_path / "videos/run/more").symlink_to(tmp_path / "elsewhere")
    tree = list_files(tmp_path / "videos")
    assert (list(tree.files), tree.linked) == (["run/1.avi", "run/more/2.avi"], {})


def test_links_that_form_cycles_across_folders_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.avi", "b/2.avi")
    for name in "abcdefgh":
        (tmp_path / name).mkdir(exist_ok=True)
        for other in "abcdefgh":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    tree = list_files(tmp_path)
    assert list(tree.files) == ["a/1.avi", "b/2.avi"]
    assert tree.linked["a/to_b"] == "b"
    assert tree.linked["a/to_a"] == "a"


def test_links_to_the_folder_itself_or_above_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "videos/run/1.avi", "other/2.avi")
    for name, target in (("self", "videos"), ("above", ".")):
        (tmp_path / "videos/run" / name).symlink_to(tmp_path / target)
    tree = list_files(tmp_path / "videos")
    assert (list(tree.files), tree.linked) == (["run/1.avi"], {"run/above": "", "run/self": ""})


def test_a_folder_is_listed_under_its_own_name_rather_than_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "z/1.avi")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    tree = list_files(tmp_path)
    assert (list(tree.files), tree.linked) == (["z/1.avi"], {"a": "z"})


def test_names_of_one_file_have_its_identity(tmp_path: Path) -> None:
    touch(tmp_path, "1.avi", "2.avi")
    (tmp_path / "3.avi").symlink_to("1.avi")
    os.link(tmp_path / "1.avi", tmp_path / "4.avi")
    (tmp_path / "5.avi").symlink_to("nowhere")
    os.mkfifo(tmp_path / "6.avi")
    files = list_files(tmp_path).files
    assert files["1.avi"] == files["3.avi"] == files["4.avi"] != files["2.avi"]
    assert files["5.avi"] is None  # it is listed: a lost video must be reported
    assert "6.avi" not in files


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "run/1.avi", "walk/1.avi")
    scandir = os.scandir

    def deny(path: Path) -> object:  # the superuser is allowed to read every folder
        if Path(path).name == "walk":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(video_tree.os, "scandir", deny)
    with pytest.raises(
        FolderError, match=r"walk cannot be listed: Permission denied\. Change its permissions"
    ):
        list_files(tmp_path)
