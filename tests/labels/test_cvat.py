"""CVAT: frames in which tracks are visible, consecutive tags, numbering of frames, tasks of a project."""

from pathlib import Path

import pytest

from vidpipe.labels.cvat import read
from vidpipe.labels.label_file import FRAMES, LabelFileError, Labels, Reason

TASK = "<id>7</id><source>clip.mp4</source>"


def _task(extra: str = "") -> str:
    return f"<task>{TASK}{extra}</task>"


def _read(folder: Path, body: str, meta: str = _task(), version: str = "1.1") -> Labels:
    path = folder / "annotations.xml"
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>{version}</version>\n'
        f"<meta>{meta}</meta>\n{body}</annotations>"
    )
    return read(path)


def _box(frame: int, outside: int = 0) -> str:
    return f'<box frame="{frame}" outside="{outside}" keyframe="1" xtl="1" ytl="1" xbr="2" ybr="2"/>'


def _track(label: str, *boxes: str, task: str = "") -> str:
    return f'<track id="0" label="{label}"{task}>{"".join(boxes)}</track>\n'


def _moments(labels: Labels) -> list[tuple[str, str, float | None, float | None]]:
    return [(each.video, each.label, each.start, each.end) for each in labels.moments]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([_box(3), _box(4), _box(5, 1)], [(3, 5)]),
        ([_box(3), _box(9, 1), _box(12), _box(20, 1)], [(3, 9), (12, 20)]),
        ([_box(3), _box(5)], [(3, 6)]),
        ([_box(9, 1), _box(3)], [(3, 9)]),
        ([_box(3, 1)], []),
    ],
    ids=["each_frame", "keyframes_only", "visible_to_the_end", "unordered", "never_visible"],
)
def test_each_visible_stretch_is_a_moment(
    tmp_path: Path, boxes: list[str], expected: list[tuple[int, int]]
) -> None:
    labels = _read(tmp_path, _track("run", *boxes))
    assert _moments(labels) == [("clip.mp4", "run", start, end) for start, end in expected]
    assert all(each.unit == FRAMES for each in labels.moments)
    assert len(labels.unused) == (not expected)


def test_tracks_of_one_class_that_overlap_or_touch_are_joined(tmp_path: Path) -> None:
    tracks = [
        _track("run", _box(10), _box(20, 1)),
        _track("run", _box(0), _box(10, 1)),
        _track("run", _box(15), _box(30, 1)),
        _track("run", _box(31), _box(40, 1)),
        _track("sit", _box(5), _box(12, 1)),
    ]
    labels = _read(tmp_path, "".join(tracks))
    assert _moments(labels) == [
        ("clip.mp4", "run", 0, 30), ("clip.mp4", "run", 31, 40), ("clip.mp4", "sit", 5, 12),
    ]  # fmt: skip
    assert labels.moments[0].where.endswith("annotations.xml:5")


def test_a_labelled_frame_stands_for_a_step_up_to_the_last_frame_of_the_task(tmp_path: Path) -> None:
    """The numbers in the file are those of the source video already."""
    settings = (
        "<start_frame>100</start_frame><stop_frame>130</stop_frame><frame_filter>step=10</frame_filter>"
    )
    tracks = _track("run", _box(100), _box(110)) + _track("sit", _box(130))
    assert _moments(_read(tmp_path, tracks, _task(settings))) == [
        ("clip.mp4", "run", 100, 120), ("clip.mp4", "sit", 130, 131),
    ]  # fmt: skip


def test_consecutive_frames_with_a_tag_are_one_moment(tmp_path: Path) -> None:
    images = [f'<image id="{frame}" name="f"><tag label="run"/></image>' for frame in (4, 6, 8, 14)]
    labels = _read(tmp_path, "".join(images), _task("<frame_filter>step=2</frame_filter>"))
    assert _moments(labels) == [("clip.mp4", "run", 4, 10), ("clip.mp4", "run", 14, 16)]
    labels = _read(tmp_path, '<tag label="run" frame="4"/><tag label="run" frame="5"/><tag frame="6"/>')
    assert _moments(labels) == [("clip.mp4", "run", 4, 6)]
    assert [each.reason for each in labels.unused] == [Reason.NO_CLASS]


def test_a_skeleton_is_visible_if_one_of_its_points_is(tmp_path: Path) -> None:
    def skeleton(frame: int, first: int, second: int) -> str:
        points = "".join(f'<points label="p" outside="{each}"/>' for each in (first, second))
        return f'<skeleton frame="{frame}" keyframe="1">{points}<attribute name="a">b</attribute></skeleton>'

    track = _track("run", skeleton(2, 1, 0), skeleton(6, 1, 1), skeleton(9, 0, 1), skeleton(12, 1, 1))
    assert _moments(_read(tmp_path, track)) == [("clip.mp4", "run", 2, 6), ("clip.mp4", "run", 9, 12)]


def test_the_tasks_of_a_project_have_their_own_videos_splits_and_numbers(tmp_path: Path) -> None:
    """The second task of a subset starts after the first: 5 + 2 x 10 frames."""

    def task(name: int, subset: str, extra: str = "") -> str:
        return (
            f"<task><id>{name}</id><size>10</size><subset>{subset}</subset><start_frame>5</start_frame>"
            f"<frame_filter>step=2</frame_filter>{extra}</task>"
        )

    tasks = [
        task(1, "Train", "<source>a.mp4</source><assignee><username>ann</username></assignee>"),
        task(2, "Train", "<source>b.mp4</source>"),
        task(3, "default", "<source>c.mp4</source>"),
        task(4, "default"),
    ]
    tracks = [_track("run", _box(start), task=f' task_id="{name}"') for name, start in
              ((1, 5), (2, 25 + 5), (3, 7), (4, 25 + 9))]  # fmt: skip
    labels = _read(tmp_path, "".join(tracks), f"<project><tasks>{''.join(tasks)}</tasks></project>")
    found = [(each.video, each.start, each.split, each.annotator) for each in labels.moments]
    assert found == [("a.mp4", 5, "train", "ann"), ("b.mp4", 5, "train", ""), ("c.mp4", 7, None, "")]
    assert [each.reason for each in labels.unused] == [Reason.NO_VIDEO]


@pytest.mark.parametrize(
    ("body", "meta", "version", "message"),
    [
        (_track("run", _box(3)), _task("<frame_filter>step=2</frame_filter>"), "1.1",
         "xml:4: frame 3 is not among the frames of the task, 0, 2, ...: they were"),
        ("", _task(), "2.0", "annotations.xml: has version 2.0 of CVAT's format; only 1.1"),
        ("", "<job><id>1</id></job>", "1.1", "names no video (<source>), like the export of a job"),
        (_track("run", '<box frame="x"/>'), _task(), "1.1", "xml:4: frame should be a whole number"),
        ('<image name="f"><tag label="run"/></image>', _task(), "1.1", "xml:4: <image> has no id"),
        (_track("run", _box(-3)), _task(), "1.1", "xml:4: run, frames -3 to -2, starts before"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_an_error(
    tmp_path: Path, body: str, meta: str, version: str, message: str
) -> None:
    with pytest.raises(LabelFileError) as error:
        _read(tmp_path, body, meta, version)
    assert message in str(error.value)
