"""Conversion on Dask, with a real scheduler and real workers: the same bytes, also if one is killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="dask is not installed")

from synthetic import committed_bytes, faulty_read, slow_read, stuck_read
from vidpipe.config import ConversionConfig
from vidpipe.data import convert
from vidpipe.data.convert_dask import make_shards_on

MakeConversion = Callable[..., ConversionConfig]
TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler without workers."""
    with _scheduler(tmp_path_factory.mktemp("dask")) as (_, address):
        yield address


@contextlib.contextmanager
def _scheduler(folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    path = folder / "scheduler.json"
    flags = ["--host=127.0.0.1", "--port=0", "--no-dashboard", f"--scheduler-file={path}"]
    with _process("dask_scheduler", *flags) as process:
        while not path.exists():
            time.sleep(0.05)
        yield process, json.loads(path.read_text())["address"]


@contextlib.contextmanager
def _process(name: str, *flags: str) -> Iterator[subprocess.Popen]:
    """Runs a command of Dask, in a process group of its own, during the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{name}", *flags],
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _worker(scheduler: str, folder: Path, *flags: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
    shared = ("--nthreads=1", "--no-dashboard", f"--local-directory={folder}")
    return _process("dask_worker", scheduler, *shared, *flags)


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_two_workers_make_the_same_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conversion: MakeConversion,
    data_dir: str,
    scheduler: str,
    nanny: str,
) -> None:
    """The processes of a nanny are daemons, which must not have children of multiprocessing.

    The paths are relative, and the workers run in another folder.
    """
    monkeypatch.chdir(tmp_path)
    config = conversion("out")
    manifest = replace(config.manifest, video_dir=os.path.relpath(config.manifest.video_dir))
    with _worker(scheduler, tmp_path, nanny), _worker(scheduler, tmp_path, nanny):
        report = convert.convert(replace(config, manifest=manifest), make_shards=make_shards_on(scheduler))
    assert (report.written, report.shards_made) == (16, 5)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def test_a_worker_that_is_killed_costs_nothing(
    tmp_path: Path, conversion: MakeConversion, data_dir: str, scheduler: str
) -> None:
    config = conversion(tmp_path / "out")
    with _worker(scheduler, tmp_path, "--no-nanny") as first, _worker(scheduler, tmp_path, "--no-nanny"):
        converting = threading.Thread(
            target=convert.convert,
            args=(config,),
            kwargs={"read": slow_read, "make_shards": make_shards_on(scheduler)},
        )
        converting.start()
        while not list((tmp_path / "out").rglob("*.tmp")):
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        converting.join()
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_processes_end_with_their_worker_and_a_lost_scheduler_is_named(
    tmp_path: Path, conversion: MakeConversion
) -> None:
    messages: list[str] = []

    def convert_without_end(scheduler: str) -> None:
        try:
            config = conversion(tmp_path / "out")
            convert.convert(config, read=stuck_read, make_shards=make_shards_on(scheduler))
        except convert.ConversionError as error:
            messages.append(str(error))

    with (
        _scheduler(tmp_path) as (scheduler, address),
        _worker(address, tmp_path, "--no-nanny") as worker,
    ):
        converting = threading.Thread(target=convert_without_end, args=(address,))
        converting.start()
        while len(_descendants(worker.pid)) < 2:  # the process of the shards, and its readers
            assert converting.is_alive(), messages
            time.sleep(0.05)
        processes = _descendants(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(Path("/proc", str(pid)).exists() for pid in processes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(scheduler.pid, signal.SIGKILL)
        converting.join(60)
    assert len(messages) == 1
    assert "train-00000-of-00002.tfrecord: the scheduler was lost. Finished shards are kept" in messages[0]


def _descendants(pid: int) -> list[int]:
    of_threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(child) for each in of_threads for child in each]
    return children + [each for child in children for each in _descendants(child)]


def test_what_fails_on_a_worker_is_named(tmp_path: Path, conversion: MakeConversion, scheduler: str) -> None:
    """A folder has the name of a shard. The other shards are kept."""
    blocked = tmp_path / "out/test-00001-of-00002.tfrecord"

    def make_shards(*arguments: Any) -> None:
        (blocked / "x").mkdir(parents=True)
        make_shards_on(scheduler)(*arguments)

    message = r"Dask cannot make test-00001-of-00002.tfrecord: .*Is a directory.*run the same command again"
    with _worker(scheduler, tmp_path, "--no-nanny"):
        with pytest.raises(convert.ConversionError, match=message):
            convert.convert(conversion(tmp_path / "out"), make_shards=make_shards)
        shutil.rmtree(blocked)
        report = convert.convert(conversion(tmp_path / "out"), make_shards=make_shards_on(scheduler))
    assert (report.shards_made, report.shards_kept) == (1, 4)


def test_a_worker_without_vidpipe_is_named(
    tmp_path: Path, conversion: MakeConversion, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: bytes) -> None:
        raise ModuleNotFoundError("No module named 'vidpipe'")

    monkeypatch.setattr("vidpipe.data.convert_dask.make_in_process", fail)
    with (
        _worker(scheduler, tmp_path, "--no-nanny"),
        pytest.raises(convert.ConversionError, match="Dask cannot make train-.*: No module named 'vidpipe'"),
    ):
        convert.convert(conversion(tmp_path / "out"), make_shards=make_shards_on(scheduler))


def test_an_output_folder_that_is_another_one_on_the_workers_is_named(
    tmp_path: Path, conversion: MakeConversion, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidpipe.data.convert_dask.make_in_process", lambda job: None)
    with (
        _worker(scheduler, tmp_path, "--no-nanny"),
        pytest.raises(convert.ConversionError, match=r"made train-.* not in .*/out of this machine"),
    ):
        convert.convert(conversion(tmp_path / "out"), make_shards=make_shards_on(scheduler))


def test_skipped_videos_and_missing_workers_are_logged(
    tmp_path: Path, conversion: MakeConversion, scheduler: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = conversion(tmp_path / "out", max_skipped=0.5, timeout_sec=3)
    with contextlib.ExitStack() as stack:
        starting = threading.Timer(1, lambda: stack.enter_context(_worker(scheduler, tmp_path, "--no-nanny")))
        starting.start()
        report = convert.convert(config, read=faulty_read, make_shards=make_shards_on(scheduler))
    assert "The Dask cluster has no workers yet; waiting for them." in caplog.messages
    skipped = [message for message in caplog.messages if message.startswith("Skipped ")]
    assert len(skipped) == len(report.skipped) == 6
    assert f"Skipped train/long/video_02.avi: worker has {['tensorflow'][:0]}" in skipped


def test_a_scheduler_that_does_not_answer_is_named(
    tmp_path: Path, conversion: MakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidpipe.data.convert_dask._CONNECT_SEC", 1)
    with pytest.raises(convert.ConversionError, match="No Dask scheduler answers at tcp://127.0.0.1:9"):
        convert.convert(conversion(tmp_path / "out"), make_shards=make_shards_on("tcp://127.0.0.1:9"))
