"""Label Studio: numbering of frames, frame rates, annotators, and what is no moment."""

import json
from pathlib import Path
from typing import Any

import pytest

from vidpipe.labels.label_file import FRAMES, SECONDS, LabelFileError, Labels, Reason
from vidpipe.labels.label_studio import read


def _read(folder: Path, tasks: Any) -> Labels:
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return read(path)


def _timeline(label: str, start: int, end: int) -> dict[str, Any]:
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}
    return {"id": f"{label}{start}", "type": "timelinelabels", "value": value}


def _rectangle(label: str | None, *keys: tuple[int, bool], rate: float | None = None) -> dict[str, Any]:
    sequence = [
        {"frame": frame, "enabled": enabled} | ({"time": frame / rate} if rate else {})
        for frame, enabled in keys
    ]
    labels = {"labels": [label]} if label else {}
    return {"id": "r", "type": "videorectangle", "value": {"framesCount": 50, "sequence": sequence, **labels}}


def _task(*results: dict[str, Any], **annotation: Any) -> dict[str, Any]:
    return {
        "id": 3,
        "data": {"video": "/data/upload/1/0a1b2c3d-a.mp4"},
        "annotations": [{"id": 9, "result": list(results), **annotation}],
    }


def _times(labels: Labels) -> list[tuple[str, float | None, float | None, str]]:
    return [(each.label, each.start, each.end, each.unit) for each in labels.moments]


def test_the_frames_of_a_range_count_from_1_and_include_the_last(tmp_path: Path) -> None:
    labels = _read(tmp_path, [_task(_timeline("run", 1, 10), _timeline("sit", 20, 20), completed_by=5)])
    assert _times(labels) == [("run", 0, 10, FRAMES), ("sit", 19, 20, FRAMES)]
    assert (labels.moments[0].video, labels.moments[0].annotator) == ("/data/upload/1/0a1b2c3d-a.mp4", "5")
    assert labels.moments[1].where.endswith("export.json, task 3, annotation 9, result 2")
    assert labels.unused == []


def test_a_frame_that_two_ranges_share_belongs_to_the_later_one(tmp_path: Path) -> None:
    labels = _read(
        tmp_path, _task(_timeline("run", 1, 10), _timeline("sit", 10, 20), _timeline("sit", 19, 30))
    )
    assert _times(labels) == [("run", 0, 9, FRAMES), ("sit", 9, 30, FRAMES)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([(3, True), (10, False), (20, True), (25, False)], [(2, 10), (19, 25)]),
        ([(10, False), (3, True)], [(2, 10)]),
        ([(3, True), (10, True)], [(2, 50)]),
        ([(7, False)], [(6, 7)]),
    ],
    ids=["lifespans", "unordered", "to_the_end", "single_frame"],
)
def test_a_rectangle_is_visible_until_a_keyframe_that_is_not_enabled(
    tmp_path: Path, keys: list[tuple[int, bool]], expected: list[tuple[int, int]]
) -> None:
    labels = _read(tmp_path, _task(_rectangle("run", *keys)))
    assert _times(labels) == [("run", start, end, FRAMES) for start, end in expected]


def test_keyframes_with_times_give_the_frame_rate_of_the_task(tmp_path: Path) -> None:
    """Label Studio counts frames at a rate of its own: its numbers are not those of the video."""
    task = _task(_timeline("sit", 41, 60), _rectangle("run", (11, True), (20, False), rate=20))
    assert _times(_read(tmp_path, task)) == [("run", 0.5, 1, SECONDS), ("sit", 2, 3, SECONDS)]


def test_the_class_of_a_rectangle_may_be_in_another_result(tmp_path: Path) -> None:
    other = {"id": "r", "type": "labels", "value": {"labels": ["run"]}}
    labels = _read(tmp_path, _task(_rectangle(None, (1, True), (4, False)), other))
    assert (_times(labels), labels.unused) == ([("run", 0, 4, FRAMES)], [])


def test_what_is_no_moment_is_listed(tmp_path: Path) -> None:
    choice = {"id": "c", "type": "choices", "value": {"choices": ["sport"]}}
    text = {"id": "t", "type": "textarea", "value": {"text": ["hello"]}}
    task = _task(choice, text, _rectangle(None, (1, True)))
    task["annotations"] += [
        {"id": 10, "was_cancelled": True, "result": [_timeline("run", 1, 2)]},
        {"id": 11, "result": []},
    ]
    task["predictions"] = [{"result": [_timeline("run", 1, 2)]}]
    labels = _read(tmp_path, [task])
    assert labels.moments == []
    assert [(each.reason, each.label) for each in labels.unused] == [
        (Reason.PREDICTED, ""), (Reason.WHOLE_VIDEO, "sport"), (Reason.NOT_TIMED, ""), (Reason.NO_CLASS, ""),
        (Reason.CANCELLED, ""), (Reason.NO_MOMENTS, ""),
    ]  # fmt: skip


def test_the_short_export_is_read_too(tmp_path: Path) -> None:
    value = _timeline("run", 5, 9)["value"]
    task = {
        "clip": "s3://b/a.mp4",
        "id": 1,
        "tricks": [value],
        "annotator": 2,
        "annotation_id": 4,
        "choice": "x",
    }
    (moment,) = _read(tmp_path, [task]).moments
    assert (moment.video, moment.label, moment.start, moment.end) == ("s3://b/a.mp4", "run", 4, 9)
    assert moment.annotator == "2"


def test_annotators_are_named_by_their_address(tmp_path: Path) -> None:
    (moment,) = _read(
        tmp_path, [_task(_timeline("run", 1, 2), completed_by={"id": 1, "email": "a@b.c"})]
    ).moments
    assert moment.annotator == "a@b.c"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [_task(_timeline("run", 9, 8))],
            "annotation 9, result 1: the range has the frames 9 to 8; frames are",
        ),
        ([_task(_timeline("run", 0, 8))], "the range has the frames 0 to 8; frames are numbered from 1"),
        ([{"id": 1, "data": {"text": "x"}, "annotations": []}], "task 1: its data names no video. Give"),
        (
            [{"id": 1, "data": {"a": "x.mp4", "b": "y.avi"}, "annotations": []}],
            "its data names x.mp4, y.avi.",
        ),
        ([5], "task 1: it should be an object; found 5. Export the labels again."),
    ],
)
def test_what_makes_no_sense_is_an_error(tmp_path: Path, tasks: Any, message: str) -> None:
    with pytest.raises(LabelFileError) as error:
        _read(tmp_path, tasks)
    assert message in str(error.value)
