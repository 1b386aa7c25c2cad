"""A stream is decoded in a separate process, in runs without gaps, and is connected again when it is cut."""

import contextlib
import io
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from synthetic import brightness_frames, frame_indices_of, position_frames
from vidpipe.config import ClipConfig, ConfigError
from vidpipe.data.live_stream import (
    _PROTOCOLS,
    MAX_GAP_SEC,
    LinkChange,
    LinkState,
    LiveFrame,
    LiveSource,
    LiveStreamError,
    StreamClock,
    _options,
    decode_stream,
    parse_source,
    read_stream,
    without_secrets,
)
from vidpipe.data.skip_reason import Failure, SkipReason, VideoReadError

CLIP = ClipConfig(num_frames=4, image_size=32)
SOURCE = LiveSource("http://nowhere/", "http", "http://nowhere/")


@pytest.mark.parametrize(
    ("address", "url", "scheme", "name"),
    [
        ("0", "/dev/video0", "", "/dev/video0"),
        ("rtsp://cam/1", "rtsp://cam/1", "rtsp", "rtsp://cam/1"),
        ("RTSP://me:pw@cam/1", "RTSP://me:pw@cam/1", "rtsp", "RTSP://***@cam/1"),
        ("https://a/b.m3u8?key=2", "https://a/b.m3u8?key=2", "https", "https://a/b.m3u8?***"),
    ],
)
def test_sources(address: str, url: str, scheme: str, name: str) -> None:
    assert parse_source(address) == LiveSource(url, scheme, name)


@pytest.mark.parametrize(
    "address", ["match.mp4", "/dev/video0", "-1", "file:///etc/passwd", "concat:a|b", "http://"]
)
def test_paths_and_other_protocols_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="For a video file use timeline"):
        parse_source(address)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://me:a@b/c@cam:554/1 is down", "rtsp://***@cam:554/1 is down"),
        ("'http://u@h/?token=1'; 'http://h/x'", "'http://***@h/?***'; 'http://h/x'"),
        ("why? it ended", "why? it ended"),
    ],
)
def test_secrets_are_masked(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_no_password_in_the_message_of_a_refused_address() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_source("ftp://me:secret@cam/1")
    assert "secret" not in str(caught.value)


def _place(frames: list[tuple[float, float]]) -> list[tuple[float, bool]]:
    """Places frames given as (timestamp, time of arrival)."""
    clock = StreamClock()
    return [(round(sec, 6), is_first) for sec, is_first in (clock.place(*frame) for frame in frames)]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param(
            [(50, 7), (50.1, 7.13), (50.2, 7.2)], [(7, True), (7.1, False), (7.2, False)], id="late frames"
        ),
        pytest.param(
            [(50, 7), (50.1, 7.01), (50.2, 7.02), (50.3, 7.12)],
            [(7, True), (7.01, False), (7.02, False), (7.12, False)],
            id="old frames come at once",
        ),
        pytest.param([(1, 7), (1.1, 8.5)], [(7, True), (7.1, False)], id="a short stall"),
        pytest.param(
            [(1, 7), (1.1, 9.2), (1.2, 9.3)], [(7, True), (9.2, True), (9.3, False)], id="a long stall"
        ),
        pytest.param([(1, 7), (3.1, 7.1)], [(7, True), (7.1, True)], id="a jump"),
        pytest.param([(9, 7), (1, 7.1), (1.1, 7.2)], [(7, True), (7.1, True), (7.2, False)], id="back"),
    ],
)
def test_time(frames: list[tuple[float, float]], expected: list[tuple[float, bool]]) -> None:
    assert _place(frames) == expected


def test_a_slow_clock_of_the_camera_does_not_delay_frames_for_ever() -> None:
    placed = _place([(0.999 * sec, sec) for sec in range(10000)])
    assert max(sec - placed_sec for sec, (placed_sec, _) in enumerate(placed)) <= MAX_GAP_SEC
    assert sum(is_first for _, is_first in placed) == 5


def test_how_much_a_frame_of_a_recording_comes_too_early() -> None:
    clock = StreamClock()
    assert clock.lead(50, 7) == 0
    clock.place(50, 7)
    assert clock.lead(50.5, 7.1) == pytest.approx(0.4)
    assert clock.lead(50.5, 7.6) == 0
    assert clock.lead(99, 7.1) == 0  # a jump is no reason to wait


def _mpegts(num_frames: int, frames: np.ndarray | None = None) -> list[bytes]:
    """Encodes 25 frames per second as MPEG-TS, one piece per frame.

    Args:
      num_frames: number of frames.
      frames: uint8 [20, 48, 64, 3], shown again and again; by default those of a brightness video.
    """
    frames = brightness_frames(20) if frames is None else frames
    file = io.BytesIO()
    pieces = []
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 1
        for number in range(num_frames):
            picture = av.VideoFrame.from_ndarray(frames[number % 20], "rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(picture))
            pieces.append(file.getvalue())
            file.seek(0)
            file.truncate()
        container.mux(stream.encode())
    return [*pieces, file.getvalue()]


@contextlib.contextmanager
def _server(*answers: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serves each connection by the next answer over TCP; further connections are refused."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answer in answers:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=10)


def _http(pieces: list[bytes], pause_sec: float = 0.0) -> Callable[[socket.socket], None]:
    """Answers a request of HTTP with the pieces, one after each pause."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\r\nConnection: close\r\nContent-Type: video/mp2t\r\n\r\n")
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_sec)

    return answer


def _decode_until_cut(url: str) -> list[LiveFrame]:
    """Decodes a stream; to FFmpeg the end of a connection is an error where the server gave no length."""
    frames: list[LiveFrame] = []
    with pytest.raises(VideoReadError, match="Input/output error"):
        frames.extend(decode_stream(parse_source(url), CLIP, 10))
    return frames


def test_frames_of_a_stream() -> None:
    with _server(_http(_mpegts(40))) as address:
        frames = _decode_until_cut(f"http://{address}/")
    assert len(frames) >= 39  # the last one may lack its end
    images = np.stack([frame.image for frame in frames])
    assert images.shape[1:] == (32, 32, 3)
    assert frame_indices_of(images) == [number % 20 for number in range(len(frames))]
    assert [frame.is_first for frame in frames] == [True] + [False] * (len(frames) - 1)
    assert np.diff([frame.sec for frame in frames]) == pytest.approx(0.04, abs=1e-4)


def test_colours() -> None:
    """Red grows from left to right."""
    frames = _mpegts(30, frames=np.repeat(position_frames(1), 20, axis=0))
    with _server(_http(frames)) as address:
        image = _decode_until_cut(f"http://{address}/")[0].image
    assert image[:, 28, 0].mean() - image[:, 4, 0].mean() > 100
    assert abs(image[:, 28, 2].mean() - image[:, 4, 2].mean()) < 20


@pytest.mark.parametrize("scheme", _PROTOCOLS)
def test_no_scheme_opens_files(scheme: str) -> None:
    protocols = set(_options(scheme, 10)["protocol_whitelist"].split(","))
    assert protocols <= {"rtsp", "rtp", "http", "https", "tls", "tcp", "udp", "crypto", "rtmp", "srt"}
    formats = set(_options(scheme, 10)["format_whitelist"].split(","))
    assert not formats & {"concat", "image2", "sdp", "lavfi", "ffmetadata", "dash"}


def test_a_stream_of_jpeg_files_has_the_times_of_arrival() -> None:
    """FFmpeg assumes 25 frames per second, but they come slower."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, "yuvj420p", Fraction(1, 25)
    parts = []
    for number, frame in enumerate(brightness_frames(8)):
        picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuvj420p")
        picture.pts = number
        (packet,) = encoder.encode(picture)
        head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {packet.size}\r\n\r\n"
        parts.append(head.encode() + bytes(packet) + b"\r\n")

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        head = "HTTP/1.0 200 OK\r\nConnection: close\r\nContent-Type: multipart/x-mixed-replace;boundary=b"
        connection.sendall(f"{head}\r\n\r\n".encode())
        for part in parts:
            connection.sendall(part)
            time.sleep(0.1)

    with _server(answer) as address:
        frames = _decode_until_cut(f"http://{address}/")
    steps = np.diff([frame.sec for frame in frames])
    assert len(steps) >= 5
    assert np.median(steps) == pytest.approx(0.1, abs=0.03)


def test_a_recording_is_read_at_its_own_speed() -> None:
    """A web server that says how long the file is; 15 frames at 25 per second last 0.56 s."""
    data = b"".join(_mpegts(15))

    def answer(connection: socket.socket) -> None:
        request = connection.recv(65536).decode()
        start = int(request.partition("Range: bytes=")[2].partition("-")[0] or 0)
        connection.sendall(
            b"HTTP/1.0 206 Partial Content\r\nAccept-Ranges: bytes\r\n"
            + f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}\r\n".encode()
            + f"Content-Length: {len(data) - start}\r\n\r\n".encode()
            + data[start:]
        )

    with _server(*[answer] * 9) as address:
        start = time.monotonic()
        frames = list(decode_stream(parse_source(f"http://{address}/a.ts"), CLIP, 10))
    assert time.monotonic() - start > 0.5
    assert np.diff([frame.clock_sec for frame in frames]) == pytest.approx(0.04, abs=0.02)


def test_a_playlist_opens_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(_mpegts(10)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{path}\n#EXT-X-ENDLIST\n".encode()

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        head = "HTTP/1.0 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n"
        connection.sendall(f"{head}Content-Length: {len(playlist)}\r\n\r\n".encode() + playlist)

    with _server(*[answer] * 5) as address, pytest.raises(VideoReadError):
        list(decode_stream(parse_source(f"http://{address}/a.m3u8"), CLIP, 2))


@pytest.mark.parametrize("scheme", ["http", "rtsp", "tcp", "rtmp"])
def test_ffmpeg_gives_up_waiting(scheme: str) -> None:
    ended = threading.Event()

    def wait(_: socket.socket) -> None:
        ended.wait(20)

    with _server(*[wait] * 3) as address:
        start = time.monotonic()
        with pytest.raises(VideoReadError) as caught:
            list(decode_stream(parse_source(f"{scheme}://me:secret@{address}/1"), CLIP, 0.5))
        assert time.monotonic() - start < 3
        ended.set()
    assert "secret" not in str(caught.value)


def test_a_missing_camera() -> None:
    with pytest.raises(VideoReadError, match="/dev/video99: No such file or directory"):
        list(decode_stream(parse_source("99"), CLIP, 1))


def _read(monkeypatch: pytest.MonkeyPatch, *attempts: list) -> tuple[Iterator, list[float]]:
    """Reads a stream whose decoding processes give these values; also returns the waits between them."""
    remaining = iter(attempts)
    monkeypatch.setattr("vidpipe.data.process_pool.stream", lambda *_, **__: iter(next(remaining)))
    waits: list[float] = []
    return read_stream(SOURCE, CLIP, timeout_sec=1, memory_mb=1024, sleep=waits.append), waits


FRAME = LiveFrame(1, 2, True, np.zeros((32, 32, 3), np.uint8))
CUT = Failure(SkipReason.TIMED_OUT, "timed out after 1 s")


def test_a_stream_is_connected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    items, waits = _read(monkeypatch, [FRAME, FRAME], [CUT], [FRAME, CUT], [])
    connected = LinkChange(LinkState.CONNECTED)
    assert list(itertools.islice(items, 11)) == [
        connected, FRAME, FRAME,
        LinkChange(LinkState.DISCONNECTED, "the stream ended"),
        LinkChange(LinkState.RECONNECTING, "the stream ended", 1),
        LinkChange(LinkState.RECONNECTING, "timed out after 1 s", 2),
        connected, FRAME,
        LinkChange(LinkState.DISCONNECTED, "timed out after 1 s"),
        LinkChange(LinkState.RECONNECTING, "timed out after 1 s", 1),
        LinkChange(LinkState.RECONNECTING, "the stream ended", 2),
    ]  # fmt: skip
    assert waits == [1, 2, 1]


def test_waits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    items, waits = _read(monkeypatch, [FRAME], *[[CUT]] * 9)
    list(itertools.islice(items, 12))
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(("attempt", "reason"), [([CUT], "timed out after 1 s"), ([], "the stream ended")])
def test_a_stream_that_never_comes_up(monkeypatch: pytest.MonkeyPatch, attempt: list, reason: str) -> None:
    items, waits = _read(monkeypatch, attempt)
    with pytest.raises(LiveStreamError, match=f"http://nowhere/ cannot be read \\({reason}\\)"):
        next(items)
    assert waits == []


def hanging_decoder(source: LiveSource, clip: ClipConfig, timeout_sec: float) -> Iterator[LiveFrame]:
    """Runs in a decoding process: gives a frame, and then none."""
    del source, clip, timeout_sec
    yield FRAME
    time.sleep(1000)


@pytest.mark.processes
def test_a_process_that_hangs_is_killed() -> None:
    items = read_stream(SOURCE, CLIP, timeout_sec=4, memory_mb=1024, decode=hanging_decoder)
    with contextlib.closing(items):
        _, frame, change = itertools.islice(items, 3)
        assert isinstance(frame, LiveFrame)
        assert change == LinkChange(LinkState.DISCONNECTED, "timed out after 4 s")


@pytest.mark.processes
def test_a_server_that_stalls_and_comes_back() -> None:
    """Two seconds, a stall of 2.5 s, a bit more; then the connection is closed, and there is a new one."""
    pieces = _mpegts(60)

    def stalling(connection: socket.socket) -> None:
        _http(pieces[:50], 0.04)(connection)
        time.sleep(MAX_GAP_SEC + 0.5)
        for piece in pieces[50:]:
            connection.sendall(piece)
            time.sleep(0.04)

    items: list[LiveFrame | LinkChange] = []
    with _server(stalling, _http(pieces, 0.04)) as address:
        stream = read_stream(parse_source(f"http://{address}/"), CLIP, timeout_sec=10, memory_mb=1024)
        with contextlib.closing(stream):
            for item in stream:
                items.append(item)
                if [getattr(each, "state", None) for each in items].count(LinkState.DISCONNECTED) == 2:
                    break
    states = [item.state for item in items if isinstance(item, LinkChange)]
    assert states == [
        LinkState.CONNECTED, LinkState.DISCONNECTED, LinkState.RECONNECTING, LinkState.CONNECTED,
        LinkState.DISCONNECTED,
    ]  # fmt: skip
    frames = [item for item in items if isinstance(item, LiveFrame)]
    clock_sec = [frame.clock_sec for frame in frames]
    assert clock_sec == sorted(clock_sec)
    starts = [index for index, frame in enumerate(frames) if frame.is_first]
    assert len(starts) == 3  # the start, after the stall, and the second connection
    gaps = [clock_sec[index] - clock_sec[index - 1] for index in starts[1:]]
    assert gaps[0] > MAX_GAP_SEC
    assert gaps[1] > 1
