"""Reads the tables of events that BORIS exports: rows for each START and STOP, or for each event.

Sources: boris/export_observation.py and boris/export_events.py (olivierfriard/BORIS, 2026) for the columns,
and its tests/files for those of earlier versions. Earlier exports of tabular events have rows about the
observation before the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidpipe.data.manifest_csv import read_text
from vidpipe.labels.label_file import AGAIN, LabelFileError, Labels, Reason
from vidpipe.labels.label_text import read_rows

_MEDIA = ("Media file name", "Media file path", "Media file")
_STATUS = ("Behavior type", "Status")
_UNPAIRED = f"Fix the unpaired events in BORIS. {AGAIN}"


@dataclass(frozen=True)
class Event:
    """A state event: the row of its start, and its times as they are written."""

    where: str
    row: dict[str, str]
    start: str
    stop: str

    @property
    def media(self) -> str:
        """The media file of its start."""
        return _column(self.row, _MEDIA)


def delimiter_of(header: str) -> str:
    """Returns what separates the values of a line."""
    return max("\t,;", key=header.count)


def is_header(fields: Sequence[str]) -> bool:
    """Whether a row names the columns of events."""
    return "Behavior" in fields and ("Time" in fields or {"Start (s)", "Stop (s)"} <= set(fields))


def read_events(path: Path, labels: Labels) -> list[Event]:
    """Reads the state events; leaves out the point events.

    Raises:
      LabelFileError: there is no table of events, a row is too short, or a START has no STOP.
    """
    text = read_text(path)
    header_line = next((line for line in text.splitlines() if "Behavior" in line), "")
    about: dict[str, str] = {}
    names: list[str] = []
    events: list[Event] = []
    started: dict[tuple[str, ...], Event] = {}
    for line, fields in read_rows(path, text, delimiter_of(header_line)):
        where = f"{path}:{line}"
        if not names:
            if is_header(fields):
                names = fields
            elif len(fields) > 1:
                about[fields[0]] = fields[1]
            continue
        if len(fields) < len(names):
            raise LabelFileError(f"{where}: has {len(fields)} values for {len(names)} columns. {AGAIN}.")
        row = about | dict(zip(names, fields, strict=False))
        event = Event(where, row, row.get("Start (s)", row.get("Time", "")), row.get("Stop (s)", ""))
        status = _column(row, _STATUS).upper()
        if status == "POINT":
            labels.leave_out(Reason.NO_LENGTH, where, event.media, row["Behavior"])
        elif "Time" not in names:
            events.append(event)
        else:
            _pair(event, status, started, events)
    if not names:
        raise LabelFileError(f"{path}: has no columns Behavior and Time, or Start (s) and Stop (s). {AGAIN}.")
    for event in started.values():
        raise LabelFileError(f"{event.where}: {event.row['Behavior']} has no STOP. {_UNPAIRED}.")
    return events


def _pair(event: Event, status: str, started: dict[tuple[str, ...], Event], events: list[Event]) -> None:
    """Adds an event when its STOP is read; events are paired by observation, subject, behavior, modifiers."""
    key = tuple(
        value
        for name, value in event.row.items()
        if name in ("Observation id", "Subject", "Behavior") or name.startswith("Modifier")
    )
    if status == "START" and key not in started:
        started[key] = event
    elif status == "STOP" and key in started:
        first = started.pop(key)
        events.append(Event(first.where, first.row, first.start, event.start))
    else:
        raise LabelFileError(
            f"{event.where}: {event.row['Behavior']} has the status {status or 'nothing'} where "
            f"{'STOP' if key in started else 'START'} was expected. {_UNPAIRED}."
        )


def _column(row: dict[str, str], names: Sequence[str]) -> str:
    """Returns the value of the first of these columns that the table has."""
    return next((row[name] for name in names if name in row), "")
