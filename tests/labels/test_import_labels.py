"""The whole import: files, videos, annotators and checks; the manifest, the lists and the exit codes."""

import csv
import json
from pathlib import Path

import pytest

from tools import import_labels
from vidpipe.data.manifest_csv import read_csv

HEAD = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with videos/a.mp4 and videos/b.mp4, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path


def _run(*arguments: str) -> int:
    return import_labels.run(["import_labels.py", "--video_dir=videos", "--output=labels.csv", *arguments])


def _kinetics(path: Path, *rows: str) -> None:
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))


def _label_studio(path: Path, *labels: tuple[str, int, int, str]) -> None:
    annotations = []
    for label, start, end, who in labels:
        value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}
        annotations.append({"completed_by": who, "result": [{"value": value}]})
    path.write_text(json.dumps([{"id": 1, "data": {"video": "b.mp4"}, "annotations": annotations}]))


def test_a_manifest_is_written_and_summarized(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _kinetics(folder / "k1.csv", "run,a,1.50,3,train", "run,a,10,12.1234567,train")
    _kinetics(folder / "k2.csv", "sit,a,3,4,validate")
    _label_studio(folder / "ls.json", ("sit", 11, 20, "ann"))
    assert _run("ls.json", "k*.csv", "k1.csv") == 0
    assert (folder / "labels.csv").read_text() == (
        "video_name,tag,start,end,start_frame,end_frame,split\n"
        "a.mp4,run,1.5,3,,,train\n"
        "a.mp4,sit,3,4,,,val\n"
        "a.mp4,run,10,12.123457,,,train\n"
        "b.mp4,sit,,,10,20,\n"
    )
    assert capsys.readouterr().out == (
        "4 moments of 2 classes in 2 videos\n"
        "  run      2 moments  3.623 s\n"
        "  sit      2 moments  1 s, 10 frames\n"
        "  splits: train 2, val 1, none 1\n"
        "labels.csv: written.\n"
    )
    rows = read_csv(folder / "labels.csv", "train")
    assert [row.video_id for row in rows] == [
        "a.mp4#t=1.5,3", "a.mp4#t=3,4", "a.mp4#t=10,12.123457", "b.mp4#frames=10,20",
    ]  # fmt: skip


def test_frames_become_seconds_at_a_given_rate(folder: Path) -> None:
    _label_studio(folder / "ls.json", ("sit", 11, 20, "ann"))
    assert _run("ls.json", "--frame_rate=24") == 0
    assert (folder / "labels.csv").read_text() == "video_name,tag,start,end\nb.mp4,sit,0.416667,0.833333\n"


def test_clips_that_were_cut_are_whole_videos(folder: Path) -> None:
    (folder / "videos" / "a_000005_000015.mp4").touch()
    _kinetics(folder / "k.csv", "run,a,5,15,train", "sit,a,20,30,train")
    assert _run("k.csv") == 0
    assert (folder / "labels.csv").read_text() == (
        "video_name,tag,start,end,split\na.mp4,sit,20,30,train\na_000005_000015.mp4,run,,,train\n"
    )


def test_what_is_not_used_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "videos" / "x").mkdir()
    (folder / "videos" / "x" / "b.mp4").touch()
    rows = [*(f"run,no{index},1,2,train" for index in range(5)), "sit,a,1,2,train", "run,a,1,2,train"]
    _kinetics(folder / "k.csv", *rows, "run,a,1,2,train", "run,b,1,2,train")
    flags = ("k.csv", "--unused=unused.csv", "--classes=run")
    assert _run(*flags) == 1
    printed = capsys.readouterr()
    assert printed.out == (
        "1 moments of 1 classes in 1 videos\n"
        "  run      1 moments  1 s\n"
        "  splits: train 1\n"
        "Not used: 8\n"
        "      5  the video is not below --video_dir\n"
        "         k.csv:2, no0, run\n"
        "         k.csv:3, no1, run\n"
        "         k.csv:4, no2, run\n"
        "         ...\n"
        "      1  a class that is not in --classes\n"
        "         k.csv:7, a, sit\n"
        "      1  several videos below --video_dir have this name\n"
        "         k.csv:10, b, run\n"
        "      1  labelled twice with the same times\n"
        "         k.csv:9, a.mp4, run\n"
    )
    assert "labels.csv is not written: 6 labelled videos were not found in videos. Correct" in printed.err
    assert not (folder / "labels.csv").exists()
    with (folder / "unused.csv").open() as file:
        unused = list(csv.DictReader(file))
    assert len(unused) == 8
    assert unused[0] == {
        "reason": "a class that is not in --classes", "where": "k.csv:7", "video": "a", "label": "sit",
    }  # fmt: skip
    assert _run(*flags, "--allow_missing") == 0
    assert (folder / "labels.csv").read_text() == "video_name,tag,start,end,split\na.mp4,run,1,2,train\n"


def test_one_of_several_annotators_must_be_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _label_studio(folder / "ls.json", ("sit", 11, 20, "bob"), ("run", 1, 5, "ann"))
    _kinetics(folder / "k.csv", "run,a,1,2,train")
    assert _run("ls.json", "k.csv") == 1
    assert capsys.readouterr().err == (
        "import_labels.py: b.mp4 is labelled by several annotators: ann, bob. Choose one, such as "
        "--annotator=ann.\n"
    )
    assert _run("ls.json", "--annotator=eve") == 1
    assert "There is no annotator eve; the annotators are ann, bob." in capsys.readouterr().err
    assert _run("ls.json", "k.csv", "--annotator=bob") == 0
    assert [row.label_name for row in read_csv(folder / "labels.csv", "train")] == ["run", "sit"]
    assert (
        "labelled by another annotator than --annotator\n         ls.json, task 1" in capsys.readouterr().out
    )


def test_only_a_manifest_is_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _kinetics(folder / "k.csv", "run,a,1,2,train")
    (folder / "labels.csv").write_text("label,youtube_id\n")
    assert _run("k.csv") == 1
    assert "labels.csv exists and does not begin with the columns video_name,tag" in capsys.readouterr().err
    assert (folder / "labels.csv").read_text() == "label,youtube_id\n"
    (folder / "labels.csv").write_text("video_name,tag,split\nold.mp4,x,train\n")
    assert _run("k.csv") == 0
    assert "a.mp4,run,1,2,train" in (folder / "labels.csv").read_text()
    assert _run("k.csv", "--unused=k.csv") == 1
    assert "k.csv exists and does not begin with the columns reason,where" in capsys.readouterr().err
    assert _run("k.csv", "--unused=nowhere/unused.csv") == 1
    assert "There is no folder nowhere for unused.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([], (), "labels.csv is not written: no label can be used."),
        (["run,a,1,3,train", "sit,a,2.5,4,train", "sit,a,2,3.5,val"], (),
         "a.mp4: run, 1 to 3 s (k.csv:2), and sit, 2 to 3.5 s (k.csv:4), overlap (the first of 2 pairs). A "
         "moment has one class: correct the labels, or import some classes only, such as --classes=run."),
        (["run,b,1,3,train"], ("ls.json",), "b.mp4: is labelled with 1 to 3 s (k.csv:2) and with frames 10 "
         "to 20 (ls.json, task 1, annotation 1, result 1). Give --frame_rate"),
        (["run,a,1,3,train"], ("--classes=run,fly",), "There is no class fly; the classes are run."),
        (["run,a,1,3,train"], ("no.xml",), "There is no file no.xml."),
        (["run,a,1,3,train"], ("no/*.xml",), "No file matches no/*.xml."),
        (["run,a,1,3,train"], ("--video_dir=nowhere",), "There is no folder nowhere (video_dir)."),
        (["run,a,1,3,train"], ("--format=cvat",), "k.csv:1: is not valid XML: syntax error. Export"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_one_line(
    folder: Path,
    rows: list[str],
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _kinetics(folder / "k.csv", *rows)
    if "ls.json" in arguments:
        _label_studio(folder / "ls.json", ("sit", 11, 20, ""))
    assert _run("k.csv", *arguments) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (folder / "labels.csv").exists()


def test_wrong_usage_is_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 2
    assert "name at least one label file" in capsys.readouterr().err
    assert _run("k.csv", "--format=coco") == 2
    assert "format must be one of activitynet, boris, cvat, " in capsys.readouterr().err
