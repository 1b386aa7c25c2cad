"""CSV lists: what is read, and everything that can be read two ways is one line with file and line number."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidpipe.data.manifest_csv import read_csv
from vidpipe.data.video_row import ManifestError, VideoRow

HEAD = "video_name,tag\n"


def _read(folder: Path, text: str | bytes, split: str = "train") -> list[VideoRow]:
    path = folder / "train.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path, split)


def test_group_and_split_are_optional(tmp_path: Path) -> None:
    rows = _read(
        tmp_path, "video_name,tag,group,split\na.mp4,x,g1,\nb/b.mp4,y,,val\nc.mp4,y,g2,train\n", "test"
    )
    assert [(row.video_id, row.label_name, row.split, row.group) for row in rows] == [
        ("a.mp4", "x", "test", "g1"), ("b/b.mp4", "y", "val", "b/b.mp4"), ("c.mp4", "y", "train", "g2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "video_name, tag, split\na.mp4, x, test\n",
        "Video_Name,TAG,Split\na.mp4,x,Test\n",
        "\ufeffvideo_name,tag,split\r\na.mp4,x,testing\r\n",
        'split,tag,video_name\n"test","x",".\\a.mp4"\n',
        "video_name,tag,split,,\na.mp4,x,test,,\n,,,,\n\n",
        "video_name,tag,split\na.mp4,x,test,,,\n",
        "video_name,tag,split\r\ra.mp4,x,test",
    ],
)
def test_the_usual_forms_of_one_table(tmp_path: Path, text: str) -> None:
    assert _read(tmp_path, text) == [VideoRow("a.mp4", "a.mp4", "x", "test", "a.mp4")]


def test_quoted_commas(tmp_path: Path) -> None:
    (row,) = _read(tmp_path, HEAD + '"a, b.mp4","run, ""fast"""\n')
    assert (row.video_id, row.label_name) == ("a, b.mp4", 'run, "fast"')


def test_columns_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _read(tmp_path, ",video_name,tag,fps,Subset,split\n0,a.mp4,x,25,A,test\n")
    expected = "not read: number 1 (without a name), fps, subset. Read are video_name, tag, group, split"
    assert expected in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,tag\na.mp4,x\n", "needs the columns video_name and tag in its first line; found name, tag"),
        ("", "train.csv is empty"),
        ("\n \n", "train.csv is empty"),
        ("video_name;tag\na.mp4;x\n", "found video_name;tag. Its columns seem to be separated by semicolons"),
        ("video_name\ttag\na.mp4\tx\n", "separated by tabs: save it with commas"),
        ("video_name,tag,tag\na.mp4,x,y\n", "has the column tag 2 times"),
        ("video_name,tag,Split,split\na.mp4,x,test,train\n", "has the column split 2 times"),
        ("video_name,tag,subset\na.mp4,x,A\n", "no column split, but a column subset with A. Name it split"),
        ("video_name,tag,purpose\na.mp4,x,train\nb.mp4,x,Test\n", "column purpose with Test. Name it split"),
        ("video_name,tag,\na.mp4,x,test\n", "a column without a name with test"),
        (HEAD + "a.mp4,\n", "train.csv:2: video_name and tag must not be empty"),
        (HEAD + "a.mp4\n", "train.csv:2: has 1 values for 2 columns"),
        (HEAD + "a.mp4,x\nswim,fast.mp4,x\n", "train.csv:3: has 3 values for 2 columns. Put a value"),
        ("video_name,tag,group\nswim,fast.mp4,x\n", "train.csv:2: the tag fast.mp4 is a file name"),
        (HEAD + "../a.mp4,x\n", "train.csv:2: ../a.mp4 is outside video_dir"),
        (HEAD + "/etc/a.mp4,x\n", "train.csv:2: /etc/a.mp4 is outside video_dir"),
        (HEAD + "C:\\videos\\a.mp4,x\n", "train.csv:2: C:/videos/a.mp4 is outside video_dir"),
        ("video_name,tag,split\na.mp4,x,holdout\n", "train.csv:2: split must be train, val, test; found"),
        (HEAD + 'a.mp4,x\n"b.mp4,x\nc.mp4,x\n', "train.csv:3: unexpected end of data. Perhaps"),
        (HEAD + 'a.mp4,x\n"b.mp4,x\nc.mp4,"y"\n', "train.csv:3: .*Perhaps a quotation mark"),
        (HEAD + 'a.mp4,x\nb.mp4,"x\nc.mp4,y"\n', "train.csv:3: a value contains a line break"),
        (HEAD + "a.mp4,x\nb.mp4," + "x" * 140_000 + "\n", "train.csv:3: field larger than field limit"),
        (HEAD + 'a.mp4,x\n"b".mp4,x\n', "train.csv:3: .*expected after"),
        (b"video_name,tag\na.mp4,x\ncaf\xe9.mp4,x\n", "train.csv:3: is not valid UTF-8. Save"),
        ("video_name,tag\na.mp4,x\n".encode("utf-16"), "train.csv is UTF-16 or binary, not UTF-8"),
        ("video_name,tag\na.mp4,x\n".encode("utf-16-le"), "train.csv is UTF-16 or binary, not UTF-8"),
        (b"PK\x03\x04rest", "train.csv is a spreadsheet or an archive"),
    ],
)  # fmt: skip
def test_a_table_that_can_be_read_two_ways_is_rejected(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(ManifestError, match=message) as error:
        _read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"There is no file .*nowhere\.csv"):
        read_csv(tmp_path / "nowhere.csv", "train")
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        read_csv(tmp_path, "train")


_CHARACTERS = st.sampled_from(
    [*'ab,;"\n\r\t \\/.', "tag", "split", "train", ".mp4", "é", "\ufeff", "\0", "\x85"]
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.lists(_CHARACTERS, max_size=40).map("".join), header=st.sampled_from(["", HEAD]))
def test_any_text_gives_rows_or_one_line(tmp_path: Path, text: str, header: str) -> None:
    """No traceback, and no record may be lost or joined with another: there are as many rows as lines."""
    try:
        rows = _read(tmp_path, header + text)
    except ManifestError as error:
        assert "\n" not in str(error).replace(str(tmp_path), "")
        return
    content = (header + text).removeprefix("\ufeff")
    lines = [line for line in re.split("[\r\n]", content) if re.sub(r'[\s",]', "", line)]
    assert len(rows) == len(lines) - 1
    assert all(row.label_name and row.video_id and row.split == "train" for row in rows)
