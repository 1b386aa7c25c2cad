"""The content of a VIA 3 project (JSON) or of its export as CSV: entries, and what their attributes mean.

Source: export_to_via3_csv in _via_import_export.js, and _via_attribute.js, of via-3.x.y/src/js (ox-vgg/via).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidpipe.data.manifest_csv import read_text
from vidpipe.labels.label_file import AGAIN, LabelFileError, class_name
from vidpipe.labels.label_text import expect, read_json, read_rows

COMMENT = "# Exported using VGG Image Annotator"
_HEADER = "metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"
_TEXT = 1  # the type of an attribute whose value is a text, whatever its options are
_DEFAULT = "_DEFAULT"  # the value of an entry for which nothing was chosen


@dataclass(frozen=True)
class Attribute:
    """An attribute, such as the class: its name, the names of its options, and the key of the default one."""

    name: str
    options: dict[str, str]
    default: str

    def classes(self, value: str) -> Iterator[str]:
        """Yields the names of the chosen options, whose keys are separated by commas; otherwise the text."""
        for key in value.split(",") if self.options else [value]:
            key = self.default if key == _DEFAULT else key
            if name := class_name(self.options.get(key, key)):
                yield name


@dataclass(frozen=True)
class Entry:
    """A labelled segment, frame, region or file.

    Attributes:
      where: file and line or key.
      files: names of the files that it belongs to.
      times: [start, end] of a segment, [time] of a frame; empty for a file.
      region: empty if there is none.
      values: the value of each attribute, by the attribute's key.
    """

    where: str
    files: list[Any]
    times: list[Any]
    region: list[Any]
    values: dict[str, str]


def read_file(path: Path) -> tuple[list[Entry], dict[str, Attribute]]:
    """Reads a project or its export; returns its entries, and its attributes by their keys.

    Raises:
      LabelFileError: it is neither.
    """
    text = read_text(path)
    entries, attributes = _read_csv(path, text) if text.startswith("#") else _read_project(path)
    return entries, {key: _attribute(each, f"{path}, attribute {key}") for key, each in attributes.items()}


def _attribute(content: Any, where: str) -> Attribute:
    content = expect(content, dict, where, "it")
    options = (
        {} if content.get("type") == _TEXT else expect(content.get("options") or {}, dict, where, "options")
    )
    return Attribute(
        name=str(content.get("aname", "")),
        options={key: str(name) for key, name in options.items()},
        default=str(content.get("default_option_id", "")),
    )


def _entry(where: str, files: list[Any], times: Any, region: Any, values: Any) -> Entry:
    return Entry(
        where,
        files,
        expect(times or [], list, where, "the times"),
        expect(region or [], list, where, "the region"),
        {
            key: str(value)
            for key, value in expect(values or {}, dict, where, "the attributes").items()
            if value
        },
    )


def _read_project(path: Path) -> tuple[list[Entry], dict[str, Any]]:
    project = expect(read_json(path), dict, str(path), "the project")
    metadata, views, files, attributes = (
        expect(project.get(name), dict, str(path), name) for name in ("metadata", "view", "file", "attribute")
    )
    entries = []
    for key, content in metadata.items():
        where = f"{path}, metadata {key}"
        content = expect(content, dict, where, "it")
        view = expect(views.get(str(content.get("vid"))), dict, where, "its view")
        keys = expect(view.get("fid_list") or [], list, where, "fid_list of its view")
        described = [expect(files.get(str(each)), dict, where, "its file") for each in keys]
        names = [each.get("fname") or each.get("src") for each in described]
        entries.append(_entry(where, names, content.get("z"), content.get("xy"), content.get("av")))
    return entries, attributes


def _read_csv(path: Path, text: str) -> tuple[list[Entry], dict[str, Any]]:
    comments = dict(
        line[1:].strip().split(" = ", 1)
        for line in text.splitlines()
        if line.startswith("#") and " = " in line
    )
    if comments.get("CSV_HEADER", "").rstrip(",") != _HEADER or "ATTRIBUTE" not in comments:
        raise LabelFileError(
            f"{path}: lacks the attributes with their options, like exports of temporal segments and of "
            "early versions. Export it as VIA3 CSV, or save the project as JSON."
        )
    entries = []
    for line, fields in read_rows(path, text):
        where = f"{path}:{line}"
        if fields[0].startswith("#"):
            continue
        if len(fields) < 6:
            raise LabelFileError(f"{where}: has {len(fields)} of 6 values. {AGAIN}.")
        files, times, region, values = (_json(fields[at], where) for at in (1, 3, 4, 5))
        entries.append(_entry(where, expect(files, list, where, "the files"), times, region, values))
    return entries, expect(_json(comments["ATTRIBUTE"], str(path)), dict, str(path), "ATTRIBUTE")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise LabelFileError(f"{where}: {text!r:.40} is not valid JSON: {error.msg}. {AGAIN}.") from None
