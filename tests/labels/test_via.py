"""VIA 3: temporal segments of projects and of their CSV exports, and the names of options."""

import json
from pathlib import Path
from typing import Any

import pytest

from vidpipe.labels.label_file import LabelFileError, Labels, Reason
from vidpipe.labels.via import read

ATTRIBUTES = {
    "1": {"aname": "action", "type": 4, "options": {"0": "run", "1": "sit"}, "default_option_id": "1"},
    "2": {"aname": "comment", "type": 1, "options": {"default": "Default"}, "default_option_id": ""},
    "3": {"aname": "many", "type": 2, "options": {"0": "a", "1": "b"}, "default_option_id": ""},
}


def _entry(times: list[float], values: dict[str, str], region: list[float] | None = None) -> dict[str, Any]:
    return {"vid": "1", "flg": 0, "z": times, "xy": region or [], "av": values}


def _project(*entries: dict[str, Any]) -> str:
    return json.dumps({
        "project": {}, "attribute": ATTRIBUTES, "view": {"1": {"fid_list": ["5"]}},
        "file": {"5": {"fname": "a.mp4", "src": ""}},
        "metadata": {f"1_{index}": each for index, each in enumerate(entries)},
    })  # fmt: skip


def _csv(*entries: dict[str, Any], attribute: str = "ATTRIBUTE") -> str:
    def quoted(value: object) -> str:
        return '"' + json.dumps(value).replace('"', '""') + '"'

    lines = [
        "# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)",
        f"# {attribute} = {json.dumps(ATTRIBUTES)}",
        "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata",
    ]
    for index, each in enumerate(entries):
        values = ",".join(quoted(value) for value in (each["z"], each["xy"], each["av"]))
        lines.append(f'"1_{index}",{quoted(["a.mp4"])},0,{values}')
    return "\n".join(lines)


def _read(folder: Path, text: str, *tiers: str) -> Labels:
    path = folder / ("via.csv" if text.startswith("#") else "via.json")
    path.write_text(text)
    return read(path, tiers)


@pytest.mark.parametrize("form", [_project, _csv])
def test_segments_are_moments_in_seconds(tmp_path: Path, form: Any) -> None:
    text = form(_entry([1.25, 3.5], {"1": "0"}), _entry([4, 5.1234567], {"1": "_DEFAULT"}))
    labels = _read(tmp_path, text)
    assert [(each.video, each.label, each.start, each.end) for each in labels.moments] == [
        ("a.mp4", "run", 1.25, 3.5), ("a.mp4", "sit", 4, 5.123457),
    ]  # fmt: skip
    assert labels.moments[1].where.endswith("via.csv:5" if form is _csv else "via.json, metadata 1_1")


def test_a_text_is_one_class_and_chosen_boxes_are_several(tmp_path: Path) -> None:
    assert [each.label for each in _read(tmp_path, _project(_entry([1, 2], {"2": "a, b"}))).moments] == [
        "a, b"
    ]
    assert [each.label for each in _read(tmp_path, _project(_entry([1, 2], {"3": "1,0"}))).moments] == [
        "b",
        "a",
    ]


@pytest.mark.parametrize("form", [_project, _csv])
def test_what_is_no_segment_is_listed(tmp_path: Path, form: Any) -> None:
    entries = [
        _entry([], {"1": "0"}), _entry([], {"1": "0"}, [2, 1, 1, 5, 5]), _entry([3], {"1": "0"}),
        _entry([3], {"1": "0"}, [2, 1, 1, 5, 5]), _entry([3, 4], {}),
    ]  # fmt: skip
    labels = _read(tmp_path, form(*entries))
    assert labels.moments == []
    assert [each.reason for each in labels.unused] == [
        Reason.WHOLE_VIDEO, Reason.NOT_TIMED, Reason.NO_LENGTH, Reason.NO_LENGTH, Reason.NO_CLASS,
    ]  # fmt: skip


def test_one_of_several_attributes_must_be_chosen(tmp_path: Path) -> None:
    text = _project(_entry([1, 2], {"1": "0", "2": "blurred"}), _entry([3, 4], {"2": "dark"}))
    with pytest.raises(LabelFileError, match="the attributes action, comment have labels.*--tier=action"):
        _read(tmp_path, text)
    labels = _read(tmp_path, text, "action")
    assert [each.label for each in labels.moments] == ["run"]
    assert [each.reason for each in labels.unused] == [Reason.OTHER_TIER]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_csv(attribute="ATTRIBUTES"), "via.csv: lacks the attributes with their options"),
        (_csv() + "\n1,2\n", "via.csv:4: has 2 of 6 values"),
        (_csv() + '\n1,"[x]",0,[],[],{}\n', "via.csv:4: '[x]' is not valid JSON"),
        (
            _project(_entry([2, 2], {"1": "0"})),
            "via.json, metadata 1_0: run, 2 to 2 s, has no length. Correct",
        ),
        (_project(_entry([2, 1], {"1": "0"})), "run, 2 to 1 s, ends before it starts"),
        (_project(_entry([float("nan"), 1], {"1": "0"})), "has times that are not numbers"),
        (json.dumps({"metadata": {}, "view": [], "file": {}}), "view should be an object; found []"),
    ],
)
def test_what_makes_no_sense_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelFileError) as error:
        _read(tmp_path, text)
    assert message in str(error.value)
