"""Moments: their time stamps, and the ids that name them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.data.moment import Moment, MomentError, parse_frame, parse_seconds, split_id


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("75.25", 75.25), (".5", 0.5), ("3.", 3), ("0:01:15.250", 75.25), ("2:00:00", 7200),
        ("100:00:01", 360001), ("0.1234567", 0.123457),
    ],
)  # fmt: skip
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["1:15", "0:75:00", "0:00:60", "12s", "1,5", "-1", "1e3", "nan", "inf", "", "00:00:01:12", "٣"]
)
def test_what_can_be_read_two_ways_is_no_time(text: str) -> None:
    with pytest.raises(MomentError, match="write seconds"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["1.0", "-1", "", "x", "٣"])
def test_numbers_of_frames_are_whole(text: str) -> None:
    assert parse_frame("012") == 12
    with pytest.raises(MomentError, match="counted from 0"):
        parse_frame(text)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (3.0, 1.5, "the moment 3 to 1.5 s ends before it starts"),
        (3.0, 3.0, "the moment 3 to 3 s has no length"),
        (float("nan"), 1.0, "needs numbers"),
        (1.0, float("inf"), "needs numbers"),
    ],
)
def test_moments_have_a_length(start: float, end: float, message: str) -> None:
    with pytest.raises(MomentError, match=message):
        Moment(start, end)


@given(name=st.text(), start=st.integers(0, 10**12), length=st.integers(1, 10**9), in_frames=st.booleans())
def test_an_id_tells_its_video_and_moment(name: str, start: int, length: int, in_frames: bool) -> None:
    scale = 1 if in_frames else 1e6
    moment = Moment(round(start / scale, 6), round((start + length) / scale, 6), in_frames)
    assert split_id(f"{name}{moment}") == (name, moment)


def test_other_names_are_no_ids_of_moments() -> None:
    for name in ("a.mp4", "a#t=1", "a#t=1,2.mp4", "#x=1,2"):
        assert split_id(name) == (name, None)
