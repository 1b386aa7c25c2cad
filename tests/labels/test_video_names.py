"""Names of videos in label files: paths, URLs, uploads, other case, no suffix; exactly one file must fit."""

from pathlib import Path

import pytest

from vidpipe.labels.video_names import VideoNames


def _videos(folder: Path, *names: str) -> VideoNames:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return VideoNames(folder)


@pytest.mark.parametrize(
    "name",
    [
        "my clip.mp4",
        "cam/my clip.mp4",
        "/home/ann/videos/cam/MY CLIP.MP4",
        "C:\\videos\\my clip.mp4",
        "./../my clip.mp4",
        "file:///C:/videos/my%20clip.mp4",
        "https://host/x/my%20clip.mp4?X-Amz-Expires=60",
        "s3://bucket/cam/my clip.mp4",
        "/data/upload/3/0a1b2c3d-my_clip.mp4",
        "/data/local-files/?d=videos/my%20clip.mp4",
        "my clip",
    ],
)
def test_the_usual_forms_of_one_name(tmp_path: Path, name: str) -> None:
    videos = _videos(tmp_path, "cam/my clip.mp4", "cam/other.mp4", "cam/my clip.txt")
    assert videos.find(name) == ["cam/my clip.mp4"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/x/cam1/a.mp4", ["cam1/a.mp4"]),
        ("/x/cam3/a.mp4", ["cam1/a.mp4", "cam2/a.mp4"]),
        ("a", ["cam1/a.mp4", "cam2/a.mp4"]),
        ("B.mp4", ["B.mp4"]),
        ("b.mp4", ["b.mp4"]),
        ("c.mp4", []),
        ("a.avi", []),
        ("", []),
    ],
)
def test_folders_and_spelling_decide_between_equal_names(
    tmp_path: Path, name: str, expected: list[str]
) -> None:
    videos = _videos(tmp_path, "cam1/a.mp4", "cam2/a.mp4", "B.mp4", "b.mp4")
    assert videos.find(name) == expected
