"""Reads lists of videos from CSV files; whatever is ambiguous is an error that names the line."""

import codecs
import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from vidpipe.config import SPLITS
from vidpipe.data.moment import Moment, MomentError, parse_frame, parse_seconds
from vidpipe.data.video_row import ManifestError, VideoRow, group_of, split_of
from vidpipe.data.video_tree import is_video_name

_REQUIRED = ("video_name", "tag")
_SECONDS, _FRAMES = ("start", "end"), ("start_frame", "end_frame")
_COLUMNS = (*_REQUIRED, "group", "split", *_SECONDS, *_FRAMES)
# Other names of the column split; a table that has one of them must not be read as if it had no splits.
_LIKE_SPLIT = frozenset(("subset", "set", "partition", "phase", "splits", "usage"))
# Likewise other names of the columns start and end.
_LIKE_TIMES = re.compile(r"(?<![a-z])(start|begin|end|stop|onset|offset)(?![a-z])")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SAVE_AS = "Save it as text in UTF-8; a spreadsheet as CSV in UTF-8"
_log = logging.getLogger(__name__)


def read_csv(path: Path, split: str) -> list[VideoRow]:
    """Reads a CSV file with the columns video_name, tag and optional group, split, and times of moments.

    A row with `start` and `end`, or `start_frame` and `end_frame`, is a moment of the video. Without a group
    of its own it is in the group of its video.

    Args:
      path: the file, in UTF-8.
      split: split of the rows that name none.

    Raises:
      ManifestError: the file cannot be read, or is not such a table.
    """
    text = read_text(path)
    table = _records(path, text)
    try:
        _, header = next(table)
    except StopIteration:
        raise ManifestError(f"{path} is empty; it needs the columns {' and '.join(_REQUIRED)}.") from None
    names = _column_names(path, header, text)
    lines = [(number, _fields(f"{path}:{number}", fields, len(names))) for number, fields in table]
    _check_other_columns(path, names, [fields for _, fields in lines])
    return [
        _row(f"{path}:{number}", dict(zip(names, fields, strict=True)), split) for number, fields in lines
    ]


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8.

    Raises:
      ManifestError: the file cannot be read, or has another encoding.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"There is no file {path}.") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}.") from None
    if data.startswith(b"PK\x03\x04"):
        raise ManifestError(f"{path} is a spreadsheet or an archive, not text. {_SAVE_AS}.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise ManifestError(f"{path} is UTF-16 or binary, not UTF-8 text. {_SAVE_AS}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}:{line}: is not valid UTF-8. {_SAVE_AS}.") from None


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the records that are not blank, each with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ManifestError(
                f"{path}:{number}: {error}. Perhaps a quotation mark is missing or is one too many."
            ) from None
        if any("\n" in field or "\r" in field for field in fields):
            raise ManifestError(
                f"{path}:{number}: a value contains a line break. Perhaps a quotation mark is missing."
            )
        if any(field.strip() for field in fields):
            yield number, [field.strip() for field in fields]


def _column_names(path: Path, header: Sequence[str], text: str) -> list[str]:
    """Returns the names of the columns in lower case."""
    names = [name.lower() for name in header]
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        (line, *_) = text.splitlines()
        used = [word for mark, word in _SEPARATORS.items() if mark in line]
        hint = f" Its columns seem to be separated by {used[0]}: save it with commas." if used else ""
        raise ManifestError(
            f"{path} needs the columns {' and '.join(_REQUIRED)} in its first line; found "
            f"{', '.join(header)}.{hint}"
        )
    repeated = [name for name in names if name and names.count(name) > 1]
    if repeated:
        raise ManifestError(f"{path} has the column {repeated[0]} {names.count(repeated[0])} times.")
    return names


def _fields(where: str, fields: list[str], num_columns: int) -> list[str]:
    if len(fields) > num_columns and not any(fields[num_columns:]):
        fields = fields[:num_columns]  # spreadsheets write empty columns
    if len(fields) != num_columns:
        raise ManifestError(
            f"{where}: has {len(fields)} values for {num_columns} columns. Put a value with a comma into "
            "quotation marks."
        )
    return fields


def _check_other_columns(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Raises if a column that is not read looks like the splits; logs a warning about the others."""
    others = []
    for index, name in enumerate(names):
        values = {row[index] for row in rows if row[index]}
        if name in _COLUMNS or not (name or values):
            continue
        if "split" not in names and values and (name in _LIKE_SPLIT or all(map(split_of, values))):
            raise ManifestError(
                f"{path} has no column split, but a column {name or 'without a name'} with "
                f"{sorted(values)[0]}. Name it split if it holds the splits, otherwise remove it."
            )
        if values and _LIKE_TIMES.search(name) and not {*_SECONDS, *_FRAMES} & set(names):
            raise ManifestError(
                f"{path} has no columns start and end, but a column {name}. Name the times of moments start "
                "and end (seconds or h:mm:ss.mmm) or start_frame and end_frame; otherwise remove the column."
            )
        others.append(name or f"number {index + 1} (without a name)")
    if others:
        _log.warning(
            "%s: columns that are not read: %s. Read are %s.", path, ", ".join(others), ", ".join(_COLUMNS)
        )


def _row(where: str, values: dict[str, str], default_split: str) -> VideoRow:
    name, tag = values["video_name"].replace("\\", "/"), values["tag"]
    if not name or not tag:
        raise ManifestError(f"{where}: video_name and tag must not be empty.")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:/", name):
        raise ManifestError(f"{where}: {name} is outside video_dir; give a path relative to it.")
    if is_video_name(tag):
        raise ManifestError(
            f"{where}: the tag {tag} is a file name. Put values with commas into quotation marks."
        )
    split = split_of(values["split"]) if values.get("split") else default_split
    if split is None:
        raise ManifestError(f"{where}: split must be {', '.join(SPLITS)}; found {values['split']!r}.")
    video_name = str(path)
    try:
        moment = _moment(values)
    except MomentError as error:
        raise ManifestError(f"{where}: {error}.") from None
    # A video with moments of several classes is one group, even if its name has the group of one class.
    default_group = group_of(video_name, tag) if moment is None else video_name
    group = values.get("group") or default_group
    video_id = video_name if moment is None else f"{video_name}{moment}"
    return VideoRow(video_id, video_name, tag, split, group, moment, where)


def _moment(values: dict[str, str]) -> Moment | None:
    """Reads the times of a row; None if it has none.

    Raises:
      MomentError: they make no sense.
    """
    given = [name for name in (*_SECONDS, *_FRAMES) if values.get(name)]
    if not given:
        return None
    if tuple(given) == _SECONDS:
        return Moment(parse_seconds(values["start"]), parse_seconds(values["end"]))
    if tuple(given) == _FRAMES:
        return Moment(parse_frame(values["start_frame"]), parse_frame(values["end_frame"]), in_frames=True)
    raise MomentError(
        f"a moment needs start and end, or start_frame and end_frame; found only {' and '.join(given)}"
        if len(given) == 1
        else f"a moment needs either start and end, or start_frame and end_frame; found {', '.join(given)}"
    )
