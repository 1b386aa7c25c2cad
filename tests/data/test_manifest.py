"""Lists of videos: what is read, where files are found, the validation split, and invalid lists."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vidpipe.config import ManifestConfig
from vidpipe.data.manifest import ManifestError, VideoRow, assign_validation, class_names, read_manifest


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _ucf101(folder: Path, train: list[str], test: list[str], fold: int = 1) -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"trainlist0{fold}.txt").write_bytes("".join(f"{line} 1\r\n" for line in train).encode())
    (folder / f"testlist0{fold}.txt").write_bytes("".join(f"{line}\r\n" for line in test).encode())
    return str(folder)


def _csv(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def _read(video_dir: Path, **settings: Any) -> list[VideoRow]:
    return read_manifest(ManifestConfig(video_dir=str(video_dir), **settings))


@pytest.mark.parametrize("flat", [False, True], ids=["class folders", "flat"])
def test_ucf101_lists_find_files_in_class_folders_and_in_a_flat_folder(tmp_path: Path, flat: bool) -> None:
    train = ["Punch/v_Punch_g08_c01.avi", "Archery/v_Archery_g08_c01.avi"]
    test = ["Punch/v_Punch_g01_c01.avi"]
    videos = tmp_path / "videos"
    _touch(videos, *(name.split("/")[1] if flat else name for name in train + test))
    lists = _ucf101(tmp_path / "lists", train, test, fold=2)
    rows = _read(videos, ucf101_lists=lists, fold=2, val_fraction=0)
    assert [(row.video_id, row.label_name, row.split, row.group) for row in rows] == [
        (train[0], "Punch", "train", "Punch/g08"),
        (train[1], "Archery", "train", "Archery/g08"),
        (test[0], "Punch", "test", "Punch/g01"),
    ]
    assert [row.path for row in rows] == [name.split("/")[1] if flat else name for name in train + test]


def test_a_file_name_in_another_case_is_found_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _touch(tmp_path, "HandstandPushups/v_HandstandPushups_g08_c01.avi")
    lists = _ucf101(tmp_path / "lists", ["HandstandPushups/v_HandStandPushups_g08_c01.avi"], [])
    (row,) = _read(tmp_path, ucf101_lists=lists, val_fraction=0)
    assert row.path == "HandstandPushups/v_HandstandPushups_g08_c01.avi"
    assert "1 videos were found under a name in another case, such as HandstandPushups/v_Hand" in caplog.text


def test_a_missing_video_keeps_its_row_with_an_empty_path(tmp_path: Path) -> None:
    lists = _ucf101(tmp_path / "lists", ["Punch/v_Punch_g08_c01.avi"], [])
    (row,) = _read(tmp_path, ucf101_lists=lists, val_fraction=0)
    assert row.path == ""


def test_csv_with_group_and_split(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    train = _csv(
        tmp_path / "train.csv", "video_name,tag,group,split\na.mp4,x,g1,\nb.mp4,y,,val\nc.mp4,y,g2,train\n"
    )
    test = _csv(tmp_path / "test.csv", "video_name,tag\nd.mp4,x\n")
    rows = _read(tmp_path, train_manifest=train, test_manifest=test)
    assert [(row.video_id, row.label_name, row.split, row.group) for row in rows] == [
        ("a.mp4", "x", "train", "g1"),
        ("b.mp4", "y", "val", "b.mp4"),
        ("c.mp4", "y", "train", "g2"),
        ("d.mp4", "x", "test", "d.mp4"),
    ]


def test_class_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path, "run/1.avi", "run/deep/2.MP4", "walk/1.avi", "walk/notes.txt", ".hidden/3.avi")
    rows = _read(tmp_path, val_fraction=0)
    assert [(row.video_id, row.label_name, row.split) for row in rows] == [
        ("run/1.avi", "run", "train"), ("run/deep/2.MP4", "run", "train"), ("walk/1.avi", "walk", "train"),
    ]  # fmt: skip
    assert "1 files under" in caplog.text
    assert "are ignored, such as walk/notes.txt" in caplog.text


def test_class_folders_under_split_folders(tmp_path: Path) -> None:
    _touch(tmp_path, "train/run/1.avi", "test/run/2.avi")
    rows = _read(tmp_path, val_fraction=0)
    assert [(row.label_name, row.split) for row in rows] == [("run", "test"), ("run", "train")]


def test_a_name_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"run/caf\xe9.avi")
    _touch(tmp_path, name)
    (row,) = _read(tmp_path, val_fraction=0)
    assert (row.video_id, row.path, row.group) == (r"run/caf\udce9.avi", name, r"run/caf\udce9.avi")


def test_links_are_followed_unless_they_lead_upwards(tmp_path: Path) -> None:
    _touch(tmp_path / "videos", "run/1.avi", "walk/1.avi")
    _touch(tmp_path / "elsewhere", "2.avi")
    (tmp_path / "videos/run/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos/walk/all").symlink_to(tmp_path / "videos")
    rows = _read(tmp_path / "videos", val_fraction=0)
    assert [row.video_id for row in rows] == ["run/1.avi", "run/more/2.avi", "walk/1.avi"]


def test_top_classes_prefers_the_later_name_among_equals(tmp_path: Path) -> None:
    train = [
        f"{name}/{index}.avi"
        for name, count in [("a", 1), ("b", 2), ("c", 2), ("d", 3)]
        for index in range(count)
    ]
    lists = _ucf101(tmp_path / "lists", train, [])
    rows = _read(tmp_path, ucf101_lists=lists, top_classes=2, val_fraction=0)
    assert class_names(rows) == ["c", "d"]


def test_classes_by_name(tmp_path: Path) -> None:
    lists = _ucf101(tmp_path / "lists", ["a/1.avi", "b/1.avi"], ["b/2.avi"])
    config = ManifestConfig(video_dir=str(tmp_path), ucf101_lists=lists, classes=("b",), val_fraction=0)
    assert [row.video_id for row in read_manifest(config)] == ["b/1.avi", "b/2.avi"]
    with pytest.raises(ManifestError, match="There is no class z; the classes are a, b"):
        _read(tmp_path, ucf101_lists=lists, classes=("z",))


def _rows(classes: dict[str, list[int]]) -> list[VideoRow]:
    """Makes train rows of classes whose groups have the given sizes."""
    return [
        VideoRow(f"{name}/{group}-{clip}", "", name, "train", f"{name}/{group}")
        for name, sizes in classes.items()
        for group, size in enumerate(sizes)
        for clip in range(size)
    ]


def _split(classes: dict[str, list[int]]) -> list[VideoRow]:
    return assign_validation(_rows(classes), val_fraction=0.1, seed=1)


def test_validation_is_stratified_and_does_not_divide_groups() -> None:
    rows = _split({"a": [4] * 10, "b": [5] * 10, "c": [3] * 10})
    assert Counter((row.label_name, row.split) for row in rows if row.split == "val") == {
        ("a", "val"): 4, ("b", "val"): 5, ("c", "val"): 3,
    }  # fmt: skip
    held_out = {row.group for row in rows if row.split == "val"}
    assert held_out.isdisjoint(row.group for row in rows if row.split == "train")


def test_with_few_groups_every_class_still_has_a_validation_group() -> None:
    rows = _split({"a": [5] * 6, "b": [5] * 6, "c": [5] * 6})
    assert Counter(row.label_name for row in rows if row.split == "val") == {"a": 5, "b": 5, "c": 5}


@pytest.mark.parametrize("num_groups", [2, 3, 4, 5])
def test_small_classes_still_have_a_validation_clip_each(num_groups: int) -> None:
    rows = _split({"a": [1] * num_groups, "b": [1] * num_groups})
    assert Counter(row.label_name for row in rows if row.split == "val") == {"a": 1, "b": 1}


def test_a_small_class_does_not_enlarge_the_validation_part_of_other_classes() -> None:
    rows = _split({"a": [1] * 40, "b": [1] * 40, "rare": [1, 1]})
    assert sum(row.split == "val" for row in rows if row.label_name != "rare") == 8


def test_validation_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rows = _rows({"a": [1] * 40, "b": [1] * 40})

    def held_out(rows: list[VideoRow], seed: int) -> set[str]:
        rows = assign_validation(rows, val_fraction=0.1, seed=seed)
        return {row.video_id for row in rows if row.split == "val"}

    assert held_out(rows, 1) == held_out(rows[::-1], 1)
    assert held_out(rows, 1) != held_out(rows, 2)
    assert len(held_out(rows, 1)) == 8


def test_a_class_of_one_group_stays_in_train(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rows = _split({"a": [2] * 10, "rare": [3]})
    assert {row.split for row in rows if row.label_name == "rare"} == {"train"}
    assert "No validation clip for rare" in caplog.text


def test_test_rows_never_move() -> None:
    rows = [
        VideoRow(str(index), "", "a", "test" if index % 2 else "train", str(index)) for index in range(40)
    ]
    rows = assign_validation(rows, val_fraction=0.5, seed=1)
    assert {row.split for row in rows if int(row.video_id) % 2} == {"test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,tag\na.mp4,x\n", "needs the columns video_name and tag; found name, tag"),
        ("", "needs the columns video_name and tag; found none"),
        ("video_name,tag\na.mp4,\n", r"train.csv:2: video_name and tag must not be empty"),
        ("video_name,tag\n../a.mp4,x\n", r"train.csv:2: ../a.mp4 is outside video_dir"),
        ("video_name,tag\n/etc/a.mp4,x\n", r"train.csv:2: /etc/a.mp4 is outside video_dir"),
        ("video_name,tag\na.mp4,x\na.mp4,y\n", "a.mp4 is listed twice in train"),
        ("video_name,tag\na.mp4,x\n./a.mp4,y\n", "a.mp4 is listed twice in train"),
        ("video_name,tag,split\na.mp4,x,dev\n", "split must be train, val or test; found 'dev'"),
        ("video_name,tag,split\na.mp4,x,train\nb.mp4,y,test\n", r"b.mp4 \(test\) has the class y"),
        ("video_name,tag\nq/A.mp4,x\nr/a.mp4,x\n", "q/A.mp4 and r/a.mp4 are the same file a.mp4"),
        ("video_name,tag\n", "lists no video"),
    ],
)  # fmt: skip
def test_an_invalid_manifest_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(ManifestError, match=message):
        _read(tmp_path, train_manifest=_csv(tmp_path / "train.csv", text))


def test_a_video_in_train_and_test_is_rejected(tmp_path: Path) -> None:
    both = _csv(tmp_path / "both.csv", "video_name,tag\na.mp4,x\n")
    with pytest.raises(ManifestError, match="a.mp4 is listed in train and test"):
        _read(tmp_path, train_manifest=both, test_manifest=both)


def test_a_group_in_train_and_val_is_rejected(tmp_path: Path) -> None:
    train, val = "train/run/v_Run_g01_c01.avi", "val/run/v_Run_g01_c02.avi"
    _touch(tmp_path, train, val)
    with pytest.raises(ManifestError, match=rf"Group run/g01 is in train \({train}\) and in val \({val}\)\."):
        _read(tmp_path)


def test_a_group_in_train_and_test_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = _csv(tmp_path / "train.csv", "video_name,tag,group\na.mp4,x,g1\nb.mp4,x,g2\nc.mp4,x,g3\n")
    warning = "1 groups are in test and also in train or val, such as g3:"
    for other, expected in (("g4", ""), ("g3", warning)):
        test = _csv(tmp_path / "test.csv", f"video_name,tag,group\nd.mp4,x,{other}\n")
        _read(tmp_path, train_manifest=train, test_manifest=test, val_fraction=0)
        assert caplog.text.count("are in test") == bool(expected)
        assert expected in caplog.text


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="There is no folder .*nowhere"):
        _read(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match=r"There is no file .*trainlist01\.txt"):
        _read(tmp_path, ucf101_lists=str(tmp_path))
    with pytest.raises(ManifestError, match="has no class folders"):
        _read(tmp_path)
