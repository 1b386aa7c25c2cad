"""Predicting a file is evaluating its record; a bad file is named and the rest goes on; what is seen when."""

import csv
import dataclasses
import json
import logging
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image, ImageSequence

from synthetic import (
    content_read,
    failing_windows,
    frame_indices_of,
    position_frames,
    save_colour_model,
    timeless_windows,
    write_coded_video,
    write_colours,
)
from test_tools import run_tool
from vidpipe import evaluate, predict, report, video
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.model import ModelCard, build_model, save_model

CLIP = ClipConfig(num_frames=4, image_size=32)
RED, BLUE = (200, 30, 30), (30, 30, 200)


@pytest.mark.parametrize(
    ("resize", "encoding", "batch_size"),
    [("crop", "png", 1), ("short_side", "png", 3), ("short_side", "raw", 3)],
)
def test_predicting_a_file_equals_evaluating_its_record(
    tmp_path: Path,
    wide_and_tall: Path,
    convert_wide_and_tall: Callable[..., ClipConfig],
    resize: str,
    encoding: str,
    batch_size: int,
) -> None:
    keras.utils.set_random_seed(1)
    clip = convert_wide_and_tall(tmp_path / "data", encoding, resize)
    model = build_model(ModelConfig(backbone_weights="none"), clip.model_spec(), 2)
    save_model(model.fused, ModelCard(("tall", "wide"), clip), tmp_path / "model.keras")
    evaluation = evaluate.evaluate(str(tmp_path), str(tmp_path / "data"), "test", batch_size=batch_size)
    with (evaluation.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    written = [{name: float(row[name]) for name in ("tall", "wide")} for row in rows]
    paths = [str(wide_and_tall / row["video_id"]) for row in rows]
    # These records hold the frames bit for bit: in the batches of an evaluation so do the probabilities.
    alike = list(predict.predict(str(tmp_path), paths, batch_size))
    assert [prediction.probabilities for prediction in alike] == written
    # so that other videos share a batch, and in one there is but one
    paths[1:1] = [str(tmp_path / "nowhere.avi")] * 2
    predictions = list(predict.predict(str(tmp_path), paths, batch_size))
    for missing in (predictions.pop(1), predictions.pop(1)):
        assert (missing.path, missing.error, missing.probabilities) == (paths[1], "no such file", {})
    for row, expected, prediction in zip(rows, written, predictions, strict=True):
        assert prediction.predicted == row["predicted"]
        # How many frames share a batch may move the last bit of a float32.
        assert prediction.probabilities == pytest.approx(expected, rel=0, abs=1e-6)
        assert list(prediction.probabilities.values()) == sorted(
            prediction.probabilities.values(), reverse=True
        )
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_batches_are_as_large_as_those_of_an_evaluation() -> None:
    assert evaluate.evaluate.__defaults__ is not None
    assert evaluate.evaluate.__defaults__[0] == predict.BATCH_SIZE


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose model tells red from blue."""
    folder = tmp_path_factory.mktemp("colours") / "run"
    save_colour_model(folder, CLIP, ("blue", "green", "red"))
    return str(folder)


def test_faults_of_a_decoder_cost_their_video_only(tmp_path: Path, colour_run: str) -> None:
    for fault in ("crash", "hang"):
        (tmp_path / f"{fault}.avi").write_bytes(fault.encode())
    red, blue = (write_colours(tmp_path / f"{i}.avi", [c] * 3) for i, c in enumerate((RED, BLUE)))
    paths = [red, str(tmp_path / "crash.avi"), str(tmp_path / "hang.avi"), blue]
    predictions = list(predict.predict(colour_run, paths, timeout_sec=3, read=content_read))
    assert [each.path for each in predictions] == paths
    assert [each.error or each.predicted for each in predictions] == [
        "red",
        f"crashed the decoder (exit code {-signal.SIGSEGV})",
        "timed out after 3 s",
        "blue",
    ]


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "clips/b.avi", "clips/a.MP4", "clips/deep/er/c.mkv", "clips/notes.txt", "clips/.hidden.avi",
        "odd[1]/a.avi", "film.dat", "empty/readme.txt",
    ):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for argument, expected in {
        "clips": ["clips/a.MP4", "clips/b.avi", "clips/deep/er/c.mkv"],
        "clips/": ["clips/a.MP4", "clips/b.avi", "clips/deep/er/c.mkv"],
        "clips/*": ["clips/a.MP4", "clips/b.avi"],
        "**/c*": ["clips/deep/er/c.mkv"],
        "odd[1]": ["odd[1]/a.avi"],
        "odd[1]/a.avi": ["odd[1]/a.avi"],
        "film.dat": ["film.dat"],
    }.items():
        assert predict.find_videos([argument]) == (expected, {}), argument
    assert predict.find_videos(["film.dat", "nowhere.avi", "clips/b.avi", "clips", "x/**", "empty"]) == (
        ["film.dat", "clips/b.avi", "clips/a.MP4", "clips/deep/er/c.mkv"],
        {"nowhere.avi": "no such file", "x/**": "matches no video", "empty": "no video in this folder"},
    )


def test_names_of_files_are_unique() -> None:
    paths = ["a/x.avi", "b/x.avi", "b/x.mp4", "y.tar.avi", "x.avi", "x_2.avi"]
    assert predict.unique_names(paths) == ["x", "b_x", "x_2", "y.tar", "x_3", "x_2_2"]


def test_a_gif_shows_what_the_model_saw(tmp_path: Path, colour_run: str) -> None:
    frames = position_frames(8)
    for folder in ("a", "b"):
        video.write_video(str(tmp_path / folder / "x.avi"), frames, fourcc="MJPG")
    paths = [str(tmp_path / folder / "x.avi") for folder in ("a", "b")]
    predictions = list(predict.predict(colour_run, paths, gif_dir=str(tmp_path / "new" / "gifs")))
    seen = video.read_clip(paths[0], CLIP).frames
    assert (predictions[0].frames == seen).all()
    for name in ("x", "b_x"):
        with Image.open(tmp_path / "new" / "gifs" / f"{name}.gif") as image:
            assert (len(list(ImageSequence.Iterator(image))), image.size) == (4, (224, 254))
            assert image.info["loop"] == 0
            for index, frame in enumerate(seen):
                image.seek(index)
                assert image.info["duration"] == 150
                pixels = np.asarray(image.convert("RGB")).astype(int)
                assert np.abs(pixels[3:224:7, 3:224:7] - frame).mean() < 3  # 256 colours
                assert pixels[224:].max() > 200  # a line below it
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_long_name_is_cut_and_its_probability_is_not(tmp_path: Path) -> None:
    """The line is the same as that of a name that fits, from the probability on."""
    frames = np.zeros((1, 224, 224, 3), np.uint8)
    lines = []
    for name in ("W" * 40, "W" * 60):
        predict.write_gif(predict.Prediction("a", {name: 0.5}, frames=frames), tmp_path / "a.gif")
        with Image.open(tmp_path / "a.gif") as image:
            lines.append(np.asarray(image.convert("L"))[224:])
    assert (lines[0] == lines[1]).all()
    columns = np.flatnonzero(lines[0].max(axis=0) > 100)
    assert columns.min() > 2
    assert columns.max() < 221


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(predict.PredictError, match="Cannot write into .*file/gifs .*Make room"):
        list(predict.predict(str(tmp_path), ["a.avi"], gif_dir=str(tmp_path / "file" / "gifs")))
    with pytest.raises(predict.PredictError, match="Cannot write into .*file "):
        list(predict.write_timelines(str(tmp_path), ["a.avi"], str(tmp_path / "file"), 2, 1))


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [
            {name: value if name == "predicted" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def test_each_window_is_predicted_like_a_video_of_its_own(tmp_path: Path, colour_run: str) -> None:
    """10 frames a second: red for 1.5 s, then blue, each frame a little lighter than the one before."""
    colours = [(*RED[:2], 30 + i) if i < 15 else (30, 30, 200 + i) for i in range(35)]
    long = write_colours(tmp_path / "long.avi", colours)
    (timeline,) = predict.write_timelines(colour_run, [long], str(tmp_path / "out"), 1, 0.5)
    assert (timeline.path, timeline.error) == (long, "")
    assert timeline.files == (tmp_path / "out" / "long.csv", tmp_path / "out" / "long.png")
    rows = _rows(timeline.files[0])
    assert list(rows[0]) == ["start_sec", "end_sec", "predicted", "blue", "green", "red"]
    assert [(row["start_sec"], row["end_sec"]) for row in rows] == [(k / 2, k / 2 + 1) for k in range(6)]
    assert [row["predicted"] for row in rows] == ["red", "red", rows[2]["predicted"], "blue", "blue", "blue"]
    assert predict.stretches(timeline.windows)[-1][1:] == (3.5, "blue")
    parts = [write_colours(tmp_path / f"part{k}.avi", colours[5 * k : 5 * k + 10]) for k in range(len(rows))]
    for row, window, part in zip(rows, timeline.windows, predict.predict(colour_run, parts), strict=True):
        assert window.probabilities == part.probabilities
        assert {name: row[name] for name in part.probabilities} == part.probabilities
    # by hand: windows 0 and 5 hold one colour; the model's logits are -+3 (red - blue) / 255
    for window, sign in ((timeline.windows[0], 1), (timeline.windows[5], -1)):
        assert window.probabilities["red"] == pytest.approx(1 / (1 + np.exp(-sign * 6 * 170 / 255)), abs=0.03)


@pytest.mark.parametrize(
    ("num_frames", "window_sec", "hop_sec", "expected"),
    [
        pytest.param(4, 2, 1, [(0, 0.4, [0, 1, 2, 3])], id="shorter than a window"),
        pytest.param(
            20, 1, 0.75, [(0, 1, [1, 3, 6, 8]), (0.75, 1.75, [9, 11, 14, 16]), (1.5, 2, [15, 16, 18, 19])],
            id="a short one last",
        ),
        pytest.param(20, 0.5, 1, [(0, 0.5, [0, 1, 3, 4]), (1, 1.5, [10, 11, 13, 14])], id="gaps"),
    ],
)  # fmt: skip
def test_windows_of_a_video(
    tmp_path: Path, num_frames: int, window_sec: float, hop_sec: float, expected: list[tuple]
) -> None:
    frames = np.broadcast_to(
        (20 + 10 * np.arange(num_frames))[:, None, None, None], (num_frames, 48, 64, 3)
    ).astype(np.uint8)
    video.write_video(str(tmp_path / "a.avi"), frames, fps=10, fourcc="MJPG")
    windows = list(video.read_windows(str(tmp_path / "a.avi"), CLIP, window_sec, hop_sec))
    found = [(window.start_sec, window.end_sec, frame_indices_of(window.frames)) for window in windows]
    assert found == expected
    assert {(window.video_sec, window.times_known) for window in windows} == {(num_frames / 10, True)}


def test_colours_of_a_window_are_rgb_and_its_frames_as_a_clips(tmp_path: Path) -> None:
    video.write_video(str(tmp_path / "a.avi"), position_frames(6), fps=10, fourcc="MJPG")
    for resize in ("crop", "short_side"):
        clip = dataclasses.replace(CLIP, resize=resize)
        (window,) = video.read_windows(str(tmp_path / "a.avi"), clip, 2, 1)
        assert (window.frames == video.read_clip(str(tmp_path / "a.avi"), clip).frames).all()


def test_frames_count_where_they_are_shown(tmp_path: Path) -> None:
    """Eight frames in the first second and two in the second, of 25 places each."""
    timestamps = [0, 3, 6, 9, 12, 15, 18, 21, 25, 45]
    frames = np.stack([np.full((48, 64, 3), 20 + 10 * i, np.uint8) for i in range(10)])
    write_coded_video(tmp_path / "a.mkv", "libx264", "yuv420p", frames, timestamps)
    windows = list(video.read_windows(str(tmp_path / "a.mkv"), CLIP, 1, 1))
    assert [frame_indices_of(window.frames) for window in windows] == [[1, 3, 5, 7], [8, 9]]
    assert [window.start_sec for window in windows] == [0, 1]
    assert all(window.times_known for window in windows)


class _Timeless:
    """A capture of 50 frames that tells of no time, and counts what it hands out."""

    def __init__(self) -> None:
        self.left = 50
        self.retrieved = 0

    def get(self, _: int) -> float:
        return 0

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self, _: np.ndarray | None) -> tuple[bool, np.ndarray]:
        self.retrieved += 1
        return True, np.zeros((48, 64, 3), np.uint8)


def test_without_any_time_25_frames_are_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of frames between windows nothing is made."""
    capture = _Timeless()

    @contextmanager
    def opened(_: str) -> Iterator[_Timeless]:
        yield capture

    monkeypatch.setattr(video, "_open", opened)
    windows = list(video.read_windows("a", CLIP, 0.2, 1))
    assert [(window.start_sec, window.end_sec) for window in windows] == [(0, 0.2), (1, 1.2)]
    assert [window.times_known for window in windows] == [False, False]
    assert capture.retrieved == 10


def test_windows_come_in_batches_of_one_size(tmp_path: Path, colour_run: str) -> None:
    """As videos do, so that the same frames give the same bits."""
    path = write_colours(tmp_path / "a.avi", [RED] * 50)
    classifier = predict.load_classifier(colour_run)
    sizes = []

    def step(inputs: dict[str, np.ndarray]) -> Any:
        sizes.append((len(inputs["frames"]), inputs["mask"].any(axis=1).sum()))
        return classifier.step(inputs)

    predict.predict_windows(dataclasses.replace(classifier, step=step), path, 1, 1, batch_size=3)
    assert sizes == [(3, 3), (3, 3)]


def test_a_video_without_times_is_told_of(
    tmp_path: Path, colour_run: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_colours(tmp_path / "a.avi", [RED] * 5)
    classifier = predict.load_classifier(colour_run)
    with caplog.at_level(logging.WARNING):
        predict.predict_windows(classifier, path, 1, 1, read=timeless_windows)
    assert caplog.messages == [f"{path} does not tell how fast it is: taken as 25 frames a second."]


def test_a_timeline_ends_where_reading_fails_and_the_next_goes_on(tmp_path: Path, colour_run: str) -> None:
    cut = Path(write_colours(tmp_path / "cut.avi", [RED] * 40))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 5])
    (tmp_path / "bad.avi").write_bytes(b"garbage")
    whole = write_colours(tmp_path / "whole.avi", [BLUE] * 12)
    paths = [str(cut), str(tmp_path / "bad.avi"), whole]
    first, second, third = predict.write_timelines(colour_run, paths, str(tmp_path / "out"), 1, 1)
    assert re.fullmatch(r"ended after \d+ of 40 frames", first.error)
    assert [window.predicted for window in first.windows] == ["red", "red"]
    assert len(_rows(first.files[0])) == 2
    assert (second.error, second.windows, second.files) == ("does not open as a video", [], ())
    assert (third.error, [window.predicted for window in third.windows]) == ("", ["blue", "blue"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cut.csv", "cut.png", "whole.csv", "whole.png",
    ]  # fmt: skip


def test_windows_before_a_crash_are_kept(tmp_path: Path, colour_run: str) -> None:
    path = write_colours(tmp_path / "a.avi", [RED] * 40)
    Path(f"{path}.fault").write_bytes(b"crash")
    classifier = predict.load_classifier(colour_run)
    windows, error = predict.predict_windows(classifier, path, 1, 1, read=failing_windows)
    assert [window.predicted for window in windows] == ["red", "red"]
    assert error == f"crashed the decoder (exit code {-signal.SIGSEGV})"


def test_the_picture_of_a_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 14 classes 12 lead, each once and the first two twice; ten are drawn, with their peaks."""
    figures: list[Any] = []
    monkeypatch.setattr(report, "_write_png", lambda figure, _: figures.append(figure))
    leaders = [*range(12), 0, 1]
    scores = np.full((14, 14), 0.01)
    scores[np.arange(14), leaders] = [0.5 + 0.02 * i for i in range(14)]
    starts = np.arange(14) * 30.0
    bounds = np.stack([starts, starts + 60], axis=1)
    report.timeline(bounds, scores, [f"_c{i}$" for i in range(14)], "a $b$", tmp_path / "a.png")
    axes, strip = figures[0].axes
    legend = axes.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:3] == ["0.74 at 6:30  _c0$", "0.76 at 7:00  _c1$", "0.54 at 1:30  _c2$"]
    assert len(labels) == 10
    assert legend.get_title().get_text() == "highest (and 2 more that lead)"
    curves = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert curves[0].get_ydata().tolist() == scores[:, 0].tolist()
    assert curves[0].get_xdata().tolist() == (starts + 30).tolist()
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 10
    figures[0].canvas.draw()
    assert [tick.get_text() for tick in strip.get_xticklabels()][1:4] == ["0:00", "1:00", "2:00"]


def test_the_tool_takes_a_folder_a_file_and_a_pattern(tmp_path: Path, colour_run: str) -> None:
    """One folder of two videos, a broken file, a pattern without match, all as JSON, with animations."""
    (tmp_path / "clips").mkdir()
    write_colours(tmp_path / "clips" / "b.avi", [BLUE] * 3)
    write_colours(tmp_path / "clips" / "a.avi", [RED] * 3)
    (tmp_path / "broken.avi").write_bytes(b"garbage")
    ended = run_tool(
        "predict.py", f"--run_dir={colour_run}", "--json", "--gif=gifs", "broken.avi", "x/*.avi", "clips",
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[0] == {"video": "x/*.avi", "error": "matches no video"}
    assert lines[1] == {"video": "broken.avi", "error": "does not open as a video"}
    assert [(line["video"], line["predicted"]) for line in lines[2:]] == [
        ("clips/a.avi", "red"),
        ("clips/b.avi", "blue"),
    ]
    assert all(set(line) == {"video", "predicted", "probabilities"} for line in lines[2:])
    assert ended.stderr.splitlines()[:2] == [
        "predict.py: x/*.avi: matches no video",
        "predict.py: broken.avi: does not open as a video",
    ]
    assert sorted(path.name for path in (tmp_path / "gifs").iterdir()) == ["a.gif", "b.gif"]


def test_the_tool_writes_a_timeline(tmp_path: Path, colour_run: str) -> None:
    write_colours(tmp_path / "a.avi", [RED] * 20 + [BLUE] * 20)
    command = ("predict.py", f"--run_dir={colour_run}", "--timeline=out", "--hop_sec=2", "a.avi")
    ended = run_tool(*command, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        "a.avi",
        "     0:00 to    0:02  red",
        "     0:02 to    0:04  blue",
        "  out/a.csv and out/a.png",
    ]
    assert (tmp_path / "out" / "a.png").read_bytes()[:4] == b"\x89PNG"
    ended = run_tool(*command, "--json", cwd=tmp_path)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(line["start_sec"], line["end_sec"], line["predicted"]) for line in lines] == [
        (0, 2, "red"),
        (2, 4, "blue"),
    ]
    assert set(lines[0]) == {"video", "start_sec", "end_sec", "predicted", "probabilities"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window_sec=2"], "--window_sec and --hop_sec need --timeline=DIR"),
        (["--timeline=x", "--gif=x"], "--gif shows whole clips, --timeline windows"),
        (["--timeline=x", "--hop_sec=0"], "--hop_sec=0"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = run_tool("predict.py", "--run_dir=r", "a.avi", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
