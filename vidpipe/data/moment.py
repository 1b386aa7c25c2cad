"""Moments: labelled parts of videos, and the time stamps that name them."""

import math
import re
from dataclasses import dataclass
from typing import Any

_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)", re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
# Ids of moments follow W3C's Media Fragments URI 1.0: a browser plays that part of the video.
_FRAGMENT = re.compile(r"#(t|frames)=([\d.]+),([\d.]+)")


class MomentError(ValueError):
    """A time stamp or a moment makes no sense; the message does not name file and line."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A part of a video: [start, end).

    Attributes:
      start, end: seconds from the first frame of the video, whole microseconds; or numbers of frames, from 0.
      in_frames: whether they are numbers of frames.

    >>> str(Moment(1.5, 70)), str(Moment(10, 20, in_frames=True))
    ('#t=1.5,70', '#frames=10,20')
    """

    start: float
    end: float
    in_frames: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise MomentError(f"a moment needs numbers; found {self.start} to {self.end}")
        if self.end <= self.start:
            what = "has no length" if self.end == self.start else "ends before it starts"
            hint = " (the end is the first frame after the moment)" if self.in_frames else ""
            raise MomentError(f"the moment {self.span} {what}{hint}")

    def __str__(self) -> str:
        return f"#{'frames' if self.in_frames else 't'}={format_number(self.start)},{format_number(self.end)}"

    @property
    def span(self) -> str:
        """The moment in words, such as `1.5 to 3 s`."""
        if self.in_frames:
            return f"from frame {format_number(self.start)} to {format_number(self.end)}"
        return f"{format_number(self.start)} to {format_number(self.end)} s"

    @property
    def length(self) -> float:
        """Seconds, or frames."""
        return self.end - self.start

    def overlaps(self, other: "Moment") -> bool:
        """Whether two moments of the same unit share some time."""
        return self.start < other.end and other.start < self.end


def to_moment(value: dict[str, Any] | None) -> Moment | None:
    """Makes a moment of what `dataclasses.asdict` made of one."""
    return None if value is None else Moment(**value)


def split_id(video_id: str) -> tuple[str, Moment | None]:
    """Divides the id of a moment into the name of the video and the moment.

    >>> split_id("a/b.mp4#t=1.5,70")
    ('a/b.mp4', Moment(start=1.5, end=70.0, in_frames=False))
    """
    found = _FRAGMENT.search(video_id)
    if found is None or found.end() != len(video_id):
        return video_id, None
    return video_id[: found.start()], Moment(float(found[2]), float(found[3]), found[1] == "frames")


def parse_seconds(text: str) -> float:
    """Reads seconds, such as `75.25`, or a clock, `h:mm:ss.mmm`; rounded to microseconds.

    Raises:
      MomentError: it is neither.

    >>> parse_seconds("75.25"), parse_seconds("0:01:15.250")
    (75.25, 75.25)
    """
    clock = _CLOCK.fullmatch(text)
    if clock is not None:
        return round(3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3]), 6)
    if _SECONDS.fullmatch(text) is None:
        raise MomentError(f"{text!r} is not a time; write seconds (75.25) or h:mm:ss.mmm (0:01:15.250)")
    return round(float(text), 6)


def parse_frame(text: str) -> float:
    """Reads the number of a frame, from 0.

    Raises:
      MomentError: it is not a frame number.
    """
    if not (text.isascii() and text.isdigit()):
        raise MomentError(f"{text!r} is not a frame number; frames are counted from 0")
    return float(text)


def format_number(value: float) -> str:
    """Formats a plain decimal number with at most 6 decimals and no trailing zeros.

    >>> format_number(1.50), format_number(1e-7), format_number(1200000)
    ('1.5', '0', '1200000')
    """
    return f"{value:.6f}".rstrip("0").rstrip(".")
