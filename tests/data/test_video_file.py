"""Finding and decoding frames: the fast way gives what decoding everything gives, and damage is found."""

import itertools
import socket
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from synthetic import brightness_frames, frame_indices_of, write_brightness_video, write_coded_video
from vidpipe.config import ClipConfig
from vidpipe.data import forward_decoder, video, video_file
from vidpipe.data.packets import Damage, Loss, Packets
from vidpipe.data.skip_reason import SkipReason
from vidpipe.data.video_file import VideoFile, open_video

_NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
# Half as strong noise over moving brightness: frames differ, and still depend on each other.
_FRAMES = (_NOISE // 2 + (3 * np.arange(40, dtype=np.uint8))[:, None, None, None]).astype(np.uint8)
_ALL = ClipConfig(num_frames=1000, image_size=32)


def _decoded(file: VideoFile) -> list[np.ndarray]:
    """Decodes everything, in order."""
    frames = list(file.decode_in_order(Damage(file.packets, file.loss)))
    assert [frame.index for frame in frames] == list(range(len(frames)))
    return [frame.picture.to_ndarray() for frame in frames]


_CODINGS = st.sampled_from(
    [
        ("libx264", "mp4", {}), ("libx264", "mkv", {}), ("libx264", "mov", {}), ("libx264", "avi", {}),
        ("libx264", "ts", {}), ("libx264", "h264", {}), ("libx264", "flv", {}),
        ("libx265", "mp4", {"x265-params": "log-level=none"}),
        ("libx265", "mkv", {"x265-params": "log-level=none"}),
        ("mpeg4", "avi", {}), ("mpeg4", "mp4", {}), ("mpeg4", "mkv", {}), ("mpeg2video", "mpg", {}),
        ("mpeg2video", "ts", {}), ("mpeg2video", "mkv", {}), ("libvpx", "webm", {}),
        ("libvpx-vp9", "webm", {}), ("libsvtav1", "mkv", {}), ("mjpeg", "avi", {}), ("wmv2", "wmv", {}),
    ]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    coding=_CODINGS,
    num_frames=st.integers(1, 40),
    gop=st.integers(1, 15),
    b_frames=st.integers(0, 3),
    is_open=st.booleans(),
    steps=st.lists(st.integers(1, 3), min_size=40, max_size=40),
    kept=st.booleans(),
    data=st.data(),
)
def test_wanted_frames_equal_those_of_a_full_decode(
    tmp_path: Path,
    coding: tuple[str, str, dict[str, str]],
    num_frames: int,
    gop: int,
    b_frames: int,
    is_open: bool,
    steps: list[int],
    kept: bool,
    data: st.DataObject,
) -> None:
    codec, suffix, options = coding
    options = options | {"g": str(gop)}
    if codec in ("libx264", "libx265", "mpeg4", "mpeg2video"):
        options |= {"bf": str(b_frames)}
        if is_open:
            key = "x264-params" if codec == "libx264" else "x265-params"
            extra = {key: f"{options[key]}:open-gop=1" if key in options else "open-gop=1"}
            options |= extra if codec.startswith("libx26") else {}
        else:
            options |= {} if codec.startswith("libx26") else {"flags": "+cgop"}
    path = tmp_path / f"a.{suffix}"
    timestamps = np.cumsum(steps)[:num_frames].tolist()
    if suffix in ("avi", "mpg", "h264"):  # constant rates only
        timestamps = list(range(num_frames))
    try:
        write_coded_video(path, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p", _FRAMES[:num_frames],
                          timestamps, options)  # fmt: skip
    except av.error.FFmpegError:
        return  # FFmpeg has no such combination
    with av.open(str(path)) as container:
        num_encoded = len(list(container.decode(video=0)))
    assume(num_encoded == num_frames)  # FFmpeg's encoder of MPEG-4 may leave one out
    with pytest.MonkeyPatch.context() as patch:
        if not kept:
            patch.setattr("vidpipe.data.video_file._MAX_KEPT_BYTES", 0)
        with open_video(str(path)) as file:
            complete = _decoded(file)
        with open_video(str(path)) as file:
            assert file.num_frames == len(complete) == num_encoded
            assert file.loss.num_missing == 0
            if file.order is not None:
                sets = st.sets(st.integers(0, len(complete) - 1), min_size=1)
                for numbers in data.draw(st.lists(sets, min_size=1, max_size=4)):
                    wanted = np.array(sorted(numbers))
                    frames = list(file.decode(wanted, stay=data.draw(st.booleans())))
                    assert [frame.index for frame in frames] == wanted.tolist()
                    for frame in frames:
                        assert (frame.picture.to_ndarray() == complete[frame.index]).all()
                times, known = file.frame_times(file.order)
                steps_taken = np.diff(timestamps) / 25
                np.testing.assert_allclose(np.diff(times), steps_taken, atol=0.0011)  # MKV: milliseconds
                assert known


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The numbers of the packets that are decoded; None where the decoder is emptied."""
    numbers: list[int | None] = []
    decode = forward_decoder.decode_packet

    def recorded(decoder: Any, packet: av.Packet | None, number: int = 0) -> list[av.VideoFrame]:
        numbers.append(None if packet is None else number)
        return decode(decoder, packet, number)

    monkeypatch.setattr(forward_decoder, "decode_packet", recorded)
    return numbers


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("kept", [True, False])
def test_only_groups_of_pictures_with_a_wanted_frame_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fed: list[int | None], suffix: str, kept: bool
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_coded_video(path, "libx264", "yuv420p", _FRAMES, options={"g": "5", "bf": "0", "sc_threshold": "0"})
    if not kept:
        monkeypatch.setattr("vidpipe.data.video_file._MAX_KEPT_BYTES", 0)
    with open_video(str(path)) as file:
        assert [frame.index for frame in file.decode(np.array([11, 32]))] == [11, 32]
    assert fed == [10, 11, None, 30, 31, 32, None]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_seek_goes_to_the_nearest_keyframe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fed: list[int | None], suffix: str
) -> None:
    """With B-frames a keyframe is decoded before the time at which it is shown."""
    path = tmp_path / f"a.{suffix}"
    options = {"g": "10", "bf": "2", "b_strategy": "0", "sc_threshold": "0"}
    write_coded_video(path, "libx264", "yuv420p", _FRAMES, options=options)
    monkeypatch.setattr("vidpipe.data.video_file._MAX_KEPT_BYTES", 0)
    with open_video(str(path)) as file:
        for keyframe in (30, 20, 10, 0):
            fed.clear()
            assert [frame.index for frame in file.decode(np.array([keyframe]))] == [keyframe]
            assert fed == [keyframe, None]


def test_a_seek_that_goes_too_far_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second frame is a keyframe, and B-frames are between them."""
    path = tmp_path / "a.mp4"
    steps = np.ones(16, int)
    steps[13] = 2
    options = {"g": "2", "bf": "1", "x265-params": "log-level=none"}
    write_coded_video(path, "libx265", "yuv420p", _FRAMES[:16], np.cumsum(steps).tolist(), options)
    monkeypatch.setattr("vidpipe.data.video_file._MAX_KEPT_BYTES", 0)
    with open_video(str(path)) as file:
        for index in range(16):
            assert [frame.index for frame in file.decode(np.array([index]))] == [index]


@pytest.mark.parametrize("kept", [True, False])
def test_a_next_call_goes_on_where_the_decoder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fed: list[int | None], kept: bool
) -> None:
    path = tmp_path / "a.mp4"
    options = {"g": "10", "bf": "0", "sc_threshold": "0"}
    write_coded_video(path, "libx264", "yuv420p", _FRAMES, options=options)
    if not kept:
        monkeypatch.setattr("vidpipe.data.video_file._MAX_KEPT_BYTES", 0)
    with open_video(str(path)) as file:

        def decode(*indices: int, stay: bool = True) -> list[int | None]:
            fed.clear()
            assert [frame.index for frame in file.decode(np.array(indices), stay=stay)] == list(indices)
            return fed

        assert decode(1, 3) == [0, 1, 2, 3]
        assert decode(4) == [4]
        assert decode(6, 8) == [5, 6, 7, 8]
        assert decode(8, 9) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # 8 has been returned
        assert decode(22) == [20, 21, 22]  # another keyframe
        assert decode(23, stay=False) == [23, None]
        assert decode(24) == [20, 21, 22, 23, 24]  # an empty decoder cannot go on
        if kept:
            list(file.decode_in_order(Damage(file.packets, file.loss)))
            assert decode(25) == [20, 21, 22, 23, 24, 25]


def test_frames_that_the_decoder_holds_back_are_not_decoded_again(
    tmp_path: Path, fed: list[int | None]
) -> None:
    """With two B-frames between others, frame 3 is stored before 1 and 2, and comes out after them."""
    path = tmp_path / "a.mp4"
    options = {"g": "50", "bf": "2", "b_strategy": "0", "b-pyramid": "none", "sc_threshold": "0"}
    write_coded_video(path, "libx264", "yuv420p", _FRAMES, options=options)
    with open_video(str(path)) as file:

        def decode(index: int) -> None:
            assert [frame.index for frame in file.decode(np.array([index]), stay=True)] == [index]

        for index in range(40):
            decode(index)
        assert fed == [*range(40), None]  # at the end the decoder gives what it holds
        fed.clear()
        decode(8)
        decode(7)  # it was left out on the way to frame 8
        assert fed[0] == 0
        assert fed.count(0) == 2


def test_a_frame_that_is_not_where_its_packet_says_makes_decoding_in_order_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packet 10 is taken for a keyframe, and is none."""
    path = str(tmp_path / "a.mp4")
    options = {"g": "20", "bf": "0", "sc_threshold": "0"}
    write_coded_video(Path(path), "libx264", "yuv420p", _FRAMES[:20], options=options)
    expected = video.read_clip(path, _ALL)
    read_packets = VideoFile._read_packets

    def mistaken(file: VideoFile) -> tuple[Packets, np.ndarray | None, Loss]:
        packets, order, loss = read_packets(file)
        packets.is_keyframe[10] = True
        return packets, order, loss

    monkeypatch.setattr(VideoFile, "_read_packets", mistaken)
    clip = video.read_clip(path, ClipConfig(num_frames=1, image_size=32, sampling="uniform"))
    assert clip.frame_indices.tolist() == [10]
    assert (clip.frames[0] == expected.frames[10]).all()
    windows = list(video.read_windows(path, ClipConfig(num_frames=5, image_size=32), 0.2, 0.2))
    assert (np.concatenate([window.frames for window in windows]) == expected.frames).all()


def _write_streams(
    path: Path, *videos: tuple[str, int, int], sound_sec: tuple[float, float] | None = None
) -> None:
    """Writes video streams of one second each, and silence.

    Args:
      path: the suffix chooses the container.
      videos: disposition, width in pixels and brightness; with `attached_pic`, one picture.
      sound_sec: begin and end of the silence; None for a file without sound.
    """
    with av.open(str(path), "w") as container:
        streams = []
        for disposition, width, _ in videos:
            is_picture = disposition == "attached_pic"
            stream = container.add_stream("mjpeg" if is_picture else "libx264", rate=25)
            stream.width, stream.height = width, 32
            stream.pix_fmt = "yuvj420p" if is_picture else "yuv420p"
            stream.disposition = av.stream.Disposition[disposition] if disposition else 0
            streams.append(stream)
        sound = None if sound_sec is None else container.add_stream("aac", rate=8000)
        for stream, (disposition, width, brightness) in zip(streams, videos, strict=True):
            image = np.full((32, width, 3), brightness, np.uint8)
            for number in range(1 if disposition == "attached_pic" else 25):
                picture = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=stream.pix_fmt)
                picture.pts, picture.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        if sound is not None and sound_sec is not None:
            for number in range(*(round(8 * seconds) for seconds in sound_sec)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts, silence.time_base = 8000, 1000 * number, Fraction(1, 8000)
                container.mux(sound.encode(silence))
            container.mux(sound.encode())


@pytest.mark.parametrize(
    ("videos", "brightness"),
    [
        pytest.param([("attached_pic", 300, 200), ("default", 64, 50)], 50, id="cover art first"),
        pytest.param([("default", 64, 50), ("attached_pic", 300, 200)], 50, id="cover art last"),
        pytest.param([("", 64, 200), ("default", 32, 50)], 50, id="the default one is small"),
        pytest.param([("default", 32, 200), ("default", 64, 50)], 50, id="the largest of two defaults"),
        pytest.param([("default", 64, 50), ("default", 64, 200)], 50, id="the first of two equal ones"),
    ],
)
def test_the_video_stream(tmp_path: Path, videos: list[tuple[str, int, int]], brightness: int) -> None:
    _write_streams(tmp_path / "a.mp4", *videos)
    clip = video.read_clip(str(tmp_path / "a.mp4"), _ALL)
    assert clip.info.frames_shown == 25
    assert abs(clip.frames.mean() - brightness) < 3


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize("sound_sec", [(0, 5), (0, 0.5), (2, 3), (3, 30)], ids=str)
def test_sound_changes_nothing(tmp_path: Path, suffix: str, sound_sec: tuple[float, float]) -> None:
    path = str(tmp_path / f"a.{suffix}")
    _write_streams(Path(path), ("default", 64, 50), sound_sec=sound_sec)
    clip = video.read_clip(path, ClipConfig(num_frames=5, image_size=32))
    assert clip.frame_indices.tolist() == [2, 7, 12, 17, 22]
    assert (clip.info.frames_shown, clip.info.frames_damaged) == (25, 0)
    ends = [window.end_sec for window in video.read_windows(path, ClipConfig(image_size=32), 0.4, 0.4)]
    np.testing.assert_allclose(ends, [0.4, 0.8, 1.0], atol=0.002)


def test_audio_with_cover_art_is_named(tmp_path: Path) -> None:
    _write_streams(tmp_path / "a.mp4", ("attached_pic", 64, 50), sound_sec=(0, 1))
    with pytest.raises(video.VideoReadError, match=r"no video stream \(audio with cover art\)") as raised:
        video.read_clip(str(tmp_path / "a.mp4"), _ALL)
    assert raised.value.failure.reason == SkipReason.NO_FRAMES


def test_a_missing_decoder_is_named(tmp_path: Path) -> None:
    """The codec of the file is renamed to one that FFmpeg knows and cannot decode."""
    path = tmp_path / "a.mkv"
    write_coded_video(path, "ffv1", "yuv420p", brightness_frames(3))
    data = path.read_bytes()
    assert data.count(b"V_FFV1") == 1
    path.write_bytes(data.replace(b"V_FFV1", b"V_AVS3"))
    with pytest.raises(video.VideoReadError, match="AVS3: decoder missing") as raised:
        video.read_clip(str(path), _ALL)
    assert raised.value.failure.reason == SkipReason.NO_DECODER


def _retimed(path: Path, target: Path, times: Iterator[int]) -> None:
    """Copies the packets of a video with other times, in 1/25 s."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = next(times)
                packet.time_base, packet.stream = Fraction(1, 25), stream
                container.mux(packet)


@pytest.mark.parametrize(
    ("suffix", "start"), [("mkv", 250), ("ts", 250), ("mov", 250), ("mkv", -5), ("ts", -5)], ids=str
)
def test_when_a_video_starts_changes_nothing(tmp_path: Path, suffix: str, start: int) -> None:
    write_coded_video(tmp_path / "a.mkv", "mpeg2video", "yuv420p", brightness_frames(12), options={"bf": "0"})
    path = tmp_path / f"b.{suffix}"
    _retimed(tmp_path / "a.mkv", path, itertools.count(start))
    for sampling in ("uniform", "head"):
        clip = video.read_clip(str(path), ClipConfig(num_frames=12, sampling=sampling, image_size=32))
        assert frame_indices_of(clip.frames) == list(range(12))
    (window,) = video.read_windows(str(path), ClipConfig(num_frames=12, image_size=32), 1, 1)
    assert frame_indices_of(window.frames) == list(range(12))
    assert (window.start_sec, window.end_sec) == (0, pytest.approx(0.48, abs=0.002))


@pytest.mark.parametrize("second_start", [0, 25 * 3600], ids=["back", "an hour later"])
def test_joined_recordings_are_one_video(tmp_path: Path, second_start: int) -> None:
    write_coded_video(tmp_path / "a.mkv", "mpeg2video", "yuv420p", brightness_frames(12), options={"bf": "0"})
    _retimed(tmp_path / "a.mkv", tmp_path / "a.ts", itertools.count())
    _retimed(tmp_path / "a.mkv", tmp_path / "b.ts", itertools.count(second_start))
    joined = tmp_path / "c.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    expected = [*range(12), *range(12)]
    clip = video.read_clip(str(joined), ClipConfig(num_frames=24, image_size=32))
    assert (frame_indices_of(clip.frames), clip.info.frames_damaged) == (expected, 0)
    (window,) = video.read_windows(str(joined), ClipConfig(num_frames=24, image_size=32), 1, 1)
    assert (frame_indices_of(window.frames), window.end_sec) == (expected, pytest.approx(0.96, abs=0.002))


def test_hidden_frames_of_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    """The edit list starts the video at its ninth frame, in the middle of a group of pictures."""
    path = tmp_path / "a.mp4"
    write_coded_video(path, "libx264", "yuv420p", brightness_frames(20), options={"g": "5", "bf": "0"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12
    media_time = int.from_bytes(data[entry + 4 : entry + 8], "big")
    with av.open(str(path)) as container:
        step = round(Fraction(1, 25) / container.streams.video[0].time_base)
    data[entry + 4 : entry + 8] = (media_time + 8 * step).to_bytes(4, "big")
    path.write_bytes(data)
    with open_video(str(path)) as file:
        assert (file.num_frames, file.order is None) == (12, False)
    for clip, expected in (
        (_ALL, list(range(8, 20))),
        (ClipConfig(num_frames=3, image_size=32), [10, 14, 18]),
        (ClipConfig(num_frames=2, image_size=32, sampling="head"), [8, 9]),
    ):
        assert frame_indices_of(video.read_clip(str(path), clip).frames) == expected


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("avi", "mpeg4"), ("mp4", "libx264"), ("mov", "mpeg4"), ("mkv", "libx264"), ("ts", "libx264"),
        ("mp4", "libx265"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lost", [8, 9, 10])
def test_after_a_lost_packet_no_frame_is_wrong(tmp_path: Path, suffix: str, codec: str, lost: int) -> None:
    """A packet is zeros: a keyframe (8) or one after it. Frames that may refer to it are left out."""
    path = tmp_path / f"a.{suffix}"
    options = {"g": "4", "bf": "0", "sc_threshold": "1000000000" if codec.startswith("mpeg") else "0"}
    options |= {"x265-params": "log-level=none:keyint=4:scenecut=0:bframes=0"} if codec == "libx265" else {}
    write_coded_video(path, codec, "yuv420p", _FRAMES, options=options)
    with open_video(str(path)) as file:
        complete = _decoded(file)
        start, stop = file.packets.position[[lost, lost + 1]].tolist()
    data = bytearray(path.read_bytes())
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    with open_video(str(path)) as file:
        damage = Damage(file.packets, file.loss)
        found = [(frame.is_damaged, frame.picture.to_ndarray()) for frame in file.decode_in_order(damage)]
    assert damage.num_missing + damage.num_damaged >= 1
    for is_damaged, picture in found:
        assert is_damaged or any((picture == whole).all() for whole in complete)
    try:
        clip = video.read_clip(str(path), _ALL)
    except video.VideoReadError as error:
        assert error.failure.reason == SkipReason.DAMAGED
        assert damage.num_missing + damage.num_damaged > 4
    else:
        assert clip.info.frames_damaged == damage.num_missing + damage.num_damaged
        assert len(clip.frames) == sum(not is_damaged for is_damaged, _ in found)


@pytest.mark.parametrize("sampling", ["uniform", "head"])
def test_a_frame_that_the_decoder_marks_is_left_out(tmp_path: Path, sampling: str) -> None:
    """Half of a packet is zeros: the decoder conceals what is missing, and marks the frame."""
    path = tmp_path / "a.mp4"
    options = {"g": "4", "bf": "0", "sc_threshold": "1000000000"}
    write_coded_video(path, "mpeg4", "yuv420p", _FRAMES, options=options)
    with open_video(str(path)) as file:
        start, stop = file.packets.position[[9, 10]].tolist()
    data = bytearray(path.read_bytes())
    data[(start + stop) // 2 : stop] = bytes(stop - (start + stop) // 2)
    path.write_bytes(data)
    clip = video.read_clip(str(path), ClipConfig(num_frames=40, sampling=sampling, image_size=32))
    # Packet 9 and those that may refer to it, up to the keyframe in packet 12.
    assert clip.frame_indices.tolist() == [*range(9), *range(12, 40)]
    assert (clip.info.frames_shown, clip.info.frames_damaged) == (40, 3)


def test_a_decoder_that_fails_at_the_end_loses_the_frames_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coded_video(tmp_path / "a.ts", "mpeg2video", "yuv420p", brightness_frames(12), options={"bf": "0"})
    decode = forward_decoder.decode_packet

    def failing(decoder: Any, packet: av.Packet | None, number: int = 0) -> list[av.VideoFrame]:
        if packet is None:
            raise forward_decoder.ContradictionError
        return decode(decoder, packet, number)

    monkeypatch.setattr(forward_decoder, "decode_packet", failing)
    clip = video.read_clip(str(tmp_path / "a.ts"), _ALL)
    assert frame_indices_of(clip.frames) == list(range(11))
    assert clip.info.frames_damaged == 1


def test_a_recording_that_starts_inside_a_group_of_pictures_starts_at_its_first_keyframe(
    tmp_path: Path,
) -> None:
    write_coded_video(
        tmp_path / "a.mkv", "libx264", "yuv420p", brightness_frames(20), options={"g": "8", "bf": "0"}
    )
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "b.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 3:
                packet.stream = stream
                target.mux(packet)
    path = str(tmp_path / "b.ts")
    with open_video(path) as file:
        assert file.num_frames == 17
    for clip, expected in (
        (_ALL, list(range(8, 20))),
        (ClipConfig(num_frames=3, image_size=32), [10, 14, 18]),
        (ClipConfig(num_frames=2, image_size=32, sampling="head"), [8, 9]),
    ):
        read = video.read_clip(path, clip)
        assert frame_indices_of(read.frames) == expected
        assert read.info.frames_damaged == 0


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mkv", "libx264"), ("avi", "mpeg4"), ("flv", "libx264"), ("mp4", "libx264")]
)
@pytest.mark.parametrize("sampling", ["uniform", "head"])
def test_one_limit_for_a_cut_end(tmp_path: Path, suffix: str, codec: str, sampling: str) -> None:
    """Up to a tenth may be missing, in every container that tells how much there was."""
    path = tmp_path / f"a.{suffix}"
    container_options = {"movflags": "faststart"} if suffix == "mp4" else {}
    write_coded_video(
        path,
        codec,
        "yuv420p",
        np.concatenate([_FRAMES] * 3),
        options={"g": "1"},
        container_options=container_options,
    )
    content = path.read_bytes()
    clip = ClipConfig(num_frames=4, sampling=sampling, image_size=32)
    assert video.read_clip(str(path), clip).info.frames_damaged == 0
    path.write_bytes(content[: len(content) * 94 // 100])
    assert 1 <= video.read_clip(str(path), clip).info.frames_damaged <= 12
    path.write_bytes(content[: len(content) * 80 // 100])
    with pytest.raises(video.VideoReadError, match=r"ended after \d+ of 1[12]\d packets") as raised:
        video.read_clip(str(path), clip)
    assert raised.value.failure.reason == SkipReason.TRUNCATED


def test_packets_missing_in_the_middle_are_counted(tmp_path: Path) -> None:
    """The zeros hide one packet of the AVI file; what follows depends on it, up to the next keyframe."""
    path = tmp_path / "a.avi"
    options = {"g": "4", "bf": "0", "sc_threshold": "1000000000"}
    write_coded_video(path, "mpeg4", "yuv420p", _FRAMES, options=options)
    with open_video(str(path)) as file:
        start, stop = file.packets.position[[13, 14]].tolist()
    data = bytearray(path.read_bytes())
    data[start - 8 : stop - 8] = bytes(stop - start)
    path.write_bytes(data)
    clip = video.read_clip(str(path), _ALL)
    # Packet 13 is missing; of the 39 others, those after it (13 and 14 by now) are damaged.
    assert clip.info.frames_damaged == 3
    assert clip.frame_indices.tolist() == [*range(13), *range(15, 39)]


@pytest.mark.parametrize("packed", [False, True])
def test_frames_that_are_not_coded_are_no_damage(tmp_path: Path, packed: bool) -> None:
    """AVI files with packed B-frames have packets without a frame: 7 bytes that say "not coded"."""
    path = tmp_path / "a.avi"
    write_coded_video(path, "mpeg4", "yuv420p", _FRAMES[:12], options={"g": "12", "bf": "0"})
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        payloads = [bytes(packet) for packet in source.demux(stream) if packet.size]
        with av.open(str(tmp_path / "b.avi"), "w") as target:
            copy = target.add_stream_from_template(stream)
            # A VOP header with the bit vop_coded = 0 (ISO/IEC 14496-2, 6.2.5).
            not_coded = bytes.fromhex("000001b6 50 40 7f".replace(" ", ""))
            for number, payload in enumerate([*payloads[:6], not_coded, *payloads[6:]]):
                packet = av.Packet(payload)
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = Fraction(1, 25), copy
                target.mux(packet)
    clip = video.read_clip(str(tmp_path / "b.avi"), _ALL)
    assert len(clip.frames) == clip.info.frames_shown
    assert clip.info.frames_damaged == 0


_PLAYLISTS = {
    "HLS.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nvideo.avi\n#EXT-X-ENDLIST\n",
    "concat.ffconcat": "ffconcat version 1.0\nfile video.avi\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
    "DASH.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
}


@pytest.mark.parametrize("name", _PLAYLISTS)
@pytest.mark.parametrize("suffix", [None, ".mp4"], ids=["own suffix", "as MP4"])
def test_files_that_name_other_files_are_refused(tmp_path: Path, name: str, suffix: str | None) -> None:
    write_brightness_video(tmp_path / "video.avi", 3)
    path = tmp_path / name
    path = path.with_suffix(suffix) if suffix else path
    path.write_text(_PLAYLISTS[name])
    with pytest.raises(video.VideoReadError, match="does not open as a video") as raised:
        video.read_clip(str(path), _ALL)
    assert raised.value.failure.reason == SkipReason.CANNOT_OPEN


def test_no_address_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a playlist were an allowed format."""
    monkeypatch.setitem(video_file._OPTIONS, "format_whitelist", "hls")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        segment = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path = tmp_path / "a.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n")
        with pytest.raises(video.VideoReadError):
            video.read_clip(str(path), _ALL)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_file_that_grows_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 5)
    with (
        pytest.raises(video.VideoReadError, match="was changed while it was read") as raised,
        open_video(str(path)),
        path.open("ab") as file,
    ):
        file.write(bytes(8))
    assert raised.value.failure.reason == SkipReason.CHANGED
    assert raised.value.failure.reason.is_transient


def test_metadata_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 5)
    data = path.read_bytes()
    assert data.count(b"Lavf") >= 1
    path.write_bytes(data.replace(b"Lavf", b"\xe9\xe8\xff\xfe", 1))
    assert len(video.read_clip(str(path), _ALL).frames) == 5
