"""The frames of Label Studio's timeline labels and tracked rectangles.

Sources: https://labelstud.io/tags/timelinelabels and https://labelstud.io/tags/videorectangle; for the
numbering, Video.js, VideoRegion.js and TimelineRegion.js in web/libs/editor/src (HumanSignal/label-studio):

- Frames are numbered from 1, and the last frame of a range belongs to it.
- A rectangle is visible from an enabled keyframe to the next keyframe inclusive, or to the end of the video.
- Label Studio shows frame n at n / frameRate seconds, where frameRate is a setting of the project (24 by
  default), whatever the video's own rate is. Rectangles store the times of their keyframes, so the labels
  of a task with rectangles are read in seconds. Timeline labels store only the numbers of frames.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from vidpipe.labels.label_file import LabelFileError, merged
from vidpipe.labels.label_text import expect


class Stretch(NamedTuple):
    """Frames with a class, from 0, as [start, end)."""

    label: str
    start: float
    end: float
    where: str


def frame_rate(value: Mapping[str, Any]) -> float | None:
    """Returns the frames per second at which a rectangle's frames were numbered; None if it does not tell."""
    keys = value.get("sequence")
    for key in keys if isinstance(keys, list) else []:
        frame, time = (key.get("frame"), key.get("time")) if isinstance(key, dict) else (None, None)
        if isinstance(frame, int) and isinstance(time, (int, float)) and time > 0 and frame > 0:
            return frame / time
    return None


def frames_of(value: Mapping[str, Any], where: str) -> Iterator[tuple[int, int]]:
    """Yields the frames of a timeline label or a rectangle, from 0, as [start, end).

    Raises:
      LabelFileError: a frame is missing, below 1, or a range ends before it starts.
    """
    for each in expect(value.get("ranges") or [], list, where, "ranges"):
        each = expect(each, dict, where, "a range")
        start, end = (expect(each.get(name), int, where, name) for name in ("start", "end"))
        if not 1 <= start <= end:
            raise LabelFileError(
                f"{where}: the range has the frames {start} to {end}; frames are numbered from 1, in "
                "ascending order. Correct it in Label Studio."
            )
        yield start - 1, end
    sequence = expect(value.get("sequence") or [], list, where, "sequence")
    keys = sorted(
        (expect(key.get("frame"), int, where, "frame"), bool(key.get("enabled", True)))
        for key in (expect(each, dict, where, "a keyframe") for each in sequence)
    )
    num_frames = expect(value.get("framesCount") or 0, int, where, "framesCount")
    for index, (frame, is_enabled) in enumerate(keys):
        following = keys[index + 1][0] if index + 1 < len(keys) else num_frames
        # A keyframe that is not enabled is the last frame of a stretch.
        yield frame - 1, max(frame, following) if is_enabled else frame


def without_shared_frames(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Joins stretches of one class, and ends one before the frame in which one of another class begins.

    Annotators place the start of a range on the last frame of the one before it. That frame then has two
    classes.

    >>> [each[:3] for each in without_shared_frames([Stretch("a", 0, 5, ""), Stretch("b", 4, 9, "")])]
    [('a', 0, 4), ('b', 4, 9)]
    """
    by_class: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for each in stretches:
        by_class[each.label].append((each.start, each.end, each.where))
    joined = [Stretch(label, *each) for label, found in by_class.items() for each in merged(found)]
    starting: dict[float, set[str]] = defaultdict(set)
    for each in joined:
        starting[each.start].add(each.label)
    return [
        each._replace(end=each.end - 1)
        if each.end - each.start > 1 and starting.get(each.end - 1, set()) - {each.label}
        else each
        for each in sorted(joined, key=lambda each: (each.start, each.end))
    ]
