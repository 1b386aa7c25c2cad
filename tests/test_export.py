"""Exports answer as the model does, without it: a SavedModel without Keras, a TFLite file with its labels."""

import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from test_tools import run_tool
from vidpipe import evaluate, export, records, shards, video
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.input_pipeline import eval_dataset
from vidpipe.model import ModelCard, ModelError, adapt_standardization, build_model, save_model

CLIP = ClipConfig(num_frames=4, image_size=32)
CLASSES = ("long", "short")


def _clips(data_dir: str, info: shards.DatasetInfo, num_frames: int | None = None) -> dict[str, np.ndarray]:
    """All six test clips."""
    ((inputs, _, _),) = eval_dataset(data_dir, info, 6, "test", num_frames)
    return {name: values.numpy() for name, values in inputs.items()}


def _save_run(
    folder: Path, inputs: dict[str, np.ndarray], head: str = "motion", num_frames: int | None = None
) -> keras.Model:
    """A model with random weights whose answers differ from clip to clip."""
    keras.utils.set_random_seed(1)
    card = ModelCard(CLASSES, CLIP, num_frames)
    model = build_model(ModelConfig(backbone_weights="none", head=head), card.spec, 2).fused
    adapt_standardization(model, [inputs])
    save_model(model, card, folder / "model.keras")
    return model


def _probabilities(model: keras.Model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return tf.nn.softmax(model(inputs, training=False)).numpy()


@pytest.fixture(scope="module")
def inputs(data_dir: str, info: shards.DatasetInfo) -> dict[str, np.ndarray]:
    return _clips(data_dir, info)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def model(run_dir: Path, inputs: dict[str, np.ndarray]) -> keras.Model:
    model = _save_run(run_dir, inputs)
    assert np.ptp(_probabilities(model, inputs)[:, 0]) > 0.01
    return model


@pytest.fixture(scope="module")
def saved_model(run_dir: Path, model: keras.Model, data_dir: str) -> Path:
    path = run_dir / "models" / "1"
    path.parent.mkdir()
    checks = export.export_saved_model(str(run_dir), data_dir, "test", str(path))
    assert [check.what for check in checks] == ["frames", "jpeg"]
    for check in checks:
        assert (check.same_class, check.clips) == (6, 6)
        assert check.largest_difference <= 1e-5
    return path


@pytest.fixture(scope="module")
def served(saved_model: Path) -> Any:
    return tf.saved_model.load(str(saved_model)).signatures


def _as_jpeg(inputs: dict[str, np.ndarray]) -> np.ndarray:
    files = np.full(inputs["mask"].shape, b"", object)
    for place in zip(*np.nonzero(inputs["mask"]), strict=True):
        files[place] = video.encode_frame(inputs["frames"][place], "jpeg")
    return files


def test_tensorflow_alone_serves_the_saved_model(
    saved_model: Path, model: keras.Model, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    files = _as_jpeg(inputs)
    np.savez(
        tmp_path / "inputs.npz",
        frames=inputs["frames"],
        mask=inputs["mask"],
        jpeg=files.astype(bytes),
    )
    script = """
import sys
sys.modules["keras"] = sys.modules["vidpipe"] = None
import numpy as np, tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
assert sorted(served.signatures) == ["frames", "jpeg", "serving_default"]
inputs = np.load("inputs.npz")
answers = served.signatures["frames"](frames=inputs["frames"], mask=inputs["mask"])
assert answers["labels"].numpy().tolist() == [[b"long", b"short"]] * 6
np.save("frames.npy", answers["probabilities"])
answers = served.signatures["serving_default"](jpeg=inputs["jpeg"])
np.save("jpeg.npy", answers["probabilities"])
"""
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", script, str(saved_model)]
    subprocess.run(command, cwd=tmp_path, check=True, env=quiet)
    expected = _probabilities(model, inputs)
    np.testing.assert_allclose(np.load(tmp_path / "frames.npy"), expected, atol=1e-5)

    decoded = {"frames": np.zeros_like(inputs["frames"]), "mask": inputs["mask"]}
    for clip, row in enumerate(files):
        real = row[row != b""]
        decoded["frames"][clip, : len(real)] = records.decode_frames(tf.constant(real), "jpeg", 32, 32)
    expected = _probabilities(model, decoded)
    np.testing.assert_allclose(np.load(tmp_path / "jpeg.npy"), expected, atol=1e-5)


def test_the_saved_model_has_its_labels_and_settings(saved_model: Path) -> None:
    assert (saved_model / "assets" / "labels.txt").read_text() == "long\nshort\n"
    card = json.loads((saved_model / "assets" / "vidpipe.json").read_text())
    assert (card["classes"], card["clip"]["num_frames"], card["clip"]["sampling"]) == (
        ["long", "short"], 4, "uniform",
    )  # fmt: skip
    assert [path.name for path in saved_model.parent.iterdir()] == ["1"]


def test_rows_of_jpeg_files_may_be_as_short_as_their_longest_clip(served: Any, inputs: dict) -> None:
    files = _as_jpeg(inputs)
    short = files[inputs["mask"].sum(axis=1) <= 2]
    assert len(short) == 1
    expected = served["jpeg"](jpeg=tf.constant(short))["probabilities"]
    found = served["jpeg"](jpeg=tf.constant(short[:, :2]))["probabilities"]
    assert (found.numpy() == expected.numpy()).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 0, 0], [0, 0, 0, 0]], "a clip does not begin with a real frame"),
        ([[0, 1, 1, 1]], "a clip does not begin with a real frame"),
        ([[1, 1, 1, 1], [1, 0, 1, 0]], "a clip has a real frame behind padding"),
        ([[1, 1, 1, 1, 1]], "too many frames in a clip"),
    ],
)
def test_the_signatures_refuse_what_the_model_would_answer_wrongly(
    served: Any, mask: list[list[int]], message: str
) -> None:
    real = np.array(mask, bool)
    file = video.encode_frame(np.zeros((32, 32, 3), np.uint8), "jpeg")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served["jpeg"](jpeg=tf.where(real, file, b""))
    if real.shape[1] == 4:
        frames = tf.zeros([*real.shape, 32, 32, 3], tf.uint8)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            served["frames"](frames=frames, mask=tf.constant(real))


@pytest.mark.parametrize("resize", ["crop", "short_side"])
@pytest.mark.parametrize("image_size", [50, 32, 25, 12, 61])
@pytest.mark.parametrize(("height", "width"), [(50, 68), (74, 50)])
def test_frames_of_any_size_become_the_converter_s(
    tmp_path: Path, height: int, width: int, image_size: int, resize: str
) -> None:
    """Noise, of which a wrong interpolation or a shifted crop makes something else."""
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    path = str(tmp_path / "noise.avi")
    video.write_video(path, noise, fourcc="MJPG")
    (whole,) = video.read_clip(path, ClipConfig(image_size=50, resize="short_side")).frames
    assert whole.shape == (height, width, 3)
    clip = ClipConfig(image_size=image_size, resize=resize)
    stored = tf.constant(video.read_clip(path, clip).frames)
    (expected,) = export.input_pipeline.centre_view(stored, clip.model_spec()).numpy()
    # PNG, which the operation reads too, so that all that differs is the resizing.
    found = export._stored_frame(tf.constant(video.encode_frame(whole, "png")), clip).numpy()
    difference = np.abs(found.astype(int) - expected.astype(int))
    # OpenCV counts with fewer digits: about an eighth of the numbers is rounded the other way.
    assert difference.max() <= 1 and difference.mean() < 0.2


def test_jpeg_files_are_decoded_as_in_training() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    file = tf.constant(video.encode_frame(noise, "jpeg"))
    (expected,) = records.decode_frames(file[tf.newaxis], "jpeg", 32, 32).numpy()
    assert (export._stored_frame(file, CLIP).numpy() == expected).all()


@pytest.mark.parametrize(("head", "quantization"), [("motion", "none"), ("notebook", "dynamic_range")])
def test_the_tflite_interpreter_answers_as_the_model(
    data_dir: str,
    inputs: dict[str, np.ndarray],
    tmp_path: Path,
    head: str,
    quantization: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = _save_run(tmp_path, inputs, head)
    path = tmp_path / "model.tflite"
    capfd.readouterr()
    (check,) = export.export_tflite(str(tmp_path), data_dir, "test", str(path), quantization)
    assert check.what == f"TFLite, quantization {quantization}"
    assert capfd.readouterr() == ("", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(path))
    assert not [op for op in interpreter._get_ops_details() if op["op_name"].startswith(("Flex", "CUSTOM"))]
    shapes = {values["name"]: values["shape"].tolist() for values in interpreter.get_input_details()}
    assert sorted(shapes.values()) == [[1, 4], [1, 4, 32, 32, 3]]
    runner = interpreter.get_signature_runner()
    rows = [
        runner(frames=frames[np.newaxis], mask=mask[np.newaxis])["probabilities"][0]
        for frames, mask in zip(inputs["frames"], inputs["mask"], strict=True)
    ]
    expected = _probabilities(model, inputs)
    assert not inputs["mask"].all()
    np.testing.assert_allclose(rows, expected, atol=1e-4 if quantization == "none" else 0.02)
    assert check.largest_difference == pytest.approx(np.abs(rows - expected).max(), abs=1e-6)
    weights_bytes = 4 * model.count_params()
    share = path.stat().st_size / weights_bytes
    assert 0.99 < share < 1.05 if quantization == "none" else 0.24 < share < 0.3
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"long\nshort\n"
        assert json.loads(archive.read("vidpipe.json"))["clip"]["image_size"] == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "model.tflite"]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_portable_model_computes_in_float32_and_without_cudnn(inputs: dict, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(1)
        config = ModelConfig(backbone_weights="none", head="motion")
        half = build_model(config, CLIP.model_spec(), 2).fused
    finally:
        keras.config.set_dtype_policy("float32")
    adapt_standardization(half, [inputs])
    portable = export.portable_model(half)
    assert "float16" in half.to_json() and "float16" not in portable.to_json()
    assert {layer.use_cudnn for layer in portable.get_layer("head").layers if "lstm" in layer.name} == {False}
    for weight, expected in zip(portable.get_weights(), half.get_weights(), strict=True):
        assert (weight == expected).all()
    difference = np.abs(_probabilities(portable, inputs) - _probabilities(half, inputs)).max()
    assert 0 < difference < 0.05


def test_a_model_of_half_precision_and_fewer_frames_is_compared_with_both(
    data_dir: str, info: shards.DatasetInfo, tmp_path: Path
) -> None:
    inputs = _clips(data_dir, info, num_frames=2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        _save_run(tmp_path, inputs, num_frames=2)
    finally:
        keras.config.set_dtype_policy("float32")
    path = str(tmp_path / "model.tflite")
    tflite, half = export.export_tflite(str(tmp_path), data_dir, "test", path, "none")
    assert tflite.largest_difference < 1e-4
    assert half.what == "float32 and the run's mixed_bfloat16"
    assert 1e-4 < half.largest_difference < 0.05


@pytest.mark.parametrize("wrong", ["frames", "jpeg"])
def test_a_saved_model_that_is_not_the_model_is_not_kept(
    run_dir: Path,
    saved_model: Path,
    data_dir: str,
    tmp_path: Path,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        export, "_write_saved_model", lambda *places: shutil.copytree(saved_model, places[-1])
    )
    if wrong == "frames":
        # What is no number is no agreement.
        no_numbers = lambda batch: np.full([len(batch["mask"]), 2], np.nan)  # noqa: E731
        monkeypatch.setattr(export, "_of_model", lambda _: no_numbers)
    else:
        as_jpeg = export._as_jpeg
        monkeypatch.setattr(
            export, "_as_jpeg", lambda batch: (as_jpeg(batch)[0], batch | {"frames": 0 * batch["frames"]})
        )
    message = f"^The export is not the model, so it is not kept: {wrong}: largest difference .* is allowed.$"
    with pytest.raises(export.ExportError, match=message):
        export.export_saved_model(str(run_dir), data_dir, "test", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantization", export.QUANTIZATIONS)
def test_a_tflite_file_that_is_not_the_model_is_not_kept(
    run_dir: Path,
    model: keras.Model,
    data_dir: str,
    tmp_path: Path,
    quantization: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reach = 1.01 * export.TFLITE_BOUNDS[quantization]
    monkeypatch.setattr(export, "_write_tflite", lambda *places: places[-1].write_text("file"))
    monkeypatch.setattr(export, "_of_tflite", lambda _: lambda batch: _probabilities(model, batch) + reach)
    places = (str(run_dir), data_dir, "test", str(tmp_path / "out"), quantization)
    message = (
        f"^The export is not the model, so it is not kept: TFLite, quantization {quantization}: .* allowed.$"
    )
    with pytest.raises(export.ExportError, match=message):
        export.export_tflite(*places)
    assert list(tmp_path.iterdir()) == []
    reach *= 0.98
    (check,) = export.export_tflite(*places)
    assert (check.same_class, check.largest_difference) == (6, pytest.approx(reach, rel=1e-3))
    assert (tmp_path / "out").read_text() == "file"


def test_checks_are_made_without_tf32() -> None:
    """Which is on at first, and only a GPU has: its answers would be too far from a CPU's."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    found = export._probabilities("model", lambda batch: np.array([[enabled()]]), [{}])
    assert (found.tolist(), enabled()) == ([[False]], True)


def _write_archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "old")


def test_an_older_export_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    file, folder = tmp_path / "out.tflite", tmp_path / "1"
    _write_archive(file, "labels.txt", "vidpipe.json")
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "vidpipe.json").write_text("old")
    for path, is_ours in ((file, export._is_tflite), (folder, export._is_saved_model)):
        with (
            pytest.raises(export.ExportError, match="not the model"),
            export._replaced(str(path), is_ours) as new,
        ):
            new.write_text("half")
            raise export.ExportError("not the model")
        assert path.is_dir() == (path == folder) and is_ours(path)
        with export._replaced(str(path), is_ours) as new:
            new.write_text("new")
            assert is_ours(path)
        assert path.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "out.tflite"]


@pytest.mark.parametrize("name", ["model.keras", "text", "folder", "1"])
def test_what_is_no_export_is_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "model.keras":
        _write_archive(path, "vidpipe.json", "model.weights.h5")
    elif name == "text":
        path.write_text("mine")
    else:
        # A SavedModel is no place for a file, nor another folder for a SavedModel.
        assets = path / ("assets" if name == "1" else "other")
        assets.mkdir(parents=True)
        (assets / "vidpipe.json").write_text("{}")
    tries = [export._is_tflite] if name == "1" else [export._is_tflite, export._is_saved_model]
    for is_ours in tries:
        message = f"^{path} is there, and no such export of vidpipe's"
        with pytest.raises(export.ExportError, match=message), export._replaced(str(path), is_ours):
            pytest.fail("went on")
    assert path.exists()


def test_places_that_cannot_be_written_are_named_before_the_work(tmp_path: Path) -> None:
    for path, message in (
        (f"{tmp_path}/no/1", "Cannot write .*/no/1 .No such file or directory.. Make room"),
        ("s3://bucket/1", "Models cannot be exported to s3://bucket/1. Give a local path"),
    ):
        with pytest.raises(export.ExportError, match=message):
            export.export_saved_model("no_run", "no_data", "test", path)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "{{function_node}} No space left")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    message = f"^Cannot write {tmp_path}/1 .No space left on device.. Make room"
    with (
        pytest.raises(export.ExportError, match=message),
        export._replaced(f"{tmp_path}/1", export._is_saved_model) as new,
    ):
        export._save(tf.Module(), new, {})
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_model_or_of_other_classes_is_refused(
    data_dir: str, tmp_path: Path, model: keras.Model
) -> None:
    with pytest.raises(ModelError, match=f"There is no trained model {tmp_path}/model.keras. Train one"):
        export.export_saved_model(str(tmp_path), data_dir, "test", str(tmp_path / "out"))
    save_model(model, ModelCard(("long", "tall"), CLIP), tmp_path / "model.keras")
    with pytest.raises(evaluate.EvaluateError, match="they differ in short, tall"):
        export.export_tflite(str(tmp_path), data_dir, "test", str(tmp_path / "out"), "none")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format=onnx",), "value should be one of <saved_model|tflite|features>"),
        (("--format=saved_model", "--quantization=none"), "--quantization goes with --format=tflite; got"),
        (("--format=tflite", "--quantization=int4"), "value should be one of <none|dynamic_range>"),
    ],
)
def test_wrong_flags_get_one_line(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    ended = run_tool("export.py", "--run_dir=no", "--data_dir=no", "--output=out", *flags, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.startswith("export.py: ") and ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("model")
def test_the_tool_says_what_it_checked_and_nothing_else(run_dir: Path, data_dir: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = (f"--run_dir={run_dir}", f"--data_dir={data_dir}", f"--output={output}", "--format=saved_model")
    ended = run_tool("export.py", *flags, "--split=val")
    assert (ended.returncode, ended.stderr) == (0, "")
    *lines, written = ended.stdout.splitlines()
    for line, what in zip(lines, ("frames", "jpeg"), strict=True):
        assert line.startswith(f"{what}: largest difference of a probability ")
        assert line.endswith(", the same class predicted for 2 of 2 clips.")
    assert written == f"Written to {output}."
    assert output.is_dir()
