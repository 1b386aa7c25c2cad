"""A SavedModel answers as the model does, without Keras and vidpipe, and rejects what it cannot answer."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tools import export as export_tool
from vidpipe.config import ClipConfig, ExportConfig
from vidpipe.data import records, video
from vidpipe.data.input_pipeline import centre_view
from vidpipe.evaluation.evaluate import EvaluateError
from vidpipe.inference import export_check, export_saved_model
from vidpipe.inference.export_files import ExportError
from vidpipe.model.model_file import ModelError

ROOT = Path(__file__).parents[2]
CLIP = ClipConfig(num_frames=4, image_size=32)

Clips = dict[str, np.ndarray]
Config = Callable[..., ExportConfig]


@pytest.fixture(scope="module")
def saved_model(
    run_dir: Path, model: keras.Model, export_config: Config, read_clips: Callable, probabilities_of: Callable
) -> Path:
    """An export of `model`."""
    assert np.ptp(probabilities_of(model, read_clips())[:, 0]) > 0.01
    path = run_dir / "models" / "1"
    path.parent.mkdir()
    checks = export_saved_model.export_saved_model(export_config(run_dir, path, "saved_model"))
    assert [check.name for check in checks] == ["frames", "jpeg"]
    for check in checks:
        assert (check.same_class, check.num_clips) == (6, 6)
        assert check.largest_difference <= 1e-5
    return path


@pytest.fixture(scope="module")
def signatures(saved_model: Path) -> Any:
    return tf.saved_model.load(str(saved_model)).signatures


def _as_jpeg(clips: Clips) -> np.ndarray:
    """Object [B, T]: a JPEG file for each real frame."""
    files = np.full(clips["mask"].shape, b"", object)
    for position in zip(*np.nonzero(clips["mask"]), strict=True):
        files[position] = video.encode_frame(clips["frames"][position], "jpeg")
    return files


@pytest.mark.processes
def test_tensorflow_alone_serves_the_saved_model(
    saved_model: Path, model: keras.Model, read_clips: Callable, probabilities_of: Callable, tmp_path: Path
) -> None:
    clips = read_clips()
    files = _as_jpeg(clips)
    np.savez(tmp_path / "inputs.npz", frames=clips["frames"], mask=clips["mask"], jpeg=files.astype(bytes))
    script = """
import sys
sys.modules["keras"] = sys.modules["vidpipe"] = None
import numpy as np, tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
assert sorted(signatures) == ["frames", "jpeg", "serving_default"]
inputs = np.load("inputs.npz")
answers = signatures["frames"](frames=inputs["frames"], mask=inputs["mask"])
assert answers["labels"].numpy().tolist() == [[b"long", b"short"]] * 6
np.save("frames.npy", answers["probabilities"])
answers = signatures["serving_default"](jpeg=inputs["jpeg"])
np.save("jpeg.npy", answers["probabilities"])
"""
    command = [sys.executable, "-c", script, str(saved_model)]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    np.testing.assert_allclose(np.load(tmp_path / "frames.npy"), probabilities_of(model, clips), atol=1e-5)

    decoded = {"frames": np.zeros_like(clips["frames"]), "mask": clips["mask"]}
    for clip, row in enumerate(files):
        real = row[row != b""]
        decoded["frames"][clip, : len(real)] = records.decode_frames(tf.constant(real), "jpeg", 32, 32)
    np.testing.assert_allclose(np.load(tmp_path / "jpeg.npy"), probabilities_of(model, decoded), atol=1e-5)


def test_the_saved_model_holds_its_labels_and_settings(saved_model: Path) -> None:
    assert (saved_model / "assets" / "labels.txt").read_text() == "long\nshort\n"
    metadata = json.loads((saved_model / "assets" / "vidpipe.json").read_text())
    assert (metadata["classes"], metadata["clip"]["num_frames"], metadata["clip"]["sampling"]) == (
        ["long", "short"], 4, "uniform",
    )  # fmt: skip
    assert [path.name for path in saved_model.parent.iterdir()] == ["1"]


def test_rows_of_jpeg_files_may_be_as_short_as_their_longest_clip(
    signatures: Any, read_clips: Callable
) -> None:
    clips = read_clips()
    short = _as_jpeg(clips)[clips["mask"].sum(axis=1) <= 2]
    assert len(short) == 1
    expected = signatures["jpeg"](jpeg=tf.constant(short))["probabilities"]
    found = signatures["jpeg"](jpeg=tf.constant(short[:, :2]))["probabilities"]
    assert (found.numpy() == expected.numpy()).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 0, 0], [0, 0, 0, 0]], "a clip does not begin with a real frame"),
        ([[0, 1, 1, 1]], "a clip does not begin with a real frame"),
        ([[1, 1, 1, 1], [1, 0, 1, 0]], "a clip has a real frame after padding"),
        ([[1, 1, 1, 1, 1]], "a clip has too many frames"),
    ],
)
def test_the_signatures_reject_clips_that_the_model_would_answer_wrongly(
    signatures: Any, mask: list[list[int]], message: str
) -> None:
    real = np.array(mask, bool)
    file = video.encode_frame(np.zeros((32, 32, 3), np.uint8), "jpeg")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["jpeg"](jpeg=tf.where(real, file, b""))
    if real.shape[1] == 4:
        frames = tf.zeros([*real.shape, 32, 32, 3], tf.uint8)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signatures["frames"](frames=frames, mask=tf.constant(real))


@pytest.mark.parametrize("resize", ["crop", "short_side"])
@pytest.mark.parametrize("image_size", [50, 32, 25, 12, 61])
@pytest.mark.parametrize(("height", "width"), [(50, 68), (74, 50)])
def test_frames_of_any_size_are_resized_as_by_the_converter(
    tmp_path: Path, height: int, width: int, image_size: int, resize: str
) -> None:
    """Noise, which a wrong interpolation or a shifted crop changes."""
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    path = str(tmp_path / "noise.avi")
    video.write_video(path, noise, fourcc="MJPG")
    (original,) = video.read_clip(path, ClipConfig(image_size=50, resize="short_side")).frames
    assert original.shape == (height, width, 3)
    clip = ClipConfig(image_size=image_size, resize=resize)
    stored = tf.constant(video.read_clip(path, clip).frames)
    (expected,) = centre_view(stored, clip.spec(clip.num_frames)).numpy()
    # PNG, which the operation reads too, so that only the resizing differs.
    file = tf.constant(video.encode_frame(original, "png"))
    found = export_saved_model._decode_frame(file, clip).numpy()
    difference = np.abs(found.astype(int) - expected.astype(int))
    # OpenCV computes with fewer digits: about an eighth of the values is rounded the other way.
    assert difference.max() <= 1
    assert difference.mean() < 0.2


def test_jpeg_files_are_decoded_as_in_training() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    file = tf.constant(video.encode_frame(noise, "jpeg"))
    (expected,) = records.decode_frames(file[tf.newaxis], "jpeg", 32, 32).numpy()
    assert (export_saved_model._decode_frame(file, CLIP).numpy() == expected).all()


@pytest.mark.parametrize("wrong", ["frames", "jpeg"])
def test_a_saved_model_that_does_not_agree_with_the_model_is_not_kept(
    run_dir: Path,
    saved_model: Path,
    export_config: Config,
    tmp_path: Path,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        export_saved_model,
        "_write_saved_model",
        lambda *arguments: shutil.copytree(saved_model, arguments[-1]),
    )
    if wrong == "frames":
        not_a_number = lambda batch: np.full([len(batch["mask"]), 2], np.nan)  # noqa: E731
        monkeypatch.setattr(export_check, "by_model", lambda _: not_a_number)
    else:
        as_jpeg = export_saved_model._as_jpeg
        monkeypatch.setattr(
            export_saved_model,
            "_as_jpeg",
            lambda batch: (as_jpeg(batch)[0], batch | {"frames": 0 * batch["frames"]}),
        )
    message = f"^The export does not agree with the model and was not written. {wrong}: largest difference"
    with pytest.raises(ExportError, match=message):
        export_saved_model.export_saved_model(export_config(run_dir, tmp_path / "out", "saved_model"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_model_or_with_other_classes_leaves_no_export(
    tmp_path: Path, export_config: Config, other_classes_run: Path
) -> None:
    with pytest.raises(ModelError, match="no trained model"):
        export_saved_model.export_saved_model(export_config(tmp_path, tmp_path / "out", "saved_model"))
    config = export_config(other_classes_run, tmp_path / "out", "saved_model")
    with pytest.raises(EvaluateError, match="they differ in short, tall"):
        export_saved_model.export_saved_model(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a[1]/1", "a]", "x*", "x?"])
def test_a_path_from_which_tensorflow_cannot_load_is_rejected(
    tmp_path: Path, export_config: Config, name: str
) -> None:
    path = tmp_path / name
    with pytest.raises(
        ExportError, match=r"TensorFlow takes .* in the path of a SavedModel for a pattern.*another path"
    ):
        export_saved_model.export_saved_model(export_config(tmp_path, path, "saved_model"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format=onnx",), "format must be one of saved_model, tflite, features; got onnx"),
        (("--format=saved_model", "--quantization=dynamic_range"), "quantization needs format=tflite; got"),
        (("--format=tflite", "--quantization=int4"), "quantization must be one of none, dynamic_range"),
        (("--format=tflite", "--split=all"), "split must be one of train, val, test"),
        ((), "--format is required"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(
    tmp_path: Path,
    flags: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export.py", "--run_dir=no", "--data_dir=no", "--output=out", *flags]
    assert export_tool.run(command) == 2
    printed, errors = capsys.readouterr()
    assert errors.startswith("export.py: ")
    assert message in errors
    assert (printed, errors.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
@pytest.mark.usefixtures("model")
def test_the_tool_prints_its_checks_and_nothing_else(run_dir: Path, data_dir: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [
        sys.executable, str(ROOT / "tools" / "export.py"), f"--run_dir={run_dir}", f"--data_dir={data_dir}",
        f"--output={output}", "--format=saved_model", "--split=val",
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    ended = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    *lines, written = ended.stdout.splitlines()
    for line, name in zip(lines, ("frames", "jpeg"), strict=True):
        assert line.startswith(f"{name}: largest difference of a probability ")
        assert line.endswith(", same predicted class for 2 of 2 clips.")
    assert written == f"{output}: written."
    assert output.is_dir()
