"""Conversion: the same bytes whatever the workers, nothing lost, and faults that are really injected."""

import csv
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from synthetic import (
    committed_bytes,
    faulty_read,
    flaky_read,
    greedy_read,
    read_of_a_file_that_grows,
    slow_read,
)
from vidpipe import convert, shards
from vidpipe.config import ConversionConfig
from vidpipe.manifest import VideoRow

MakeConversion = Callable[..., ConversionConfig]


def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    convert.convert(conversion(tmp_path / "one", num_workers=1))
    assert committed_bytes(tmp_path / "one") == committed_bytes(Path(data_dir))


def test_splits_and_clips(info: shards.DatasetInfo, data_dir: str) -> None:
    assert info.classes == ("long", "short")
    assert {split: info.num_clips(split) for split in info.splits} == {"train": 8, "val": 2, "test": 6}
    assert [len(info.splits[split]) for split in ("train", "val", "test")] == [2, 1, 2]
    rows = list(shards.read_videos(data_dir))
    assert Counter(row["status"] for row in rows) == {"ok": 16}
    kept = {row["video_id"]: int(row["frames_kept"]) for row in rows}
    assert kept["train/short/video_00.avi"] == 1
    assert kept["train/long/video_00.avi"] == 4
    decoded = {row["video_id"]: int(row["frames_decoded"]) for row in rows}
    assert decoded["train/long/video_00.avi"] == 16


def test_bad_videos_cost_themselves_only_and_are_named(
    tmp_path: Path, video_dir: Path, conversion: MakeConversion
) -> None:
    """A worker that segfaults, one that hangs, a file of garbage: four skips, every other clip is there."""
    videos = Path(shutil.copytree(video_dir / "train", tmp_path / "videos"))
    (videos / "short" / "video_00.avi").write_bytes(b"garbage")
    config = conversion(tmp_path / "out", max_skipped=0.5, timeout_sec=4)
    config = dataclasses.replace(config, manifest=dataclasses.replace(config.manifest, video_dir=str(videos)))
    report = convert.convert(config, read=faulty_read)
    assert dict(report.skipped) == {
        "long/video_00.avi": f"crashed the decoder (exit code {-signal.SIGSEGV})",
        "long/video_01.avi": "timed out after 4 s",
        "long/video_02.avi": "worker has []",
        "short/video_00.avi": "does not open as a video",
    }
    assert report.written == 6
    info = shards.read_info(tmp_path / "out")
    assert sum(info.num_clips(split) for split in info.splits) == 6
    with (tmp_path / "out" / shards.VIDEOS_NAME).open() as file:
        status = {row["video_id"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}
    assert len(status) == 10
    assert status["long/video_01.avi"] == ("skipped", "timed out after 4 s")
    assert status["long/video_03.avi"] == ("ok", "")


def test_too_many_skips_fail_at_the_end_and_a_mended_video_is_taken_up(
    tmp_path: Path, video_dir: Path, conversion: MakeConversion
) -> None:
    videos = Path(shutil.copytree(video_dir / "train", tmp_path / "videos"))
    good = (videos / "short" / "video_03.avi").read_bytes()
    (videos / "short" / "video_03.avi").write_bytes(b"garbage")
    config = conversion(tmp_path / "out")
    config = dataclasses.replace(config, manifest=dataclasses.replace(config.manifest, video_dir=str(videos)))
    with pytest.raises(convert.ConversionError, match=r"1 of 10 videos were skipped \(1 x does not open"):
        convert.convert(config)
    with pytest.raises(shards.ShardError, match="not a finished dataset"):
        shards.read_info(tmp_path / "out")
    (videos / "short" / "video_03.avi").write_bytes(good)
    report = convert.convert(config)
    assert (report.written, report.skipped) == (10, [])
    assert (report.shards_made, report.shards_kept) == (1, 2)


def test_a_file_that_changed_while_it_was_read_is_read_again(
    tmp_path: Path, video_dir: Path, conversion: MakeConversion
) -> None:
    videos = shutil.copytree(video_dir / "train" / "long", tmp_path / "videos" / "long")
    config = conversion(tmp_path / "out", shard_size_mb=1e-6)
    manifest = dataclasses.replace(config.manifest, video_dir=str(videos.parent), val_fraction=0)
    config = dataclasses.replace(config, manifest=manifest)
    convert.convert(config, read=read_of_a_file_that_grows)
    for made in (1, 0):
        report = convert.convert(config)
        assert (report.shards_made, report.shards_kept) == (made, 5 - made)


def test_a_damaged_shard_is_made_again(tmp_path: Path, conversion: MakeConversion, data_dir: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(data_dir, folder)
    shard = folder / "train-00000-of-00002.tfrecord"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    report = convert.convert(conversion(folder))
    assert (report.shards_made, report.shards_kept) == (1, 4)
    assert committed_bytes(folder) == committed_bytes(Path(data_dir))


def test_a_dataset_under_repair_is_not_one(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(data_dir, folder)
    (folder / "train-00000-of-00002.tfrecord").unlink()
    monkeypatch.setattr(shards, "write_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        convert.convert(conversion(folder))
    with pytest.raises(shards.ShardError, match="not a finished dataset"):
        shards.read_info(folder)


def test_edited_papers_are_written_again(tmp_path: Path, conversion: MakeConversion, data_dir: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(data_dir, folder)
    for name in (shards.INFO_NAME, shards.VIDEOS_NAME):
        (folder / name).write_text((folder / name).read_text().replace("short", "tall"))
    assert convert.convert(conversion(folder)).shards_kept == 5
    assert committed_bytes(folder) == committed_bytes(Path(data_dir))


@pytest.mark.parametrize("stop_at", range(13))
def test_stopped_at_any_commit_it_goes_on_to_the_same_bytes(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion renames 13 files into place: the plan, 5 shards with their states, the table, the info."""
    commits = 0
    original = shards.commit

    def stopping(temporary: Path, path: Path) -> None:
        nonlocal commits
        if commits == stop_at:
            raise KeyboardInterrupt
        commits += 1
        original(temporary, path)

    monkeypatch.setattr(shards, "commit", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert.convert(conversion(tmp_path / "out"))
    monkeypatch.undo()
    with pytest.raises(shards.ShardError, match="not a finished dataset"):
        shards.read_info(tmp_path / "out")
    report = convert.convert(conversion(tmp_path / "out"))
    assert report.shards_kept == min(5, max(0, stop_at - 1) // 2)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def _start(config: ConversionConfig) -> subprocess.Popen:
    """A conversion in a process group of its own, which has said that it begins."""
    script = f"""
from synthetic import slow_read
from vidpipe import convert
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
print("begins", flush=True)
convert.convert({config!r}, read=slow_read)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begins\n"
    return process


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """SIGKILL to the whole process group, again and again, until it is through."""
    moments = random.Random(1)
    kills = 0
    while kills < 20:
        process = _start(conversion(tmp_path / "out"))
        try:
            process.wait(timeout=moments.uniform(0.5, 2.5) if kills < 3 else 60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        break
    assert process.returncode == 0
    assert kills >= 1
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def test_workers_do_not_outlive_a_killed_converter(tmp_path: Path, conversion: MakeConversion) -> None:
    process = _start(conversion(tmp_path / "out"))
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers are still there after 10 s")


def test_a_full_disk_is_told_and_costs_nothing_later(tmp_path: Path, conversion: MakeConversion) -> None:
    """A limit on file sizes, as a disk that fills up: a raw clip of four frames has 12,288 bytes."""
    limit = 10_000
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from vidpipe import convert
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
try:
    convert.convert({conversion(tmp_path / "out", encoding="raw")!r})
except convert.ConversionError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Cannot write to" in ended.stdout, ended.stderr
    assert "Finished shards are kept" in ended.stdout
    assert not any(path.suffix == ".tfrecord" and path.stat().st_size > limit for path in tmp_path.rglob("*"))
    for name in ("out", "straight"):
        convert.convert(conversion(tmp_path / name, encoding="raw"))
    assert committed_bytes(tmp_path / "out") == committed_bytes(tmp_path / "straight")


def test_another_dataset_in_the_folder_is_refused(conversion: MakeConversion, data_dir: str) -> None:
    before = committed_bytes(Path(data_dir))
    with pytest.raises(convert.ConversionError, match="other settings .*encoding: png -> raw"):
        convert.convert(conversion(Path(data_dir), encoding="raw"))
    assert committed_bytes(Path(data_dir)) == before


def test_foreign_shards_in_the_folder_are_refused(tmp_path: Path, conversion: MakeConversion) -> None:
    (tmp_path / "other.tfrecord").touch()
    with pytest.raises(convert.ConversionError, match="holds other.tfrecord, which this tool did not begin"):
        convert.convert(conversion(tmp_path))


def test_a_clock_that_jumps_costs_nothing(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour forward while videos are being read: their time seems to be up, but they get another try."""
    started = time.monotonic()

    class JumpingTime:
        sleep = staticmethod(time.sleep)

        @staticmethod
        def time() -> float:
            return time.time() + (3600 if time.monotonic() > started + 0.7 else 0)

    monkeypatch.setattr("pebble.pool.process.time", JumpingTime)
    report = convert.convert(conversion(tmp_path / "out", timeout_sec=30), read=slow_read)
    assert time.monotonic() > started + 0.7
    assert report.skipped == []
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def test_a_decoder_that_dies_once_is_given_another_try(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAKY_READ_MARKS", str(tmp_path))
    report = convert.convert(conversion(tmp_path / "out"), read=flaky_read)
    assert (tmp_path / "video_00.avi").exists()
    assert report.skipped == []
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def test_a_video_that_needs_too_much_memory_costs_itself_only(
    tmp_path: Path, conversion: MakeConversion
) -> None:
    config = conversion(tmp_path / "out", max_skipped=0.5, worker_memory_mb=400)
    report = convert.convert(config, read=greedy_read)
    assert dict(report.skipped) == {
        "train/long/video_00.avi": "larger than the limit of memory",
        "test/long/video_00.avi": "larger than the limit of memory",
    }
    assert report.written == 14


def test_leftovers_of_a_killed_conversion_are_cleared(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "out"))
    (folder / shards.INFO_NAME).unlink()
    for name in ("train-00000-of-00002.tfrecord.0123.tmp", ".conversion/plan.json.0123.tmp"):
        (folder / name).write_bytes(b"half")
    convert.convert(conversion(folder))
    assert committed_bytes(folder) == committed_bytes(Path(data_dir))
    assert not list(folder.rglob("*.tmp"))


def test_a_second_converter_is_stopped(tmp_path: Path, conversion: MakeConversion) -> None:
    (tmp_path / ".conversion").mkdir()
    with (
        FileLock(tmp_path / ".conversion" / "lock"),
        pytest.raises(convert.ConversionError, match="Another conversion is writing"),
    ):
        convert.convert(conversion(tmp_path))


def test_listed_videos_that_are_missing_are_told_before_the_work(
    tmp_path: Path, conversion: MakeConversion
) -> None:
    (tmp_path / "train.csv").write_text("video_name,tag\nnowhere.avi,x\n")
    config = conversion(tmp_path / "out")
    manifest = dataclasses.replace(config.manifest, train_manifest=str(tmp_path / "train.csv"))
    with pytest.raises(convert.ConversionError, match="1 of 1 listed videos are not under .*nowhere.avi"):
        convert.convert(dataclasses.replace(config, manifest=manifest))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, conversion: MakeConversion) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(convert.ConversionError, match="Cannot write to .*file"):
        convert.convert(conversion(tmp_path / "file" / "out"))


def test_a_read_only_folder(tmp_path: Path, conversion: MakeConversion) -> None:
    folder = Path("/proc")  # nobody may write there, root neither
    if os.geteuid() != 0:
        folder = tmp_path / "read_only"
        folder.mkdir(mode=0o500)
    with pytest.raises(
        convert.ConversionError, match=f"Cannot write to {folder}.*run the same command again"
    ):
        convert.convert(conversion(folder / "out"))


def test_a_list_sorted_by_class_is_mixed_in_every_shard() -> None:
    rows = [VideoRow(f"{name}/{index}", "", name, "train", "") for name in "ab" for index in range(200)]
    for plan in convert.plan_shards(rows, "train", 4):
        assert 30 <= sum(row.label_name == "a" for row in plan.rows) <= 70


@given(st.sets(st.text("ab/1", min_size=1), min_size=1, max_size=30), st.integers(1, 7))
def test_every_video_has_one_place_whatever_the_order(names: set[str], num_shards: int) -> None:
    rows = [VideoRow(name, name, "x", "train", name) for name in sorted(names)]
    plans = convert.plan_shards(rows, "train", num_shards)
    assert plans == convert.plan_shards(rows[::-1], "train", num_shards)
    placed = [row for plan in plans for row in plan.rows]
    assert sorted(row.video_id for row in placed) == sorted(names)
    sizes = [len(plan.rows) for plan in plans]
    assert len(plans) == num_shards
    assert max(sizes) - min(sizes) <= 1
