"""Tasks that share a conversion: in any order, repeated, killed or at once, they make the same dataset."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from synthetic import InProcessPool, committed_bytes, write_brightness_video
from vidpipe.config import ConfigError, ConversionConfig, ManifestConfig
from vidpipe.data import conversion_state, convert
from vidpipe.data.conversion_tasks import Task, choose_task

MakeConversion = Callable[..., ConversionConfig]
TESTS = Path(__file__).parents[1]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the videos of a conversion in this process."""
    monkeypatch.setattr(convert, "ReaderPool", InProcessPool)


def _slurm(task_id: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    names = ("TASK_ID", "TASK_COUNT", "TASK_MIN", "TASK_STEP")
    return {
        f"SLURM_ARRAY_{name}": str(value)
        for name, value in zip(names, (task_id, count, first, step), strict=True)
    }


@pytest.mark.parametrize(
    ("index", "count", "environment", "expected"),
    [
        (None, None, {}, None),
        (2, 8, {}, Task(2, 8)),
        (0, 1, {}, None),
        (None, None, _slurm(5, 8), Task(5, 8)),
        (None, None, _slurm(5, 8, first=1), Task(4, 8)),
        (None, None, _slurm(7, 4, first=1, step=2), Task(3, 4)),
        (None, None, _slurm(5, 1, first=5), None),
        (2, 8, _slurm(5, 8), Task(2, 8)),
        (None, None, _slurm(5, 8) | {"JOB_COMPLETION_INDEX": "2"}, Task(5, 8)),
        (None, 8, _slurm(5, 1, first=5), Task(5, 8)),
        (None, 1, _slurm(5, 8), None),
        (None, 3, {"JOB_COMPLETION_INDEX": "2"}, Task(2, 3)),
        (None, 1, {"JOB_COMPLETION_INDEX": "0"}, None),
    ],
)
def test_the_task_is_that_of_the_settings_or_of_the_job(
    index: int | None, count: int | None, environment: Mapping[str, str], expected: Task | None
) -> None:
    assert choose_task(_config(index, count), environment) == expected


@pytest.mark.parametrize(
    ("index", "count", "environment", "message"),
    [
        (None, 8, {}, "--task_count needs --task_index"),
        (2, None, {}, "--task_index needs --task_count"),
        (None, None, {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX needs --task_count"),
        (5, 1, {}, r"no task 5 \(--task_index\) of 1"),
        (8, 8, {}, r"no task 8 \(--task_index\) of 8: they are 0 to 7"),
        (None, 8, _slurm(8, 8, first=1), r"no task 8 \(SLURM_ARRAY_TASK_ID\) of 8"),
        (None, None, _slurm(9, 2, first=3), r"no task 6 \(SLURM_ARRAY_TASK_ID\) of 2"),
    ],
)
def test_an_incomplete_task_is_an_error(
    index: int | None, count: int | None, environment: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_task(_config(index, count), environment)


def _config(index: int | None, count: int | None) -> ConversionConfig:
    return ConversionConfig(
        output_dir="o", manifest=ManifestConfig(video_dir="v"), task_index=index, task_count=count
    )


def test_tasks_of_beam_are_an_error() -> None:
    with pytest.raises(ConfigError, match="do not go with --runner=beam"):
        replace(_config(0, 2), runner="beam")


def test_shares_are_disjoint_and_complete() -> None:
    for count in range(1, 9):
        shares = [Task(index, count).share(range(7)) for index in range(count)]
        assert sorted(item for share in shares for item in share) == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_last_task_completes_the_dataset(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, order: Sequence[int]
) -> None:
    config, missing = conversion(tmp_path / "out"), 5
    for number, index in enumerate(order):
        report = convert.convert(config, task=Task(index, 3))
        share = 1 if index == 2 else 2
        missing -= share
        assert (report.shards_made, report.shards_kept, report.shards_missing) == (share, 0, missing)
        assert (tmp_path / "out/dataset_info.json").exists() == (number == 2)
    assert report.written == 16
    assert not list((tmp_path / "out/.conversion").glob("*.task.lock"))
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))
    again = convert.convert(config, task=Task(0, 3))
    assert (again.written, again.shards_made, again.shards_kept, again.shards_missing) == (16, 0, 2, 0)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
def test_an_incomplete_task_reports_its_own_share(tmp_path: Path, conversion: MakeConversion) -> None:
    """Of 5 shards for 8, 2 and 6 videos, task 1 of 2 makes the second of train and the first of test."""
    report = convert.convert(conversion(tmp_path / "out"), task=Task(1, 2))
    states = [path.name for path in (tmp_path / "out/.conversion").glob("*.json") if path.name != "plan.json"]
    assert sorted(states) == ["test-00000-of-00002.tfrecord.json", "train-00001-of-00002.tfrecord.json"]
    assert (report.written, report.skipped, report.shards_missing) == (4 + 3, [], 3)


@pytest.mark.usefixtures("in_process")
def test_another_number_of_tasks_goes_on(tmp_path: Path, conversion: MakeConversion, data_dir: str) -> None:
    convert.convert(conversion(tmp_path / "out"), task=Task(1, 4))
    reports = [convert.convert(conversion(tmp_path / "out"), task=Task(index, 2)) for index in (0, 1)]
    assert [(each.shards_made, each.shards_kept) for each in reports] == [(3, 0), (1, 1)]
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
def test_a_finished_dataset_stays_until_all_tasks_have_read_its_new_videos(
    tmp_path: Path, conversion: MakeConversion, video_dir: Path
) -> None:
    import shutil

    videos = tmp_path / "videos"
    shutil.copytree(video_dir, videos)
    config = conversion(tmp_path / "out")
    config = replace(config, manifest=replace(config.manifest, video_dir=str(videos)))
    convert.convert(config)
    before = committed_bytes(tmp_path / "out")
    for path in sorted(videos.rglob("*.avi")):
        write_brightness_video(path, 9)
    for index in (2, 0):
        assert convert.convert(config, task=Task(index, 3)).shards_missing > 0
        assert committed_bytes(tmp_path / "out") == before
    assert convert.convert(config, task=Task(1, 3)).shards_missing == 0
    convert.convert(replace(config, output_dir=str(tmp_path / "fresh")))
    assert committed_bytes(tmp_path / "out") == committed_bytes(tmp_path / "fresh") != before
    assert not (tmp_path / "out/.conversion/next").exists()


@pytest.mark.usefixtures("in_process")
def test_skipped_videos_of_a_finished_dataset_are_tried_again_by_all_tasks(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """A video of each task cannot be read at first, as with a file server that is down."""
    config = conversion(tmp_path / "out", max_skipped=0.5)

    def read(path: str, *arguments: Any) -> Any:
        if path.endswith("_01.avi"):
            raise OSError(5, "Input/output error")
        return convert.moment_reader.read_encoded_clip(path, *arguments)

    for index in (0, 1):
        report = convert.convert(config, task=Task(index, 2), read=read)
    assert (report.written, len(report.skipped)) == (12, 4)
    before = committed_bytes(tmp_path / "out")
    first = convert.convert(config, task=Task(0, 2))
    assert (first.shards_made, first.shards_missing) == (2, 1)
    assert committed_bytes(tmp_path / "out") == before
    second = convert.convert(config, task=Task(1, 2))
    assert (second.written, second.shards_made, second.shards_missing) == (16, 1, 0)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
def test_a_repeated_task_leaves_a_dataset_with_skipped_videos_of_others_complete(
    tmp_path: Path, conversion: MakeConversion
) -> None:
    def read(path: str, *arguments: Any) -> Any:
        if "/test/" in path and path.endswith("_01.avi"):
            raise OSError(5, "Input/output error")
        return convert.moment_reader.read_encoded_clip(path, *arguments)

    config = conversion(tmp_path / "out", max_skipped=0.5)
    for index in range(5):
        convert.convert(config, task=Task(index, 5), read=read)
    report = convert.convert(config, task=Task(0, 5), read=read)  # a shard of train
    assert (report.shards_kept, report.shards_missing, len(report.skipped)) == (1, 0, 2)


@pytest.mark.usefixtures("in_process")
def test_a_task_waits_for_another_one_that_looks_whether_all_are_done(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """If it left instead, neither might complete the dataset."""
    config = conversion(tmp_path / "out")
    convert.convert(config, task=Task(0, 2))
    has_made, may_go_on = threading.Event(), threading.Event()

    def make_shards(*arguments: Any) -> None:
        convert.make_shards_here(*arguments)
        has_made.set()
        may_go_on.wait()

    job = {"task": Task(1, 2), "make_shards": make_shards}
    last = threading.Thread(target=convert.convert, args=(config,), kwargs=job)
    last.start()
    has_made.wait()
    with conversion_state.lock(config.output_dir):
        may_go_on.set()
        last.join(timeout=1.5)
        assert last.is_alive()
    last.join()
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
def test_a_task_waits_for_a_conversion_by_one_process(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """Its temporary files would be deleted at the end of the other one."""
    config = conversion(tmp_path / "out")
    tasks: list[threading.Thread] = []
    reports: list[convert.ConversionReport] = []

    def make_shards(*arguments: Any) -> None:
        tasks.append(
            threading.Thread(target=lambda: reports.append(convert.convert(config, task=Task(0, 2))))
        )
        tasks[0].start()
        tasks[0].join(timeout=1.5)
        assert tasks[0].is_alive()
        convert.make_shards_here(*arguments)

    assert convert.convert(config, make_shards=make_shards).shards_made == 5
    tasks[0].join()
    assert (reports[0].shards_made, reports[0].shards_kept, reports[0].shards_missing) == (0, 3, 0)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


@pytest.mark.usefixtures("in_process")
def test_a_task_runs_once_at_a_time(tmp_path: Path, conversion: MakeConversion, data_dir: str) -> None:
    config = conversion(tmp_path / "out")
    convert.convert(config, task=Task(0, 2))
    with conversion_state.task_lock(config.output_dir, Task(1, 2)):
        with pytest.raises(convert.ConversionError, match="conversion of task 1 of 2 is writing to"):
            convert.convert(config, task=Task(1, 2))
        with pytest.raises(convert.ConversionError, match="Task 1-of-2 of a conversion is writing to"):
            convert.convert(config)
    convert.convert(config)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))
    assert [path.name for path in (tmp_path / "out/.conversion").iterdir() if "lock" in path.name] == ["lock"]


@pytest.mark.usefixtures("in_process")
def test_the_last_task_counts_skipped_videos_of_all(
    tmp_path: Path, conversion: MakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, *arguments: Any) -> Any:
        if path.endswith("_01.avi"):
            Path("/does/not/exist").read_bytes()
        return _read(path, *arguments)

    _read = convert.moment_reader.read_encoded_clip
    config = conversion(tmp_path / "out")
    convert.convert(config, task=Task(0, 2), read=read)
    with pytest.raises(convert.ConversionError, match=r"4 of 16 videos were skipped .* max_skipped"):
        convert.convert(config, task=Task(1, 2), read=read)
    report = convert.convert(replace(config, max_skipped=0.5), task=Task(1, 2), read=read)
    assert (report.written, len(report.skipped), report.shards_missing) == (12, 4, 0)


@pytest.mark.processes
def test_killed_tasks_that_start_again_make_the_same_bytes(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    """Three tasks at once; each is killed with its readers, at a random time, and started again."""
    times = random.Random(3)
    config = conversion(tmp_path / "out")
    first = [_start(config, Task(index, 3)) for index in range(3)]
    for process in first:
        try:
            process.wait(timeout=times.uniform(0.1, 0.4))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert -signal.SIGKILL in [process.returncode for process in first]
    assert not (tmp_path / "out/dataset_info.json").exists()
    (tmp_path / "out/train-00000-of-00002.tfrecord.01234567.tmp").write_bytes(b"half")
    (tmp_path / "out/.conversion/test-00001-of-00002.tfrecord.json.01234567.tmp").write_bytes(b"half")
    second = [_start(config, Task(index, 3)) for index in (2, 0, 1)]
    assert [process.wait(timeout=60) for process in second] == [0, 0, 0]
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def _start(config: ConversionConfig, task: Task) -> subprocess.Popen:
    """Starts a task in a new process group; returns when it begins."""
    script = f"""
from synthetic import slow_read
from vidpipe.data import convert
from vidpipe.data.conversion_tasks import Task
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
print("begins", flush=True)
convert.convert({config!r}, read=slow_read, task={task!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=TESTS, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begins\n"
    return process
