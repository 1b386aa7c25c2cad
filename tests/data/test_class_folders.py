"""Class folders: usual names of splits, what is no class, and what is refused as it can be read two ways."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthetic import touch
from vidpipe.data.class_folders import read_class_folders
from vidpipe.data.video_row import ManifestError, VideoRow, split_of
from vidpipe.data.video_tree import list_files


def _read(folder: Path) -> list[VideoRow]:
    return read_class_folders(folder, list_files(folder))


def _places(folder: Path) -> list[tuple[str, str, str]]:
    return [(row.video_id, row.label_name, row.split) for row in _read(folder)]


def test_folders_are_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "run/1.avi", "run/deep/2.MP4", "walk/1.avi", "walk/notes.txt")
    assert _places(tmp_path) == [
        ("run/1.avi", "run", "train"), ("run/deep/2.MP4", "run", "train"), ("walk/1.avi", "walk", "train"),
    ]  # fmt: skip
    assert "1 files under" in caplog.text
    assert "are not videos and are ignored, such as walk/notes.txt" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"), ("Train", "Valid", "Test"), ("training", "validation", "testing"),
        ("TRAIN_SET", "dev", "test-data"), ("train_videos", "val_split", "Test Set"),
    ],
)  # fmt: skip
def test_the_usual_names_of_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    paths = [f"{name}/{label}/{number}.avi" for number, name in enumerate(names) for label in ("run", "walk")]
    touch(tmp_path, *paths)
    splits = ("train", "train", "val", "val", "test", "test")
    expected = [(path, path.split("/")[1], split) for path, split in zip(paths, splits, strict=True)]
    assert _places(tmp_path) == sorted(expected)


def test_a_folder_without_videos_is_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/run/1.avi", "test/run/2.avi", "stray/readme.txt", "train/walk/1.dav")
    (tmp_path / "empty").mkdir()
    assert _places(tmp_path) == [("test/run/2.avi", "run", "test"), ("train/run/1.avi", "run", "train")]
    assert (
        "train/walk contains no videos, so it is not a class; it has 1 other files, such as train/walk/1.dav"
        in caplog.text
    )
    assert "1 files under" in caplog.text
    assert "such as stray/readme.txt" in caplog.text


def test_videos_outside_of_class_folders_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "train/run/1.avi", "train/2.avi", "3.avi")
    assert _places(tmp_path) == [("train/run/1.avi", "run", "train")]
    assert "2 videos under" in caplog.text
    assert "are in no class folder and are left out, such as 3.avi" in caplog.text


def test_a_name_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"run\xe9/caf\xe9.avi")
    touch(tmp_path, name)
    (row,) = _read(tmp_path)
    expected = (r"run\udce9/caf\udce9.avi", name, r"run\udce9", r"run\udce9/caf\udce9.avi")
    assert (row.video_id, row.path, row.label_name, row.group) == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/run/1.avi", "jump/1.avi"], r"folders of splits \(train\) beside other folders .*\(jump\)"),
        (["train/run/1.avi", "Test/run/1.avi", "jump/1.avi"], r"of splits \(Test, train\) beside"),
        (["val/run/1.avi", "valid/run/2.avi"], "val and valid are both named like the split val"),
        (["run/train/1.avi", "walk/train/1.avi"], "run/train is named like a split .* as in train/CLASS"),
        (
            ["videos/train/a/1.avi", "videos/test/a/1.avi"],
            "choose video_dir=.*/videos if these are the splits",
        ),
        (["train/val/run/1.avi"], r"train/val is named like a split but is inside train"),
        (["train/train/run/1.avi", "test/run/1.avi"], "train/train is named like a split"),
        (["1.avi"], "has no class folders with videos"),
        (["train/1.avi", "test/2.avi"], "has no class folders with videos"),
        (["run/notes.txt"], "has no class folders with videos"),
    ],
)
def test_folders_that_can_be_read_two_ways_are_rejected(
    tmp_path: Path, paths: list[str], message: str
) -> None:
    touch(tmp_path, *paths)
    with pytest.raises(ManifestError, match=message):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("a/more", "b", "a/more is a link to b: the same videos would be in train/a and in train/b"),
        ("c", "b", "c is a link to b: .* in train/c and in train/b"),
        ("a/more", "b/deep", "a/more is a link to b/deep"),
    ],
)
def test_a_link_into_another_class_is_rejected(tmp_path: Path, link: str, target: str, message: str) -> None:
    touch(tmp_path, "a/1.avi", "b/2.avi", "b/deep/3.avi")
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(ManifestError, match=message):
        _read(tmp_path)


def test_a_link_into_another_split_is_rejected(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.avi", "test/b/2.avi")
    (tmp_path / "test/a").symlink_to(tmp_path / "train/a")
    with pytest.raises(ManifestError, match="test/a is a link to train/a: .* in test/a and in train/a"):
        _read(tmp_path)


def test_links_inside_a_class_change_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a/deep/1.avi", "b/2.avi")
    (tmp_path / "a/again").symlink_to(tmp_path / "a/deep")
    (tmp_path / "a/all").symlink_to(tmp_path)
    assert _places(tmp_path) == [("a/deep/1.avi", "a", "train"), ("b/2.avi", "b", "train")]


_NAMES = st.sampled_from(["train", "Test", "valid", "run", "walk", ".hidden", "@eaDir"])
_FILES = st.lists(
    st.tuples(st.lists(_NAMES, max_size=3), st.sampled_from(["1.avi", "2.MP4", "notes.txt", ".avi"])),
    min_size=1,
    max_size=8,
)
_LINKS = st.lists(
    st.tuples(st.lists(_NAMES, min_size=1, max_size=3), st.lists(_NAMES, max_size=2)), max_size=4
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=_FILES, links=_LINKS)
def test_any_folders_give_rows_or_one_line(
    caplog: pytest.LogCaptureFixture, files: list, links: list
) -> None:
    """Each video is in the class and split that its folders name, or it is said that it is left out."""
    caplog.clear()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for parents, file in files:
            touch(folder, "/".join([*parents, file]))
        for parents, target in links:
            path = folder.joinpath(*parents)
            with suppress(OSError):  # its place is taken, or below a file or a link that leads nowhere
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(folder.joinpath(*target))
        try:
            rows = _read(folder)
        except ManifestError as error:
            assert "\n" not in str(error)
            return
        visible = {
            "/".join([*parents, file])
            for parents, file in files
            if not {".hidden", "@eaDir"} & set(parents) and file in ("1.avi", "2.MP4")
        }
        listed = {row.path for row in rows}
        real = [(folder / row.path).resolve() for row in rows]
        assert len(set(real)) == len(real)
        lost = visible - listed
        assert not lost or "are in no class folder and are left out" in caplog.text
        splits = {split_of(path.split("/")[0]) for path in listed}
        for row in rows:
            *parents, _ = row.path.split("/")
            if splits == {None}:
                assert (row.split, row.label_name) == ("train", parents[0])
                assert len(parents) == 1 or split_of(parents[1]) is None
            else:
                assert (row.split, row.label_name) == (split_of(parents[0]), parents[1])
