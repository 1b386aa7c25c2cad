"""Pixels as they are meant to be seen: colours, ranges, bit depths, transparency, shape and orientation."""

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, ColorTrc

from synthetic import brightness_frames, write_coded_video
from vidpipe.config import ClipConfig
from vidpipe.data import pixels, video
from vidpipe.data.skip_reason import VideoReadError

# Luma coefficients of red and blue: ITU-R BT.601-7, BT.709-6, BT.2020-2.
_COEFFICIENTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
# AVColorSpace of FFmpeg.
_COLORSPACES = {"601": 6, "709": 1, "2020": 9}
_COLOURS = [(220, 30, 30), (0, 190, 0), (40, 60, 230), (128, 128, 128), (255, 255, 255), (0, 0, 0)]


def _yuv(colour: tuple[int, int, int], standard: str, *, full: bool, bits: int) -> list[int]:
    """Converts a colour by the standard's formulas."""
    red, green, blue = (value / 255 for value in colour)
    k_red, k_blue = _COEFFICIENTS[standard]
    luma = k_red * red + (1 - k_red - k_blue) * green + k_blue * blue
    chroma_blue, chroma_red = (blue - luma) / (2 - 2 * k_blue), (red - luma) / (2 - 2 * k_red)
    scale = 2 ** (bits - 8)
    if full:
        peak = 2**bits - 1
        return [
            round(value)
            for value in (peak * luma, peak * chroma_blue + 128 * scale, peak * chroma_red + 128 * scale)
        ]
    return [
        round(scale * value) for value in (16 + 219 * luma, 128 + 224 * chroma_blue, 128 + 224 * chroma_red)
    ]


def _write_planes(
    path: Path, codec: str, pixel_format: str, colour_planes: list[list[int]], **colours: int
) -> None:
    """Writes a frame per colour, from its three numbers in each plane."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=25, options={"x265-params": "lossless=1:log-level=none", "qp": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for number, planes in enumerate(colour_planes):
            picture = av.VideoFrame(64, 48, pixel_format)
            dtype = np.uint8 if "p1" not in pixel_format else np.uint16
            for plane, value in zip(picture.planes, planes, strict=True):
                plane.update(np.full(plane.buffer_size // np.dtype(dtype).itemsize, value, dtype).tobytes())
            for name, value in colours.items():
                setattr(picture, name, value)
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


@pytest.mark.parametrize("standard", ["601", "709", "2020"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("codec", "pixel_format", "bits"),
    [
        ("libx264", "yuv420p", 8), ("libx264", "yuv422p", 8), ("libx264", "yuv444p", 8),
        ("libx265", "yuv420p10le", 10), ("libx265", "yuv444p12le", 12), ("ffv1", "yuv420p", 8),
    ],
)  # fmt: skip
def test_colours_by_the_formulas_of_their_standard(
    tmp_path: Path, standard: str, full: bool, codec: str, pixel_format: str, bits: int
) -> None:
    planes = [_yuv(colour, standard, full=full, bits=bits) for colour in _COLOURS]
    color_range = ColorRange.JPEG if full else ColorRange.MPEG
    _write_planes(
        tmp_path / "a.mkv",
        codec,
        pixel_format,
        planes,
        colorspace=_COLORSPACES[standard],
        color_range=color_range,
    )
    clip = video.read_clip(str(tmp_path / "a.mkv"), ClipConfig(num_frames=6, image_size=32))
    for frame, colour in zip(clip.frames, _COLOURS, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 3  # FFmpeg's fast converters round


def test_unmarked_colours_are_bt601(tmp_path: Path) -> None:
    _write_planes(tmp_path / "a.mkv", "ffv1", "yuv420p", [_yuv((220, 30, 30), "601", full=False, bits=8)])
    (frame,) = video.read_clip(str(tmp_path / "a.mkv"), ClipConfig(image_size=32)).frames
    assert np.abs(frame.astype(int) - (220, 30, 30)).max() <= 2


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
def test_an_edge_between_colours_stays_where_it_is(tmp_path: Path, pixel_format: str, ratio: int) -> None:
    """Chroma is interpolated for 10 bits and for wide pixels; the edge at half the width must not move."""

    def set_ratio(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = ratio

    frames = np.full((2, 48, 64, 3), (200, 90, 128), np.uint8)
    frames[:, :, 32:] = (60, 160, 128)
    options = {"qp": "0"}
    path = tmp_path / "a.mp4"
    write_coded_video(path, "libx264", pixel_format, frames, options=options, prepare=set_ratio)
    clip = video.read_clip(str(path), ClipConfig(num_frames=1, image_size=48, resize="short_side"))
    assert clip.frames.shape == (1, 48, 64 * ratio, 3)
    left, right = np.split(clip.frames[0, 24].astype(int), 2)
    np.testing.assert_allclose(left + right[::-1], np.tile(left[0] + right[-1], (len(left), 1)), atol=2)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="There is no ffmpeg command")
@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(64, 45)])
@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        ("libx264", "yuv420p"), ("libx264", "yuv420p10le"), ("libx264", "yuv444p"),
        ("libx265", "yuv422p10le"),
        ("mpeg2video", "yuv420p"), ("mjpeg", "yuvj420p"), ("ffv1", "gray"),
    ],
)  # fmt: skip
def test_pixels_equal_those_of_the_ffmpeg_command(
    tmp_path: Path, codec: str, pixel_format: str, ratio: Fraction
) -> None:
    def set_ratio(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = ratio

    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = str(tmp_path / "a.mkv")
    write_coded_video(Path(path), codec, pixel_format, frames, options=options, prepare=set_ratio)
    clip = video.read_clip(path, ClipConfig(num_frames=2, image_size=48, resize="short_side"))
    scale = f"scale={clip.info.width}:48"  # MPEG-2 rounds the ratio
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", scale, "-pix_fmt", "bgr24", "-f", "rawvideo", "-"]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    expected = np.frombuffer(printed, np.uint8).reshape(clip.frames.shape)[..., ::-1]
    assert np.abs(clip.frames.astype(int) - expected).mean() <= 1


@pytest.mark.parametrize("codec", ["ffv1", "qtrle", "png"])
def test_transparent_pixels_are_shown_over_black(tmp_path: Path, codec: str) -> None:
    """Opaque, half transparent and transparent thirds of a red frame."""
    frames = np.zeros((2, 48, 48, 4), np.uint8)
    frames[..., 0] = 200
    frames[..., 3] = np.repeat([255, 128, 0], 16)
    formats = {"ffv1": "bgra", "qtrle": "argb", "png": "rgba"}
    suffix = "mkv" if codec == "ffv1" else "mov"
    write_coded_video(tmp_path / f"a.{suffix}", codec, formats[codec], frames, source_format="rgba")
    (frame, _) = video.read_clip(str(tmp_path / f"a.{suffix}"), ClipConfig(image_size=48)).frames
    for column, expected in ((8, 200), (24, 100), (40, 0)):
        np.testing.assert_allclose(frame[24, column], (expected, 0, 0), atol=1)


def test_a_palette(tmp_path: Path) -> None:
    frames = np.zeros((2, 48, 48, 3), np.uint8)
    frames[:, :, :24] = (255, 0, 0)
    frames[:, :, 24:] = (0, 0, 255)
    write_coded_video(tmp_path / "a.gif", "gif", "rgb8", frames)
    (frame, _) = video.read_clip(str(tmp_path / "a.gif"), ClipConfig(image_size=48)).frames
    np.testing.assert_allclose(frame[24, [8, 40]], [(255, 0, 0), (0, 0, 255)], atol=4)


@pytest.mark.parametrize(
    ("ratio", "width"),
    [(Fraction(64, 45), 91), (Fraction(2), 128), (Fraction(1, 2), 32), (Fraction(8, 9), 57)],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_pixels_that_are_not_square(tmp_path: Path, ratio: Fraction, width: int, suffix: str) -> None:
    """A white square of the stored frame is as wide as its pixels are."""
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    frames[:, 8:40, 16:48] = 255
    codec = "mpeg4" if suffix == "avi" else "libx264"

    def set_ratio(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = ratio

    write_coded_video(tmp_path / f"a.{suffix}", codec, "yuv420p", frames, prepare=set_ratio)
    settings = ClipConfig(num_frames=1, image_size=48, resize="short_side" if width >= 48 else "crop")
    clip = video.read_clip(str(tmp_path / f"a.{suffix}"), settings)
    assert (clip.info.height, clip.info.width) == (48, width)
    if width >= 48:
        white = (clip.frames[0, 24, :, 0] > 128).sum()
        assert abs(white - 32 * float(ratio)) <= 1


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_all_orientations(tmp_path: Path, degrees: int, mirrored: bool, suffix: str) -> None:
    """The corners are red and green above, blue and black below."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)

    def orient(stream: Any) -> None:
        stream.set_display_rotation(degrees, hflip=mirrored)

    path = str(tmp_path / f"a.{suffix}")
    write_coded_video(Path(path), "libx264", "yuv420p", np.stack([frame] * 2), prepare=orient)
    clip = video.read_clip(path, ClipConfig(num_frames=1, image_size=48, resize="short_side"))
    expected = np.rot90(frame, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    assert (clip.info.height, clip.info.width) == expected.shape[:2]
    assert np.abs(clip.frames[0].astype(int) - expected).mean() < 12
    windows = list(
        video.read_windows(path, ClipConfig(num_frames=1, image_size=48, resize="short_side"), 1, 1)
    )
    assert (windows[0].frames == clip.frames).all()


@pytest.mark.parametrize(
    ("curve", "expected"),
    [(ColorTrc.SMPTE2084, "HDR (PQ)"), (ColorTrc.ARIB_STD_B67, "HDR (HLG)"), (ColorTrc.BT709, "")],
)
def test_transfer_curves_are_named(tmp_path: Path, curve: ColorTrc, expected: str) -> None:
    write_coded_video(
        tmp_path / "a.mp4", "libx265", "yuv420p10le", brightness_frames(3), color_trc=curve,
        options={"x265-params": "log-level=none"},
    )  # fmt: skip
    assert video.read_clip(str(tmp_path / "a.mp4"), ClipConfig(image_size=32)).info.unconverted == expected


@pytest.mark.parametrize(("matrix", "name"), [(8, "YCgCo"), (12, "matrix 12 of H.273"), (14, "ICtCp")])
def test_other_matrices_are_taken_for_bt601_and_named(tmp_path: Path, matrix: int, name: str) -> None:
    planes = [_yuv((220, 30, 30), "601", full=False, bits=8)]
    _write_planes(tmp_path / "a.mp4", "libx264", "yuv420p", planes, colorspace=matrix)
    clip = video.read_clip(str(tmp_path / "a.mp4"), ClipConfig(image_size=32))
    assert np.abs(clip.frames[0].astype(int) - (220, 30, 30)).max() <= 3
    assert clip.info.unconverted == f"colours ({name})"


def test_pixels_that_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: pixels._Scaler, picture: av.VideoFrame) -> np.ndarray:
        raise av.error.ArgumentError(22, "Invalid argument")

    path = tmp_path / "a.mp4"
    write_coded_video(path, "libx264", "yuv420p", brightness_frames(3))
    monkeypatch.setattr(pixels._Scaler, "scale", fail)
    with pytest.raises(
        VideoReadError, match=r"a\.mp4: FFmpeg cannot convert its pixels \(Invalid argument\)"
    ):
        video.read_clip(str(path), ClipConfig())


def test_interlaced_video_is_named(tmp_path: Path) -> None:
    options = {"flags": "+ilme+ildct"}
    write_coded_video(tmp_path / "a.mpg", "mpeg2video", "yuv420p", brightness_frames(3), options=options)
    assert (
        video.read_clip(str(tmp_path / "a.mpg"), ClipConfig(image_size=32)).info.unconverted == "interlaced"
    )


def test_spaces_are_told_apart() -> None:
    """Guards the numbers above against another FFmpeg."""
    assert (_COLORSPACES["709"], _COLORSPACES["2020"]) == (Colorspace.ITU709, Colorspace.BT2020)
