"""Files, folders and patterns of the command line give videos, and each video a file name of its own."""

from pathlib import Path

import pytest

from vidpipe.data import video_tree
from vidpipe.inference.video_files import find_videos, unique_names

_FILES = (
    "clips/b.avi", "clips/a.MP4", "clips/deep/er/c.mkv", "clips/notes.txt", "clips/.hidden.avi",
    "odd[1]/a.avi", "film.dat", "empty/readme.txt",
)  # fmt: skip


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in map(Path, _FILES):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("clips", ["clips/a.MP4", "clips/b.avi", "clips/deep/er/c.mkv"]),
        ("clips/", ["clips/a.MP4", "clips/b.avi", "clips/deep/er/c.mkv"]),
        ("clips/*", ["clips/a.MP4", "clips/b.avi"]),
        ("**/c*", ["clips/deep/er/c.mkv"]),
        ("odd[1]", ["odd[1]/a.avi"]),
        ("odd[1]/a.avi", ["odd[1]/a.avi"]),
        ("film.dat", ["film.dat"]),
    ],
)
def test_videos_of_a_file_a_folder_and_a_pattern(argument: str, expected: list[str]) -> None:
    assert find_videos([argument]) == (expected, {})


def test_each_video_comes_once_and_arguments_without_videos_are_listed() -> None:
    assert find_videos(["film.dat", "nowhere.avi", "clips/b.avi", "clips", "x/**", "empty"]) == (
        ["film.dat", "clips/b.avi", "clips/a.MP4", "clips/deep/er/c.mkv"],
        {"nowhere.avi": "no such file", "x/**": "matches no video", "empty": "no video in this folder"},
    )


def test_links_do_not_repeat_videos() -> None:
    """Folders with links to each other, and a second name of a video."""
    for name, other in (("clips", "odd[1]"), ("odd[1]", "clips")):
        Path(name, "other").symlink_to(Path(other).resolve())
    Path("clips/z.avi").symlink_to("b.avi")
    own = ["clips/a.MP4", "clips/b.avi", "clips/deep/er/c.mkv"]
    assert find_videos(["clips"]) == ([*own, "clips/other/a.avi"], {})
    found, _ = find_videos(["clips/**"])
    assert len(found) == 4
    assert found[:3] == own


def test_a_folder_that_cannot_be_listed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(video_tree.os, "scandir", deny)
    found, unmatched = find_videos(["film.dat", "clips"])
    assert found == ["film.dat"]
    assert unmatched["clips"].startswith("clips cannot be listed: Permission denied.")


def test_file_names_are_unique() -> None:
    paths = ["a/x.avi", "b/x.avi", "b/x.mp4", "y.tar.avi", "x.avi", "x_2.avi"]
    assert unique_names(paths) == ["x", "b_x", "x_2", "y.tar", "x_3", "x_2_2"]
