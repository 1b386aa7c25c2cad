"""ELAN: times of aligned, unaligned and dependent annotations, tiers, videos and annotators."""

from pathlib import Path

import pytest

from vidpipe.labels.elan import read
from vidpipe.labels.label_file import LabelFileError, Labels, Reason

MEDIA = (
    '<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/v/a.mp4" MIME_TYPE="video/mp4" RELATIVE_MEDIA_URL="./a.mp4"/>'
)


def _slots(*times: int | None) -> str:
    return "".join(
        f'<TIME_SLOT TIME_SLOT_ID="t{index}"' + ("/>" if time is None else f' TIME_VALUE="{time}"/>')
        for index, time in enumerate(times)
    )


def _aligned(name: str, first: int, last: int, value: str) -> str:
    return (
        f'\n<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{name}" TIME_SLOT_REF1="t{first}" '
        f'TIME_SLOT_REF2="t{last}"><ANNOTATION_VALUE>{value}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>'
    )


def _dependent(name: str, parent: str, value: str) -> str:
    return (
        f'\n<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{name}" ANNOTATION_REF="{parent}">'
        f"<ANNOTATION_VALUE>{value}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
    )


def _read(
    folder: Path,
    slots: str,
    tiers: dict[str, str],
    *chosen: str,
    media: str = MEDIA,
    units: str = "milliseconds",
) -> Labels:
    text = "".join(f'<TIER TIER_ID="{name}" ANNOTATOR="ann">{body}</TIER>' for name, body in tiers.items())
    path = folder / "a.eaf"
    path.write_text(
        f'<ANNOTATION_DOCUMENT AUTHOR="bea"><HEADER TIME_UNITS="{units}">{media}</HEADER>\n'
        f"<TIME_ORDER>{slots}</TIME_ORDER>{text}</ANNOTATION_DOCUMENT>"
    )
    return read(path, chosen)


def _times(labels: Labels) -> list[tuple[str, float | None, float | None]]:
    return [(each.label, each.start, each.end) for each in labels.moments]


def test_times_are_milliseconds_of_the_annotations(tmp_path: Path) -> None:
    """TIME_ORIGIN is the part of the video before time 0."""
    tier = {"T": _aligned("a1", 0, 1, "run\n fast")}
    labels = _read(tmp_path, _slots(1500, 2750), tier)
    assert _times(labels) == [("run fast", 1.5, 2.75)]
    (moment,) = labels.moments
    assert (moment.video, moment.annotator) == ("./a.mp4", "ann")
    assert moment.where.endswith("a.eaf:3")
    shifted = MEDIA.replace("<MEDIA_DESCRIPTOR", '<MEDIA_DESCRIPTOR TIME_ORIGIN="250"')
    assert _times(_read(tmp_path, _slots(1500, 2750), tier, media=shifted)) == [("run fast", 1.75, 3)]


def test_slots_without_a_time_are_spread_evenly(tmp_path: Path) -> None:
    tier = _aligned("a1", 0, 1, "a") + _aligned("a2", 1, 2, "b") + _aligned("a3", 2, 3, "c")
    tier += _aligned("a4", 4, 5, "d")
    labels = _read(tmp_path, _slots(1000, None, None, 4000, None, 9000), {"T": tier})
    assert _times(labels) == [("a", 1, 2), ("b", 2, 3), ("c", 3, 4)]
    assert [(each.reason, each.label) for each in labels.unused] == [(Reason.NO_TIMES, "d")]


def test_dependent_annotations_have_or_share_the_time_of_their_parent(tmp_path: Path) -> None:
    """The tier of the grandchild comes before that of its parent."""
    tiers = {
        "grandchild": _dependent("g", "c1", "x"),
        "child": _dependent("c1", "p", "a") + _dependent("c2", "p", "b") + _dependent("c3", "none", "c"),
        "parent": _aligned("p", 0, 1, "all"),
    }
    labels = _read(tmp_path, _slots(1000, 3000), tiers, "child", "grandchild")
    assert _times(labels) == [("x", 1, 2), ("a", 1, 2), ("b", 2, 3)]
    assert [(each.reason, each.label) for each in labels.unused] == [
        (Reason.NO_TIMES, "c"), (Reason.OTHER_TIER, "all"),
    ]  # fmt: skip


def test_one_of_several_tiers_with_annotations_must_be_chosen(tmp_path: Path) -> None:
    tiers = {"A": _aligned("a1", 0, 1, "run"), "empty": "", "B": _aligned("b1", 0, 1, "")}
    with pytest.raises(LabelFileError, match="the tiers A, B have labels. Choose .*--tier=A"):
        _read(tmp_path, _slots(0, 1000), tiers)
    labels = _read(tmp_path, _slots(0, 1000), tiers, "A", "B")
    assert _times(labels) == [("run", 0, 1)]
    assert [each.reason for each in labels.unused] == [Reason.NO_CLASS]


def test_the_first_video_is_read(tmp_path: Path) -> None:
    sound = '<MEDIA_DESCRIPTOR MEDIA_URL="file:///x.wav" MIME_TYPE="audio/x-wav"/>'
    media = sound + MEDIA + MEDIA.replace("a.mp4", "b.mp4")
    labels = _read(tmp_path, _slots(0, 1000), {"T": _aligned("a1", 0, 1, "run")}, media=media)
    assert [each.video for each in labels.moments] == ["./a.mp4"]
    assert [(each.reason, each.video) for each in labels.unused] == [(Reason.OTHER_VIDEO, "./b.mp4")]
    with pytest.raises(LabelFileError, match="names no video .*Link the video"):
        _read(tmp_path, _slots(0, 1000), {}, media=sound)


@pytest.mark.parametrize(
    ("slots", "units", "message"),
    [
        (_slots(2000, 1000), "milliseconds", "a.eaf:3: run, 2 to 1 s, ends before it starts"),
        (_slots(0, 0), "milliseconds", "has no length"),
        (_slots(0, 1000).replace("1000", "1s"), "milliseconds", "TIME_VALUE should be a number; found '1s'"),
        (_slots(0, 1000), "PAL-frames", "a.eaf: its times are not in milliseconds"),
        ('<TIME_SLOT TIME_VALUE="1"/>', "milliseconds", "a.eaf:2: <TIME_SLOT> has no TIME_SLOT_ID"),
    ],
)
def test_what_makes_no_sense_is_an_error(tmp_path: Path, slots: str, units: str, message: str) -> None:
    with pytest.raises(LabelFileError) as error:
        _read(tmp_path, slots, {"T": _aligned("a1", 0, 1, "run")}, units=units)
    assert message in str(error.value)
