"""Decoding, checked by brightness: frame i of a synthetic video has brightness 20 + 10 * i."""

import os
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from synthetic import (
    brightness_frames,
    frame_indices_of,
    position_frames,
    write_brightness_video,
    write_coded_video,
)
from vidpipe.config import ClipConfig
from vidpipe.data import video
from vidpipe.data.skip_reason import Failure, SkipReason


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("uniform", [2, 7, 12, 17]), ("interval", [0, 5, 10, 15]), ("head", [0, 1, 2, 3])],
)
def test_the_frames_at_the_sampled_indices_are_read(
    tmp_path: Path, suffix: str, sampling: str, expected: list[int]
) -> None:
    path = write_brightness_video(tmp_path / f"a{suffix}", 20)
    clip = video.read_clip(str(path), ClipConfig(num_frames=4, sampling=sampling, image_size=32))
    assert clip.frame_indices.tolist() == expected
    assert frame_indices_of(clip.frames) == expected
    assert clip.frames.shape == (4, 32, 32, 3)
    assert clip.frames.dtype == np.uint8
    info = clip.info
    assert (info.frames_shown, info.frames_damaged, info.height, info.width) == (20, 0, 48, 64)


def test_a_short_video_gives_all_its_frames(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 3)
    assert frame_indices_of(video.read_clip(str(path), ClipConfig(num_frames=8)).frames) == [0, 1, 2]


def test_colours_are_rgb_and_the_centre_square_is_cropped(tmp_path: Path) -> None:
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:, :24] = frame[:, 72:] = [0, 0, 255]
    frame[:, 24:72] = [255, 0, 0]
    video.write_video(str(tmp_path / "a.avi"), [frame] * 3, fourcc="MJPG")
    clip = video.read_clip(str(tmp_path / "a.avi"), ClipConfig(num_frames=1, image_size=48))
    red, green, blue = clip.frames[0, 8:40, 8:40].reshape(-1, 3).mean(axis=0)
    assert red > 245
    assert green < 10
    assert blue < 10


@pytest.mark.parametrize(
    ("height", "width", "image_size", "expected"),
    [
        pytest.param(48, 64, 32, (32, 43), id="landscape"),
        pytest.param(64, 48, 32, (43, 32), id="portrait"),
        pytest.param(48, 64, 20, (20, 27), id="below half the size"),
        pytest.param(48, 64, 60, (60, 80), id="enlarged"),
        pytest.param(48, 64, 48, (48, 64), id="unchanged"),
    ],
)
def test_short_side_keeps_the_whole_frame_and_its_aspect_ratio(
    tmp_path: Path, height: int, width: int, image_size: int, expected: tuple[int, int]
) -> None:
    path = str(tmp_path / "a.avi")
    video.write_video(path, position_frames(3, height, width), fourcc="MJPG")
    settings = ClipConfig(num_frames=3, image_size=image_size, resize="short_side")
    clip = video.read_clip(path, settings)
    assert clip.frames.shape == (3, *expected, 3)
    assert (clip.info.height, clip.info.width) == (height, width)
    assert np.abs(clip.frames.astype(int) - position_frames(3, *expected)).mean() < 4
    encoded = video.read_encoded_clip(path, settings, "raw", 95)
    assert (encoded.height, encoded.width) == expected
    assert encoded.encoded_frames == [frame.tobytes() for frame in clip.frames]


def _claim(path: Path, num_frames: int) -> None:
    """Writes another frame count into both headers of an AVI file (avih.dwTotalFrames, strh.dwLength)."""
    data = bytearray(path.read_bytes())
    for marker, offset in ((b"avih", 8 + 16), (b"vids", 32)):
        start = data.index(marker) + offset
        data[start : start + 4] = num_frames.to_bytes(4, "little")
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("claimed", [0, 10, 21, 2**31 - 1])
def test_the_frame_count_in_the_header_is_not_believed(tmp_path: Path, claimed: int) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 20)
    _claim(path, claimed)
    clip = video.read_clip(str(path), ClipConfig(num_frames=4, image_size=32))
    assert (clip.info.frames_shown, clip.info.frames_damaged) == (20, 0)
    assert frame_indices_of(clip.frames) == [2, 7, 12, 17]


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    """Cut at each tenth but the last: the header still claims all 20 frames."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    video.write_video(str(tmp_path / "complete.avi"), frames, fourcc="MJPG")
    content = (tmp_path / "complete.avi").read_bytes()
    for tenth in range(9):
        path = tmp_path / f"{tenth}.avi"
        path.write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(video.VideoReadError, match="does not open|no frame|without frames|ended after"):
            video.read_clip(str(path), ClipConfig(num_frames=20))


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50], ids=["empty", "text"])
def test_a_file_that_is_no_video_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(video.VideoReadError, match="does not open as a video") as raised:
        video.read_clip(str(tmp_path / "a.mp4"), ClipConfig())
    assert raised.value.failure.reason == SkipReason.CANNOT_OPEN


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(video.VideoReadError, match="nowhere.avi: no such file") as raised:
        video.read_clip(str(tmp_path / "nowhere.avi"), ClipConfig())
    assert raised.value.failure.reason == SkipReason.NOT_FOUND


@pytest.mark.parametrize(
    "name", [os.fsdecode(b"caf\xe9.avi"), "-i.avi", "https:a:b.avi", "%05d.avi", "a b?*[x].avi"]
)
def test_any_file_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_brightness_video(tmp_path / "a.avi", 3).rename(name)
    assert frame_indices_of(video.read_clip(name, ClipConfig()).frames) == [0, 1, 2]


def test_the_suffix_of_a_file_does_not_matter(tmp_path: Path) -> None:
    write_brightness_video(tmp_path / "a.avi", 5)
    shutil.move(tmp_path / "a.avi", tmp_path / "a.mp4")
    clip = video.read_clip(str(tmp_path / "a.mp4"), ClipConfig(num_frames=5))
    assert frame_indices_of(clip.frames) == [0, 1, 2, 3, 4]


def test_an_image_is_no_video(tmp_path: Path) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"img_{index:02d}.png"), brightness_frames(1)[0])
    with pytest.raises(video.VideoReadError, match="this container format is not allowed"):
        video.read_clip(str(tmp_path / "img_00.png"), ClipConfig(num_frames=3))


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_lossless_encodings(encoding: str) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    encoded = video.encode_frame(frame, encoding)
    if encoding == "raw":
        decoded = np.frombuffer(encoded, np.uint8).reshape(frame.shape)
    else:
        bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        assert bgr is not None
        decoded = bgr[..., ::-1]
    assert (decoded == frame).all()


def test_an_error_keeps_its_reason_across_processes() -> None:
    error = video.VideoReadError("a.avi", SkipReason.NOT_FOUND, "no such file")
    received = pickle.loads(pickle.dumps(error))
    assert (received.path, received.failure) == ("a.avi", Failure(SkipReason.NOT_FOUND, "no such file"))
    assert str(received) == "a.avi: no such file"


def test_a_missing_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(video.VideoWriteError, match=re.escape("no encoder ZZZZ")):
        video.write_video(str(tmp_path / "a.avi"), brightness_frames(2), fourcc="ZZZZ")


# x265 writes to stderr directly, not to FFmpeg's log.
_X265 = {"x265-params": "log-level=none"}
# Three B-frames in a row, the middle one also a reference: most frames are not stored in display order.
_B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:b-pyramid=normal:keyint=10"}

_KINDS = [
    ("MPEG-4 part 2 in AVI", "a.avi", "mpeg4", "yuv420p", {}),
    ("H.264 in MP4", "a.mp4", "libx264", "yuv420p", {}),
    ("H.264 in MKV", "a.mkv", "libx264", "yuv420p", {}),
    ("H.264 in MPEG-TS", "a.ts", "libx264", "yuv420p", {}),
    ("H.264 without a container", "a.h264", "libx264", "yuv420p", {}),
    ("HEVC in MP4", "a.mp4", "libx265", "yuv420p", _X265),
    ("VP8 in WebM", "a.webm", "libvpx", "yuv420p", {}),
    ("VP9 in WebM", "a.webm", "libvpx-vp9", "yuv420p", {}),
    ("AV1 in MP4", "a.mp4", "libsvtav1", "yuv420p", {}),
    ("AV1 in MKV", "a.mkv", "libsvtav1", "yuv420p", {}),
    ("MJPEG in AVI", "a.avi", "mjpeg", "yuvj420p", {}),
    ("MPEG-1", "a.mpg", "mpeg1video", "yuv420p", {}),
    ("MPEG-2 in MPEG-TS", "a.ts", "mpeg2video", "yuv420p", {}),
    ("FFV1 in MKV", "a.mkv", "ffv1", "yuv420p", {}),
    ("WMV", "a.wmv", "wmv2", "yuv420p", {}),
    ("ProRes in MOV", "a.mov", "prores", "yuv422p10le", {}),
    ("GIF", "a.gif", "gif", "gray", {}),
    ("grayscale FFV1", "a.mkv", "ffv1", "gray", {}),
    ("grayscale H.264", "a.mp4", "libx264", "gray", {"color_range": "pc"}),
    ("full-range H.264", "a.mp4", "libx264", "yuvj420p", {}),
    ("10-bit H.264", "a.mp4", "libx264", "yuv420p10le", {}),
    ("10-bit HEVC", "a.mp4", "libx265", "yuv420p10le", _X265),
    ("4:4:4 H.264", "a.mp4", "libx264", "yuv444p", {}),
    ("VP9 with transparency", "a.webm", "libvpx-vp9", "yuva420p", {}),
    ("H.264 with B-frames in MP4", "a.mp4", "libx264", "yuv420p", _B_FRAMES),
    ("H.264 with B-frames in MKV", "a.mkv", "libx264", "yuv420p", _B_FRAMES),
    ("H.264 with B-frames in AVI", "a.avi", "libx264", "yuv420p", _B_FRAMES),
]


def _check_every_sampling(path: Path, num_frames: int, height: int = 48, width: int = 64) -> None:
    """Reads a brightness video of at least 12 frames: all frames first, then by each sampling rule."""
    complete = video.read_clip(str(path), ClipConfig(num_frames=num_frames, image_size=32))
    assert frame_indices_of(complete.frames) == list(range(num_frames))
    # Each frame has a single colour: no green line at an odd edge, no remains of an earlier frame.
    assert np.ptp(complete.frames, axis=(1, 2)).max() <= 20
    info = complete.info
    assert (info.frames_shown, info.height, info.width) == (num_frames, height, width)
    for clip, expected in (
        (ClipConfig(num_frames=3), [(2 * i + 1) * num_frames // 6 for i in range(3)]),
        (ClipConfig(num_frames=3, sampling="head"), [0, 1, 2]),
        (ClipConfig(num_frames=3, sampling="interval", frame_stride=5), [0, 5, 10]),
        (ClipConfig(num_frames=num_frames + 5, sampling="head"), list(range(num_frames))),
    ):
        read = video.read_clip(str(path), clip)
        assert read.frame_indices.tolist() == expected
        assert frame_indices_of(read.frames) == expected


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"), [pytest.param(*kind[1:], id=kind[0]) for kind in _KINDS]
)
def test_every_codec_and_container_gives_each_frame_once_in_order(
    tmp_path: Path, name: str, codec: str, pixel_format: str, options: dict[str, str]
) -> None:
    write_coded_video(tmp_path / name, codec, pixel_format, brightness_frames(12), options=options)
    _check_every_sampling(tmp_path / name, 12)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        pytest.param("a.avi", "mpeg4", "yuv420p", id="MPEG-4 part 2 in AVI"),
        pytest.param("a.mp4", "libx264", "yuv444p", id="4:4:4 H.264 in MP4"),
        pytest.param("a.webm", "libvpx", "yuv420p", id="VP8 in WebM"),
        pytest.param("a.webm", "libvpx-vp9", "yuv420p", id="VP9 in WebM"),
        pytest.param("a.avi", "mjpeg", "yuvj420p", id="MJPEG in AVI"),
        pytest.param("a.mpg", "mpeg1video", "yuv420p", id="MPEG-1"),
        pytest.param("a.mkv", "ffv1", "yuv420p", id="FFV1 in MKV"),
        pytest.param("a.gif", "gif", "gray", id="GIF"),
    ],
)
def test_odd_sizes(tmp_path: Path, name: str, codec: str, pixel_format: str) -> None:
    write_coded_video(tmp_path / name, codec, pixel_format, brightness_frames(12, 33, 47))
    _check_every_sampling(tmp_path / name, 12, 33, 47)
    uncropped = ClipConfig(num_frames=1, image_size=33, resize="short_side")
    assert video.read_clip(str(tmp_path / name), uncropped).frames.shape == (1, 33, 47, 3)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        pytest.param("a.avi", "mpeg4", "yuv420p", id="MPEG-4 part 2 in AVI"),
        pytest.param("a.mp4", "libx264", "yuv420p", id="H.264 in MP4"),
        pytest.param("a.mkv", "libx264", "yuv420p", id="H.264 in MKV"),
        pytest.param("a.webm", "libvpx-vp9", "yuv420p", id="VP9 in WebM"),
        pytest.param("a.mpg", "mpeg1video", "yuv420p", id="MPEG-1"),
        pytest.param("a.gif", "gif", "gray", id="GIF"),
    ],
)
@pytest.mark.parametrize("sampling", ["uniform", "interval", "head"])
def test_a_video_of_one_frame(
    tmp_path: Path, name: str, codec: str, pixel_format: str, sampling: str
) -> None:
    write_coded_video(tmp_path / name, codec, pixel_format, brightness_frames(4)[3:])
    clip = video.read_clip(str(tmp_path / name), ClipConfig(num_frames=4, sampling=sampling))
    assert frame_indices_of(clip.frames) == [3]
    assert clip.frame_indices.tolist() == [0]


# Timestamps of 20 frames at a variable rate, 1 to 3 frame intervals apart.
_UNEVEN = [0, 1, 4, 6, 7, 10, 11, 12, 15, 16, 18, 21, 23, 24, 27, 28, 29, 32, 34, 36]
_VARIABLE_RATE = pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        pytest.param("a.mp4", "libx264", "yuv420p", id="H.264 in MP4"),
        pytest.param("a.mkv", "libx264", "yuv420p", id="H.264 in MKV"),
        pytest.param("a.ts", "libx264", "yuv420p", id="H.264 in MPEG-TS"),
        pytest.param("a.avi", "mpeg4", "yuv420p", id="MPEG-4 part 2 in AVI"),
        pytest.param("a.webm", "libvpx", "yuv420p", id="VP8 in WebM"),
        pytest.param("a.webm", "libvpx-vp9", "yuv420p", id="VP9 in WebM"),
        pytest.param("a.wmv", "wmv2", "yuv420p", id="WMV"),
        pytest.param("a.gif", "gif", "gray", id="GIF"),
    ],
)


@_VARIABLE_RATE
def test_a_variable_rate_gives_each_frame_once(
    tmp_path: Path, name: str, codec: str, pixel_format: str
) -> None:
    """If the container does not count its frames, the header claims far too many here."""
    write_coded_video(tmp_path / name, codec, pixel_format, brightness_frames(20), _UNEVEN)
    _check_every_sampling(tmp_path / name, 20)


def test_a_long_pause_is_no_damage(tmp_path: Path) -> None:
    """A slide show: one frame is shown for three seconds."""
    write_coded_video(tmp_path / "a.mkv", "ffv1", "gray", brightness_frames(20), [*range(10), *range(85, 95)])
    clip = video.read_clip(str(tmp_path / "a.mkv"), ClipConfig(num_frames=20))
    assert frame_indices_of(clip.frames) == list(range(20))
    assert clip.info.frames_damaged == 0


@pytest.mark.parametrize("timestamps", [None, _UNEVEN], ids=["constant rate", "variable rate"])
def test_a_truncated_file_without_a_frame_count_is_rejected(
    tmp_path: Path, timestamps: list[int] | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    write_coded_video(tmp_path / "complete.mkv", "ffv1", "yuv420p", noise, timestamps)
    assert video.read_clip(str(tmp_path / "complete.mkv"), ClipConfig()).info.frames_shown == 20
    content = (tmp_path / "complete.mkv").read_bytes()
    for tenth in range(9):
        path = tmp_path / f"{tenth}.mkv"
        path.write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(video.VideoReadError, match="does not open|no frame|without frames|ended after"):
            video.read_clip(str(path), ClipConfig(num_frames=20))


@pytest.mark.parametrize(("resize", "expected"), [("crop", (32, 32)), ("short_side", (32, 43))])
def test_a_frame_size_that_changes_within_a_file_is_tolerated(
    tmp_path: Path, resize: str, expected: tuple[int, int]
) -> None:
    write_coded_video(tmp_path / "a.ts", "mpeg2video", "yuv420p", brightness_frames(12))
    write_coded_video(tmp_path / "b.ts", "mpeg2video", "yuv420p", brightness_frames(12, 96, 80))
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    for sampling in ("uniform", "head"):
        settings = ClipConfig(num_frames=24, sampling=sampling, image_size=32, resize=resize)
        clip = video.read_clip(str(tmp_path / "c.ts"), settings)
        assert clip.frames.shape[1:3] == expected
        # FFmpeg's decoder of MPEG-2 loses the last frame before the change; ffprobe counts 23, too.
        assert frame_indices_of(clip.frames) == [*range(11), *range(12)]
        assert (clip.info.height, clip.info.width) == (48, 64)
