"""Lists of videos: where files are found, the choice of classes, and lists that contradict the folder."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from synthetic import touch
from vidpipe.config import ManifestConfig
from vidpipe.data.manifest import class_names, read_manifest
from vidpipe.data.video_row import ManifestError, VideoRow


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
    touch(videos, *(name.split("/")[1] if flat else name for name in train + test))
    lists = _ucf101(tmp_path / "lists", train, test, fold=2)
    rows = _read(videos, ucf101_lists=lists, fold=2, val_fraction=0)
    assert [(row.video_id, row.label_name, row.split, row.group) for row in rows] == [
        (train[0], "Punch", "train", "Punch/g08"),
        (train[1], "Archery", "train", "Archery/g08"),
        (test[0], "Punch", "test", "Punch/g01"),
    ]
    assert [row.path for row in rows] == [name.split("/")[1] if flat else name for name in train + test]


def test_a_csv_row_never_takes_a_file_from_another_folder(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "walk/b.mp4", "c.mp4")
    train = _csv(tmp_path / "train.csv", "video_name,tag\nrun/a.mp4,run\nwalk/b.mp4,walk\nwalk/c.mp4,walk\n")
    rows = _read(tmp_path, train_manifest=train, val_fraction=0)
    assert [row.path for row in rows] == ["run/a.mp4", "walk/b.mp4", ""]


def test_names_in_another_case_or_form_of_unicode_are_found_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    composed, separate = (unicodedata.normalize(form, "café/1.avi") for form in ("NFC", "NFD"))
    assert composed != separate
    touch(tmp_path, "HandstandPushups/v_HandstandPushups_g08_c01.avi", separate)
    lists = _ucf101(tmp_path / "lists", ["HandstandPushups/v_HandStandPushups_g08_c01.avi", composed], [])
    rows = _read(tmp_path, ucf101_lists=lists, val_fraction=0)
    assert [row.path for row in rows] == ["HandstandPushups/v_HandstandPushups_g08_c01.avi", separate]
    assert rows[1].video_id == composed
    assert (
        "2 videos were found under a name in another case or Unicode normalization, such as Hand"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wa\nlk/b.mp4", r"class 'wa\\nlk' has a line break"),
        ("wa\x1blk/b.mp4", r"class 'wa\\x1blk' has"),
        ("wa\u2028lk/b.mp4", r"class 'wa\\u2028lk' has"),
        ("walk/b\n.mp4", r"video 'walk/b\\n.mp4' has"),
    ],
)
def test_names_that_break_lines_are_rejected(tmp_path: Path, name: str, message: str) -> None:
    touch(tmp_path, "run/a.mp4", name)
    with pytest.raises(ManifestError, match=message):
        _read(tmp_path, val_fraction=0)


def test_unusual_names_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names in scripts with joiners, and names like addresses, options, patterns or formulas."""
    names = [
        "\u0645\u06cc\u200c\u062f\u0648\u062f/10:30.mp4", "走る/[1].mp4", "{a} $b/-x.mp4", "label/100%.mp4",
        "=1+1/s3:x.mp4", "@b/~.mp4",
    ]  # fmt: skip
    touch(tmp_path, *names)
    rows = _read(tmp_path, val_fraction=0)
    assert sorted(row.path for row in rows) == sorted(names)
    assert sorted(class_names(rows)) == sorted(name.split("/")[0] for name in names)
    (message,) = [each for each in caplog.messages if "formula" in each]
    assert message.startswith("Spreadsheets take the name of the class =1+1, @b for a formula")


def test_one_of_two_similar_names_is_not_guessed(tmp_path: Path) -> None:
    touch(tmp_path, "a/X.avi", "a/x.avi", "b/1.avi")
    train = _csv(tmp_path / "train.csv", "video_name,tag\nA/X.avi,a\nb/1.avi,b\n")
    with pytest.raises(
        ManifestError, match="no A/X.avi, but a/X.avi and a/x.avi differ from it only in case"
    ):
        _read(tmp_path, train_manifest=train)


def test_a_missing_video_keeps_its_row_with_an_empty_path(tmp_path: Path) -> None:
    touch(tmp_path, "Punch/2.avi", "Archery/1.avi")
    lists = _ucf101(tmp_path / "lists", ["Punch/1.avi", "Punch/2.avi", "Archery/1.avi"], [])
    rows = _read(tmp_path, ucf101_lists=lists, val_fraction=0)
    assert [row.path for row in rows] == ["", "Punch/2.avi", "Archery/1.avi"]


def test_classes_come_only_from_videos_that_exist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    train = _csv(tmp_path / "train.csv", "video_name,tag\na.mp4,x\nb.mp4,y\nswim,fast\n")
    rows = _read(tmp_path, train_manifest=train, val_fraction=0)
    assert class_names(rows) == ["x", "y"]
    assert len(rows) == 3
    assert "None of the 1 videos of the class fast exists; the class is left out." in caplog.text


def test_the_output_folder_is_no_class(tmp_path: Path) -> None:
    touch(tmp_path, "run/1.avi", "walk/1.avi", "records/sheet.mp4")
    config = ManifestConfig(video_dir=str(tmp_path), val_fraction=0)
    rows = read_manifest(config, left_out=[str(tmp_path / "records")])
    assert class_names(rows) == ["run", "walk"]


def test_a_file_in_two_classes_through_a_link_is_rejected(tmp_path: Path) -> None:
    touch(tmp_path, "run/1.avi", "walk/2.avi")
    (tmp_path / "walk/1.avi").symlink_to(tmp_path / "run/1.avi")
    with pytest.raises(ManifestError, match=r"run/1.avi \(run, train\) and walk/1.avi \(walk, train\) are"):
        _read(tmp_path)


def test_links_to_a_video_of_the_same_class_share_its_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "run/1.avi", "walk/2.avi")
    (tmp_path / "run/3.avi").hardlink_to(tmp_path / "run/1.avi")
    rows = _read(tmp_path, val_fraction=0)
    assert [row.group for row in rows] == ["run/1.avi", "run/1.avi", "walk/2.avi"]
    assert "1 videos are links to others of their class, such as run/1.avi and run/3.avi" in caplog.text


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    touch(tmp_path, "UCF-101/Punch/1.avi", "UCF-101/Archery/1.avi")
    message = "only one class, UCF-101; a classifier needs two. If Archery, Punch are the classes, choose the"
    with pytest.raises(ManifestError, match=message):
        _read(tmp_path)
    with pytest.raises(ManifestError, match=r"only one class, Archery; a classifier needs two\.$"):
        _read(tmp_path / "UCF-101", classes=("Archery",))


def test_a_class_without_videos_in_a_split_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(
        tmp_path, "train/run/1.avi", "train/walk/1.avi", "val/run/2.avi", "val/walk/2.avi", "test/run/3.avi"
    )
    _read(tmp_path)
    assert [record.getMessage() for record in caplog.records] == ["No test video of the class walk."]


def test_classes_that_look_the_same_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "Run/1.avi", "run/2.avi")
    _read(tmp_path, val_fraction=0)
    assert "The classes Run and run differ only in case or Unicode normalization." in caplog.text


def test_top_classes_prefers_the_later_name_among_equals(tmp_path: Path) -> None:
    train = [
        f"{name}/{index}.avi"
        for name, count in [("a", 1), ("b", 2), ("c", 2), ("d", 3)]
        for index in range(count)
    ]
    touch(tmp_path, *train)
    lists = _ucf101(tmp_path / "lists", train, [])
    rows = _read(tmp_path, ucf101_lists=lists, top_classes=2, val_fraction=0)
    assert class_names(rows) == ["c", "d"]


def test_classes_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.avi", "b/1.avi", "b/2.avi", "c/1.avi")
    lists = _ucf101(tmp_path / "lists", ["a/1.avi", "b/1.avi", "c/1.avi"], ["b/2.avi"])
    rows = _read(tmp_path, ucf101_lists=lists, classes=("b", "c"), val_fraction=0)
    assert [row.video_id for row in rows] == ["b/1.avi", "c/1.avi", "b/2.avi"]
    with pytest.raises(ManifestError, match="There is no class z; the classes are a, b, c"):
        _read(tmp_path, ucf101_lists=lists, classes=("z",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_name,tag\na.mp4,x\na.mp4,y\n", "a.mp4 is listed twice in train"),
        ("video_name,tag\na.mp4,x\n./a.mp4,y\n", "a.mp4 is listed twice in train"),
        ("video_name,tag\nA.mp4,x\na.mp4,x\n", "A.mp4 and a.mp4 are the same file a.mp4"),
        ("video_name,tag,split\na.mp4,x,train\nb.mp4,y,test\n", r"b.mp4 \(test\) has the class y"),
        ("video_name,tag,split\nc.mp4,y,train\na.mp4,x,train\nb.mp4,y,test\n", "b.mp4 .* has the class y"),
        ("video_name,tag\nc.mp4,x\nd.mp4,y\n", "None of the 2 listed videos is under .*, such as c.mp4"),
        ("video_name,tag\n", "lists no video"),
    ],
)  # fmt: skip
def test_an_invalid_manifest_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(ManifestError, match=message):
        _read(tmp_path, train_manifest=_csv(tmp_path / "train.csv", text))


@pytest.mark.parametrize("line", ["a.avi", "a/b/c.avi 1", "a/my video.avi 1", "a/b.avi 1 2"])
def test_a_line_of_ucf101_lists_that_is_not_understood_is_rejected(tmp_path: Path, line: str) -> None:
    lists = _ucf101(tmp_path / "lists", [], ["a/1.avi", "", line])
    with pytest.raises(ManifestError, match=rf"testlist01\.txt:3: expected Class/video.avi.* found '{line}'"):
        _read(tmp_path, ucf101_lists=lists)


def test_a_video_in_train_and_test_is_rejected(tmp_path: Path) -> None:
    both = _csv(tmp_path / "both.csv", "video_name,tag\na.mp4,x\n")
    with pytest.raises(ManifestError, match="a.mp4 is listed in train and test"):
        _read(tmp_path, train_manifest=both, test_manifest=both)


def test_a_group_in_train_and_val_is_rejected(tmp_path: Path) -> None:
    train, val = "train/run/v_Run_g01_c01.avi", "val/run/v_Run_g01_c02.avi"
    touch(tmp_path, train, val, "train/walk/1.avi")
    with pytest.raises(ManifestError, match=rf"Group run/g01 is in train \({train}\) and in val \({val}\)\."):
        _read(tmp_path)


def test_a_group_in_train_and_test_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    train = _csv(tmp_path / "train.csv", "video_name,tag,group\na.mp4,x,g1\nb.mp4,y,g2\nc.mp4,x,g3\n")
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
