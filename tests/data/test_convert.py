"""Conversion: the same bytes for any workers, no video lost, and faults that really happen."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from filelock import FileLock

from synthetic import (
    InProcessPool,
    committed_bytes,
    faulty_read,
    flaky_read,
    flip_bit,
    greedy_read,
    read_of_a_file_that_grows,
    slow_read,
    write_brightness_video,
)
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
from vidpipe.data import conversion_state, convert, shards
from vidpipe.data.dataset import open_dataset
from vidpipe.data.moment import split_id
from vidpipe.data.records import parse_clip
from vidpipe.data.skip_reason import SkipReason
from vidpipe.data.verify import verify
from vidpipe.data.video import EncodedClip, VideoReadError, read_encoded_clip, write_video
from vidpipe.storage import files

MakeConversion = Callable[..., ConversionConfig]
TESTS = Path(__file__).parents[1]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the videos of a conversion in this process."""
    monkeypatch.setattr(convert, "ReaderPool", InProcessPool)


@pytest.fixture
def copy(data_dir: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_dir, tmp_path / "copy"))


@pytest.fixture
def videos(video_dir: Path, tmp_path: Path) -> Path:
    """A copy of the 10 train videos."""
    return Path(shutil.copytree(video_dir / "train", tmp_path / "videos"))


def _of(config: ConversionConfig, video_dir: Path, **changes: Any) -> ConversionConfig:
    """Returns the same conversion for another folder of videos."""
    return replace(config, manifest=replace(config.manifest, video_dir=str(video_dir), **changes))


def _outcomes(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Reads status, reason and message of each video."""
    with (folder / shards.VIDEOS_NAME).open(encoding="utf-8") as file:
        return {
            row["video_id"]: (row["status"], row["reason"], row["message"]) for row in csv.DictReader(file)
        }


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """`data_dir` was converted with two workers."""
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
    decoded = {row["video_id"]: int(row["frames_shown"]) for row in rows}
    assert decoded["train/long/video_00.avi"] == 16


@pytest.mark.processes
def test_a_bad_video_affects_only_itself_and_is_listed(
    tmp_path: Path, videos: Path, conversion: MakeConversion
) -> None:
    """A reader that crashes, one that hangs, one that fails, and a file that is no video."""
    (videos / "short" / "video_00.avi").write_bytes(b"garbage")
    config = _of(conversion(tmp_path / "out", max_skipped=0.5, timeout_sec=4), videos)
    report = convert.convert(config, read=faulty_read)
    expected = {
        "long/video_00.avi": (SkipReason.CRASHED, f"crashed the decoder (exit code {-signal.SIGSEGV})"),
        "long/video_01.avi": (SkipReason.TIMED_OUT, "timed out after 4 s"),
        "long/video_02.avi": (SkipReason.CANNOT_OPEN, "worker has []"),
        "short/video_00.avi": (SkipReason.CANNOT_OPEN, "does not open as a video"),
    }
    assert {each.video_id: (each.reason, each.message) for each in report.skipped} == expected
    assert report.written == 6
    info = shards.read_info(tmp_path / "out")
    assert sum(info.num_clips(split) for split in info.splits) == 6
    outcomes = _outcomes(tmp_path / "out")
    assert len(outcomes) == 10
    assert outcomes["long/video_01.avi"] == ("skipped", "timed_out", "timed out after 4 s")
    assert outcomes["long/video_03.avi"] == ("ok", "", "")


def _failing_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> EncodedClip:
    """Fails for long/video_NN.avi with the NN-th reason; the files long/NN.txt count the attempts."""
    if Path(path).parent.name == "long":
        reason = list(SkipReason)[int(Path(path).stem[-2:])]
        with Path(path).with_suffix(".txt").open("a") as file:
            file.write("x")
        raise VideoReadError(path, reason, f"failed because of {reason.name}")
    return read_encoded_clip(path, clip, encoding, quality)


@pytest.mark.usefixtures("in_process")
def test_reasons_are_listed_and_retryable_ones_are_tried_again(
    tmp_path: Path, video_dir: Path, conversion: MakeConversion
) -> None:
    """A video that was skipped because of the machine is read again by the next run; others are not."""
    reasons = list(SkipReason)
    videos = tmp_path / "videos"
    for name in ("a/short", "b/short"):
        shutil.copytree(video_dir / "train" / "short", videos / name)
    failing = videos / "b" / "long"
    failing.mkdir()
    for index in range(len(reasons)):
        (failing / f"video_{index:02d}.avi").write_bytes(b"any")
    # A shard per video.
    config = conversion(tmp_path / "out", max_skipped=1, shard_size_mb=1e-6)
    config = _of(config, videos, val_fraction=0)
    report = convert.convert(config, read=_failing_read)
    assert {each.reason for each in report.skipped} == set(reasons)
    outcomes = _outcomes(tmp_path / "out")
    for index, reason in enumerate(reasons):
        expected = ("skipped", reason.value, f"failed because of {reason.name}")
        assert outcomes[f"b/long/video_{index:02d}.avi"] == expected

    num_repeated = sum(reason.is_retryable for reason in reasons)
    report = convert.convert(config, read=_failing_read)
    assert report.shards_made == num_repeated
    for index, reason in enumerate(reasons):
        attempts = (failing / f"video_{index:02d}.txt").read_text()
        assert len(attempts) == (4 if reason.is_transient else 2 if reason.is_retryable else 1)
    report = convert.convert(config, read=_read_any)
    assert (report.shards_made, len(report.skipped)) == (num_repeated, len(reasons) - num_repeated)


@pytest.mark.usefixtures("in_process")
def test_the_fingerprint_follows_the_content(
    tmp_path: Path, videos: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """Other videos under the same names, of the same size and time, are other data."""
    config = _of(conversion(tmp_path / "out"), videos)
    convert.convert(config)
    before = shards.read_info(tmp_path / "out")
    first, second = videos / "long/video_00.avi", videos / "long/video_01.avi"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert convert.convert(config).shards_made > 0
    after = shards.read_info(tmp_path / "out")
    assert after.settings == before.settings
    assert after.fingerprint != before.fingerprint
    first.write_bytes(contents[0])
    second.write_bytes(contents[1])
    convert.convert(config)
    assert shards.read_info(tmp_path / "out").fingerprint == before.fingerprint


@pytest.mark.usefixtures("in_process")
def test_temporary_files_of_killed_workers_are_deleted_at_the_commit(
    tmp_path: Path, conversion: MakeConversion
) -> None:
    def leave_a_file(*arguments: Any) -> None:
        (tmp_path / "out/.conversion/a.0123.tmp").write_bytes(b"half")
        (tmp_path / "out/train.0123.tmp").write_bytes(b"half")
        convert.make_shards_here(*arguments)

    convert.convert(conversion(tmp_path / "out"), make_shards=leave_a_file)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_settings_are_compared_again_under_the_lock(
    tmp_path: Path, conversion: MakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another conversion, with other settings, begins after the first comparison and ends before the lock."""
    lock = conversion_state.lock

    def late_lock(output_dir: str) -> object:
        conversion_state.write_settings(output_dir, {"seed": 7})
        return lock(output_dir)

    monkeypatch.setattr(conversion_state, "lock", late_lock)
    with pytest.raises(convert.ConversionError, match="holds a dataset with other settings"):
        convert.convert(conversion(tmp_path / "out"))
    assert conversion_state.read_settings(str(tmp_path / "out")) == {"seed": 7}


def _read_any(path: str, clip: ClipConfig, encoding: str, quality: int) -> EncodedClip:
    """Reads another video instead of one that cannot be read."""
    path = path if Path(path).parent.name == "short" else str(Path(path).parents[1] / "short/video_00.avi")
    return read_encoded_clip(path, clip, encoding, quality)


@pytest.mark.usefixtures("in_process")
def test_too_many_skipped_videos_fail_and_a_repaired_video_is_read(
    tmp_path: Path, videos: Path, conversion: MakeConversion
) -> None:
    path = videos / "short" / "video_03.avi"
    content = path.read_bytes()
    path.write_bytes(b"garbage")
    config = _of(conversion(tmp_path / "out"), videos)
    message = r"1 of 10 videos were skipped \(1 x does not open as a video\); max_skipped=0.01 allows 0"
    with pytest.raises(convert.ConversionError, match=message):
        convert.convert(config)
    with pytest.raises(shards.ShardError, match="not a finished dataset"):
        shards.read_info(tmp_path / "out")
    path.write_bytes(content)
    report = convert.convert(config)
    assert (report.written, report.skipped) == (10, [])
    assert (report.shards_made, report.shards_kept) == (1, 2)


@pytest.mark.usefixtures("in_process")
def test_a_listed_video_that_is_missing_is_skipped(
    tmp_path: Path, video_dir: Path, conversion: MakeConversion
) -> None:
    (tmp_path / "train.csv").write_text(
        "video_name,tag\nlong/video_00.avi,x\nshort/video_00.avi,y\nnowhere.avi,x\n"
    )
    config = conversion(tmp_path / "out", max_skipped=0.5)
    config = _of(config, video_dir / "train", train_manifest=str(tmp_path / "train.csv"), val_fraction=0)
    (skipped,) = convert.convert(config).skipped
    assert (skipped.video_id, skipped.reason) == ("nowhere.avi", SkipReason.NOT_FOUND)
    assert _outcomes(tmp_path / "out")["nowhere.avi"] == ("skipped", "not_found", "not found under video_dir")


@pytest.mark.usefixtures("in_process")
def test_a_class_without_a_clip_is_an_error_or_a_warning(
    tmp_path: Path, videos: Path, conversion: MakeConversion
) -> None:
    splits = tmp_path / "splits"
    shutil.copytree(videos, splits / "train")
    shutil.copytree(videos, splits / "test")
    for path in (splits / "test/short").iterdir():
        path.write_bytes(b"garbage")
    config = _of(conversion(tmp_path / "out", max_skipped=1), splits)
    warning = f"All test videos of the class short were skipped; {tmp_path}/out/videos.csv says why."
    assert convert.convert(config).warnings == [warning]
    for path in (splits / "train/short").iterdir():
        path.write_bytes(b"garbage")
    with pytest.raises(convert.ConversionError, match="All train videos of the class short were skipped"):
        convert.convert(config)


def test_warnings_about_the_list_are_in_the_report(
    tmp_path: Path, videos: Path, conversion: MakeConversion
) -> None:
    (videos / "third").mkdir()
    (videos / "third" / "video.dav").touch()
    config = _of(conversion(videos / "out"), videos)
    (warning,) = convert.convert(config).warnings
    assert (
        warning
        == "third contains no videos, so it is not a class; it has 1 other files, such as third/video.dav."
    )
    (videos / "out" / "sheet.mp4").touch()  # the output folder is not a class, also on the second run
    assert convert.convert(config).warnings == [warning]


@pytest.mark.usefixtures("in_process")
def test_a_file_that_changed_while_it_was_read_is_read_again(
    tmp_path: Path, videos: Path, conversion: MakeConversion
) -> None:
    config = _of(conversion(tmp_path / "out", shard_size_mb=1e-6), videos, val_fraction=0)
    convert.convert(config, read=read_of_a_file_that_grows)
    for made in (2, 0):
        report = convert.convert(config)
        assert (report.shards_made, report.shards_kept) == (made, 10 - made)


@pytest.mark.usefixtures("in_process")
def test_a_corrupt_shard_is_written_again(copy: Path, conversion: MakeConversion, data_dir: str) -> None:
    flip_bit(copy / "train-00000-of-00002.tfrecord")
    report = convert.convert(conversion(copy))
    assert (report.shards_made, report.shards_kept) == (1, 4)
    assert committed_bytes(copy) == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("stop_at", range(4))
def test_a_dataset_stays_as_it_is_while_videos_are_read_again(
    copy: Path, video_dir: Path, conversion: MakeConversion, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Stopped after 0 to 3 files of the new shard; the next run has the rest to do, and the same bytes."""
    videos = shutil.copytree(video_dir, copy.with_name("videos"))
    config = _of(conversion(copy), videos)
    before = committed_bytes(copy)
    other = videos / "train/short/video_00.avi"
    write_video(str(other), np.full((2, 32, 32, 3), 200, np.uint8), fourcc="MJPG")
    replaced = shutil.copytree(videos, copy.with_name("replaced"))
    commits = iter(range(stop_at))
    original = files.commit

    def stop(temporary: Path, path: Path) -> None:
        if path.name != "plan.json" and next(commits, None) is None:
            raise KeyboardInterrupt
        original(temporary, path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "commit", stop)
        convert.convert(config)
    if stop_at < 3:
        assert committed_bytes(copy) == before
        shards.read_info(copy)
    else:
        with pytest.raises(shards.ShardError, match="not a finished dataset"):
            shards.read_info(copy)
    report = convert.convert(config)
    assert (report.shards_made, report.shards_kept) == ((1, 4) if stop_at < 3 else (0, 5))
    fresh = copy.with_name("fresh")
    convert.convert(_of(conversion(fresh), replaced))
    assert committed_bytes(copy) == committed_bytes(fresh) != before
    assert not (copy / ".conversion/next").exists()


@pytest.mark.usefixtures("in_process")
def test_a_repair_that_fails_leaves_the_dataset(
    copy: Path, video_dir: Path, conversion: MakeConversion
) -> None:
    videos = shutil.copytree(video_dir, copy.with_name("videos"))
    before = committed_bytes(copy)
    (videos / "train/short/video_00.avi").write_bytes(b"broken")
    with pytest.raises(convert.ConversionError, match=r"1 of 16 videos were skipped .*next/videos.csv"):
        convert.convert(_of(conversion(copy, max_skipped=0), videos))
    assert committed_bytes(copy) == before


@pytest.mark.usefixtures("in_process")
def test_nothing_is_written_where_there_is_nothing_to_do(copy: Path, conversion: MakeConversion) -> None:
    names = (shards.INFO_NAME, shards.VIDEOS_NAME)
    before = [(copy / name).stat().st_mtime_ns for name in names]
    assert convert.convert(conversion(copy)).shards_kept == 5
    assert [(copy / name).stat().st_mtime_ns for name in names] == before


def test_edited_tables_are_written_again(copy: Path, conversion: MakeConversion, data_dir: str) -> None:
    for name in (shards.INFO_NAME, shards.VIDEOS_NAME):
        (copy / name).write_text((copy / name).read_text().replace("short", "tall"))
    assert convert.convert(conversion(copy)).shards_kept == 5
    assert committed_bytes(copy) == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("stop_at", range(13))
def test_stopped_before_any_commit_it_resumes_to_the_same_bytes(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion commits 13 files: the settings, 5 shards with their states, videos.csv, the info."""
    num_commits = 0
    original = files.commit

    def stop(temporary: Path, path: Path) -> None:
        nonlocal num_commits
        if num_commits == stop_at:
            raise KeyboardInterrupt
        num_commits += 1
        original(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            convert.convert(conversion(tmp_path / "out"))
    with pytest.raises(shards.ShardError, match="not a finished dataset"):
        shards.read_info(tmp_path / "out")
    report = convert.convert(conversion(tmp_path / "out"))
    assert report.shards_kept == min(5, max(0, stop_at - 1) // 2)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def _start(config: ConversionConfig) -> subprocess.Popen:
    """Starts a conversion in a new process group; returns when it begins."""
    script = f"""
from synthetic import slow_read
from vidpipe.data import convert
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
print("begins", flush=True)
convert.convert({config!r}, read=slow_read)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=TESTS,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begins\n"
    return process


@pytest.mark.processes
def test_killed_at_random_times_it_resumes_to_the_same_bytes(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """SIGKILL to the whole process group, several times, until the conversion ends."""
    times = random.Random(1)
    num_kills = 0
    while num_kills < 20:
        process = _start(conversion(tmp_path / "out"))
        try:
            process.wait(timeout=times.uniform(0.5, 2.5) if num_kills < 3 else 60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            num_kills += 1
            continue
        break
    assert process.returncode == 0
    assert num_kills >= 1
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.processes
def test_workers_end_when_the_conversion_is_killed(tmp_path: Path, conversion: MakeConversion) -> None:
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
    pytest.fail("the workers were still running after 10 s")


@contextlib.contextmanager
def _file_size_limit(limit: int) -> Iterator[None]:
    """Limits the size of files that this process writes, as a full disk does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("limit", "message"), [(10_000, "vidpipe-.*TMPDIR"), (20_000, "out: .*permissions")])
def test_a_full_disk_is_reported_and_the_conversion_resumes(
    tmp_path: Path, conversion: MakeConversion, limit: int, message: str
) -> None:
    """A raw clip of four frames has 12,288 bytes; on its way to the shard it is a file in TMPDIR."""
    message = f"Cannot write to .*{message}"
    with _file_size_limit(limit), pytest.raises(convert.ConversionError, match=message):
        convert.convert(conversion(tmp_path / "out", encoding="raw"))
    assert not any(path.suffix == ".tfrecord" and path.stat().st_size > limit for path in tmp_path.rglob("*"))
    for name in ("out", "complete"):
        convert.convert(conversion(tmp_path / name, encoding="raw"))
    assert committed_bytes(tmp_path / "out") == committed_bytes(tmp_path / "complete")


@pytest.mark.usefixtures("in_process")
def test_records_of_killed_conversions_are_deleted(
    tmp_path: Path, conversion: MakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of a conversion that runs, or that has just begun; and none is left by this one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, running, begun = (tmp_path / f"vidpipe-records-{name}" for name in ("killed", "running", "begun"))
    for folder in (killed, running, begun):
        folder.mkdir()
        (folder / "record").write_bytes(b"0")
        if folder is not begun:
            os.utime(folder, (0, 0))
    with FileLock(running / "lock"):
        os.utime(running, (0, 0))
        convert.convert(conversion(tmp_path / "out"))
    assert sorted(tmp_path.glob("vidpipe-*")) == [begun, running]
    assert (running / "record").exists()


def test_a_folder_with_another_dataset_is_rejected(conversion: MakeConversion, data_dir: str) -> None:
    before = committed_bytes(Path(data_dir))
    with pytest.raises(convert.ConversionError, match="other settings .*encoding: png -> raw"):
        convert.convert(conversion(Path(data_dir), encoding="raw"))
    assert committed_bytes(Path(data_dir)) == before


def test_a_folder_with_shards_of_other_programs_is_rejected(
    tmp_path: Path, conversion: MakeConversion
) -> None:
    (tmp_path / "other.tfrecord").touch()
    with pytest.raises(convert.ConversionError, match="holds other.tfrecord, which vidpipe did not write"):
        convert.convert(conversion(tmp_path))


@pytest.mark.processes
def test_a_clock_change_skips_no_video(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hour forward while videos are read: they seem to time out, but get a second attempt."""
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


def test_a_decoder_that_is_killed_once_gets_a_second_attempt(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAKY_READ_MARKS", str(tmp_path))
    report = convert.convert(conversion(tmp_path / "out"), read=flaky_read)
    assert (tmp_path / "video_00.avi").exists()
    assert report.skipped == []
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
def test_second_attempts_overwrite_no_clip_that_is_still_needed(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """Four videos in a row fail once, while the clips of those after them are waiting."""
    reasons = [SkipReason.CHANGED] * 4

    def read(path: str, clip: ClipConfig, encoding: str, quality: int) -> EncodedClip:
        if reasons:
            raise VideoReadError(path, reasons.pop(), "was changed while it was read")
        return read_encoded_clip(path, clip, encoding, quality)

    assert convert.convert(conversion(tmp_path / "out"), read=read).skipped == []
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.processes
def test_a_video_that_needs_too_much_memory_affects_only_itself(
    tmp_path: Path, conversion: MakeConversion
) -> None:
    config = conversion(tmp_path / "out", max_skipped=0.5, worker_memory_mb=400)
    report = convert.convert(config, read=greedy_read)
    assert {each.video_id: (each.reason, each.message) for each in report.skipped} == dict.fromkeys(
        ("train/long/video_00.avi", "test/long/video_00.avi"),
        (SkipReason.OUT_OF_MEMORY, "needs more memory than the limit"),
    )
    assert report.written == 14


def test_temporary_files_of_a_killed_conversion_are_deleted(
    copy: Path, conversion: MakeConversion, data_dir: str
) -> None:
    (copy / shards.INFO_NAME).unlink()
    for name in ("train-00000-of-00002.tfrecord.0123.tmp", ".conversion/plan.json.0123.tmp"):
        (copy / name).write_bytes(b"half")
    convert.convert(conversion(copy))
    assert committed_bytes(copy) == committed_bytes(Path(data_dir))
    assert not list(copy.rglob("*.tmp"))


def test_a_second_conversion_of_a_folder_is_rejected(tmp_path: Path, conversion: MakeConversion) -> None:
    (tmp_path / ".conversion").mkdir()
    with (
        FileLock(tmp_path / ".conversion" / "lock"),
        pytest.raises(convert.ConversionError, match="Another conversion is writing"),
    ):
        convert.convert(conversion(tmp_path))


def test_too_many_missing_videos_fail_before_the_work(tmp_path: Path, conversion: MakeConversion) -> None:
    (tmp_path / "train.csv").write_text(
        "video_name,tag\ntrain/long/video_00.avi,x\ntrain/short/video_00.avi,y\nnowhere.avi,x\n"
    )
    config = conversion(tmp_path / "out")
    config = replace(config, manifest=replace(config.manifest, train_manifest=str(tmp_path / "train.csv")))
    with pytest.raises(convert.ConversionError, match="1 of 3 listed videos are not under .*nowhere.avi"):
        convert.convert(config)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path, conversion: MakeConversion) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(convert.ConversionError, match="Cannot write to .*file"):
        convert.convert(conversion(tmp_path / "file" / "out"))


def test_a_read_only_folder_is_named(tmp_path: Path, conversion: MakeConversion) -> None:
    folder = Path("/proc")  # not writable, not even for root
    if os.geteuid() != 0:
        folder = tmp_path / "read_only"
        folder.mkdir(mode=0o500)
    message = f"Cannot write to {folder}.*run the same command again"
    with pytest.raises(convert.ConversionError, match=message):
        convert.convert(conversion(folder / "out"))


@pytest.fixture
def earlier_version(tmp_path: Path, videos: Path, conversion: MakeConversion) -> ConversionConfig:
    """A dataset as vidpipe wrote it before there were enum values: a sentence in `reason`, no `message`.

    It has 9 clips, and a video that was skipped because its content is b"garbage".
    """
    (videos / "short" / "video_00.avi").write_bytes(b"garbage")
    folder = tmp_path / "out"
    config = _of(conversion(folder, max_skipped=0.5), videos)
    convert.convert(config)
    columns = [column for column in shards.VIDEO_COLUMNS if column != "message"]
    rows = list(shards.read_videos(folder))
    with files.staged_csv(folder / shards.VIDEOS_NAME, columns) as writer:
        writer.writerows(row | {"reason": row["message"]} for row in rows)
    info = replace(shards.read_info(folder), videos_sha256=files.sha256_of(folder / shards.VIDEOS_NAME))
    shards.write_info(folder, info)
    for path in folder.glob(".conversion/*.tfrecord.json"):
        state = json.loads(path.read_text())
        for row in state["videos"]:
            if "message" in row:
                row["reason"] = row.pop("message")
        path.write_text(json.dumps(state))
    return config


@pytest.mark.usefixtures("in_process")
def test_a_dataset_of_an_earlier_version_can_be_read(earlier_version: ConversionConfig) -> None:
    rows = list(shards.read_videos(earlier_version.output_dir))
    assert len(rows) == 10
    (skipped,) = [row for row in rows if row["status"] != "ok"]
    assert (skipped["video_id"], skipped["reason"]) == ("short/video_00.avi", "does not open as a video")
    assert "message" not in skipped
    assert list(verify(earlier_version.output_dir)) == []


@pytest.mark.usefixtures("in_process")
def test_converting_again_updates_a_dataset_of_an_earlier_version(earlier_version: ConversionConfig) -> None:
    """Only the shard with the skipped video is written again: its reason is not known as an enum value."""
    folder = Path(earlier_version.output_dir)
    before = {name: data for name, data in committed_bytes(folder).items() if name.endswith(".tfrecord")}
    report = convert.convert(earlier_version)
    assert (report.shards_made, report.shards_kept) == (1, 2)
    assert [each.reason for each in report.skipped] == [SkipReason.CANNOT_OPEN]
    assert before.items() <= committed_bytes(folder).items()
    assert _outcomes(folder)["short/video_00.avi"] == ("skipped", "cannot_open", "does not open as a video")
    assert list(verify(str(folder))) == []


@pytest.mark.usefixtures("in_process")
def test_moments_become_clips_in_order_of_time(tmp_path: Path) -> None:
    """Their frames, times and outcomes are those of the list, and a second conversion keeps everything."""
    for name in ("a.mp4", "b.mp4"):
        write_brightness_video(tmp_path / "videos" / name, 20)
    rows = ["a.mp4,late,0.6,0.8", "a.mp4,early,0,0.2", "b.mp4,early,0.04,0.2", "b.mp4,late,0.4,0.48",
            "b.mp4,late,7,8"]  # fmt: skip
    (tmp_path / "labels.csv").write_text("\n".join(["video_name,tag,start,end", *rows]))
    config = ConversionConfig(
        output_dir=str(tmp_path / "out"),
        manifest=ManifestConfig(
            video_dir=str(tmp_path / "videos"),
            train_manifest=str(tmp_path / "labels.csv"),
            val_fraction=0,
            background="none",
            background_margin_sec=0.04,
        ),
        clip=ClipConfig(num_frames=5, image_size=32),
        encoding="png",
        max_skipped=0.2,
    )
    report = convert.convert(config)
    assert [(each.video_id, each.reason) for each in report.skipped] == [("b.mp4#t=7,8", SkipReason.OUTSIDE)]
    with open_dataset(str(tmp_path / "out")) as dataset:
        found, times = {}, {}
        for example in tf.data.TFRecordDataset(dataset.shard_paths("train")):
            clip = {key: value.numpy() for key, value in parse_clip(example).items()}
            context = tf.train.SequenceExample.FromString(example.numpy()).context.feature
            times[clip["video_id"].decode()] = tuple(
                context[f"clip/{bound}/timestamp"].int64_list.value[0] for bound in ("start", "end")
            )
            found[clip["video_id"].decode()] = (clip["label_name"].decode(), clip["frame_indices"].tolist())
        assert dataset.classes == ("early", "late", "none")
        assert dataset.info.settings["background"] == "none"
        # Of 0.08, 0.16, 0.16, 0.2 and four times 0.2 s or less of background.
        assert dataset.clip_sec("train") == tuple(
            np.quantile([(end - start) / 1e6 for start, end in times.values()], [0.1, 0.5, 0.9]).round(3)
        )
    for name in ("a.mp4", "b.mp4"):
        moments = [split_id(video_id)[1] for video_id in found if video_id.startswith(name)]
        assert moments == sorted(moments, key=lambda moment: 0 if moment is None else moment.start)
    assert found["a.mp4#t=0.6,0.8"] == ("late", [15, 16, 17, 18, 19])
    assert times["a.mp4#t=0.6,0.8"] == (600_000, 800_000)
    assert found["b.mp4#t=0.4,0.48"] == ("late", [10, 11])
    rows_of = {row["video_id"]: row for row in shards.read_videos(tmp_path / "out")}
    assert (rows_of["b.mp4#t=0.04,0.2"]["start_sec"], rows_of["b.mp4#t=0.04,0.2"]["end_sec"]) == (
        "0.04",
        "0.2",
    )
    background = [name for name, (label, _) in found.items() if label == "none"]
    assert sorted(name.split("#")[0] for name in background) == ["a.mp4", "b.mp4", "b.mp4"]
    assert not list(verify(str(tmp_path / "out")))
    assert convert.convert(config).shards_made == 0
