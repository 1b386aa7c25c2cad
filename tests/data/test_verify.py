"""Each kind of corruption, made in real files, is found and named with its shard and position."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import tensorflow as tf

from synthetic import flip_bit, record_start
from vidpipe.config import ClipConfig, fingerprint
from vidpipe.data import shards
from vidpipe.data.dataset import open_dataset
from vidpipe.data.verify import verify
from vidpipe.storage import files

FIRST, SECOND = "train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"
VIDEO = r"train/(long|short)/video_0\d\.avi"
AT_2 = rf"{FIRST}, position 2, {VIDEO}:"


def _cut(extra: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / FIRST).read_bytes()
        (folder / FIRST).write_bytes(data[: record_start(data, 2) + extra])

    return cut


def _swap(folder: Path) -> None:
    first, second = (folder / FIRST).read_bytes(), (folder / SECOND).read_bytes()
    (folder / FIRST).write_bytes(second)
    (folder / SECOND).write_bytes(first)


def _rewrite(change: Callable[[list[tf.train.SequenceExample]], object]) -> Callable[[Path], None]:
    """Changes records and writes them again, with valid checksums."""

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


def _corrupt_the_last_frames(examples: list[tf.train.SequenceExample]) -> None:
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
    with files.staged_csv(folder / shards.VIDEOS_NAME, shards.VIDEO_COLUMNS) as writer:
        writer.writerows(rows)


def _remove_a_shard_and_its_rows(folder: Path) -> None:
    """Leaves counts, names and the digest of videos.csv consistent."""
    (folder / SECOND).unlink()
    (folder / FIRST).rename(folder / "train-00000-of-00001.tfrecord")
    path = folder / shards.VIDEOS_NAME
    lines = [line for line in path.read_text().splitlines(keepends=True) if SECOND not in line]
    path.write_text("".join(lines).replace(FIRST, "train-00000-of-00001.tfrecord"))

    def change(values: dict) -> None:
        values["splits"]["train"].pop()
        values["splits"]["train"][0]["name"] = "train-00000-of-00001.tfrecord"
        values["videos_sha256"] = files.sha256_of(path)

    _edit_info(change)(folder)


def test_the_fingerprint_of_an_earlier_version_is_accepted(data_dir: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    _edit_info(lambda values: values.update(fingerprint=fingerprint(values["settings"])))(folder)
    assert list(verify(str(folder))) == []


@pytest.mark.parametrize("name", [shards.VIDEOS_NAME, shards.INFO_NAME])
def test_every_flipped_bit_is_found_without_a_traceback(
    name: str, data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidpipe.data.verify.check_records", lambda *_: iter(()))
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    data = (folder / name).read_bytes()
    random = Random(1)
    for position in sorted(random.sample(range(len(data)), 150)):
        flipped = bytes([data[position] ^ 1 << random.randrange(8)])
        (folder / name).write_bytes(data[:position] + flipped + data[position + 1 :])
        problems = list(verify(str(folder)))
        assert problems, position
        assert all("\n" not in problem for problem in problems)


def test_an_edited_list_of_videos_is_not_evaluated(data_dir: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    _edit_table("video_00", "video_99")(folder)
    with (
        open_dataset(str(folder)) as dataset,
        pytest.raises(shards.ShardError, match="was edited or is corrupt"),
    ):
        dataset.clip_rows("train")


def test_a_valid_dataset_has_no_problems(data_dir: str) -> None:
    assert list(verify(data_dir)) == []


def test_a_valid_dataset_of_uncropped_frames_has_no_problems(
    tmp_path: Path, convert_wide_and_tall: Callable[..., ClipConfig]
) -> None:
    convert_wide_and_tall(tmp_path, "jpeg", "short_side")
    assert list(verify(str(tmp_path))) == []


@pytest.mark.parametrize(
    ("corrupt", "expected"),
    [
        pytest.param(
            lambda f: flip_bit(f / FIRST, 2),
            [f"{FIRST}: its sha256", f"{AT_2} corrupted record"],
            id="flipped bit",
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
            ["dataset_info.json: classes differs", f"{FIRST}, position 0, .*: label . .* does not agree"],
            id="edited classes",
        ),
        pytest.param(
            _edit_info(lambda v: v["settings"].update(seed=7)),
            ["dataset_info.json: its settings or shards do not match its fingerprint"],
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
            [r"position \d: holds train/long/video_0\d.avi \(long\); videos.csv lists another video there"],
            id="another video in the table",
        ),
        pytest.param(
            _rewrite(_claim_another_size),
            [f"{FIRST}, position 1, {VIDEO}: cannot be decoded \\(a frame of another size\\)"],
            id="another size in the record",
        ),
        pytest.param(
            _rewrite(_corrupt_the_last_frames),
            [f"{FIRST}, position {index}, {VIDEO}: cannot be decoded \\(Invalid PNG" for index in (0, 2)],
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
        pytest.param(
            _edit_info(lambda v: v["splits"]["train"].append(v["splits"]["train"][0])),
            ["the shards of train are .*; some are missing or foreign", "do not match its fingerprint"],
            id="a shard listed twice",
        ),
        pytest.param(
            _edit_info(lambda v: v["splits"]["test"].append(v["splits"]["train"].pop())),
            ["the shards of test are", f"lists 4 clips of train in {SECOND}, which holds 0"],
            id="a shard in another split",
        ),
        pytest.param(
            _remove_a_shard_and_its_rows,
            ["do not match its fingerprint", r"lists \{'train': 4, .* the conversion's settings say \{.*8"],
            id="a shard and its rows",
        ),
        pytest.param(
            lambda f: (f / shards.VIDEOS_NAME).write_bytes(b"video_id\n\xff"), ["videos.csv is corrupt"],
            id="no UTF-8",
        ),
        pytest.param(_edit_table("position", "posisjon"), ["has no column position"], id="no column"),
        pytest.param(_edit_table(",48,64,", ",48,64,,7"), ["corrupt in its row"], id="surplus value"),
        pytest.param(
            lambda f: ((f / FIRST).unlink(), (f / FIRST).mkdir()), [f"{FIRST}: missing"], id="folder"
        ),
        pytest.param(_share_group, [r"group shared: in both train and val"], id="a group in train and val"),
        pytest.param(lambda f: (f / shards.INFO_NAME).unlink(), ["is not a finished dataset"], id="no info"),
    ],
)  # fmt: skip
def test_corruption_is_found_and_named(
    data_dir: str, tmp_path: Path, corrupt: Callable[[Path], object], expected: list[str]
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    corrupt(folder)
    problems = list(verify(str(folder)))
    for pattern in expected:
        assert any(re.search(pattern, problem) for problem in problems), problems
