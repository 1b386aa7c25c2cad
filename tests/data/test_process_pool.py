"""Readers that really crash, hang and need too much memory, and what is reported about them."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import Any

import pytest
from pebble import ProcessExpired

from synthetic import (
    InProcessPool,
    blocked_signals,
    content_read,
    failing_windows,
    frame_indices_of,
    hoarding_read,
    write_brightness_video,
)
from vidpipe.config import ClipConfig
from vidpipe.data import process_pool, video
from vidpipe.data.process_pool import ReaderPool, Result
from vidpipe.data.skip_reason import Failure, SkipReason

CLIP = ClipConfig(num_frames=4, image_size=32)
CRASHED = Failure(SkipReason.CRASHED, f"crashed the decoder (exit code {-signal.SIGSEGV})")
HUNG = Failure(SkipReason.TIMED_OUT, "timed out after 3 s")
TOO_LARGE = Failure(SkipReason.OUT_OF_MEMORY, "needs more memory than the limit")
NO_VIDEO = Failure(SkipReason.CANNOT_OPEN, "does not open as a video")
MISSING = Failure(SkipReason.UNREADABLE, "cannot be read: No such file or directory")


def _pool(num_workers: int, timeout_sec: float = 3) -> ReaderPool:
    return ReaderPool(num_workers=num_workers, timeout_sec=timeout_sec, memory_mb=4096)


def _arguments(path: Path) -> tuple[str, ClipConfig]:
    return str(path), CLIP


def _outcome(result: Result) -> Failure | list[int]:
    """Returns the failure of a result, or the indices of the frames that were read."""
    if result.failure is not None:
        return result.failure
    assert result.value is not None
    return frame_indices_of(result.value.frames)


def test_a_fault_affects_one_video_and_the_order_is_kept(tmp_path: Path) -> None:
    expected: dict[str, Failure | list[int]] = {
        "a": [1, 3, 5, 7], "crash": CRASHED, "garbage": NO_VIDEO, "hang": HUNG, "memory": TOO_LARGE,
        "missing": MISSING, "z": [0, 1, 2, 3],
    }  # fmt: skip
    for fault in ("crash", "hang", "memory", "garbage"):
        (tmp_path / f"{fault}.avi").write_bytes(fault.encode())
    write_brightness_video(tmp_path / "a.avi", 8)
    write_brightness_video(tmp_path / "z.avi", 4)
    requests = [tmp_path / f"{name}.avi" for name in expected]
    with _pool(2) as pool:
        results = list(pool.read_in_order(content_read, requests, _arguments))
        single = pool.read(content_read, *_arguments(tmp_path / "z.avi"))
    assert [result.request for result in results] == requests
    assert [_outcome(result) for result in results] == list(expected.values())
    assert single.request == _arguments(tmp_path / "z.avi")
    assert _outcome(single) == expected["z"]


class _FailingPool(InProcessPool):
    """Calls functions in this process; the first attempts with argument "a" raise `errors`."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(timeout_sec=3)
        self._errors = list(errors)

    def _start(self, function: Callable[..., Any], arguments: Sequence[Any], num_videos: int = 1) -> Future:
        if not (arguments == ("a",) or "a" in arguments[-1][0]) or not self._errors:
            return super()._start(function, arguments)
        future: Future = Future()
        future.set_exception(self._errors.pop(0))
        return future


@pytest.mark.parametrize("reason", list(SkipReason))
def test_transient_failures_get_a_second_attempt(reason: SkipReason) -> None:
    """A result carries its request, also after a second attempt."""
    error = video.VideoReadError("a", reason, "message")
    results = list(_FailingPool(error).read_in_order(str.upper, ["a", "b"], lambda request: (request,)))
    first = Result("a", value="A") if reason.is_transient else Result("a", failure=Failure(reason, "message"))
    assert results == [first, Result("b", value="B")]


def test_a_second_failure_is_final() -> None:
    pool = _FailingPool(TimeoutError(), ProcessExpired("", -signal.SIGSEGV))
    results = list(pool.read_in_order(str.upper, ["a", "b"], lambda request: (request,)))
    assert results == [Result("a", failure=CRASHED), Result("b", value="B")]


def test_errors_of_the_code_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(_FailingPool(ZeroDivisionError()).read_in_order(str.upper, ["a"], lambda request: (request,)))


class _CountingPool(InProcessPool):
    """Records how many requests each call has."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def _start(self, function: Callable[..., Any], arguments: Sequence[Any], num_videos: int = 1) -> Future:
        self.calls.append(num_videos)
        return super()._start(function, arguments, num_videos)


def test_requests_that_belong_together_are_read_by_one_process() -> None:
    pool = _CountingPool()
    requests = [*("a",) * 19, "b", "b", *".."]
    keys = {"a": 1, "b": 2, ".": None}
    results = pool.read_in_order(str.upper, requests, lambda request: (request,), lambda each: keys[each])
    assert list(results) == [Result(request, value=request.upper()) for request in requests]
    assert pool.calls == [8, 8, 3, 2, 1, 1]


def test_a_fault_affects_none_that_are_read_in_the_same_call(tmp_path: Path) -> None:
    for fault in ("crash", "garbage"):
        (tmp_path / f"{fault}.avi").write_bytes(fault.encode())
    write_brightness_video(tmp_path / "a.avi", 4)
    requests = [tmp_path / f"{name}.avi" for name in ("a", "garbage", "crash", "a")]
    with _pool(1, timeout_sec=30) as pool:
        results = list(pool.read_in_order(content_read, requests, _arguments, lambda _: 0))
    assert [result.request for result in results] == requests
    assert [_outcome(result) for result in results] == [[0, 1, 2, 3], NO_VIDEO, CRASHED, [0, 1, 2, 3]]


@pytest.mark.processes
def test_a_single_read_gets_one_attempt(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"hang")
    with _pool(1) as pool:
        pool.read(content_read, *_arguments(tmp_path / "b.avi"))
        start = time.monotonic()
        assert pool.read(content_read, *_arguments(tmp_path / "a.avi")).failure == HUNG
        assert time.monotonic() - start < 5.5


@pytest.mark.processes
def test_each_video_has_the_same_room_whatever_was_read_before(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 4)
    with ReaderPool(num_workers=1, timeout_sec=60, memory_mb=400) as pool:
        for _ in range(4):
            assert pool.read(hoarding_read, *_arguments(path)).failure is None


@pytest.mark.processes
def test_a_killed_idle_process_is_replaced(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 4)
    with _pool(1, timeout_sec=10) as pool:
        assert pool.read(video.read_clip, *_arguments(path)).value is not None
        (idle,) = _children()
        os.kill(idle, signal.SIGKILL)
        for _ in range(3):
            results = list(pool.read_in_order(video.read_clip, [path] * 5, _arguments))
            assert [result.failure for result in results] == [None] * 5


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        pytest.param(b"crash", CRASHED, id="crash"),
        pytest.param(b"hang", HUNG, id="hang", marks=pytest.mark.processes),
        pytest.param(b"memory", TOO_LARGE, id="memory"),
        pytest.param(b"", None, id="no fault"),
        pytest.param(None, MISSING, id="missing file"),
    ],
)
def test_values_before_a_fault_are_streamed(
    tmp_path: Path, fault: bytes | None, failure: Failure | None
) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 20)  # 0.8 s
    if fault is not None:
        (tmp_path / "a.avi.fault").write_bytes(fault)
    arguments = (str(path), CLIP, 0.2, 0.2)
    first, second, *rest = process_pool.stream(failing_windows, arguments, timeout_sec=3, memory_mb=4096)
    assert isinstance(first, video.VideoWindow) and isinstance(second, video.VideoWindow)
    assert (first.start_sec, second.start_sec) == (0, 0.2)
    assert rest == ([] if failure is None else [failure])


def test_an_interrupt_at_a_terminal_reaches_the_consumer_only() -> None:
    (blocked,) = process_pool.stream(blocked_signals, (), timeout_sec=10, memory_mb=4096)
    assert blocked == [signal.SIGINT]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_closing_a_stream_ends_its_process(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 20)
    large = ClipConfig(num_frames=4, image_size=224)  # more than a pipe buffers
    arguments = (str(path), large, 0.2, 0.2)
    stream = process_pool.stream(video.read_windows, arguments, timeout_sec=10, memory_mb=4096)
    next(stream)
    (child,) = _children()
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def _children() -> list[int]:
    """Returns the ids of the spawned processes of this process."""
    return [
        int(child)
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
