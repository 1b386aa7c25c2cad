"""BORIS: tabular and aggregated events of several versions, pairs of START and STOP, sequences of files."""

from pathlib import Path

import pytest

from vidpipe.labels.boris import read
from vidpipe.labels.label_file import LabelFileError, Labels, Reason

# The columns of 2016, with rows about the observation before them, and those of 2026.
OLD = """Observation id\tobservation 1\t\t\t\t\t\t\t

Media file(s)
Player #1\tday/a.mp4
Time offset (s)\t2.0

Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tComment\tStatus
"""
TABULAR = (
    "Observation id,Source,Time offset (s),Media duration (s),Subject,Behavior,Modifier #1,Behavior type,Time"
)
AGGREGATED = "Observation id,Source,Media duration (s),Subject,Behavior,Behavior type,Start (s),Stop (s)"


def _read(folder: Path, text: str) -> Labels:
    path = folder / "events.tsv"
    path.write_text(text)
    return read(path)


def _moments(labels: Labels) -> list[tuple[str, str, float | None, float | None]]:
    return [(each.video, each.label, each.start, each.end) for each in labels.moments]


def test_the_tabular_events_of_earlier_versions(tmp_path: Path) -> None:
    rows = [(3.3, "run", "START"), (4.0, "call", "POINT"), (7.75, "run", "STOP")]
    lines = [f"{time}\tday/a.mp4\t60\t25\tx\t{name}\t\t\t{status}" for time, name, status in rows]
    labels = _read(tmp_path, OLD + "\n".join(lines))
    assert _moments(labels) == [("day/a.mp4", "run", 1.3, 5.75)]
    assert labels.moments[0].where.endswith("events.tsv:8")
    assert [(each.reason, each.label) for each in labels.unused] == [(Reason.NO_LENGTH, "call")]


def test_starts_and_stops_are_paired_by_subject_and_modifier(tmp_path: Path) -> None:
    rows = [("x", "m", "START", 1), ("y", "m", "START", 2), ("x", "n", "START", 3), ("x", "m", "STOP", 4),
            ("x", "n", "STOP", 5), ("y", "m", "STOP", 6)]  # fmt: skip
    lines = [f"o,player #1:a.mp4,0,60,{who},run,{how},{what},{time}" for who, how, what, time in rows]
    labels = _read(tmp_path, "\n".join([TABULAR, *lines]))
    assert [(start, end) for _, _, start, end in _moments(labels)] == [(1, 4), (3, 5), (2, 6)]
    assert {each.video for each in labels.moments} == {"a.mp4"}


def test_aggregated_events_have_a_row_each(tmp_path: Path) -> None:
    rows = ["o,,,x,run,STATE,1.800,8.125,a.mp4", "o,,,x,call,POINT,9,9,a.mp4", "o,,,x,run,STATE,NA,NA,a.mp4",
            "p,,,x,run,STATE,1,2,NA"]  # fmt: skip
    labels = _read(tmp_path, "\n".join([f"{AGGREGATED},Media file name", *rows]))
    assert _moments(labels) == [("a.mp4", "run", 1.8, 8.125)]
    assert [each.reason for each in labels.unused] == [Reason.NO_LENGTH, Reason.NO_TIMES, Reason.NO_VIDEO]


def test_times_in_a_sequence_of_files_count_from_the_first_one(tmp_path: Path) -> None:
    source = "player #1:a.mp4;b.mp4|player #2:c.mp4,180.0;360.0|9"
    rows = [f"o,{source},x,run,STATE,10,20,a.mp4", f"o,{source},x,run,STATE,190,200.5,b.mp4",
            f"o,{source},x,sit,STATE,170,185,a.mp4"]  # fmt: skip
    labels = _read(tmp_path, "\n".join([f"{AGGREGATED},Media file name", *rows]))
    assert _moments(labels) == [("a.mp4", "run", 10, 20), ("b.mp4", "run", 10, 20.5)]
    assert [(each.reason, each.label) for each in labels.unused] == [(Reason.ACROSS_FILES, "sit")]


def test_a_sequence_of_unknown_durations_is_not_used(tmp_path: Path) -> None:
    rows = ["o,,,x,run,STATE,10,20,a.mp4", "o,,,x,run,STATE,190,200,b.mp4", "p,,,x,run,STATE,1,2,b.mp4"]
    labels = _read(tmp_path, "\n".join([f"{AGGREGATED},Media file", *rows]))
    assert _moments(labels) == [("b.mp4", "run", 1, 2)]
    assert [each.reason for each in labels.unused] == [Reason.UNKNOWN_DURATION] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("o,,0,,x,run,,START,1\n", "events.tsv:2: run has no STOP. Fix the unpaired events in BORIS. Export"),
        ("o,,0,,x,run,,STOP,1\n", "events.tsv:2: run has the status STOP where START was expected"),
        (
            "o,,0,,x,run,,START,1\no,,0,,x,run,,START,2\n",
            "events.tsv:3: run has the status START where STOP was",
        ),
        ("o,,0,,x,run,,,1\n", "events.tsv:2: run has the status nothing where START"),
        ("o,,0\n", "events.tsv:2: has 3 values for 9 columns"),
        (
            "o,player #1:a.mp4,0,,x,run,,START,x\no,,0,,x,run,,STOP,2\n",
            "events.tsv:2: a time should be a number",
        ),
        (
            "o,player #1:a.mp4,0,,x,run,,START,2\no,,0,,x,run,,STOP,2\n",
            "events.tsv:2: run, 2 to 2 s, has no len",
        ),
        (
            "o,player #1:a.mp4,3,,x,run,,START,2\no,,3,,x,run,,STOP,9\n",
            "run, -1 to 6 s, starts before the video",
        ),
    ],
)
def test_what_makes_no_sense_is_an_error(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(LabelFileError) as error:
        _read(tmp_path, f"{TABULAR}\n{rows}")
    assert message in str(error.value)
