"""Reads events of BORIS: exports of tabular events and of aggregated events, as TSV or CSV files.

State events are moments, and their behavior is the class; modifiers and subjects are not read. Point events
have no length.

Sources: https://www.boris.unito.it/user_guide/; how times are meant: getLaps in boris/core.py and
event2media_file_name in boris/observation_operations.py (olivierfriard/BORIS, 2026):

- Times include the time offset of the observation, if it has one.
- Several media files of the first player are played one after another, and times count from the start of the
  first one.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vidpipe.labels.boris_table import read_events
from vidpipe.labels.label_file import LabelledMoment, Labels, Reason, class_name
from vidpipe.labels.label_text import to_number

_OBSERVATION = "Observation id"
# What BORIS writes for the media file of an event that it could not find, or that has none.
_NO_MEDIA = frozenset(("", "NA", "Not found"))


def read(path: Path, tiers: Sequence[str] = ()) -> Labels:
    """Reads a TSV or CSV file.

    Raises:
      LabelFileError: there is no table of events, a START has no STOP, or a time is not a number.
    """
    del tiers
    labels = Labels()
    events = read_events(path, labels)
    videos: dict[str, set[str]] = defaultdict(set)
    for event in events:
        videos[event.row.get(_OBSERVATION, "")] |= {event.media} - _NO_MEDIA
    for event in events:
        label, files = class_name(event.row["Behavior"]), _sequence(event.row)
        is_only_file = len(files) == 1 and event.media in _NO_MEDIA
        video = files[0][0] if is_only_file else event.media
        if "NA" in (event.start, event.stop):
            labels.leave_out(Reason.NO_TIMES, event.where, video, label)
            continue
        offset = to_number(event.row.get("Time offset (s)") or "0", event.where, "the time offset")
        start, end = (to_number(text, event.where, "a time") - offset for text in (event.start, event.stop))
        bounds = _bounds(video, files)
        if video in _NO_MEDIA:
            labels.leave_out(Reason.NO_VIDEO, event.where, label=label)
        elif bounds is None and max(len(files), len(videos[event.row.get(_OBSERVATION, "")])) > 1:
            labels.leave_out(Reason.UNKNOWN_DURATION, event.where, video, label)
        elif bounds is not None and start < bounds[1] < end:
            labels.leave_out(Reason.ACROSS_FILES, event.where, video, label)
        else:
            first = 0.0 if bounds is None else bounds[0]
            start, end = round(start - first, 6), round(end - first, 6)
            labels.moments.append(
                LabelledMoment(video=video, label=label, start=start, end=end, where=event.where)
            )
    return labels


def _sequence(row: dict[str, str]) -> list[tuple[str, float | None]]:
    """Returns the first player's media files in order, with their durations in seconds if these are known."""
    player = row.get("Source", "").split("|")[0]
    files = re.sub(r"^player #1: ?", "", player).split(";") if player.startswith("player #1:") else []
    durations = row.get("Media duration (s)", "").split("|")[0].split(";")
    if len(durations) != len(files) or not all(re.fullmatch(r"\d+(\.\d+)?", each) for each in durations):
        return [(file, None) for file in files]
    return [(file, float(each)) for file, each in zip(files, durations, strict=True)]


def _bounds(video: str, files: Sequence[tuple[str, float | None]]) -> tuple[float, float] | None:
    """Returns when one of several media files starts and ends in its observation; None if not known."""
    start = 0.0
    for file, duration in files if len(files) > 1 else ():
        if duration is None:
            return None
        if file == video:
            return start, start + duration
        start += duration
    return None
