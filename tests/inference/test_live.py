"""A live session predicts the newest window of a stream, whatever the speed of the model."""

import contextlib
import dataclasses
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from synthetic import write_colours
from tools import predict as predict_tool
from vidpipe.config import ConfigError, PredictionConfig
from vidpipe.data import video
from vidpipe.data.live_stream import LinkChange, LinkState, LiveFrame
from vidpipe.data.sampling import window_ranges
from vidpipe.evaluation.events import Event, EventRule, default_rule, merge_windows
from vidpipe.inference import live
from vidpipe.inference.live import LiveCounts, LiveEvent, LiveSession, LiveWindow, WindowBuffer
from vidpipe.inference.predict import load_classifier, predict

ROOT = Path(__file__).parents[2]
CLASSES = ("dark", "bright")
RULE = EventRule(smoothing_sec=0, high=0.5, low=0.5, min_sec=0, background="dark")
CONNECTED = LinkChange(LinkState.CONNECTED)
DISCONNECTED = LinkChange(LinkState.DISCONNECTED, "the stream ended")


def _frame(number: int, sec: float, *, is_first: bool = False, clock_sec: float | None = None) -> LiveFrame:
    """A frame whose pixels are its number; its time by the clock is 1000 s later than its timestamp."""
    clock_sec = 1000 + sec if clock_sec is None else clock_sec
    return LiveFrame(sec, clock_sec, is_first, np.full((2, 2, 3), number % 256, np.uint8))


def _run(num_frames: int, *, start_sec: float = 5.0, fps: int = 10, first: int = 0) -> list[LiveFrame]:
    """A run of frames with the numbers from `first` on."""
    return [
        _frame(first + index, round(start_sec + index / fps, 6), is_first=index == 0)
        for index in range(num_frames)
    ]


def _numbers(window: LiveWindow) -> list[int]:
    return [int(image[0, 0, 0]) for image in window.images]


@pytest.mark.parametrize(("window_sec", "hop_sec"), [(1, 0.5), (1, 1), (0.5, 1.2), (2, 0.25)])
def test_a_fast_model_sees_the_windows_of_a_timeline(window_sec: float, hop_sec: float) -> None:
    counts = LiveCounts()
    buffer = WindowBuffer(window_sec, hop_sec, counts)
    windows = []
    for frame in _run(80):
        buffer.add(frame)
        if (window := buffer.take(0)) is not None:
            windows.append(window)
    expected = window_ranges(np.arange(80) / 10, window_sec=window_sec, hop_sec=hop_sec)
    full = [each for each in expected if each[0] * hop_sec + window_sec <= 7.9]
    assert [_numbers(window) for window in windows] == [list(range(start, stop)) for _, start, stop in full]
    assert [window.start_sec for window in windows] == pytest.approx(
        [1005 + number * hop_sec for number, _, _ in full]
    )
    assert all(window.end_sec - window.start_sec == pytest.approx(window_sec) for window in windows)
    assert counts == LiveCounts()


def test_a_slow_model_gets_the_newest_window() -> None:
    """Taken after every 37 frames only: windows of 10 frames, every 5."""
    counts = LiveCounts()
    buffer = WindowBuffer(1, 0.5, counts)
    taken: set[int] = set()
    num_windows, longest = 0, 0
    for index, frame in enumerate(_run(250)):
        buffer.add(frame)
        longest = max(longest, len(buffer))
        if index % 37 == 36:
            window = buffer.take(0)
            assert window is not None
            numbers = _numbers(window)
            assert index - numbers[-1] <= 5  # the newest full window ended less than a hop ago
            assert len(numbers) == 10
            assert buffer.take(0) is None
            num_windows += 1
            taken |= set(numbers)
            assert counts.dropped_frames == len(set(range(numbers[-1])) - taken)
            assert counts.dropped_windows == numbers[0] // 5 + 1 - num_windows
    assert num_windows == 6
    assert longest <= 16


def test_no_window_spans_a_gap() -> None:
    """Two windows are lost in the gap: the model was busy, and nobody took them."""
    counts = LiveCounts()
    buffer = WindowBuffer(1, 0.5, counts)
    for frame in _run(17):
        buffer.add(frame)
    assert counts.dropped_windows == 0
    windows = []
    for frame in _run(20, start_sec=90, first=100):
        buffer.add(frame)
        windows.append(buffer.take(0))
    assert counts.dropped_windows == 2
    assert counts.dropped_frames == 15
    assert [_numbers(window) for window in windows if window is not None] == [
        list(range(100, 110)), list(range(105, 115)),
    ]  # fmt: skip


def test_frames_are_left_out_evenly_above_the_limit() -> None:
    buffer = WindowBuffer(10, 10, LiveCounts(), max_frames=20)
    for frame in _run(240, fps=20):
        buffer.add(frame)
        assert len(buffer) <= 41
        if (window := buffer.take(0)) is not None:
            assert _numbers(window) == list(range(0, 200, 10))
            return
    pytest.fail("no window")


def test_frames_between_windows_take_no_memory() -> None:
    counts = LiveCounts()
    buffer = WindowBuffer(0.5, 60, counts)
    for frame in _run(1000):
        buffer.add(frame)
        buffer.take(0)
        assert len(buffer) <= 6
    assert counts == LiveCounts()


def test_old_frames_that_come_at_once_are_not_predicted() -> None:
    """Three seconds come at once, as from a server's buffer: the first windows are too old by the clock."""
    buffer = WindowBuffer(1, 0.5, LiveCounts())
    buffer.add(_frame(0, 5, is_first=True, clock_sec=1000))
    for number in range(1, 31):
        buffer.add(_frame(number, 5 + number / 10, clock_sec=1000))
        assert buffer.take(999.4) is None or number == 30


class _Model(Executor):
    """Runs a window for some number of frames, beside the stream that `frames` is."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._running: tuple[int, Future, Any] | None = None
        self.windows: list[LiveWindow] = []

    def submit(self, function: Callable, /, *arguments: Any, **_: Any) -> Future:
        assert self._running is None
        self.windows.append(arguments[1])
        future: Future = Future()
        self._running = self._num_frames, future, function(*arguments)
        if self._num_frames == 0:
            self.finish()
        return future

    def finish(self) -> None:
        if self._running is not None:
            _, future, value = self._running
            self._running = None
            future.set_result(value)

    def frames(self, items: list[LiveFrame | LinkChange]) -> Iterator[LiveFrame | LinkChange]:
        for item in items:
            if self._running is not None:
                remaining, *rest = self._running
                self._running = (remaining - 1, *rest)
                if remaining <= 1:
                    self.finish()
            yield item


def _brightness(_: Any, window: LiveWindow) -> np.ndarray:
    bright = np.mean([image.mean() for image in window.images]) / 255
    return np.array([1 - bright, bright])


def _session(
    monkeypatch: pytest.MonkeyPatch, items: list, *, rule: EventRule = RULE, model_frames: int = 0
) -> tuple[LiveSession, _Model]:
    """A session of windows of a second, every half second."""
    monkeypatch.setattr(live, "_predict_window", _brightness)
    classifier: Any = SimpleNamespace(metadata=SimpleNamespace(classes=CLASSES))
    counts, model = LiveCounts(), _Model(model_frames)
    buffer = WindowBuffer(1, 0.5, counts)
    return LiveSession(classifier, rule, model.frames(items), buffer, model, counts), model


def _shown(levels: list[int], *, start_sec: float = 5.0) -> list[LiveFrame]:
    """A run of half seconds of these levels of brightness, at 10 frames per second."""
    frames = _run(5 * len(levels), start_sec=start_sec)
    for index, frame in enumerate(frames):
        frame.image[:] = levels[index // 5]
    return frames


@pytest.mark.parametrize("model_frames", [0, 3, 12])
def test_events_are_those_of_all_windows(monkeypatch: pytest.MonkeyPatch, model_frames: int) -> None:
    rng = np.random.default_rng(1)
    items: list[LiveFrame | LinkChange] = [CONNECTED]
    for part in range(6):
        items += _shown(rng.integers(0, 256, 40).tolist(), start_sec=5 + 30 * part)
    rule = EventRule(smoothing_sec=1, high=0.55, low=0.5, min_sec=0)
    session, model = _session(monkeypatch, items, rule=rule, model_frames=model_frames)
    found = [output.event for output in session.run() if isinstance(output, LiveEvent)]
    assert len(found) >= 5  # as they end, not only at the end of the session
    model.finish()
    found += [each.event for each in session.close()]
    bounds = np.array([[window.start_sec, window.end_sec] for window in model.windows])
    probabilities = np.stack([_brightness(None, window) for window in model.windows])
    expected = merge_windows(bounds - bounds[0, 0], probabilities, CLASSES, rule)
    found.sort(key=lambda event: (event.start_sec, event.end_sec, event.label))
    assert [event.label for event in found] == [event.label for event in expected]
    for one, other in zip(found, expected, strict=True):
        assert dataclasses.astuple(one)[1:] == pytest.approx(dataclasses.astuple(other)[1:], abs=1e-9)
    assert session.counts.windows == len(model.windows)
    assert session.counts.frames == len(items) - 1


def test_a_slow_model_drops_windows_but_stays_close(monkeypatch: pytest.MonkeyPatch) -> None:
    session, model = _session(monkeypatch, list(_run(200)), model_frames=23)
    delays = []
    submit = model.submit

    def recording(*arguments: Any) -> Future:
        delays.append(session.counts.frames - 1 - _numbers(arguments[2])[-1])
        return submit(*arguments)

    monkeypatch.setattr(model, "submit", recording)
    assert list(session.run()) == []
    assert len(delays) == 9
    assert max(delays) <= 5
    counts = session.counts
    assert counts.frames == 200
    assert (counts.windows, counts.dropped_windows) == (8, 28)
    seen = {number for window in model.windows for number in _numbers(window)}
    assert counts.dropped_frames == len(set(range(max(seen))) - seen)


def test_an_event_before_a_cut_ends_when_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1012.0)
    reconnecting = LinkChange(LinkState.RECONNECTING, "the stream ended", 1)
    items = [CONNECTED, *_shown([255] * 6), DISCONNECTED, reconnecting]
    session, _ = _session(monkeypatch, items)
    *states, event, last = session.run()
    assert states == [CONNECTED, DISCONNECTED]
    assert last == reconnecting
    assert isinstance(event, LiveEvent)
    assert event.event == Event("bright", 0, 2.5, 1)
    assert session.counts.reconnects == 1
    assert session.close() == []


def test_the_clock_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first frame was shown when the clock of frames was at 1005 s."""
    monkeypatch.setattr("time.monotonic", lambda: 1012.0)
    monkeypatch.setattr("time.time", lambda: 1_800_000_007.0)
    session, _ = _session(monkeypatch, _shown([0, 0, 255, 255, 255, 255]))
    assert list(session.run()) == []
    (event,) = session.close()
    assert event.event.start_sec == 0.75
    assert event.start.timestamp() == pytest.approx(1_800_000_000.75, abs=1e-3)
    assert event.end.timestamp() == pytest.approx(1_800_000_000 + event.event.end_sec, abs=1e-3)
    assert event.start.tzinfo is not None


def test_an_error_of_the_model_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    session, model = _session(monkeypatch, list(_run(40)))
    future: Future = Future()
    future.set_exception(MemoryError("no memory"))
    monkeypatch.setattr(model, "submit", lambda *_: future)
    with pytest.raises(MemoryError, match="no memory"):
        list(session.run())


def test_a_window_is_predicted_like_a_video(tmp_path: Path, colour_run: str) -> None:
    path = write_colours(tmp_path / "a.avi", [(30 + 20 * i, 30, 200 - 9 * i) for i in range(10)])
    classifier = load_classifier(colour_run)
    frames = video.read_clip(path, dataclasses.replace(classifier.metadata.clip, num_frames=10)).frames
    scores = live._predict_window(classifier, LiveWindow(0, 1, list(frames)))
    (expected,) = predict(PredictionConfig(run_dir=colour_run), [path])
    assert dict(zip(classifier.metadata.classes, scores.tolist(), strict=True)) == pytest.approx(
        expected.probabilities, abs=1e-6
    )


def test_the_default_rule() -> None:
    assert default_rule(0.5) == EventRule(smoothing_sec=1, high=0.5, low=0.5, min_sec=0, background=None)


@pytest.mark.parametrize("other", ["gif", "timeline"])
def test_live_excludes(other: str) -> None:
    with pytest.raises(ConfigError, match="live cannot be combined"):
        PredictionConfig(run_dir="run", live="0", **{other: "out"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--live=match.mp4"], "For a video file use timeline"),
        (["--live=0", "match.mp4"], "--live takes no videos"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert predict_tool.run(["predict.py", "--run_dir=run", *arguments]) == 2
    assert message in capsys.readouterr().err


def _colour_stream(colours: list[tuple[int, int, int]]) -> list[LiveFrame]:
    """Frames for the model of `colour_run`, at 10 per second, the last one a moment ago."""
    start_sec = time.monotonic() - len(colours) / 10
    return [
        LiveFrame(5 + i / 10, start_sec + i / 10, i == 0, np.full((32, 32, 3), colour, np.uint8))
        for i, colour in enumerate(colours)
    ]


def _interrupted(frames: list[LiveFrame]) -> Callable[..., Iterator]:
    """Replaces `read_stream`: gives the frames slowly enough for the model, and then Ctrl-C."""

    def read_stream(*_: Any, **__: Any) -> Iterator[LiveFrame | LinkChange]:
        yield CONNECTED
        for frame in frames:
            yield frame
            time.sleep(0.01)
        time.sleep(0.3)
        yield LinkChange(LinkState.DISCONNECTED, "timed out after 60 s")
        raise KeyboardInterrupt

    return read_stream


RED, BLUE = (200, 30, 30), (30, 30, 200)


def test_ctrl_c_prints_the_open_event_and_the_counts(
    colour_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = _colour_stream([RED] * 60 + [BLUE] * 60)
    monkeypatch.setattr("vidpipe.data.live_stream.read_stream", _interrupted(frames))
    command = ["predict.py", f"--run_dir={colour_run}", "--live=rtsp://me:secret@cam/1"]
    assert predict_tool.run(command) == 130
    printed, errors = capsys.readouterr()
    lines = [
        re.fullmatch(r"(\S+ \S+) to (\S+) +([\d.]+) s +([\d.]+)%  (\w+)", line)
        for line in printed.splitlines()
    ]
    assert [line and line[5] for line in lines] == ["red", "blue"]
    assert lines[1] is not None
    assert abs((datetime.now() - datetime.fromisoformat(lines[1][1])).total_seconds()) < 30
    assert float(lines[1][3]) == pytest.approx(6, abs=2)
    connected, disconnected, stopped, interrupted = errors.splitlines()
    assert connected == "rtsp://***@cam/1: connected."
    assert disconnected == "rtsp://***@cam/1: disconnected (timed out after 60 s)."
    assert re.fullmatch(
        r"rtsp://\*\*\*@cam/1: stopped; \d+ windows predicted, \d+ dropped; "
        r"120 frames received, \d+ dropped; 0 reconnects\.",
        stopped,
    )
    assert interrupted == "predict.py: interrupted"


def test_json_lines(
    colour_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = _colour_stream([RED] * 60)
    monkeypatch.setattr("vidpipe.data.live_stream.read_stream", _interrupted(frames))
    assert predict_tool.run(["predict.py", f"--run_dir={colour_run}", "--live=0", "--json"]) == 130
    printed, errors = capsys.readouterr()
    assert errors == "predict.py: interrupted\n"
    connected, disconnected, event, stopped = map(json.loads, printed.splitlines())
    assert (connected["status"], set(connected)) == ("connected", {"status", "time"})
    assert disconnected["reason"] == "timed out after 60 s"
    assert set(event) == {"event", "start", "end", "start_sec", "end_sec", "score"}
    assert (event["event"], event["start_sec"]) == ("red", 0)
    start, end = (datetime.fromisoformat(event[name]) for name in ("start", "end"))
    assert start.tzinfo is not None
    assert (end - start).total_seconds() == pytest.approx(event["end_sec"], abs=1e-3)
    assert (stopped["status"], stopped["frames"], stopped["reconnects"]) == ("stopped", 60, 0)
    assert set(stopped) == {"status", "time", *LiveCounts.__dataclass_fields__}


@pytest.mark.processes
def test_a_stream_that_never_comes_up_is_one_line(
    colour_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"rtsp://me:secret@127.0.0.1:{port}/1"
    assert predict_tool.run(["predict.py", f"--run_dir={colour_run}", f"--live={address}"]) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors == (
        f"predict.py: rtsp://***@127.0.0.1:{port}/1 cannot be read (Connection refused). Check the address, "
        "and that the camera or server is running.\n"
    )


def _serve_colours(listener: socket.socket, colours: list[tuple[int, int, int]], fps: int) -> None:
    """Sends a colour every second as MPEG-TS over TCP, in real time."""
    connection, _ = listener.accept()
    file = io.BytesIO()
    with (
        contextlib.suppress(ConnectionError),
        connection,
        av.open(file, "w", format="mpegts") as container,
    ):
        stream: Any = container.add_stream("mpeg2video", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 1
        start = time.monotonic()
        for number in range(fps * len(colours)):
            image = np.full((48, 64, 3), colours[number // fps], np.uint8)
            picture = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(picture))
            connection.sendall(file.getvalue())
            file.seek(0)
            file.truncate()
            time.sleep(max(0, start + number / fps - time.monotonic()))


@pytest.mark.processes
def test_a_stream_over_the_network(colour_run: str) -> None:
    """Four seconds of red, then blue; Ctrl-C comes while blue is shown."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        colours = [RED] * 4 + [BLUE] * 60
        threading.Thread(target=_serve_colours, args=(listener, colours, 25), daemon=True).start()
        command = [
            sys.executable, str(ROOT / "tools" / "predict.py"), f"--run_dir={colour_run}", "--json",
            "--window_sec=1", "--hop_sec=0.5", f"--live=tcp://127.0.0.1:{listener.getsockname()[1]}",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        output, errors = process.communicate(timeout=20)
        assert time.monotonic() - start < 2
    assert (first["status"], second["event"]) == ("connected", "red")
    assert 1 < second["end_sec"] < 5
    last, stopped = map(json.loads, output.splitlines())
    assert last["event"] == "blue"
    assert last["start_sec"] == pytest.approx(second["end_sec"], abs=1.1)
    delay_sec = datetime.now().timestamp() - datetime.fromisoformat(last["end"]).timestamp()
    assert delay_sec < 5
    assert stopped["windows"] >= 6
    assert stopped["frames"] > 100
    assert (process.returncode, errors) == (130, "predict.py: interrupted\n")
