"""Each kind of damage, really done, is found and named with its shard and position."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from vidpipe import shards
from vidpipe.config import ClipConfig
from vidpipe.verify import named_damage, verify

FIRST, SECOND = "train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"
VIDEO = r"train/(long|short)/video_0\d\.avi"
AT_2 = rf"{FIRST}, position 2, {VIDEO}:"


def _record_start(data: bytes | bytearray, position: int) -> int:
    """Where a record begins: 8 bytes of length and 4 of checksum, the payload, 4 of checksum."""
    start = 0
    for _ in range(position):
        start += 16 + int.from_bytes(data[start : start + 8], "little")
    return start


def _flip(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[_record_start(data, 2) + 500] ^= 1
    (folder / FIRST).write_bytes(data)


def _cut(extra: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / FIRST).read_bytes()
        (folder / FIRST).write_bytes(data[: _record_start(data, 2) + extra])

    return cut


def _swap(folder: Path) -> None:
    first, second = (folder / FIRST).read_bytes(), (folder / SECOND).read_bytes()
    (folder / FIRST).write_bytes(second)
    (folder / SECOND).write_bytes(first)


def _rewrite(change: Callable[[list[tf.train.SequenceExample]], object]) -> Callable[[Path], None]:
    """Records changed and written again, with checksums that are right."""

    def rewrite(folder: Path) -> None:
        dataset = tf.data.TFRecordDataset(str(folder / FIRST))
        examples = [tf.train.SequenceExample.FromString(record.numpy()) for record in dataset]
        change(examples)
        with tf.io.TFRecordWriter(str(folder / FIRST)) as writer:
            for example in examples:
                writer.write(example.SerializeToString())

    return rewrite


def _claim_another_size(examples: list[tf.train.SequenceExample]) -> None:
    examples[1].context.feature["image/width"].int64_list.value[0] = 43


def _spoil_the_last_frames(examples: list[tf.train.SequenceExample]) -> None:
    for position in (0, 2):
        last = examples[position].feature_lists.feature_list["image/encoded"].feature[-1]
        last.bytes_list.value[0] = last.bytes_list.value[0][:50]


def _edit_info(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / shards.INFO_NAME).read_text())
        change(values)
        (folder / shards.INFO_NAME).write_text(json.dumps(values))

    return edit


def _edit_table(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / shards.VIDEOS_NAME
        text = path.read_text()
        assert re.search(old, text)
        path.write_text(re.sub(old, new, text, count=1))

    return edit


def _share_group(folder: Path) -> None:
    with (folder / shards.VIDEOS_NAME).open() as file:
        rows = list(csv.DictReader(file))
    for split in ("train", "val"):
        next(row for row in rows if row["split"] == split)["group"] = "shared"
    with shards.committed_csv(folder / shards.VIDEOS_NAME, shards.VIDEO_COLUMNS) as writer:
        writer.writerows(rows)


def test_a_whole_dataset_has_no_problem(data_dir: str) -> None:
    assert list(verify(data_dir)) == []


def test_a_whole_dataset_of_whole_frames_has_no_problem(
    tmp_path: Path, convert_wide_and_tall: Callable[..., ClipConfig]
) -> None:
    convert_wide_and_tall(tmp_path, "jpeg", "short_side")
    assert list(verify(str(tmp_path))) == []


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(
            _flip, [f"{FIRST}: its sha256", f"{AT_2} corrupted record"], id="flipped byte"
        ),
        pytest.param(_cut(0), [f"{AT_2} the shard ends after 2 of 4 clips"], id="cut at a record border"),
        pytest.param(_cut(5), [f"{AT_2} the shard ends after 2 of 4 clips"], id="cut in a record header"),
        pytest.param(_cut(300), [f"{AT_2} truncated record"], id="cut in a payload"),
        pytest.param(lambda f: (f / SECOND).unlink(), [f"{SECOND}: missing, with 4"], id="missing shard"),
        pytest.param(
            lambda f: shutil.copy(f / FIRST, f / "train-00002-of-00003.tfrecord"),
            ["train-00002-of-00003.tfrecord: does not belong"],
            id="foreign shard",
        ),
        pytest.param(
            _swap,
            [f"{FIRST}: holds the content of {SECOND}", f"{SECOND}: holds the content of {FIRST}"],
            id="swapped shards",
        ),
        pytest.param(
            _edit_info(lambda v: v["classes"].reverse()),
            ["dataset_info.json: classes differs", f"{FIRST}, position 0, .*: its label is"],
            id="edited classes",
        ),
        pytest.param(
            _edit_info(lambda v: v["settings"].update(seed=7)),
            ["dataset_info.json: its settings are not those of its fingerprint"],
            id="edited settings",
        ),
        pytest.param(
            _edit_info(lambda v: v["splits"]["train"][0].update(clips=5)),
            [f"{FIRST}, position 4: the shard ends after 4 of 5 clips"],
            id="edited count",
        ),
        pytest.param(
            _edit_table(r"(train/long/video_0\d.avi,)train", r"\1val"),
            ["videos.csv: its sha256"],
            id="edited table",
        ),
        pytest.param(
            _edit_table(r"train/long/video_0\d.avi,train", "elsewhere.avi,train"),
            [r"position \d: holds train/long/video_0\d.avi \(long\), not what videos.csv has there"],
            id="another video in the table",
        ),
        pytest.param(
            _rewrite(_claim_another_size),
            [f"{FIRST}, position 1, {VIDEO}: cannot be decoded \\(a frame of another size\\)"],
            id="another size in the record",
        ),
        pytest.param(
            _rewrite(_spoil_the_last_frames),
            [f"{FIRST}, position {place}, {VIDEO}: cannot be decoded \\(Invalid PNG" for place in (0, 2)],
            id="frames that cannot be decoded",
        ),
        pytest.param(
            _edit_info(lambda v: v["clip"].update(image_size=16)),
            ["clip differs", "position 0, .*frames of 32 x 32 pixels instead of . frames of 16 x 16"],
            id="another size in the settings",
        ),
        pytest.param(
            _edit_info(lambda v: v["clip"].update(resize="short_side")),
            ["clip differs", "position 0, .*frames of 32 x 32 pixels instead of . frames of 32 x 43"],
            id="another resize in the settings",
        ),
        pytest.param(_share_group, [r"group shared: in both train and val"], id="a group on both sides"),
        pytest.param(lambda f: (f / shards.INFO_NAME).unlink(), ["is not a finished dataset"], id="no info"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(
    data_dir: str, tmp_path: Path, damage: Callable[[Path], object], expected: list[str]
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    damage(folder)
    problems = list(verify(str(folder)))
    for pattern in expected:
        assert any(re.search(pattern, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("{{function_node __wrapped__IteratorGetNext_CPU:0}} : curlCode: 52, nothing [Op:IteratorGetNext]",
         shards.ShardError),
        ("Object ram://records/a does not exist", shards.ShardError),
        ("{{function_node __wrapped__Conv2D_GPU:0}} no algorithm [Op:Conv2D]", tf.errors.UnknownError),
    ],
)  # fmt: skip
def test_only_errors_of_reading_are_a_remote_dataset_s(message: str, expected: type[Exception]) -> None:
    with pytest.raises(expected) as raised, named_damage("ram://records"):
        raise tf.errors.UnknownError(None, None, message)
    if "curl" in message:
        assert str(raised.value).startswith(
            "ram://records cannot be read any more (curlCode: 52, nothing). When"
        )
    with pytest.raises(tf.errors.UnknownError), named_damage("records"):
        raise tf.errors.UnknownError(None, None, message)
