"""The report of predicted events: an HTML page on which they play, metrics.json and events.csv."""

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vidpipe.data.sampling import clock
from vidpipe.display import page
from vidpipe.evaluation.event_metrics import (
    ACTIVITYNET_TIOU,
    MATCH_TIOU,
    EventError,
    VideoEvents,
    match_events,
)
from vidpipe.evaluation.events import Event, EventRule
from vidpipe.evaluation.significance import BOOTSTRAP_SAMPLES
from vidpipe.storage import files, remote

# Containers that browsers play, if they know the codec.
_PLAYABLE = (".m4v", ".mov", ".mp4", ".ogv", ".webm")
_COLUMNS = ("video", "kind", "class", "start_sec", "end_sec", "score", "matched_tiou")
_COLOURS, _PATTERNS = 8, 3  # of `series-0` ... in display/colours.py, and of events.html.j2
_MAX_TICKS = 12
_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)  # seconds
_LANE, _HEADING = 24, 22  # pixels: an event with its margin, the name of a row


@dataclass(frozen=True, kw_only=True)
class EventReport:
    """The content of the report.

    Attributes:
      name: of the run.
      split: such as "test".
      metrics: the result of `event_metrics.compute_event_metrics`.
      videos: at least one.
      rule: how windows became events.
      provenance: what is needed to repeat the evaluation, name to text; may be empty.
    """

    name: str
    split: str
    metrics: Mapping[str, Any]
    videos: Sequence[VideoEvents]
    rule: EventRule
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class _Shown:
    """An event with its match.

    Attributes:
      event: the event.
      is_labelled: whether it is labelled or predicted.
      tiou: of the matched event; None for a missed or false event.
    """

    event: Event
    is_labelled: bool
    tiou: float | None

    @property
    def kind(self) -> str:
        """Either "labelled" or "predicted"."""
        return "labelled" if self.is_labelled else "predicted"

    @property
    def result(self) -> str:
        """The match in words."""
        if self.tiou is None:
            return "missed" if self.is_labelled else "false"
        return f"{'found' if self.is_labelled else 'correct'}, tIoU {self.tiou:.2f}"


def write(report: EventReport, output_dir: str | os.PathLike[str]) -> Path:
    """Writes `events.html`, `events.csv` and, last, `metrics.json`.

    events.csv has a row per event: `video`, `kind` (labelled or predicted), `class`, `start_sec`, `end_sec`,
    `score` (empty for labelled events), and `matched_tiou`, empty for missed and false events.

    Args:
      report: the content.
      output_dir: the folder, which is made. The page plays videos by their paths relative to it.

    Returns:
      The path of the page.

    Raises:
      EventError: the folder cannot be written.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.staged_csv(folder / "events.csv", _COLUMNS) as writer:
            for video in report.videos:
                writer.writerows(_csv_row(video.video, shown) for shown in _matched(video))
        path = folder / "events.html"
        files.write_text(path, events_page(report, folder))
        # Last: a program that waits for it finds the other files.
        files.write_text(folder / "metrics.json", json.dumps(_metrics_json(report), indent=2) + "\n")
    except OSError as error:
        raise EventError(f"Cannot write to {folder} ({error.strerror}). Choose another folder.") from error
    return path


def events_page(report: EventReport, folder: str | os.PathLike[str]) -> str:
    """Renders the report as one HTML page.

    Args:
      report: the content.
      folder: where the page will be, from which it finds local videos.
    """
    colour_of = {
        name: (index % _COLOURS, index // _COLOURS % _PATTERNS)
        for index, name in enumerate(report.metrics["classes"])
    }
    videos = [_video(video, folder, colour_of) for video in report.videos]
    videos.sort(key=lambda video: (1 if video["f1"] is None else video["f1"], -video["num_errors"]))
    return page.render(
        "events.html.j2",
        name=report.name,
        split=report.split,
        metrics=report.metrics,
        absent=[row["class"] for row in report.metrics["per_class"] if row["num_labelled"] == 0],
        videos=videos,
        rule=report.rule,
        match_tiou=MATCH_TIOU,
        mean_tiou=(ACTIVITYNET_TIOU[0], ACTIVITYNET_TIOU[-1]),
        bootstrap_samples=BOOTSTRAP_SAMPLES,
        provenance=report.provenance,
    )


def _metrics_json(report: EventReport) -> dict[str, Any]:
    settings = {"split": report.split, "rule": dataclasses.asdict(report.rule), "match_tiou": MATCH_TIOU}
    return settings | dict(report.metrics)


def _csv_row(video: str, shown: _Shown) -> dict[str, Any]:
    event = shown.event
    return {
        "video": video,
        "kind": shown.kind,
        "class": event.label,
        "start_sec": event.start_sec,
        "end_sec": event.end_sec,
        "score": "" if shown.is_labelled else event.score,
        "matched_tiou": "" if shown.tiou is None else shown.tiou,
    }


def _matched(video: VideoEvents) -> list[_Shown]:
    """Lists the events of a video by start time, with their matches."""
    matches = match_events(video.labelled, video.predicted)
    tiou_of_labelled = {row: tiou for row, _, tiou in matches}
    tiou_of_predicted = {row: tiou for _, row, tiou in matches}
    shown = [_Shown(event, True, tiou_of_labelled.get(row)) for row, event in enumerate(video.labelled)]
    shown += [_Shown(event, False, tiou_of_predicted.get(row)) for row, event in enumerate(video.predicted)]
    return sorted(shown, key=lambda each: (each.event.start_sec, each.event.end_sec, each.kind))


def _video(
    video: VideoEvents, folder: str | os.PathLike[str], colour_of: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Returns what the page shows of a video."""
    shown = _matched(video)
    num_matched = sum(each.is_labelled and each.tiou is not None for each in shown)
    names = sorted({each.event.label for each in shown}, key=list(colour_of).index)
    # A video of unknown duration may be 0 s long.
    until = max([video.duration_sec, *(each.event.end_sec for each in shown)]) or 1.0
    return {
        "name": video.video,
        "source": _source(video.video, folder),
        "suffix": Path(video.video).suffix.lower(),
        "num_labelled": len(video.labelled),
        "num_predicted": len(video.predicted),
        "num_matched": num_matched,
        "num_errors": len(shown) - 2 * num_matched,
        "f1": 2 * num_matched / len(shown) if shown else None,
        "classes": [(name, *colour_of[name]) for name in names],
        "events": [_entry(each, colour_of) for each in shown],
        "timeline": _timeline(shown, until, colour_of),
    }


def _source(video: str, folder: str | os.PathLike[str]) -> str | None:
    """Returns the address of a video relative to the page; None if a browser cannot play it from there."""
    if remote.is_remote(video) or Path(video).suffix.lower() not in _PLAYABLE:
        return None
    return quote(Path(os.path.relpath(video, folder)).as_posix())


def _entry(shown: _Shown, colour_of: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Returns an event as the page shows it, in words."""
    event = shown.event
    colour, pattern = colour_of[event.label]
    times = f"{clock(event.start_sec)} to {clock(event.end_sec)}"
    score = "" if shown.is_labelled else f", score {event.score:.2f}"
    return {
        "kind": shown.kind,
        "label": event.label,
        "start_sec": event.start_sec,
        "end_sec": event.end_sec,
        "times": times,
        "score": None if shown.is_labelled else event.score,
        "result": shown.result,
        "is_matched": shown.tiou is not None,
        "title": f"{event.label}, {times}, {shown.kind}{score}: {shown.result}",
        "colour": colour,
        "pattern": pattern,
    }


def _timeline(
    shown: Sequence[_Shown], until: float, colour_of: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Places events on a timeline: x in percent of its width, y in pixels.

    Events that overlap in time are placed one below the other.

    Args:
      shown: by start time.
      until: seconds, the end of the axis, above 0.
      colour_of: class to colour and pattern.
    """
    rows, top = [], 0
    for kind in ("labelled", "predicted"):
        events = [each for each in shown if each.kind == kind]
        lanes = _lanes([each.event for each in events])
        placed = []
        for each, lane in zip(events, lanes, strict=True):
            x, end = (100 * time / until for time in (each.event.start_sec, each.event.end_sec))
            place = {"x": x, "width": end - x, "y": top + _HEADING + lane * _LANE}
            placed.append(_entry(each, colour_of) | place)
        rows.append({"name": kind.capitalize(), "y": top, "events": placed})
        top += _HEADING + (1 + max(lanes, default=0)) * _LANE
    step = next((step for step in _TICK_STEPS if until / step <= _MAX_TICKS), _TICK_STEPS[-1])
    times = itertools.takewhile(lambda time: time <= until, (index * step for index in itertools.count()))
    ticks = [{"x": 100 * time / until, "text": clock(time)} for time in times]
    return {"rows": rows, "ticks": ticks, "bottom": top, "until_sec": until}


def _lanes(events: Sequence[Event]) -> list[int]:
    """Assigns events, by start time, to the first lane that is free at that time."""
    lane_ends: list[float] = []
    lanes = []
    for event in events:
        # Times are rounded to microseconds.
        is_free = [end <= event.start_sec + 1e-6 for end in lane_ends] + [True]
        lane = is_free.index(True)
        lane_ends[lane : lane + 1] = [event.end_sec]
        lanes.append(lane)
    return lanes
