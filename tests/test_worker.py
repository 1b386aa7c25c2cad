"""Readers that really crash, hang and eat memory, and what is told of them."""

import os
import signal
import time
from pathlib import Path

import pytest

from synthetic import content_read, failing_windows, frame_indices_of, write_brightness_video
from vidpipe import video, worker
from vidpipe.config import ClipConfig

CLIP = ClipConfig(num_frames=4, image_size=32)
CRASHED = f"crashed the decoder (exit code {-signal.SIGSEGV})"
HUNG = "timed out after 3 s"


def _write_faults(folder: Path) -> dict[str, str]:
    """Videos among which are faults; what is expected of each: its frames, or a reason."""
    write_brightness_video(folder / "a.avi", 8)
    write_brightness_video(folder / "z.avi", 4)
    for fault in ("crash", "hang", "memory", "garbage"):
        (folder / f"{fault}.avi").write_bytes(fault.encode())
    return {
        "a": "[1, 3, 5, 7]",
        "crash": CRASHED,
        "garbage": "does not open as a video",
        "hang": HUNG,
        "memory": "larger than the limit of memory",
        "nowhere": "cannot be read: No such file or directory",
        "z": "[0, 1, 2, 3]",
    }


def test_faults_cost_themselves_and_the_order_stays(tmp_path: Path) -> None:
    expected = _write_faults(tmp_path)
    calls = [(str(tmp_path / f"{name}.avi"), CLIP) for name in expected]
    with worker.Workers(2, timeout_sec=3, memory_mb=4096) as workers:
        outcomes = list(workers.read_in_order(content_read, calls))
        again = workers.read(content_read, *calls[-1])
    found = [
        outcome.reason if outcome.value is None else str(frame_indices_of(outcome.value.frames))
        for outcome in outcomes
    ]
    assert found == list(expected.values())
    assert again.value is not None
    assert again.reason == ""


def test_a_single_read_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"hang")
    with worker.Workers(1, timeout_sec=3, memory_mb=4096) as workers:
        workers.read(content_read, str(tmp_path / "b.avi"), CLIP)
        start = time.monotonic()
        assert workers.read(content_read, str(tmp_path / "a.avi"), CLIP).reason == HUNG
        assert time.monotonic() - start < 5.5


def test_a_killed_idle_process_is_replaced(tmp_path: Path) -> None:
    path = str(write_brightness_video(tmp_path / "a.avi", 4))
    with worker.Workers(1, timeout_sec=10, memory_mb=4096) as workers:
        assert workers.read(video.read_clip, path, CLIP).value is not None
        (idle,) = _children()
        os.kill(int(idle), signal.SIGKILL)
        for _ in range(3):
            outcomes = list(workers.read_in_order(video.read_clip, [(path, CLIP)] * 5))
            assert [outcome.reason for outcome in outcomes] == [""] * 5


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", CRASHED),
        ("hang", HUNG),
        ("memory", "larger than the limit of memory"),
        ("", ""),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_was_streamed_before_a_fault_is_kept(tmp_path: Path, fault: str | None, reason: str) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 20)  # of 0.8 s
    if fault is not None:
        (tmp_path / "a.avi.fault").write_bytes(fault.encode())
    outcomes = list(worker.stream(failing_windows, (str(path), CLIP, 0.2, 0.2), 3, 4096))
    windows = [outcome.value for outcome in outcomes if outcome.value is not None]
    assert [window.start_sec for window in windows] == [0, 0.2]
    assert [outcome.reason for outcome in outcomes[2:]] == [reason] * (reason != "")


def test_a_stream_that_is_left_ends_its_process(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 20)
    large = ClipConfig(num_frames=4, image_size=224)  # more than a pipe holds
    stream = worker.stream(video.read_windows, (str(path), large, 0.2, 0.2), 10, 4096)
    next(stream)
    (child,) = [int(name) for name in _children()]
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def _children() -> list[str]:
    tasks = Path("/proc/self/task").iterdir()
    return [
        child
        for task in tasks
        for child in (task / "children").read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
