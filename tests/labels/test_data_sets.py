"""Kinetics and ActivityNet: times, splits, names of files, and videos without labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from vidpipe.labels import activitynet, kinetics
from vidpipe.labels.label_file import LabelFileError, Labels, Reason

HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"


def _kinetics(folder: Path, text: str) -> Labels:
    path = folder / "train.csv"
    path.write_text(text)
    return kinetics.read(path)


def _activitynet(folder: Path, database: Any) -> Labels:
    path = folder / "activity_net.json"
    path.write_text(json.dumps({"version": "1.3", "database": database}))
    return activitynet.read(path)


def test_a_row_of_kinetics_is_a_moment_and_a_clip(tmp_path: Path) -> None:
    rows = (
        '"air drumming",-3B32lodo2M,59,69,train,0\nabseiling,_dbcJuKJQNs,0,10,validate,0\n,abc,0,10,test,0\n'
    )
    labels = _kinetics(tmp_path, HEAD + rows)
    assert [
        (each.video, each.label, each.start, each.end, each.split, each.clip) for each in labels.moments
    ] == [
        ("-3B32lodo2M", "air drumming", 59, 69, "train", "-3B32lodo2M_000059_000069"),
        ("_dbcJuKJQNs", "abseiling", 0, 10, "val", "_dbcJuKJQNs_000000_000010"),
    ]
    assert [(each.reason, each.video) for each in labels.unused] == [(Reason.NO_CLASS, "abc")]


def test_segments_of_activitynet_are_moments(tmp_path: Path) -> None:
    segment = {"segment": [0.01, 5.5], "label": "Long jump"}
    labels = _activitynet(tmp_path, {
        "abc": {"subset": "validation", "duration": 9.9, "annotations": [segment]},
        "xyz": {"subset": "testing", "annotations": []},
    })  # fmt: skip
    (moment,) = labels.moments
    assert (moment.video, moment.aliases, moment.label, moment.start, moment.end, moment.split) == (
        "abc", ("v_abc",), "Long jump", 0.01, 5.5, "val",
    )  # fmt: skip
    assert [(each.reason, each.video) for each in labels.unused] == [(Reason.NO_MOMENTS, "xyz")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,youtube_id,time_start\n", "train.csv: lacks the column time_end; found label, youtube_id"),
        (HEAD + "x,abc,1\n", "train.csv:2: has 3 values for 6 columns"),
        (HEAD + "x,abc,a,2,train,0\n", "train.csv:2: time_start should be a number; found 'a'"),
        (HEAD + "x,abc,5,2,train,0\n", "train.csv:2: x, 5 to 2 s, ends before it starts"),
    ],
)
def test_wrong_rows_of_kinetics_are_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelFileError) as error:
        _kinetics(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"segment": [1], "label": "x"}, "segment should be [start, end]; found 1 values"),
        (
            {"segment": [1, "2"], "label": "x"},
            "video abc, annotation 1: a time should be a number; found '2'",
        ),
        ({"segment": [1, 2]}, "label should be a text; found nothing"),
        ({"segment": [2, 1], "label": "x"}, "x, 2 to 1 s, ends before it starts"),
    ],
)
def test_wrong_annotations_of_activitynet_are_errors(tmp_path: Path, annotation: Any, message: str) -> None:
    with pytest.raises(LabelFileError) as error:
        _activitynet(tmp_path, {"abc": {"subset": "training", "annotations": [annotation]}})
    assert message in str(error.value)
