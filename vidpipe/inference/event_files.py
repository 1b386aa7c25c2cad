"""Writes the events of videos: events.csv, events.json and WebVTT subtitles."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vidpipe.evaluation.events import Event
from vidpipe.storage import files

COLUMNS = ("video", "class", "start_sec", "end_sec", "score")


def write_event_tables(folder: Path, events: Mapping[str, Sequence[Event]]) -> tuple[Path, Path]:
    """Writes events.csv, a row per event, and events.json, in the form of ActivityNet's results.

    Args:
      folder: must exist.
      events: of each video, by its path.

    Returns:
      The two paths.
    """
    table, results = folder / "events.csv", folder / "events.json"
    with files.staged_csv(table, COLUMNS) as writer:
        for video, found in events.items():
            for event in found:
                bounds = {"start_sec": round(event.start_sec, 6), "end_sec": round(event.end_sec, 6)}
                writer.writerow(
                    {"video": video, "class": event.label} | bounds | {"score": round(event.score, 6)}
                )
    by_video = {
        video: [
            {
                "label": event.label,
                "segment": [round(event.start_sec, 6), round(event.end_sec, 6)],
                "score": round(event.score, 6),
            }
            for event in found
        ]
        for video, found in events.items()
    }
    files.write_text(results, json.dumps({"version": "VERSION 1.3", "results": by_video}, indent=1) + "\n")
    return table, results


def write_subtitles(path: Path, events: Sequence[Event]) -> None:
    """Writes events as WebVTT (https://www.w3.org/TR/webvtt1/), which players show over the video."""
    cues = [
        f"{number}\n{_stamp(event.start_sec)} --> {_stamp(event.end_sec)}\n"
        f"{escape(event.label, quote=False)} ({event.score:.0%})\n"
        for number, event in enumerate(events, start=1)
    ]
    files.write_text(path, "\n".join(["WEBVTT\n", *cues]))


def _stamp(time_sec: float) -> str:
    """Formats a time as WebVTT does.

    >>> _stamp(3661.5)
    '01:01:01.500'
    """
    seconds, millis = divmod(round(time_sec * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}.{millis:03d}"
