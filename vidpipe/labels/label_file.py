"""What the reader of a label file returns: labelled moments, and the labels that could not be used."""

import enum
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vidpipe.data.moment import format_number
from vidpipe.errors import VidpipeError

SECONDS, FRAMES = "sec", "frame"
# What to do about a file that is not as the labelling tool writes it.
AGAIN = "Export the labels again"


class LabelFileError(VidpipeError):
    """A label file cannot be read, or its labels contradict each other."""


class Reason(enum.Enum):
    """Why a label could not be used. The value is shown to the user."""

    MISSING = "the video is not below --video_dir"
    AMBIGUOUS = "several videos below --video_dir have this name"
    NO_VIDEO = "the label file names no video for it"
    OTHER_VIDEO = "another video of the same recording; only the first one is read"
    OTHER_ANNOTATOR = "labelled by another annotator than --annotator"
    OTHER_CLASS = "a class that is not in --classes"
    OTHER_TIER = "a tier or an attribute that is not in --tier"
    NO_CLASS = "no class"
    NO_TIMES = "no times"
    NO_LENGTH = "a point in time, without a length"
    WHOLE_VIDEO = "a label of the whole video, without times"
    NOT_TIMED = "a kind of label that has no times"
    NO_MOMENTS = "a video without labelled moments"
    CANCELLED = "a cancelled annotation"
    PREDICTED = "a prediction, not an annotation"
    UNKNOWN_DURATION = "in a sequence of media files whose durations are not in the label file"
    ACROSS_FILES = "continues in the next media file"
    REPEATED = "labelled twice with the same times"


@dataclass(frozen=True, kw_only=True)
class LabelledMoment:
    """A labelled part of a video: [start, end).

    Attributes:
      video: the video as the label file names it: a path, a URL, or a name without suffix.
      label: name of the class.
      start, end: in `unit`; None for the whole video.
      unit: SECONDS from the first frame, or FRAMES, numbered from 0.
      split: train, val or test; None if the label file has none.
      annotator: who labelled it; empty if unknown.
      where: file and line or element.
      aliases: other names of the video.
      clip: name of a file that contains this moment and nothing else; empty if there is no such convention.

    Raises:
      LabelFileError: the times are not numbers, negative, or not in ascending order.
    """

    video: str
    label: str
    start: float | None
    end: float | None
    where: str
    unit: str = SECONDS
    split: str | None = None
    annotator: str = ""
    aliases: tuple[str, ...] = ()
    clip: str = ""

    def __post_init__(self) -> None:
        if self.start is None or self.end is None:
            return
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            problem = "has times that are not numbers"
        elif self.start < 0:
            problem = "starts before the video"
        elif self.end < self.start:
            problem = "ends before it starts"
        elif round(self.end - self.start, 6) == 0:
            problem = "has no length"
        else:
            return
        raise LabelFileError(
            f"{self.where}: {self.label}, {self.span}, {problem}. Correct it in the labelling tool. {AGAIN}."
        )

    @property
    def span(self) -> str:
        """The times in words, such as `1.5 to 3 s`."""
        if self.start is None or self.end is None:
            return "the whole video"
        if self.unit == FRAMES:
            return f"frames {format_number(self.start)} to {format_number(self.end)}"
        return f"{format_number(self.start)} to {format_number(self.end)} s"


@dataclass(frozen=True)
class Unused:
    """A label that could not be used."""

    reason: Reason
    where: str
    video: str = ""
    label: str = ""


@dataclass
class Labels:
    """The content of label files."""

    moments: list[LabelledMoment] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)

    def leave_out(self, reason: Reason, where: str, video: str = "", label: str = "") -> None:
        """Adds a label that cannot be used."""
        self.unused.append(Unused(reason, where, video, label))


def class_name(text: str | None) -> str:
    """Returns a class name with single spaces: typed names may have line breaks."""
    return " ".join((text or "").split())


def merged(stretches: Iterable[tuple[float, float, str]]) -> Iterator[tuple[float, float, str]]:
    """Joins stretches (start, end, where) that overlap or touch; each keeps the `where` of its first one.

    >>> list(merged([(5, 7, "c"), (0, 2, "a"), (2, 4, "b")]))
    [(0, 4, 'a'), (5, 7, 'c')]
    """
    current: tuple[float, float, str] | None = None
    for start, end, where in sorted(stretches):
        if current is not None and start <= current[1]:
            current = (current[0], max(current[1], end), current[2])
            continue
        if current is not None:
            yield current
        current = (start, end, where)
    if current is not None:
        yield current
