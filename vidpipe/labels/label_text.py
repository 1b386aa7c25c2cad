"""Reads label files that are JSON or tables, and values in them, with the place of each error."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vidpipe.data.manifest_csv import read_text
from vidpipe.labels.label_file import AGAIN, LabelFileError

# How messages call the types of JSON.
_NAMES: dict[type, str] = {
    dict: "an object", list: "a list", str: "a text", float: "a number", int: "a whole number",
}  # fmt: skip
_Kind = TypeVar("_Kind")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      LabelFileError: it is not valid JSON.
      ManifestError: it cannot be read, or is not UTF-8.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise LabelFileError(f"{path}:{error.lineno}: is not valid JSON: {error.msg}. {AGAIN}.") from None
    except RecursionError:
        raise LabelFileError(f"{path}: is nested too deeply for a label file. {AGAIN}.") from None


def expect(value: Any, kind: type[_Kind], where: str, what: str) -> _Kind:
    """Returns a JSON value that has the expected type.

    Raises:
      LabelFileError: it has another type, or is missing (None).
    """
    if isinstance(value, bool) or not isinstance(value, kind):
        found = "nothing" if value is None else f"{value!r:.40}"
        raise LabelFileError(f"{where}: {what} should be {_NAMES[kind]}; found {found}. {AGAIN}.")
    return value


def expect_time(value: Any, where: str, what: str) -> float:
    """Returns a JSON number of seconds, rounded to microseconds.

    Raises:
      LabelFileError: it is not a number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return round(expect(value, float, where, what), 6)


def read_rows(path: Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a table that are not empty, each with the number of its first line.

    Raises:
      LabelFileError: a row cannot be read.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    while True:
        line = reader.line_num + 1
        try:
            fields = [field.strip() for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise LabelFileError(f"{path}:{line}: {error}. {AGAIN}.") from None
        if any(fields):
            yield line, fields


def to_number(text: str, where: str, what: str) -> float:
    """Reads a number from a text.

    Raises:
      LabelFileError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise LabelFileError(f"{where}: {what} should be a number; found {text!r}. {AGAIN}.") from None


def to_frame(text: str, where: str, what: str) -> int:
    """Reads the number of a frame from a text.

    Raises:
      LabelFileError: it is not a whole number.
    """
    try:
        return int(text)
    except ValueError:
        raise LabelFileError(f"{where}: {what} should be a whole number; found {text!r}. {AGAIN}.") from None


def check_choice(path: Path, used: Sequence[str], chosen: Sequence[str], what: str) -> None:
    """Checks that it is known which tier or attribute contains the classes.

    Args:
      path: the label file.
      used: names of the tiers or attributes that have labels.
      chosen: names that the user chose; empty for none.
      what: "tiers" or "attributes".

    Raises:
      LabelFileError: several have labels, and none was chosen.
    """
    if len(used) > 1 and not chosen:
        raise LabelFileError(
            f"{path}: the {what} {', '.join(used)} have labels. Choose those that contain the classes, such "
            f"as --tier={used[0]}."
        )
