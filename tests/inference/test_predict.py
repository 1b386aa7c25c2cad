"""Predicting a file equals evaluating its record; a video that cannot be read is reported and skipped."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageSequence

from synthetic import content_read, pixel_model, position_frames, write_colours
from tools import predict as predict_tool
from vidpipe.config import ClipConfig, EvaluationConfig, ModelConfig, PredictionConfig
from vidpipe.data import video
from vidpipe.data.dataset import open_dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.evaluation.evaluate import evaluate
from vidpipe.inference.predict import PredictError, predict
from vidpipe.inference.timeline import write_timelines
from vidpipe.model.fused import build_model
from vidpipe.model.model_file import ModelMetadata, load_model, save_model
from vidpipe.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
CLIP = ClipConfig(num_frames=4, image_size=32)
RED, BLUE = (200, 30, 30), (30, 30, 200)


def _build_fused(clip: ClipConfig) -> keras.Model:
    """The fused model."""
    config = ModelConfig(backbone_weights="none", ensemble_size=1)
    return build_model(config, spec=clip.spec(4), num_classes=2, stored_frames=4).fused


def _build_linear(clip: ClipConfig) -> keras.Model:
    """A quick model: random weights for each pixel of the mean frame."""
    return pixel_model(clip.spec(4), keras.layers.Flatten(), keras.layers.Dense(2))


def _evaluate_fully(run_dir: Path, data_dir: Path, batch_size: int) -> np.ndarray:
    """Reads the probabilities [N, 2] of tall and wide from an evaluation's predictions.csv."""
    evaluate(EvaluationConfig(run_dir=str(run_dir), data_dir=str(data_dir), batch_size=batch_size))
    rows = RunFolder(run_dir).evaluation("test").read_predictions()
    return np.array([[float(row[f"p({name})"]) for name in ("tall", "wide")] for row in rows])


def _evaluate_quickly(run_dir: Path, data_dir: Path, batch_size: int) -> np.ndarray:
    """Runs the model on the batches of an evaluation, without its artifacts."""
    model, _ = load_model(run_dir / "model.keras")
    step = tf.function(lambda inputs: tf.nn.softmax(model(inputs, training=False)))
    with open_dataset(str(data_dir)) as dataset:
        batches = eval_dataset(dataset, batch_size=batch_size, split="test", num_frames=4)
        return np.concatenate([step(inputs).numpy()[weight > 0] for inputs, _, weight in batches])


@pytest.mark.parametrize(
    ("build", "evaluate_run", "resize", "encoding", "batch_size"),
    [
        pytest.param(_build_linear, _evaluate_quickly, "crop", "png", 1, id="crop, png, batches of 1"),
        pytest.param(_build_linear, _evaluate_quickly, "short_side", "raw", 3, id="short_side, raw"),
        pytest.param(_build_fused, _evaluate_fully, "short_side", "png", 3, id="fused model"),
    ],
)
def test_predicting_a_file_equals_evaluating_its_record(
    tmp_path: Path,
    wide_and_tall: Path,
    convert_wide_and_tall: Callable[..., ClipConfig],
    build: Callable[[ClipConfig], keras.Model],
    evaluate_run: Callable[[Path, Path, int], np.ndarray],
    resize: str,
    encoding: str,
    batch_size: int,
) -> None:
    keras.utils.set_random_seed(1)
    clip = convert_wide_and_tall(tmp_path / "data", encoding, resize)
    save_model(build(clip), ModelMetadata(("tall", "wide"), clip, 4), tmp_path / "model.keras")
    evaluated = evaluate_run(tmp_path, tmp_path / "data", batch_size)
    assert np.ptp(evaluated[:, 0]) > 0.01
    with open_dataset(str(tmp_path / "data")) as dataset:
        paths = [str(wide_and_tall / video_id) for video_id in dataset.video_ids("test")]
    config = PredictionConfig(run_dir=str(tmp_path), batch_size=batch_size)
    # These records hold the frames bit for bit: in the batches of an evaluation so do the probabilities.
    for prediction, (tall, wide) in zip(predict(config, paths), evaluated, strict=True):
        assert prediction.probabilities == {"tall": tall, "wide": wide}
    # Two missing videos change which videos share a batch; in one batch there is only one.
    paths[1:1] = [str(tmp_path / "nowhere.avi")] * 2
    predictions = list(predict(config, paths))
    for missing in (predictions.pop(1), predictions.pop(1)):
        assert missing.failure is not None
        assert (missing.path, missing.failure.message) == (paths[1], "no such file")
        assert missing.probabilities == {}
    for (tall, wide), prediction in zip(evaluated, predictions, strict=True):
        assert prediction.predicted == ("tall" if tall > wide else "wide")
        # The number of frames in a batch may change the last bit of a float32.
        assert prediction.probabilities == pytest.approx({"tall": tall, "wide": wide}, rel=0, abs=1e-6)
        descending = sorted(prediction.probabilities.values(), reverse=True)
        assert list(prediction.probabilities.values()) == descending
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_prediction_and_evaluation_have_the_same_default_batch_size() -> None:
    assert PredictionConfig.batch_size == EvaluationConfig.batch_size


def test_a_decoder_that_crashes_or_hangs_costs_its_video_only(tmp_path: Path, colour_run: str) -> None:
    for fault in ("crash", "hang"):
        (tmp_path / f"{fault}.avi").write_bytes(fault.encode())
    red, blue = (write_colours(tmp_path / f"{i}.avi", [c] * 3) for i, c in enumerate((RED, BLUE)))
    paths = [red, str(tmp_path / "crash.avi"), str(tmp_path / "hang.avi"), blue]
    config = PredictionConfig(run_dir=colour_run, timeout_sec=2)
    predictions = list(predict(config, paths, read=content_read))
    assert [each.path for each in predictions] == paths
    assert [each.failure.message if each.failure else each.predicted for each in predictions] == [
        "red",
        f"crashed the decoder (exit code {-signal.SIGSEGV})",
        "timed out after 2 s",
        "blue",
    ]


def test_gifs_show_the_frames_that_the_model_saw(tmp_path: Path, colour_run: str) -> None:
    paths = [str(tmp_path / folder / "x.avi") for folder in ("a", "b")]
    for path in paths:
        video.write_video(path, position_frames(8), fourcc="MJPG")
    gifs = tmp_path / "new" / "gifs"
    first, _ = predict(PredictionConfig(run_dir=colour_run, gif=str(gifs)), paths)
    assert (first.frames == video.read_clip(paths[0], CLIP).frames).all()
    assert sorted(path.name for path in gifs.iterdir()) == ["b_x.gif", "x.gif"]
    for name in ("x", "b_x"):
        with Image.open(gifs / f"{name}.gif") as image:
            shown = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)]
        for pixels, frame in zip(shown, first.frames, strict=True):
            assert np.abs(pixels[3:224:7, 3:224:7] - frame).mean() < 3  # 256 colours


def test_an_output_folder_that_cannot_be_made_is_reported_before_the_work(tmp_path: Path) -> None:
    """There is no run to be loaded."""
    (tmp_path / "file").touch()
    gif = PredictionConfig(run_dir=str(tmp_path), gif=str(tmp_path / "file" / "gifs"))
    with pytest.raises(PredictError, match=r"Cannot write into .*file/gifs \(.*must be a writable folder"):
        list(predict(gif, ["a.avi"]))
    timeline = PredictionConfig(run_dir=str(tmp_path), timeline=str(tmp_path / "file"))
    with pytest.raises(PredictError, match=r"Cannot write into .*file \("):
        list(write_timelines(timeline, ["a.avi"]))


def _write_videos(folder: Path) -> None:
    """A folder with a blue and a red video, and a corrupt file beside it."""
    (folder / "clips").mkdir()
    write_colours(folder / "clips" / "b.avi", [BLUE] * 3)
    write_colours(folder / "clips" / "a.avi", [RED] * 3)
    (folder / "broken.avi").write_bytes(b"garbage")


def test_the_tool_prints_ranked_classes_and_reports_failures(
    tmp_path: Path, colour_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_videos(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = [f"--run_dir={colour_run}", "broken.avi", "x/*.avi", "clips"]
    assert predict_tool.run(["predict.py", *arguments]) == 1
    printed, errors = capsys.readouterr()
    lines = printed.splitlines()
    assert [lines[0], lines[4]] == ["clips/a.avi", "clips/b.avi"]
    assert [line.split()[1] for line in (*lines[1:4], *lines[5:])] == [
        "red", "blue", "green", "blue", "red", "green",
    ]  # fmt: skip
    assert [float(line.split()[0].rstrip("%")) > 90 for line in lines[1:4]] == [True, False, False]
    assert errors.splitlines()[:2] == [
        "x/*.avi: matches no video",
        "broken.avi: does not open as a video",
    ]


NAMES = ("10:30.avi", "-x.avi", "[1] 走る.avi", "a*b?.avi", "s3:__b.avi", "{a} $b$ 100%.avi")


def test_file_names_like_addresses_options_and_patterns_are_read(
    tmp_path: Path, colour_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal that is not UTF-8, by name, in a folder, and as a timeline."""
    (tmp_path / "clips").mkdir()
    for name in NAMES:
        write_colours(tmp_path / "clips" / name, [RED] * 3)
    monkeypatch.chdir(tmp_path / "clips")
    for arguments in ([f"./{name}" for name in NAMES], ["."], ["--timeline=out", *NAMES[2:]]):
        output = io.BytesIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
            patched.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
            assert predict_tool.run(["predict.py", f"--run_dir={colour_run}", *arguments]) == 0
            printed = output.getvalue().decode("ascii")
        for name in NAMES[2:] if "out" in arguments[0] else NAMES:
            assert name.encode("ascii", "backslashreplace").decode() in printed
        assert "red" in printed
    assert {path.name for path in (tmp_path / "clips/out").glob("*.csv")} == {
        "events.csv", *(f"{Path(name).stem}.csv" for name in NAMES[2:]),
    }  # fmt: skip


@pytest.mark.processes
def test_the_tool_prints_one_json_object_per_video(tmp_path: Path, colour_run: str) -> None:
    """As a process: its decoding processes import the script too, and it prints nothing else."""
    _write_videos(tmp_path)
    command = [
        sys.executable, str(ROOT / "tools" / "predict.py"), f"--run_dir={colour_run}", "--json", "--gif=gifs",
        "broken.avi", "x/*.avi", "clips",
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[:2] == [
        {"video": "x/*.avi", "error": "matches no video"},
        {"video": "broken.avi", "error": "does not open as a video"},
    ]
    assert [(line["video"], line["predicted"]) for line in lines[2:]] == [
        ("clips/a.avi", "red"),
        ("clips/b.avi", "blue"),
    ]
    assert all(set(line) == {"video", "predicted", "probabilities"} for line in lines[2:])
    *failures, progress = ended.stderr.splitlines()
    assert failures == ["x/*.avi: matches no video", "broken.avi: does not open as a video"]
    assert progress.startswith("Predicting: 3/3 videos")
    assert sorted(path.name for path in (tmp_path / "gifs").iterdir()) == ["a.gif", "b.gif"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one video"),
        (["a.avi", "--window_sec=2"], "--window_sec and --hop_sec need --timeline=DIR"),
        (["a.avi", "--hop_sec=2"], "--window_sec and --hop_sec need --timeline=DIR"),
        (["a.avi", "--timeline=x", "--gif=x"], "gif shows whole clips, timeline windows"),
        (["a.avi", "--timeline=x", "--hop_sec=0"], "hop_sec must be at least 0.01; got 0"),
        (["a.avi", "--batch_size=0"], "batch_size must be at least 1; got 0"),
        (["a.avi", "--timeout_sec=0"], "timeout_sec must be above 0; got 0"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict_tool.run(["predict.py", "--run_dir=r", *arguments]) == 2
    printed, errors = capsys.readouterr()
    assert errors.startswith("predict.py: ")
    assert message in errors
    assert (printed, errors.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []
