"""Label files are recognised by their content; a broken one is one line with its place, never a traceback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vidpipe.config import LABEL_FORMATS
from vidpipe.errors import VidpipeError
from vidpipe.labels.formats import READERS, recognise
from vidpipe.labels.label_file import LabelFileError

VIA: dict[str, Any] = {
    "attribute": {"1": {"aname": "a", "type": 4, "options": {"0": "run"}}}, "file": {"1": {"fname": "a.mp4"}},
    "view": {"1": {"fid_list": ["1"]}},
    "metadata": {"m": {"vid": "1", "z": [1, 2], "xy": [], "av": {"1": "0"}}},
}  # fmt: skip
LABEL_STUDIO: list[Any] = [{
    "id": 1, "data": {"video": "a.mp4"}, "predictions": [],
    "annotations": [{"id": 1, "completed_by": 1, "result": [
        {"id": "t", "value": {"ranges": [{"start": 1, "end": 2}], "timelinelabels": ["run"]}},
        {"id": "r", "value": {"framesCount": 9, "labels": ["run"], "sequence": [{"frame": 5, "time": 0.2}]}},
    ]}],
}]  # fmt: skip
ACTIVITYNET = {"database": {"a": {"subset": "x", "annotations": [{"segment": [1, 2], "label": "run"}]}}}
SAMPLES = {
    "activitynet": json.dumps(ACTIVITYNET),
    "boris": "Observation id\tMedia file name\tBehavior\tStart (s)\tStop (s)\no\ta.mp4\trun\t1\t2\n",
    "cvat": """<?xml version="1.0"?>
<!-- <x> -->
<annotations><version>1.1</version><meta><task><source>a.mp4</source></task></meta>
<track label="run"><box frame="1" outside="0"/></track></annotations>""",
    "elan": """<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="a.mp4"/></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="0"/>
<TIME_SLOT TIME_SLOT_ID="b" TIME_VALUE="9"/></TIME_ORDER>
<TIER TIER_ID="t"><ANNOTATION>
<ALIGNABLE_ANNOTATION ANNOTATION_ID="x" TIME_SLOT_REF1="a" TIME_SLOT_REF2="b">
<ANNOTATION_VALUE>run</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>""",
    "kinetics": "label,youtube_id,time_start,time_end,split\nrun,a,1,2,train\n",
    "label_studio": json.dumps(LABEL_STUDIO),
    "via": json.dumps(VIA),
}


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_format_has_a_reader_and_a_sample() -> None:
    assert tuple(READERS) == LABEL_FORMATS == tuple(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_formats_are_recognised_by_content(tmp_path: Path, name: str, mark: str) -> None:
    path = _write(tmp_path, mark + SAMPLES[name])
    assert recognise(path) == name
    assert [each.label for each in READERS[name](path, ()).moments][:1] == ["run"]


def test_an_xml_file_may_have_another_encoding(tmp_path: Path) -> None:
    path = _write(tmp_path, SAMPLES["cvat"].replace("run", "né").encode("utf-16"))
    assert recognise(path) == "cvat"
    assert [each.label for each in READERS["cvat"](path, ()).moments] == ["né"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.txt: is not a known label file (activitynet, boris, cvat, "),
        ("video_name,tag\na.mp4,run\n", "is not a known label file"),
        ("<html/>", "is not a known label file"),
        ('{"images": []}', "is not a known label file"),
        ('[{"a": 1,\n "b": }]', "labels.txt:2: is not valid JSON: Expecting value. Export"),
        ("[" * 100_000, "is nested too deeply"),
        (b"PK\x03\x04...", "labels.txt is an archive or a spreadsheet. Unpack it"),
        (b"label,youtube_id,time_start,time_end\ncaf\xe9", "labels.txt:2: is not valid UTF-8"),
    ],
)
def test_other_files_are_rejected(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(VidpipeError) as error:
        recognise(_write(tmp_path, text))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<annotations>\n<version>",
            "labels.txt:2: is not valid XML: no element found. Export the labels again.",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d SYSTEM "/etc/passwd">]>\n<annotations>&d;</annotations>',
            "labels.txt:1: has a document type declaration (DOCTYPE), which is not read for safety",
        ),
    ],
)
def test_broken_and_unsafe_xml_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelFileError) as error:
        READERS["cvat"](_write(tmp_path, text), ())
    assert message in str(error.value)


def _damaged(value: Any) -> Iterator[Any]:
    """Yields a JSON value with each of its parts replaced by values of other types, or left out."""
    yield from (None, 5, "x", [], {}, [5], {"x": 5})
    if isinstance(value, dict):
        for key in value:
            yield {name: each for name, each in value.items() if name != key}
            yield from (value | {key: each} for each in _damaged(value[key]))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from ([*value[:index], each, *value[index + 1 :]] for each in _damaged(value[index]))


@pytest.mark.parametrize(
    ("name", "content"), [("activitynet", ACTIVITYNET), ("label_studio", LABEL_STUDIO), ("via", VIA)]
)
def test_a_damaged_json_file_is_one_line(tmp_path: Path, name: str, content: Any) -> None:
    path = tmp_path / "labels.json"
    for damaged in _damaged(content):
        path.write_text(json.dumps(damaged))
        try:
            READERS[name](path, ())
        except VidpipeError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)


@pytest.mark.parametrize("name", ["boris", "cvat", "elan", "kinetics"])
def test_a_truncated_file_is_one_line(tmp_path: Path, name: str) -> None:
    for length in range(len(SAMPLES[name])):
        path = _write(tmp_path, SAMPLES[name][:length])
        try:
            READERS[name](path, ())
        except VidpipeError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
