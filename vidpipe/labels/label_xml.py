"""Reads XML label files, with the line of each element."""

import xml.etree.ElementTree as ET
from pathlib import Path
from xml.parsers import expat

from vidpipe.labels.label_file import AGAIN, LabelFileError


class Element(ET.Element):
    """An XML element with the number of its line."""

    line = 0


def read_xml(path: Path) -> Element:
    """Reads an XML file; returns its root, an `Element` like all elements below it.

    A document type declaration is an error: no labelling tool writes one, and its entities can name other
    files or grow without limit.

    Raises:
      LabelFileError: the file cannot be read, is not valid XML, or has a document type declaration.
    """
    builder = ET.TreeBuilder(element_factory=Element)
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = builder.start(tag, attributes)
        assert isinstance(element, Element)
        element.line = parser.CurrentLineNumber

    def reject(*_: object) -> None:
        raise LabelFileError(
            f"{path}:{parser.CurrentLineNumber}: has a document type declaration (DOCTYPE), which is not "
            f"read for safety. {AGAIN}, or delete the declaration."
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = reject
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        problem = expat.ErrorString(error.code)
        raise LabelFileError(f"{path}:{error.lineno}: is not valid XML: {problem}. {AGAIN}.") from None
    except OSError as error:
        raise LabelFileError(f"{path} cannot be read: {error.strerror}.") from None
    root = builder.close()
    assert isinstance(root, Element)
    return root


def place(path: Path, element: ET.Element) -> str:
    """Returns file and line of an element."""
    return f"{path}:{element.line}" if isinstance(element, Element) else str(path)


def attribute(path: Path, element: ET.Element, name: str) -> str:
    """Returns an attribute of an element.

    Raises:
      LabelFileError: the element lacks it.
    """
    value = element.get(name)
    if value is None:
        raise LabelFileError(f"{place(path, element)}: <{element.tag}> has no {name}. {AGAIN}.")
    return value
