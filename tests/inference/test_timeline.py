"""A timeline predicts each window of a long video like a video of its own, up to where reading fails."""

import csv
import dataclasses
import json
import logging
import re
import signal
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from synthetic import (
    brightness_frames,
    failing_windows,
    frame_indices_of,
    position_frames,
    timeless_windows,
    write_coded_video,
    write_colours,
)
from tools import predict as predict_tool
from vidpipe.config import ClipConfig, ConfigError, PredictionConfig
from vidpipe.data import video
from vidpipe.data.packets import Loss, Packets
from vidpipe.data.pixels import PixelConverter
from vidpipe.data.video_file import VideoFile
from vidpipe.display import figures
from vidpipe.inference.predict import load_classifier, predict
from vidpipe.inference.timeline import predict_windows, write_timelines

CLIP = ClipConfig(num_frames=4, image_size=32)
RED, BLUE = (200, 30, 30), (30, 30, 200)


def _config(run_dir: str, **settings: Any) -> PredictionConfig:
    """Windows of a second, one every second."""
    return PredictionConfig(run_dir=run_dir, **({"window_sec": 1, "hop_sec": 1} | settings))


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [
            {name: value if name == "predicted" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def test_each_window_is_predicted_like_a_video_of_its_own(tmp_path: Path, colour_run: str) -> None:
    """10 frames per second: red for 1.5 s, then blue, each frame a little lighter than the one before."""
    colours = [(*RED[:2], 30 + i) if i < 15 else (30, 30, 200 + i) for i in range(35)]
    long = write_colours(tmp_path / "long.avi", colours)
    config = _config(colour_run, hop_sec=0.5, timeline=str(tmp_path / "out"))
    (timeline,) = write_timelines(config, [long])
    assert (timeline.path, timeline.failure) == (long, None)
    assert [path.name for path in timeline.files] == ["long.csv", "long.png", "long.vtt"]
    rows = _rows(timeline.files[0])
    assert list(rows[0]) == ["start_sec", "end_sec", "predicted", "p(blue)", "p(green)", "p(red)"]
    assert [(row["start_sec"], row["end_sec"]) for row in rows] == [(k / 2, k / 2 + 1) for k in range(6)]
    assert [row["predicted"] for row in rows] == ["red", "red", rows[2]["predicted"], "blue", "blue", "blue"]
    # The border of the colours is at 1.5 s; each window speaks for the half second around its centre.
    assert [(event.label, event.start_sec, event.end_sec) for event in timeline.events] == [
        ("red", 0, 1.25), ("blue", 1.25, 3.5),
    ]  # fmt: skip
    parts = [write_colours(tmp_path / f"part{k}.avi", colours[5 * k : 5 * k + 10]) for k in range(len(rows))]
    predictions = predict(PredictionConfig(run_dir=colour_run), parts)
    for row, window, part in zip(rows, timeline.windows, predictions, strict=True):
        assert window.probabilities == part.probabilities
        assert {name: row[f"p({name})"] for name in part.probabilities} == part.probabilities
    # By hand: windows 0 and 5 hold one colour; the model's logits are -+3 (red - blue) / 255.
    for window, sign in ((timeline.windows[0], 1), (timeline.windows[5], -1)):
        assert window.probabilities["red"] == pytest.approx(1 / (1 + np.exp(-sign * 6 * 170 / 255)), abs=0.03)


@pytest.mark.parametrize(
    ("num_frames", "window_sec", "hop_sec", "expected"),
    [
        pytest.param(4, 2, 1, [(0, 0.4, [0, 1, 2, 3])], id="shorter than a window"),
        pytest.param(
            20, 1, 0.75, [(0, 1, [1, 3, 6, 8]), (0.75, 1.75, [9, 11, 14, 16]), (1.5, 2, [15, 16, 18, 19])],
            id="a shorter last window",
        ),
        pytest.param(20, 0.5, 1, [(0, 0.5, [0, 1, 3, 4]), (1, 1.5, [10, 11, 13, 14])], id="gaps"),
    ],
)  # fmt: skip
def test_windows_of_a_video(
    tmp_path: Path, num_frames: int, window_sec: float, hop_sec: float, expected: list[tuple]
) -> None:
    video.write_video(str(tmp_path / "a.avi"), brightness_frames(num_frames), fps=10, fourcc="MJPG")
    windows = list(video.read_windows(str(tmp_path / "a.avi"), CLIP, window_sec, hop_sec))
    found = [(window.start_sec, window.end_sec, frame_indices_of(window.frames)) for window in windows]
    assert found == expected
    assert {(window.num_windows, window.times_known) for window in windows} == {(len(expected), True)}


@pytest.mark.parametrize("resize", ["crop", "short_side"])
def test_frames_of_a_window_equal_those_of_a_clip(tmp_path: Path, resize: str) -> None:
    path = str(tmp_path / "a.avi")
    video.write_video(path, position_frames(6), fps=10, fourcc="MJPG")
    clip = dataclasses.replace(CLIP, resize=resize)
    (window,) = video.read_windows(path, clip, 2, 1)
    assert (window.frames == video.read_clip(path, clip).frames).all()


def test_a_frame_belongs_to_the_window_in_which_it_is_shown(tmp_path: Path) -> None:
    """A variable rate: eight frames in the first second, two in the second; timestamps in 1/25 s."""
    timestamps = [0, 3, 6, 9, 12, 15, 18, 21, 25, 45]
    write_coded_video(tmp_path / "a.mkv", "libx264", "yuv420p", brightness_frames(10), timestamps)
    windows = list(video.read_windows(str(tmp_path / "a.mkv"), CLIP, 1, 1))
    assert [frame_indices_of(window.frames) for window in windows] == [[1, 3, 5, 7], [8, 9]]
    assert [window.start_sec for window in windows] == [0, 1]
    assert all(window.times_known for window in windows)


def test_without_times_25_frames_are_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_colours(tmp_path / "a.avi", [RED] * 50, fps=10)
    read_packets = VideoFile._read_packets

    def timeless(file: VideoFile) -> tuple[Packets, np.ndarray | None, Loss]:
        packets, order, loss = read_packets(file)
        packets.pts[:], file.fps = np.nan, 0.0
        return packets, order, loss

    monkeypatch.setattr(VideoFile, "_read_packets", timeless)
    windows = list(video.read_windows(path, CLIP, 0.2, 1))
    assert [(window.start_sec, window.end_sec) for window in windows] == [(0, 0.2), (1, 1.2)]
    assert [window.times_known for window in windows] == [False, False]
    assert [len(window.frames) for window in windows] == [4, 4]


def test_only_the_frames_of_windows_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coded_video(tmp_path / "a.mp4", "libx264", "yuv420p", brightness_frames(20), options={"g": "5"})
    converted = []
    convert = PixelConverter.convert

    def counting(self: PixelConverter, picture: av.VideoFrame) -> np.ndarray:
        converted.append(picture)
        return convert(self, picture)

    monkeypatch.setattr(PixelConverter, "convert", counting)
    windows = list(video.read_windows(str(tmp_path / "a.mp4"), CLIP, 0.4, 0.2))
    # Windows of ten frames, four of them wanted: 1, 3, 6, 8, then 6, 8, 11, 13, then 11, 13, 16, 18.
    assert [frame_indices_of(window.frames) for window in windows] == [
        [1, 3, 6, 8], [6, 8, 11, 13], [11, 13, 16, 18],
    ]  # fmt: skip
    assert len(converted) == 8


def test_all_batches_have_one_size(tmp_path: Path, colour_run: str) -> None:
    """As for videos, so that the same frames give bit-identical probabilities."""
    path = write_colours(tmp_path / "a.avi", [RED] * 50)
    classifier = load_classifier(colour_run)
    sizes = []

    def classify(inputs: dict[str, np.ndarray]) -> Any:
        sizes.append((len(inputs["features"]), inputs["mask"].any(axis=1).sum()))
        return classifier.classify(inputs)

    counting = dataclasses.replace(classifier, classify=classify)
    predict_windows(counting, path, window_sec=1, hop_sec=1, batch_size=3)
    assert sizes == [(3, 3), (3, 3)]


def test_a_video_without_times_is_logged(
    tmp_path: Path, colour_run: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_colours(tmp_path / "a.avi", [RED] * 5)
    with caplog.at_level(logging.WARNING):
        predict_windows(load_classifier(colour_run), path, window_sec=1, hop_sec=1, read=timeless_windows)
    assert caplog.messages == [f"{path} has no frame rate and no timestamps; assuming 25 frames per second."]


def test_a_timeline_ends_where_reading_fails_and_the_next_video_is_read(
    tmp_path: Path, colour_run: str
) -> None:
    cut = Path(write_colours(tmp_path / "cut.avi", [RED] * 40))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 5])
    (tmp_path / "bad.avi").write_bytes(b"garbage")
    complete = write_colours(tmp_path / "complete.avi", [BLUE] * 12)
    paths = [str(cut), str(tmp_path / "bad.avi"), complete]
    first, second, third = write_timelines(_config(colour_run, timeline=str(tmp_path / "out")), paths)
    assert first.failure is not None
    assert re.fullmatch(r"ended after \d+ of 40 packets", first.failure.message)
    assert [window.predicted for window in first.windows] == ["red", "red"]
    assert len(_rows(first.files[0])) == 2
    assert second.failure is not None
    assert second.failure.message == "does not open as a video"
    assert (second.windows, second.files) == ([], ())
    assert (third.failure, [window.predicted for window in third.windows]) == (None, ["blue", "blue"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "complete.csv", "complete.png", "complete.vtt", "cut.csv", "cut.png", "cut.vtt", "events.csv",
        "events.json",
    ]  # fmt: skip
    results = json.loads((tmp_path / "out" / "events.json").read_text())["results"]
    assert {path: [event["label"] for event in events] for path, events in results.items()} == {
        paths[0]: ["red"], paths[1]: [], complete: ["blue"],
    }  # fmt: skip


def test_windows_before_a_crash_are_kept(tmp_path: Path, colour_run: str) -> None:
    path = write_colours(tmp_path / "a.avi", [RED] * 40)
    Path(f"{path}.fault").write_bytes(b"crash")
    # With a batch of two windows the failure comes alone in the last batch.
    for batch_size in (2, 8):
        windows, failure = predict_windows(
            load_classifier(colour_run), path, window_sec=1, hop_sec=1, batch_size=batch_size,
            read=failing_windows,
        )  # fmt: skip
        assert [window.predicted for window in windows] == ["red", "red"]
        assert failure is not None
        assert failure.message == f"crashed the decoder (exit code {-signal.SIGSEGV})"


def test_timelines_need_a_folder(colour_run: str) -> None:
    with pytest.raises(ConfigError, match="timeline must name the folder"):
        next(write_timelines(_config(colour_run), ["a.avi"]))


def test_the_picture_of_a_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 of 14 classes lead, each once and the first two twice; ten are drawn, with their peaks."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_write_png", lambda figure, _: drawn.append(figure))
    leaders = [*range(12), 0, 1]
    scores = np.full((14, 14), 0.01)
    scores[np.arange(14), leaders] = [0.5 + 0.02 * i for i in range(14)]
    starts = np.arange(14) * 30.0
    bounds = np.stack([starts, starts + 60], axis=1)
    figures.timeline(bounds, scores, [f"_c{i}$" for i in range(14)], "a $b$", tmp_path / "a.png")
    axes, strip = drawn[0].axes
    legend = axes.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:3] == ["0.74 at 6:30  _c0$", "0.76 at 7:00  _c1$", "0.54 at 1:30  _c2$"]
    assert len(labels) == 10
    assert legend.get_title().get_text() == "highest probability (2 more classes not drawn)"
    curves = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert curves[0].get_ydata().tolist() == scores[:, 0].tolist()
    assert curves[0].get_xdata().tolist() == (starts + 30).tolist()
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 10
    drawn[0].canvas.draw()
    assert [tick.get_text() for tick in strip.get_xticklabels()][1:4] == ["0:00", "1:00", "2:00"]


def test_the_tool_writes_a_timeline(
    tmp_path: Path, colour_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(tmp_path / "a.avi", [RED] * 20 + [BLUE] * 20)
    monkeypatch.chdir(tmp_path)
    flags = [f"--run_dir={colour_run}", "--timeline=out", "--window_sec=1", "--hop_sec=1"]
    command = ["predict.py", *flags, "a.avi"]
    assert predict_tool.run(command) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    # The last digits of a probability depend on the version of TensorFlow.
    assert re.sub(r"82\.\d\d%", "82.xx%", printed).splitlines() == [
        "a.avi",
        "     0:00 to    0:02   82.xx%  red",
        "     0:02 to    0:04   82.xx%  blue",
        "  Written: out/a.csv, out/a.png, out/a.vtt",
    ]
    cues = ["00:00:00.000 --> 00:00:02.000\nred (82%)", "00:00:02.000 --> 00:00:04.000\nblue (82%)"]
    assert (tmp_path / "out" / "a.vtt").read_text() == f"WEBVTT\n\n1\n{cues[0]}\n\n2\n{cues[1]}\n"
    assert (tmp_path / "out" / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert predict_tool.run([*command, "--json"]) == 0
    printed_lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines, events = printed_lines[:4], printed_lines[4:]
    assert [(line["start_sec"], line["end_sec"], line["predicted"]) for line in lines] == [
        (0, 1, "red"), (1, 2, "red"), (2, 3, "blue"), (3, 4, "blue"),
    ]  # fmt: skip
    assert [(line["start_sec"], line["end_sec"], line["event"]) for line in events] == [
        (0, 2, "red"), (2, 4, "blue"),
    ]  # fmt: skip
    assert set(lines[0]) == {"video", "start_sec", "end_sec", "predicted", "probabilities"}
