"""The formats of label files: how each is recognised by its content, and who reads it."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from vidpipe.data.manifest_csv import read_text
from vidpipe.labels import activitynet, boris, boris_table, cvat, elan, kinetics, label_studio, via, via_file
from vidpipe.labels.label_file import LabelFileError, Labels
from vidpipe.labels.label_text import read_json

# The names are those of `config.LABEL_FORMATS`.
READERS: dict[str, Callable[[Path, Sequence[str]], Labels]] = {
    "activitynet": activitynet.read,
    "boris": boris.read,
    "cvat": cvat.read,
    "elan": elan.read,
    "kinetics": kinetics.read,
    "label_studio": label_studio.read,
    "via": via.read,
}
_ROOTS = {"annotations": "cvat", "ANNOTATION_DOCUMENT": "elan"}
_HEAD_BYTES = 4096


def recognise(path: Path) -> str:
    """Returns the format of a label file, a key of `READERS`.

    Raises:
      LabelFileError: it is none of them.
      ManifestError: it cannot be read.
    """
    try:
        head = path.open("rb").read(_HEAD_BYTES)
    except OSError as error:
        raise LabelFileError(f"{path} cannot be read: {error.strerror}.") from None
    if head.startswith(b"PK\x03\x04"):
        raise LabelFileError(
            f"{path} is an archive or a spreadsheet. Unpack it, or export the labels as text."
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    name: str | None
    if start == b"<" or head.startswith((b"\xff\xfe<", b"\xfe\xff\0<")):
        name = _of_xml(head.replace(b"\0", b"").decode("latin-1"))
    elif start in (b"{", b"["):
        name = _of_json(path)
    else:
        name = _of_table(read_text(path))
    if name is None:
        raise LabelFileError(
            f"{path}: is not a known label file ({', '.join(READERS)}). See vidpipe/labels/README.md for how "
            "to export one, or give its format with --format."
        )
    return name


def _of_xml(head: str) -> str | None:
    """Recognises an XML file by its first element."""
    root = re.search(
        r"<([A-Za-z_][\w.-]*)", re.sub(r"<!--.*?-->|<!DOCTYPE[^>\[]*", "", head, flags=re.DOTALL)
    )
    return _ROOTS.get(root[1]) if root else None


def _of_json(path: Path) -> str | None:
    """Recognises a JSON file by its keys."""
    content = read_json(path)
    if isinstance(content, dict) and "database" in content:
        return "activitynet"
    if isinstance(content, dict) and {"metadata", "view", "file"} <= set(content):
        return "via"
    first = content[0] if isinstance(content, list) and content else content
    if isinstance(first, dict) and ({"data", "annotations"} <= set(first) or "annotation_id" in first):
        return "label_studio"
    return None


def _of_table(text: str) -> str | None:
    """Recognises a table by its comments or its columns."""
    if text.startswith(via_file.COMMENT):
        return "via"
    lines = text.splitlines()
    if lines and set(kinetics.COLUMNS) <= {name.strip() for name in lines[0].split(",")}:
        return "kinetics"
    for line in lines:
        if "Behavior" in line:
            fields = [field.strip(' "') for field in line.split(boris_table.delimiter_of(line))]
            return "boris" if boris_table.is_header(fields) else None
    return None
