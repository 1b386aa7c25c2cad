"""Decoding, checked by brightness: frame i of a synthetic video tells its index."""

import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from synthetic import brightness_frames, frame_indices_of, position_frames, write_brightness_video
from vidpipe import video
from vidpipe.config import ClipConfig


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("uniform", [2, 7, 12, 17]), ("interval", [0, 5, 10, 15]), ("head", [0, 1, 2, 3])],
)
def test_the_sampled_frames_are_those_of_the_indices(
    tmp_path: Path, suffix: str, sampling: str, expected: list[int]
) -> None:
    path = write_brightness_video(tmp_path / f"a{suffix}", 20)
    clip = video.read_clip(str(path), ClipConfig(num_frames=4, sampling=sampling, image_size=32))
    assert clip.frame_indices.tolist() == expected
    assert frame_indices_of(clip.frames) == expected
    assert clip.frames.shape == (4, 32, 32, 3)
    assert clip.frames.dtype == np.uint8
    assert (clip.info.frames_claimed, clip.info.height, clip.info.width) == (20, 48, 64)
    assert (clip.info.frames_decoded, clip.info.read_to_end) == (
        (4, False) if sampling == "head" else (20, True)
    )


def test_a_short_video_gives_all_it_has(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 3)
    assert frame_indices_of(video.read_clip(str(path), ClipConfig(num_frames=8)).frames) == [0, 1, 2]


def test_colours_are_rgb_and_the_crop_is_the_centre_square(tmp_path: Path) -> None:
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
        pytest.param(48, 64, 48, (48, 64), id="as it is"),
    ],
)
def test_short_side_keeps_the_whole_frame_and_its_shape(
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


class _Capture:
    """Gives these images and ends."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self._images = [None, *images]

    def grab(self) -> bool:
        self._images.pop(0)
        return bool(self._images)

    def retrieve(self, _: np.ndarray | None) -> tuple[bool, np.ndarray | None]:
        return True, self._images[0]


@pytest.mark.parametrize(("resize", "expected"), [("crop", (32, 32)), ("short_side", (32, 43))])
def test_frames_of_another_size_are_resized_to_the_first(resize: str, expected: tuple[int, int]) -> None:
    sizes = [(48, 64), (30, 36), (48, 20), (9, 64)]
    images = [brightness_frames(4, *size)[index] for index, size in enumerate(sizes)]
    clip = ClipConfig(image_size=32, resize=resize)
    frames, decoded, at_end, size = video._decode(_Capture(images), "a", np.arange(4), clip, True)  # type: ignore
    assert frames.shape == (4, *expected, 3)
    assert frame_indices_of(frames) == [0, 1, 2, 3]
    assert (decoded, at_end, size) == (4, True, (48, 64))


@pytest.mark.parametrize("resize", ["crop", "short_side"])
def test_shrinking_averages_and_does_not_skip_pixels(resize: str) -> None:
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::3] = 255
    clip = ClipConfig(image_size=32, resize=resize)
    frames, *_ = video._decode(_Capture([stripes]), "a", np.arange(1), clip, True)  # type: ignore
    assert (frames == 85).all()


def test_a_frame_too_long_to_be_stored_is_refused() -> None:
    clip = ClipConfig(image_size=224, resize="short_side")
    capture = _Capture([np.zeros((2, 1000, 3), np.uint8)])
    with pytest.raises(video.VideoReadError, match="a: larger than the limit: 224 x 112000 pixels"):
        video._decode(capture, "a", np.arange(1), clip, True)  # type: ignore


def _claim(path: Path, num_frames: int) -> None:
    """Writes another frame count into an AVI's two headers (avih.dwTotalFrames, strh.dwLength)."""
    data = bytearray(path.read_bytes())
    for marker, offset in ((b"avih", 8 + 16), (b"vids", 32)):
        place = data.index(marker) + offset
        data[place : place + 4] = num_frames.to_bytes(4, "little")
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("claimed", [21, 10])
def test_a_wrong_header_is_corrected_by_what_was_read(tmp_path: Path, claimed: int) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 20)
    _claim(path, claimed)
    clip = video.read_clip(str(path), ClipConfig(num_frames=4, image_size=32))
    assert (clip.info.frames_claimed, clip.info.frames_decoded) == (claimed, 20)
    assert frame_indices_of(clip.frames) == [2, 7, 12, 17]


def test_a_video_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.avi", 12)
    _claim(path, 20)
    with pytest.raises(video.VideoReadError, match="a.avi: ended after 12 of 20 frames"):
        video.read_clip(str(path), ClipConfig(num_frames=4))


def test_a_file_cut_at_any_tenth_but_the_last_is_refused(tmp_path: Path) -> None:
    """Cut at each tenth: the header still claims all 20 frames, so a loss shows."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    video.write_video(str(tmp_path / "whole.avi"), frames, fourcc="MJPG")
    whole = (tmp_path / "whole.avi").read_bytes()
    for tenth in range(9):
        path = tmp_path / f"{tenth}.avi"
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(video.VideoReadError, match="does not open|no frame|ended after"):
            video.read_clip(str(path), ClipConfig(num_frames=20))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "does not open as a video"), (b"not a video at all" * 50, "does not open as a video")],
)
def test_garbage_with_the_right_ending_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(video.VideoReadError, match=reason):
        video.read_clip(str(tmp_path / "a.mp4"), ClipConfig())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(video.VideoReadError, match="nowhere.avi: no such file"):
        video.read_clip(str(tmp_path / "nowhere.avi"), ClipConfig())


def test_a_wrong_ending_does_not_matter(tmp_path: Path) -> None:
    write_brightness_video(tmp_path / "a.avi", 5)
    shutil.move(tmp_path / "a.avi", tmp_path / "a.mp4")
    assert frame_indices_of(video.read_clip(str(tmp_path / "a.mp4"), ClipConfig(num_frames=5)).frames) == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_picture_is_not_the_start_of_an_image_sequence(tmp_path: Path) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"img_{index:02d}.png"), brightness_frames(1)[0])
    clip = video.read_clip(str(tmp_path / "img_00.png"), ClipConfig(num_frames=3))
    assert len(clip.frames) == 1


def test_rotation_metadata_is_honoured(tmp_path: Path) -> None:
    frame = np.zeros((48, 48, 3), np.uint8)
    frame[:24] = 200
    path = tmp_path / "a.mp4"
    video.write_video(str(path), [frame] * 3, fourcc="mp4v")
    data = bytearray(path.read_bytes())
    # The unit matrix of the track header, 16.16 fixed point, becomes a half turn.
    unit = b"".join(value.to_bytes(4, "big") for value in (1 << 16, 0, 0, 0, 1 << 16, 0))
    turned = b"".join(value.to_bytes(4, "big", signed=True) for value in (-1 << 16, 0, 0, 0, -1 << 16, 0))
    header = data.index(b"tkhd")
    place = data.index(unit, header)
    data[place : place + len(turned)] = turned
    path.write_bytes(bytes(data))
    turned_frame = video.read_clip(str(path), ClipConfig(num_frames=1, image_size=48)).frames[0]
    assert turned_frame[:20].mean() < 20
    assert turned_frame[28:].mean() > 180


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
    error = pickle.loads(pickle.dumps(video.VideoReadError("a.avi", "no such file")))
    assert (error.path, error.reason, str(error)) == ("a.avi", "no such file", "a.avi: no such file")


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(video.VideoReadError, match=re.escape("no encoder ZZZZ")):
        video.write_video(str(tmp_path / "a.avi"), brightness_frames(2), fourcc="ZZZZ")
