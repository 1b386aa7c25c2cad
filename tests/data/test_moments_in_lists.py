"""Lists of moments: one video in many rows, and rows that contradict each other or the time."""

from pathlib import Path
from typing import Any

import pytest

from synthetic import touch
from vidpipe.config import ConfigError, ManifestConfig
from vidpipe.data.background import Measure
from vidpipe.data.manifest import read_manifest
from vidpipe.data.moment import Moment
from vidpipe.data.moment_reader import VideoLength
from vidpipe.data.video_row import ManifestError, VideoRow

HEAD = "video_name,tag,start,end\n"


def _read(folder: Path, text: str, *, measure: Measure | None = None, **settings: Any) -> list[VideoRow]:
    touch(folder, *(f"{name}.mp4" for name in "abcd"))
    (folder / "labels.csv").write_text(text)
    manifest = ManifestConfig(
        video_dir=str(folder), train_manifest=str(folder / "labels.csv"), **{"val_fraction": 0} | settings
    )
    return read_manifest(manifest, measure=measure)


def test_rows_with_times_are_clips_of_their_own_in_the_group_of_their_video(tmp_path: Path) -> None:
    rows = _read(tmp_path, HEAD + "a.mp4,kick,1.5,3\na.mp4,pass,0:01:02.25,70\nb.mp4,kick,0,2\n")
    assert [(row.video_id, row.path, row.label_name, row.group, row.moment) for row in rows] == [
        ("a.mp4#t=1.5,3", "a.mp4", "kick", "a.mp4", Moment(1.5, 3)),
        ("a.mp4#t=62.25,70", "a.mp4", "pass", "a.mp4", Moment(62.25, 70)),
        ("b.mp4#t=0,2", "b.mp4", "kick", "b.mp4", Moment(0, 2)),
    ]
    assert [row.video for row in rows] == ["a.mp4", "a.mp4", "b.mp4"]


def test_times_may_be_numbers_of_frames_and_groups_are_free(tmp_path: Path) -> None:
    head = "video_name,tag,start_frame,end_frame,group\n"
    rows = _read(tmp_path, head + "a.mp4,kick,0,10,g1\na.mp4,pass,10,20,g2\n")
    assert [(row.video_id, row.group) for row in rows] == [
        ("a.mp4#frames=0,10", "g1"), ("a.mp4#frames=10,20", "g2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.mp4,x,3,1\n", r"labels.csv:2: the moment 3 to 1 s ends before it starts"),
        ("a.mp4,x,3,3\n", r"labels.csv:2: the moment 3 to 3 s has no length"),
        ("b.mp4,x,0,1\na.mp4,x,3,\n", r"labels.csv:3: a moment needs start and end, .*; found only start"),
        ("a.mp4,x,00:03,00:05\n", r"labels.csv:2: '00:03' is not a time; write seconds"),
        ("a.mp4,x,-1,5\n", r"labels.csv:2: '-1' is not a time"),
        ("a.mp4,x,1,3\na.mp4,x,1,3\n", r"a.mp4#t=1,3 is listed twice in train"),
        ("a.mp4,x,1,3\na.mp4,x,,\n", r"labels.csv:3: a.mp4 is listed as a whole, and with moments at .*:2"),
        (
            "b.mp4,x,1,9\na.mp4,x,5,9\na.mp4,y,1,5.01\n",
            r"labels.csv:3: x, 5 to 9 s, overlaps y, 1 to 5.01 s, of .*labels.csv:4 in a.mp4",
        ),
        (  # not only neighbours
            "a.mp4,x,0,100\na.mp4,x,1,2\na.mp4,y,50,51\n",
            r"labels.csv:4: y, 50 to 51 s, overlaps x, 0 to 100 s",
        ),
    ],
)
def test_contradictions_are_one_line_with_file_and_row(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        _read(tmp_path, HEAD + rows)


@pytest.mark.parametrize("column", ["start_time", "begin", "t_start", "Start (s)", "onset", "time start"])
def test_other_names_of_times_are_not_left_unread(tmp_path: Path, column: str) -> None:
    with pytest.raises(ManifestError, match="has no columns start and end, but a column"):
        _read(tmp_path, f"video_name,tag,{column}\na.mp4,x,1\nb.mp4,y,2\n")


def test_seconds_and_frames_do_not_mix(tmp_path: Path) -> None:
    head = "video_name,tag,start,end,start_frame,end_frame\n"
    with pytest.raises(ManifestError, match=r"labels.csv:3: the times of a.mp4 are in seconds in some rows"):
        _read(tmp_path, head + "a.mp4,x,0,1,,\na.mp4,x,,,50,60\nb.mp4,y,,,0,9\n")
    with pytest.raises(ManifestError, match="needs either start and end, or start_frame and end_frame"):
        _read(tmp_path, head + "a.mp4,x,0,1,0,9\nb.mp4,y,0,1,,\n")
    mixed = _read(tmp_path, head + "a.mp4,x,0,1,,\nb.mp4,y,,,0,9\n")
    assert [row.video_id for row in mixed] == ["a.mp4#t=0,1", "b.mp4#frames=0,9"]


def test_touching_moments_and_overlapping_ones_of_one_class_are_fine(tmp_path: Path) -> None:
    assert len(_read(tmp_path, HEAD + "a.mp4,x,0,5\na.mp4,x,4,9\na.mp4,y,9,12\n")) == 3


def test_moments_of_a_video_stay_in_one_split(tmp_path: Path) -> None:
    text = HEAD + "".join(f"{video}.mp4,{'xy'[i % 2]},{i},{i + 1}\n" for video in "abcd" for i in range(10))
    rows = _read(tmp_path, text, val_fraction=0.25)
    splits = {row.video: {other.split for other in rows if other.video == row.video} for row in rows}
    assert sorted(map(sorted, splits.values())) == [["train"], ["train"], ["train"], ["val"]]


def test_the_list_itself_may_part_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    head = "video_name,tag,start,end,split\n"
    text = head + "a.mp4,x,0,1,train\na.mp4,y,2,3,train\na.mp4,x,9,10,val\na.mp4,y,5,6,test\n"
    rows = _read(tmp_path, text)
    assert [(row.split, row.group) for row in rows] == [
        ("train", "a.mp4 (train)"), ("train", "a.mp4 (train)"), ("val", "a.mp4 (val)"), ("test", "a.mp4"),
    ]  # fmt: skip
    assert "Moments of 1 videos are in train and in val, as listed, such as a.mp4" in caplog.text


def _lengths(**seconds: float) -> Measure:
    found = {f"{name}.mp4": VideoLength(round(25 * length), length) for name, length in seconds.items()}
    return lambda paths: {path: found[path] for path in paths if path in found}


def _background(rows: list[VideoRow]) -> list[tuple[str, Moment]]:
    return [(row.video, row.moment) for row in rows if row.label_name == "none" and row.moment is not None]


def test_background_fills_the_time_without_labels(tmp_path: Path) -> None:
    text = HEAD + "a.mp4,x,10,14\na.mp4,y,30,32\na.mp4,x,30.5,31\nb.mp4,y,0,3\n"
    text = text.replace("a.mp4,x,30.5,31\n", "a.mp4,y,30.5,31\n")
    rows = _read(tmp_path, text, background="none", measure=_lengths(a=60, b=12), background_margin_sec=2)
    clips = _background(rows)
    assert [name for name, _ in clips] == ["a.mp4"] * 3 + ["b.mp4"]
    assert sorted(round(moment.length, 6) for _, moment in clips[:3]) == [0.5, 2, 4]
    for name, moment in clips:
        taken = [Moment(8, 16), Moment(28, 34)] if name == "a.mp4" else [Moment(0, 5)]
        assert not any(moment.overlaps(other) for other in taken), moment
        assert 0 <= moment.start < moment.end <= {"a.mp4": 60, "b.mp4": 12}[name]
    for number, (name, moment) in enumerate(clips):
        assert not any(moment.overlaps(other) for video, other in clips[:number] if video == name)
    again = _read(tmp_path, text, background="none", measure=_lengths(a=60, b=12), background_margin_sec=2)
    assert rows == again
    other = _read(tmp_path, text, background="none", measure=_lengths(a=60, b=12), seed=2)
    assert _background(other) != clips


def test_background_of_frames_is_in_frames_and_keeps_to_splits_and_classes(tmp_path: Path) -> None:
    head = "video_name,tag,start_frame,end_frame,split\n"
    text = head + "a.mp4,x,100,110,train\na.mp4,y,900,910,val\na.mp4,z,300,700,train\nb.mp4,y,0,10,train\n"
    rows = _read(
        tmp_path, text, background="none", measure=_lengths(a=40, b=40), classes=("x", "y"),
        background_ratio=10, background_margin_sec=1,
    )  # fmt: skip
    clips = [row for row in rows if row.label_name == "none" and row.video == "a.mp4"]
    assert len(clips) == 20
    for row in clips:
        moment = row.moment
        assert moment is not None
        assert moment.in_frames
        assert moment.length == 10
        assert moment.start == int(moment.start)
        # z was not chosen, but it is no background; a second is 25 frames.
        for taken in (Moment(75, 135, True), Moment(875, 935, True), Moment(275, 725, True)):
            assert not moment.overlaps(taken)
        is_near_val = moment.start > 505
        assert (row.split, row.group) == (
            ("val", "a.mp4 (val)") if is_near_val else ("train", "a.mp4 (train)")
        )


def test_too_little_time_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = HEAD + "a.mp4,x,0,4\na.mp4,y,6,10\nb.mp4,x,0,4\nb.mp4,none,6,9\n"
    rows = _read(tmp_path, text, background="none", measure=_lengths(a=10.5, b=10), background_margin_sec=1)
    assert _background(rows) == [("b.mp4", Moment(6, 9))]  # what was labelled so by hand, and no more
    assert "There is time for 0 of 2 wanted background clips only" in caplog.text


def test_background_needs_moments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="background needs a train_manifest"):
        ManifestConfig(video_dir=str(tmp_path), background="none")
    text = HEAD + "a.mp4,x,0,4\na.mp4,y,4,10\n"
    with pytest.raises(ManifestError, match="There is no time for background clips"):
        _read(tmp_path, text, background="none", measure=_lengths(a=10))
    with pytest.raises(ManifestError, match="background needs moments, and none is listed"):
        _read(tmp_path, "video_name,tag\na.mp4,x\nb.mp4,y\n", background="none", measure=_lengths())
