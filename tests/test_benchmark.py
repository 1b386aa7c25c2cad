"""The benchmark has all its rows, says which peers are missing, and they do the same work as ours."""

import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import benchmark
from synthetic import write_class_folders
from test_tools import run_tool
from vidpipe import video
from vidpipe.config import ClipConfig


@pytest.fixture
def few_videos(tmp_path: Path) -> Path:
    write_class_folders(tmp_path / "videos", {"long": [22, 23], "short": [10, 11]})
    return tmp_path / "videos"


def run_benchmark(name: str, video_dir: Path) -> tuple[list[dict], str]:
    """The rows of one round, as written with --json, and what was printed."""
    table = video_dir / "table.json"
    ended = run_tool("benchmark.py", name, f"--video_dir={video_dir}", "--repeats=1", f"--json={table}")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(table.read_text())
    for row in rows:
        assert list(row) == [
            "what", "unit", "against", "ours", "theirs", "ratio", "ratio_min", "ratio_max",
        ]  # fmt: skip
        assert row["ratio_min"] == row["ratio"] == row["ratio_max"] == row["ours"] / row["theirs"]
        assert f"{row['against']}, {row['unit']}\n" in ended.stdout
    return rows, ended.stdout


def test_decode_measures_against_floor_notebook_and_the_peers_that_are_there(
    few_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    rows, printed = run_benchmark("decode", few_videos)
    found = [(row["what"], row["against"].split(" 1")[0]) for row in rows]
    pyav = [("read, uniform", "PyAV"), ("read, head", "PyAV")] if importlib.util.find_spec("av") else []
    assert found == [
        ("read and encode, uniform", "bare grab and encode"),
        ("read and encode, head", "bare grab and encode"),
        *pyav,
        ("read, head", "the notebook's loader"),
    ]
    assert all(row["ours"] > 0 and row["theirs"] > 0 for row in rows)
    assert max(map(len, printed.splitlines())) <= 110
    missing = [line for line in printed.splitlines() if "decord" in line]
    assert missing == [
        "decord is not installed; its rows are left out. pip install '.[benchmark]' brings it."
    ]


def test_convert_measures_time_start_up_and_memory(few_videos: Path) -> None:
    rows, _ = run_benchmark("convert", few_videos)
    assert [(row["what"], row["against"], row["unit"]) for row in rows] == [
        ("convert 40 videos, 2 workers", "1 worker", "wall s"),
        ("convert a clip", "bare grab and encode", "CPU ms/clip"),
        ("start-up of a conversion", "its 4 clips", "CPU s"),
        ("parent's memory, 40 videos", "4 videos", "MiB"),
        ("worker's memory, 40 videos", "4 videos", "MiB"),
    ]
    wall, clip, start_up, parent, worker = rows
    assert wall["ours"] > 0 and wall["theirs"] > 0
    # The difference of two conversions: of so few clips it may come out as anything.
    assert math.isfinite(clip["ours"]) and clip["theirs"] > 0
    assert start_up["ours"] > 0
    # Only the parent has TensorFlow, so a worker that seemed as large would not have been measured itself.
    assert 10 < 2 * worker["ours"] < parent["ours"]
    assert parent["ratio"] == pytest.approx(1, abs=0.2)
    assert worker["ratio"] == pytest.approx(1, abs=0.2)


def test_input_measures_against_bare_decoding_one_core_and_jpeg(
    few_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    rows, printed = run_benchmark("input", few_videos)
    assert [(row["what"], row["against"], row["unit"]) for row in rows] == [
        ("input, jpeg, 1 core", "bare decode_jpeg", "CPU ms/frame"),
        ("input, jpeg, 2 cores", "1 core", "wall ms/clip"),
        ("input, raw, 2 cores", "jpeg", "wall ms/clip"),
    ]
    assert all(row["ours"] > 0 and row["theirs"] > 0 for row in rows)
    assert max(map(len, printed.splitlines())) <= 110
    peers = [line for line in printed.splitlines() if "PyTorch" in line]
    if importlib.util.find_spec("av"):
        assert peers == [
            "PyTorch is not installed; its rows are left out. pip install '.[benchmark]' brings it."
        ]


def test_pytorch_loads_every_clip(few_videos: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("torch")
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert benchmark._in_fresh_process(benchmark._load_epoch, videos_in(few_videos), cores) > 0


def test_pytorch_gets_the_clips_that_ours_gives(few_videos: Path) -> None:
    pytest.importorskip("av")
    videos = videos_in(few_videos)
    assert len(videos) == 10 * len(videos.paths)
    for number, path in enumerate(videos.paths):
        ours = video.read_clip(path, ClipConfig()).frames
        for frames, mask in (videos[number], videos[number + len(videos.paths)]):
            assert frames.shape == (20, 224, 224, 3)
            assert mask.tolist() == [True] * len(ours) + [False] * (20 - len(ours))
            np.testing.assert_allclose(frames[mask].astype(int), ours, atol=2)
            assert not frames[~mask].any()


def videos_in(video_dir: Path) -> benchmark._Videos:
    paths = [str(path) for path in sorted(video_dir.rglob("*.avi"))]
    return benchmark._Videos(paths, [video.read_clip(path, ClipConfig()).frame_indices for path in paths])


@pytest.mark.parametrize(("module", "peer"), [("av", benchmark._pyav), ("decord", benchmark._decord)])
@pytest.mark.parametrize("image_size", [32, 16])
def test_a_peer_gives_the_same_frames(
    module: str, peer: benchmark.Peer, image_size: int, few_videos: Path
) -> None:
    pytest.importorskip(module)
    path = str(few_videos / "long" / "video_00.avi")
    ours = video.read_clip(path, ClipConfig(num_frames=5, image_size=image_size))
    theirs = peer(path, ours)
    assert isinstance(theirs, np.ndarray)
    # Half a step of brightness between frames is 5.
    np.testing.assert_allclose(theirs.astype(int), ours.frames, atol=2)
