"""Clips that are joined: each moment has the frames of its clip and no other, beside background."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from long_videos import Clip, LongVideoConfig, join_clips, plan_videos
from vidpipe.config import ClipConfig, ManifestConfig
from vidpipe.data import video
from vidpipe.data.manifest import read_manifest
from vidpipe.data.moment import Moment
from vidpipe.data.moment_reader import read_encoded_clip
from vidpipe.data.skip_reason import VideoReadError
from vidpipe.data.video_row import ManifestError

LEVELS = {"a": 200, "b": 120, "none": 40}
LENGTHS = {"a": 5, "b": 8, "none": 6}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with 4 clips of each class; every class has its brightness, length and size."""
    for label, level in LEVELS.items():
        width = 64 if label == "a" else 48
        for number in range(4):
            frames = np.full((LENGTHS[label], 32, width, 3), level, np.uint8)
            video.write_video(str(tmp_path / "clips" / label / f"{number}.avi"), frames, fps=10)
    return tmp_path / "clips"


def _config(clips: Path, output_dir: Path, background: tuple[str, ...] = ("none",)) -> LongVideoConfig:
    manifest = ManifestConfig(video_dir=str(clips), val_fraction=0)
    return LongVideoConfig(
        manifest=manifest, output_dir=str(output_dir), background_classes=background, video_sec=3
    )


def test_a_moment_has_the_frames_of_its_clip(clips: Path, tmp_path: Path) -> None:
    num_videos = join_clips(_config(clips, tmp_path / "long"))
    with (tmp_path / "long" / "moments.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["tag"] for row in rows) == ["a"] * 4 + ["b"] * 4
    assert {row["split"] for row in rows} == {"train"}
    assert len({row["video_name"] for row in rows}) == num_videos == 3
    for row in rows:
        start, end = float(row["start"]), float(row["end"])
        path = str(tmp_path / "long" / row["video_name"])
        assert end - start == pytest.approx(LENGTHS[row["tag"]] / 10)
        label, before, after = (
            _middle(path, Moment(*bounds))
            for bounds in ((start, end), (start - 0.6, start), (end, end + 0.6))
        )
        np.testing.assert_allclose(label, [LEVELS[row["tag"]]] * LENGTHS[row["tag"]], atol=6)
        np.testing.assert_allclose(before, [LEVELS["none"]] * 6, atol=6)
        np.testing.assert_allclose(after, [LEVELS["none"]] * 6, atol=6)
    assert len(read_manifest(ManifestConfig(
        video_dir=str(tmp_path / "long"), train_manifest=str(tmp_path / "long" / "moments.csv"),
        val_fraction=0))) == 8  # fmt: skip


def _middle(path: str, moment: Moment) -> np.ndarray:
    """Returns the brightness in the middle of each frame of a moment."""
    encoded = read_encoded_clip(path, ClipConfig(num_frames=50, image_size=16), "raw", 95, moment)
    return np.array([np.frombuffer(frame, np.uint8)[16 * 8 * 3 + 8 * 3] for frame in encoded.encoded_frames])


def test_each_clip_is_used_once_and_background_again() -> None:
    events = [Clip(f"{number}", "a", 32 * (1 + number % 2), 32, 2) for number in range(8)]
    background = [Clip(f"none {number}", "", 32, 32, 2) for number in range(3)]
    videos = list(plan_videos([*events, *background], 8, np.random.default_rng(0)))
    assert len(videos) == 4
    for clips in videos:
        assert [bool(clip.label) for clip in clips] == [False, True, False, True, False]
        assert len({clip.width for clip in clips if clip.label}) == 1
    used = [clip.path for clips in videos for clip in clips if clip.label]
    assert sorted(used) == [str(number) for number in range(8)]
    assert {clip.path for clips in videos for clip in clips if not clip.label} == {
        clip.path for clip in background
    }


def test_clips_that_cannot_be_joined_are_named(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="The train split needs events, and clips of the background"):
        join_clips(_config(clips, tmp_path / "long", background=("other",)))
    table = tmp_path / "train.csv"
    table.write_text("video_name,tag\na/0.avi,a\nb/9.avi,b\nb/0.avi,b\nnone/0.avi,none\n")
    config = _config(clips, tmp_path / "long")
    manifest = replace(config.manifest, train_manifest=str(table))
    with pytest.raises(ManifestError, match="1 of 4 rows are not whole videos under .*, such as b/9.avi"):
        join_clips(replace(config, manifest=manifest))
    (clips / "a" / "2.avi").write_bytes(b"garbage")
    with pytest.raises(VideoReadError, match="does not open as a video"):
        join_clips(config)
    assert not (tmp_path / "long" / "moments.csv").exists()
