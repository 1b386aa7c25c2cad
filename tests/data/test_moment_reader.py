"""Moments of videos: exactly their own frames, and a video is opened once for all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic import brightness_frames, write_brightness_video, write_coded_video
from vidpipe.config import ClipConfig
from vidpipe.data import forward_decoder, moment_reader, video_file
from vidpipe.data.moment import Moment
from vidpipe.data.moment_reader import read_encoded_clip, read_length
from vidpipe.data.skip_reason import Failure, SkipReason, VideoReadError
from vidpipe.data.video import EncodedClip

CLIP = ClipConfig(num_frames=20, image_size=32)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    moment_reader._kept.close()


def _read(path: Path, moment: Moment, clip: ClipConfig = CLIP) -> EncodedClip:
    return read_encoded_clip(str(path), clip, "raw", 95, moment)


def _shown(encoded: EncodedClip) -> list[int]:
    """The indices of the frames, from their brightness; they must be what the clip says."""
    levels = [np.frombuffer(frame, np.uint8).mean() for frame in encoded.encoded_frames]
    indices = [round((level - 20) / 10) for level in levels]
    assert indices == encoded.frame_indices.tolist()
    return indices


def _failure(path: Path, moment: Moment) -> Failure:
    with pytest.raises(VideoReadError) as caught:
        _read(path, moment)
    return caught.value.failure


# At 25 frames per second frame i is shown from i / 25 s on.
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.ts", "a.mkv"])
@pytest.mark.parametrize(
    ("moment", "frames"),
    [
        (Moment(0, 0.04), [0]),
        (Moment(0.04, 0.12), [1, 2]),
        (Moment(0.041, 0.121), [2, 3]),
        (Moment(0.2, 0.4), [5, 6, 7, 8, 9]),
        (Moment(0.6, 0.8), [15, 16, 17, 18, 19]),
        (Moment(5, 10, in_frames=True), [5, 6, 7, 8, 9]),
        (Moment(19, 20, in_frames=True), [19]),
    ],
)
def test_a_moment_has_exactly_its_own_frames(
    tmp_path_factory: pytest.TempPathFactory, name: str, moment: Moment, frames: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"moments_{name}"
    if not path.exists():
        if name.endswith(".avi"):
            write_brightness_video(path, 20)
        else:
            codec = "mpeg2video" if name.endswith(".ts") else "libx264"
            write_coded_video(
                path,
                codec,
                "yuv420p",
                brightness_frames(20),
                options={"g": "6", "bf": "2", "qmin": "1", "qmax": "2"},
            )
    assert _shown(_read(path, moment)) == frames


def test_a_moment_is_sampled_as_a_video_of_its_own(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.mp4", 20)
    encoded = _read(path, Moment(0.2, 0.68), ClipConfig(num_frames=3, image_size=32))
    assert _shown(encoded) == [7, 11, 15]  # the middle frames of [5, 9), [9, 13) and [13, 17)
    assert (encoded.info.frames_shown, encoded.info.span) == (12, (0.2, 0.68))
    assert _read(path, Moment(5, 17, in_frames=True)).info.span == (0.2, 0.68)


def test_times_of_variable_rate_decide(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 20, 21, 22, 50]
    write_coded_video(tmp_path / "a.mp4", "libx264", "yuv420p", brightness_frames(8), times)
    assert _shown(_read(tmp_path / "a.mp4", Moment(0.4, 0.88))) == [3, 4, 5]
    assert _shown(_read(tmp_path / "a.mp4", Moment(3, 6, in_frames=True))) == [3, 4, 5]


def test_moments_outside_the_video_are_named(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.mp4", 20)
    outside = _failure(path, Moment(12000, 15000))
    assert outside.reason is SkipReason.OUTSIDE
    assert outside.message == "the moment is 12000 to 15000 s, but the video ends after 0.8 s"
    frames = _failure(path, Moment(15, 25, in_frames=True))
    assert frames.message == "the moment is from frame 15 to 25, but the video ends after 20 frames"
    between = _failure(path, Moment(0.041, 0.079))
    assert (between.reason, between.message) == (
        SkipReason.NO_FRAMES,
        "no frame begins in the moment, 0.041 to 0.079 s",
    )


def test_a_moment_may_end_a_little_after_the_video(tmp_path: Path) -> None:
    """Labels are often rounded: up to a tenth of the moment may be missing, and is counted."""
    path = write_brightness_video(tmp_path / "a.mp4", 20)
    encoded = _read(path, Moment(0, 0.88))
    assert (len(encoded.encoded_frames), encoded.info.frames_damaged) == (20, 2)
    assert _failure(path, Moment(0, 0.89)).reason is SkipReason.OUTSIDE


def test_of_a_cut_video_the_moments_before_the_cut_are_read(tmp_path: Path) -> None:
    options = {"movflags": "+faststart"}
    path = tmp_path / "a.mp4"
    write_coded_video(
        path, "mpeg4", "yuv420p", brightness_frames(20), options={"g": "5"}, container_options=options
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - (len(data) - data.index(b"mdat")) // 2])
    assert _shown(_read(path, Moment(0, 0.16))) == [0, 1, 2, 3]
    cut = _failure(path, Moment(0.6, 0.8))
    assert cut.reason is SkipReason.TRUNCATED
    assert "the video was cut: it ends after" in cut.message


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are opened as videos, and `decoded` each time a frame is."""
    events: list[str] = []
    open_stream, decode = video_file._open_stream, forward_decoder.decode_packet

    def recorded_open(path: str, max_pixels: int) -> Any:
        events.append(path)
        return open_stream(path, max_pixels)

    def recorded_decode(*arguments: Any) -> Any:
        found = decode(*arguments)
        events.extend(["decoded"] * len(found))
        return found

    monkeypatch.setattr(video_file, "_open_stream", recorded_open)
    monkeypatch.setattr(forward_decoder, "decode_packet", recorded_decode)
    return events


def test_a_video_is_opened_once_and_only_what_is_needed_is_decoded(tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / "a.mp4"
    frames = np.resize(brightness_frames(20), (1000, 48, 64, 3))
    write_coded_video(path, "libx264", "yuv420p", frames, options={"g": "10", "bf": "0"})
    for start in range(100, 900, 100):
        _read(path, Moment(start, start + 5, in_frames=True))
    assert opened.count(str(path)) == 1
    # Of each moment at most from its keyframe on.
    assert opened.count("decoded") <= 8 * 10


def test_where_seeking_is_not_exact_the_video_is_decoded_twice_for_all_moments(
    tmp_path: Path, opened: list[str]
) -> None:
    path = tmp_path / "a.ts"
    frames = np.resize(brightness_frames(20), (200, 48, 64, 3))
    write_coded_video(path, "mpeg2video", "yuv420p", frames)
    for start in range(0, 200, 20):
        encoded = _read(path, Moment(start, start + 5, in_frames=True))
        assert encoded.frame_indices.tolist() == list(range(start, start + 5))
    assert opened.count("decoded") <= 2 * 200
    assert _read(path, Moment(0, 2, in_frames=True)).frame_indices.tolist() == [0, 1]  # back to the start


def test_a_video_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    path = write_brightness_video(tmp_path / "a.mp4", 20)
    assert len(_read(path, Moment(0, 0.4)).encoded_frames) == 10
    write_brightness_video(path, 5)
    assert _failure(path, Moment(0, 0.4)).reason is SkipReason.OUTSIDE
    path.unlink()
    assert _failure(path, Moment(0, 0.1)).reason is SkipReason.NOT_FOUND


def test_a_whole_video_is_read_as_before(tmp_path: Path) -> None:
    path, other = (write_brightness_video(tmp_path / name, 20) for name in ("a.mp4", "b.mp4"))
    _read(path, Moment(0, 0.4))
    whole = read_encoded_clip(str(other), CLIP, "raw", 95)
    assert (_shown(whole), whole.info.span) == (list(range(20)), None)
    assert _shown(_read(path, Moment(0.4, 0.48))) == [10, 11]


def test_lengths_need_no_decoding(tmp_path: Path, opened: list[str]) -> None:
    for name in ("a.mp4", "a.avi"):
        write_brightness_video(tmp_path / name, 20)
        length = read_length(str(tmp_path / name))
        assert (length.num_frames, round(length.duration_sec, 6)) == (20, 0.8)
    assert "decoded" not in opened
