"""Benchmarks: the rows of each, notices about missing libraries, and references that do the same work."""

import json
import logging
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shallow_vgg16

import benchmark
import measure_decode
import measure_input
import measure_model
import measure_train
import measurement
import references
import video_folders
from synthetic import write_class_folders
from vidpipe.config import ClipConfig, ClipSpec, ModelConfig
from vidpipe.data import video
from vidpipe.model.backbone import freeze_blocks
from vidpipe.model.heads import HEADS, feature_extractor
from vidpipe.training import train

SCRIPT = Path(benchmark.__file__)
SPEC = ClipSpec(num_frames=2, height=32, width=32)
# Convolutions of the tests' VGG16, one per block, for a frame of 32 px: kernel size x output positions.
SHALLOW_MULTIPLY_ADDS = sum(
    9 * inputs * outputs * side**2
    for inputs, outputs, side in (
        (3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4), (512, 512, 2),
    )
)  # fmt: skip


@pytest.fixture
def few_videos(tmp_path: Path) -> Path:
    write_class_folders(tmp_path / "videos", {"long": [22, 23], "short": [10, 11]})
    return tmp_path / "videos"


@pytest.fixture
def quick_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes each step of a round once, with a motion head of one ensemble member."""
    monkeypatch.setattr(measure_model, "_MIN_SEC", 1e-6)
    monkeypatch.setitem(HEADS, "motion", replace(HEADS["motion"], ensemble_size=1))


def _run(name: str, video_dir: Path, capsys: pytest.CaptureFixture, *more: str) -> tuple[list[dict], str]:
    """Runs one round; returns the rows as written by --json, and what was printed."""
    table = video_dir / "table.json"
    argv = ["benchmark.py", name, f"--video_dir={video_dir}", "--repeats=1", f"--json={table}", *more]
    assert benchmark.run(argv) == 0
    printed = capsys.readouterr().out
    return _checked_rows(table, printed), printed


def _checked_rows(table: Path, printed: str) -> list[dict]:
    rows = json.loads(table.read_text())["rows"]
    for row in rows:
        assert list(row) == [
            "benchmark", "what", "unit", "reference", "vidpipe", "per_sec", "reference_value", "ratio",
            "ratio_min", "ratio_max",
        ]  # fmt: skip
        assert row["ratio_min"] == row["ratio"] == row["ratio_max"] == row["vidpipe"] / row["reference_value"]
        assert f"{row['unit']}, {row['reference']}\n" in printed
    assert max(map(len, printed.splitlines())) <= 120
    return rows


def _names(rows: list[dict]) -> list[tuple[str, str, str]]:
    return [(row["what"], row["reference"], row["unit"]) for row in rows]


def _in_this_process(function: Callable, *arguments: object) -> object:
    """Replaces `in_fresh_process`; what a fresh process gets still has to go through pickle."""
    function, arguments = pickle.loads(pickle.dumps((function, arguments)))
    return function(*arguments)


def test_a_row_has_medians_and_the_range_of_the_ratios() -> None:
    rounds = [(1.0, 2.0), (3.0, 2.0), (5.0, 4.0)]
    row = measurement.make_row("decode", unit="ms/clip", reference="PyAV", rounds=rounds)
    assert (row.vidpipe, row.reference_value, row.per_sec) == (3.0, 2.0, 1000 / 3)
    assert (row.ratio, row.ratio_min, row.ratio_max) == (1.25, 0.5, 1.5)
    assert measurement.make_row("memory", unit="MiB", reference="10 videos", rounds=rounds).per_sec is None


def test_a_row_is_printed_in_one_line(capsys: pytest.CaptureFixture) -> None:
    row = measurement.make_row("read, head", unit="CPU ms/clip", reference="PyAV 18.1.0", rounds=[(8, 10)])
    benchmark.print_header("decode: 3 videos")
    benchmark.print_row(row)
    empty, title, heads, printed = capsys.readouterr().out.splitlines()
    assert (empty, title) == ("", "decode: 3 videos")
    assert printed.split()[:7] == ["read,", "head", "8.00", "125.00", "10.00", "0.80", "(0.80"]
    assert printed.index("CPU ms/clip, PyAV 18.1.0") == heads.index("unit, reference")


def test_all_benchmarks_run_on_generated_videos(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    workloads: dict[str, measurement.Workload] = {}
    read: list[video.VideoClip] = []

    def fake(name: str) -> Callable[[measurement.Workload], Iterator[measurement.Row]]:
        def measure(workload: measurement.Workload) -> Iterator[measurement.Row]:
            workloads[name] = workload
            if name == "train":
                read.append(video.read_clip(workload.paths[0], ClipConfig(num_frames=200, image_size=64)))
            yield measurement.make_row(name, unit="ms", reference="nothing", rounds=[(1.0, 2.0)])

        return measure

    names = list(benchmark.BENCHMARKS)
    assert names == ["decode", "convert", "input", "model", "train"]
    for name in names:
        monkeypatch.setitem(benchmark.BENCHMARKS, name, fake(name))
    monkeypatch.setattr(benchmark.BenchmarkConfig, "num_generated", lambda _, name: 2 + (name != "train"))
    config = benchmark.BenchmarkConfig(repeats=3, num_frames=8, image_size=64, batch_size=1)
    rows = benchmark.measure_and_print(names, config, on_gpu=False)
    assert list(workloads) == [row["benchmark"] for row in rows] == [row["what"] for row in rows] == names
    decode, train = workloads["decode"], workloads["train"]
    assert (len(decode.paths), decode.repeats, len(train.videos)) == (3, 3, 2)
    assert (train.clip.num_frames, train.clip.image_size) == (8, 64)
    assert decode.paths == workloads["input"].paths  # written once
    assert len(read[0].frames) == 180
    assert np.abs(np.diff(read[0].frames.astype(int), axis=0)).mean() > 2  # the frames move
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "decode: 3 generated videos, 20 frames of 224 px"
    assert lines[13] == "model: batches of 1, 8 frames of 64 px"
    assert lines[17] == "train: 2 generated videos, 8 frames of 64 px"


def test_copies_are_links_in_the_same_class_folders(few_videos: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in few_videos.rglob("*.avi")]
    video_folders.link_copies(paths, str(few_videos), str(tmp_path / "linked"), 3)
    links = sorted((tmp_path / "linked").rglob("*.avi"))
    assert len(links) == 3 * len(paths) and all(link.is_symlink() for link in links)
    assert {link.parent.name for link in links} == {"long", "short"}


@pytest.mark.parametrize("name", ["decode", "convert", "input", "train"])
def test_a_benchmark_of_videos_asks_for_them(name: str, capsys: pytest.CaptureFixture) -> None:
    assert benchmark.run(["benchmark.py", name]) == 2
    assert f"{name} needs --video_dir" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("speed",), ("decode", "convert")])
def test_one_benchmark_must_be_named(arguments: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    assert benchmark.run(["benchmark.py", *arguments]) == 2
    expected = "name one benchmark: decode, convert, input, model, train or all"
    assert expected in capsys.readouterr().err


def test_flags_override_the_numbers_of_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[benchmark.BenchmarkConfig] = []
    monkeypatch.setattr(benchmark, "machine", lambda: {"gpus": []})
    monkeypatch.setattr(benchmark, "print_machine", lambda _: None)
    monkeypatch.setattr(benchmark, "measure_and_print", lambda _, config, on_gpu: measured.append(config))
    assert benchmark.run(["benchmark.py", "train", "--quick", "--num_frames=4"]) == 0
    (config,) = measured
    assert (config.repeats, config.num_frames, config.image_size, config.batch_size) == (1, 4, 64, 1)
    assert config.num_generated("decode") == 12 and config.num_generated("train") == 4


@pytest.mark.benchmark
def test_decode_measures_against_bare_calls_the_notebook_and_installed_libraries(
    few_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError")
    table = tmp_path / "table.json"
    ended = subprocess.run(
        [sys.executable, SCRIPT, "decode", "--quick", f"--video_dir={few_videos}", f"--json={table}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert ended.returncode == 0, ended.stderr
    rows = _checked_rows(table, ended.stdout)
    assert [(row["what"], row["reference"].split(" 1")[0]) for row in rows] == [
        ("read and encode, uniform", "bare grab and encode"),
        ("read and encode, head", "bare grab and encode"),
        ("read, uniform", "OpenCV"),
        ("read, uniform", "PyAV"),
        ("read, head", "OpenCV"),
        ("read, head", "PyAV"),
        ("read, head", "notebook's loader"),
        ("read, 2 s of H.264", "OpenCV"),
        ("read, 20 s of H.264", "OpenCV"),
        ("moments, 20 s of H.264", "bare decoding"),
        ("timeline, 20 s of H.264", "bare decoding"),
    ]
    assert all(row["vidpipe"] > 0 and row["reference_value"] > 0 for row in rows)
    missing = [line for line in ended.stderr.splitlines() if "decord" in line]
    assert missing == [
        "decord is not installed: its rows are left out. Install it with: pip install '.[benchmark]'"
    ]


@pytest.mark.benchmark
def test_convert_measures_time_start_up_and_memory(few_videos: Path, capsys: pytest.CaptureFixture) -> None:
    rows, _ = _run("convert", few_videos, capsys)
    assert _names(rows) == [
        ("convert 40 videos, 2 workers", "1 worker", "wall s"),
        ("convert a clip", "bare grab and encode", "CPU ms/clip"),
        ("start-up of a conversion", "its 4 clips", "CPU s"),
        ("parent's memory, 40 videos", "4 videos", "MiB"),
        ("worker's memory, 40 videos", "4 videos", "MiB"),
    ]
    wall, clip, start_up, parent, worker = rows
    assert wall["vidpipe"] > 0 and wall["reference_value"] > 0
    # The difference of two conversions: with so few clips it may have any value.
    assert math.isfinite(clip["vidpipe"]) and clip["reference_value"] > 0
    assert start_up["vidpipe"] > 0
    # Only the parent holds TensorFlow. A worker that seemed as large would not be measured by itself.
    assert 10 < 2 * worker["vidpipe"] < parent["vidpipe"]
    assert parent["ratio"] == pytest.approx(1, abs=0.2)
    assert worker["ratio"] == pytest.approx(1, abs=0.2)


@pytest.mark.benchmark
def test_input_measures_against_bare_decoding_one_core_and_jpeg(
    few_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    rows, _ = _run("input", few_videos, capsys)
    assert _names(rows) == [
        ("input, JPEG, 1 core", "bare decode_jpeg", "CPU ms/frame"),
        ("input, JPEG, 2 cores", "1 core", "wall ms/clip"),
        ("input, raw, 2 cores", "JPEG", "wall ms/clip"),
    ]
    assert all(row["vidpipe"] > 0 and row["reference_value"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("missing", "notices"),
    [({"torch"}, ["PyTorch"]), ({"av"}, ["PyAV"]), ({"av", "torch"}, ["PyAV"])],
)
def test_a_missing_loader_is_reported(
    missing: set[str],
    notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("av")
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    assert measure_input.installed_pytorch() is None
    assert [record.getMessage().split(" is not installed")[0] for record in caplog.records] == notices


@pytest.mark.benchmark
def test_pytorch_loads_every_clip(few_videos: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("torch")
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert measurement.in_fresh_process(measure_input.load_epoch, _source_videos(few_videos), cores) > 0


def test_pytorch_gets_the_clips_of_vidpipe(few_videos: Path) -> None:
    pytest.importorskip("av")
    videos = _source_videos(few_videos)
    assert len(videos) == 10 * len(videos.paths)
    for number, path in enumerate(videos.paths):
        clip = video.read_clip(path, ClipConfig()).frames
        for frames, mask in (videos[number], videos[number + len(videos.paths)]):
            assert frames.shape == (20, 224, 224, 3)
            assert mask.tolist() == [True] * len(clip) + [False] * (20 - len(clip))
            np.testing.assert_allclose(frames[mask].astype(int), clip, atol=2)
            assert not frames[~mask].any()


def _source_videos(video_dir: Path) -> measure_input.SourceVideos:
    return measure_input.source_videos([str(path) for path in sorted(video_dir.rglob("*.avi"))])


@pytest.mark.parametrize(
    ("module", "read_same"),
    [
        ("cv2", references.read_with_opencv),
        ("av", references.read_with_pyav),
        ("decord", references.read_with_decord),
    ],
)
@pytest.mark.parametrize("image_size", [32, 16])
def test_a_library_gives_the_same_frames(
    module: str, read_same: references.ReadSameClip, image_size: int, few_videos: Path
) -> None:
    pytest.importorskip(module)
    path = str(few_videos / "long" / "video_00.avi")
    clip = video.read_clip(path, ClipConfig(num_frames=5, image_size=image_size))
    frames = read_same(path, clip)
    assert isinstance(frames, np.ndarray)
    # Successive frames differ by 10.
    np.testing.assert_allclose(frames.astype(int), clip.frames, atol=2)


def test_the_notebook_loads_every_frame_and_those_of_vidpipe_first(few_videos: Path) -> None:
    path = str(few_videos / "long" / "video_00.avi")
    clip = video.read_clip(path, ClipConfig(num_frames=4, sampling="head", image_size=32))
    frames = references.load_all_frames(cv2.VideoCapture(path), 32)
    assert frames.shape == (22, 32, 32, 3)
    np.testing.assert_allclose(frames[:4].astype(int), clip.frames, atol=2)
    np.testing.assert_array_equal(references.read_as_notebook(path, clip), frames[:4])


def test_decoding_is_measured_on_every_video_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_decode, "cpu_ms", lambda side: side())
    monkeypatch.setattr(measure_decode.video, "read_clip", lambda path, clip: None)
    called: list[str] = []

    def side(name: str, ms: float) -> Callable[..., float]:
        def read(path: str, _: object) -> float:
            called.append(f"{name} {path}")
            return ms

        return read

    rounds = measure_decode._compare(["a", "b"], ClipConfig(), side("own", 4.0), side("other", 2.0), 2)
    assert rounds == [(4.0, 2.0), (4.0, 2.0)]
    # Which side comes first alternates between the videos and between the rounds.
    assert called == ["other a", "own a", "own b", "other b", "own a", "other a", "other b", "own b"]


@pytest.mark.benchmark
@pytest.mark.usefixtures("quick_steps")
def test_model_measures_against_time_distributed_convolutions_and_a_matrix_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (measure_model, measurement):
        monkeypatch.setattr(module, "in_fresh_process", _in_this_process)
    clip = ClipConfig(num_frames=2, image_size=32)
    workload = measurement.Workload(repeats=1, clip=clip, batch_size=2)
    policy = keras.config.dtype_policy()
    try:
        rows = [asdict(row) for row in measure_model.measure(workload)]
    finally:
        keras.config.set_dtype_policy(policy)
    clocks = ["wall"] if tf.config.list_physical_devices("GPU") else ["wall", "CPU"]
    # The allocator of a CPU counts only with oneDNN, which TensorFlow chooses by the processor.
    counts_memory = measure_model.peak_bytes("CPU:0") > 0

    def steps(trained: str, *others: str) -> list[tuple[str, str, str]]:
        name = f"{trained}, float32"
        found = [(f"step, {name}", other, f"{clock} ms/clip") for other in others for clock in clocks]
        return found + ([(f"memory, {name}", "the estimate", "MiB")] if counts_memory else [])

    assert _names(rows) == [
        ("first step, frozen", "TimeDistributed", "wall s"),
        *steps("frozen", "bare convolutions", "TimeDistributed", "matrix product"),
        *steps("block5", "bare convolutions", "matrix product"),
        *steps("all trained", "bare convolutions", "matrix product"),
    ]
    first, frozen = rows[:2]
    assert frozen["vidpipe"] == rows[1 + len(clocks)]["vidpipe"]
    assert frozen["per_sec"] == 1000 / frozen["vidpipe"] and first["per_sec"] is None
    # The first step includes building the model and tracing the step.
    assert 1000 * first["vidpipe"] > 3 * frozen["vidpipe"]
    assert all(row["vidpipe"] > 0 and row["reference_value"] > 0 for row in rows)


def test_memory_is_a_row_where_tensorflow_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: str) -> dict[str, int]:
        raise ValueError(f"Allocator stats not available for device '{device}'")

    monkeypatch.setattr(measure_model, "in_turn", lambda *_: (1.0, 1.0))
    for get_memory_info, num_rows in ((lambda _: {"peak": 2**21}, 3), (fail, 0)):
        monkeypatch.setattr(tf.config.experimental, "get_memory_info", get_memory_info)
        peak_mib = measure_model.peak_bytes("CPU:0") / 2**20
        steps = measure_model.LaterSteps(clip_ms={}, peak_mib=peak_mib, estimated_mib=4.0)
        monkeypatch.setattr(measure_model, "in_fresh_process", lambda *_, steps=steps: steps)
        rows = measure_model.measure(measurement.Workload(repeats=1))
        assert [row.ratio for row in rows if row.what.startswith("memory")] == num_rows * [0.5]


def test_a_step_that_xla_cannot_compile_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = measure_model.LaterSteps(clip_ms={}, peak_mib=0.0, estimated_mib=1.0, xla_error="not supported")
    assert not list(measure_model._later_rows("frozen, float32", steps))
    assert caplog.messages == [
        "XLA cannot compile the step (frozen, float32), so its row is left out: not supported"
    ]


@pytest.mark.usefixtures("quick_steps")
def test_times_of_steps_and_references_are_per_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {
        "vidpipe": 60.0, "bare convolutions": 30.0, "TimeDistributed": 90.0, "compiled by XLA": 45.0,
        "matrix product": 0.5,
    }  # fmt: skip
    called: list[str] = []

    def fake_rounds(sides: dict[str, Callable], repeats: int) -> dict:
        called.extend(sides)
        return {name: {"wall": [times[name]] * repeats} for name in sides}

    monkeypatch.setattr(measure_model, "_time_in_rounds", fake_rounds)
    monkeypatch.setattr(measure_model, "_compile_with_xla", lambda step: (step, None))
    measured = measure_model.later_steps("none", "float32", SPEC, batch_size=3, repeats=2, with_xla=True)
    assert called == [*times]
    # Of two frames; 2 * 2048**3 operations take half a millisecond.
    flops = 2 * 2 * SHALLOW_MULTIPLY_ADDS
    assert measured.clip_ms == {
        ("bare convolutions", "wall"): [(20.0, 10.0)] * 2,
        ("TimeDistributed", "wall"): [(20.0, 30.0)] * 2,
        ("compiled by XLA", "wall"): [(20.0, 15.0)] * 2,
        ("matrix product", "wall"): [(20.0, pytest.approx(0.5 * flops / (2 * 2048**3)))] * 2,
    }
    assert measured.estimated_mib > 1 and measured.xla_error is None


@pytest.mark.benchmark
@pytest.mark.usefixtures("quick_steps")
def test_a_step_without_xla_has_its_row_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[str] = []

    def fake_rounds(steps: dict[str, Callable], repeats: int) -> dict:
        sides.extend(steps)
        return {name: {"wall": [1.0] * repeats} for name in steps}

    monkeypatch.setattr(measure_model, "_time_in_rounds", fake_rounds)
    # Steps on a CPU are deterministic, and XLA has no deterministic gradient of pooling.
    measured = measure_model.later_steps("block5", "float32", SPEC, batch_size=1, repeats=1, with_xla=True)
    assert sides == ["vidpipe", "bare convolutions", "matrix product"]
    assert measured.xla_error is not None
    assert measured.xla_error.startswith("GPU MaxPool gradient ops do not")


def test_xla_compiles_a_step() -> None:
    counter = tf.Variable(0)
    compiled, error = measure_model._compile_with_xla(tf.function(lambda: counter.assign_add(2)))
    assert error is None and compiled is not None
    compiled()
    assert counter.numpy() == 4


@pytest.mark.benchmark
@pytest.mark.usefixtures("quick_steps")
def test_the_lstm_runs_without_cudnn_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    build = keras.layers.LSTM.build

    def recorded(self: keras.layers.LSTM, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        built.append(self)
        build(self, sequences_shape, initial_state_shape)

    monkeypatch.setattr(keras.layers.LSTM, "build", recorded)
    ((auto, without),) = measure_model.head_steps("float32", SPEC, batch_size=2, repeats=1)
    assert auto > 0 and without > 0
    assert [layer.use_cudnn for layer in built] == ["auto", False]


def _num_convolutions(graph: tf.Graph) -> list[int]:
    """Counts convolutions of a step: forward, backward to kernels, backward to feature maps."""
    # Operations that nothing depends on are traced too, and removed before the first step.
    waiting = [*(output.op for output in graph.outputs), *graph.control_outputs]
    found = set()
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    kinds = [operation.type for operation in found]
    return [kinds.count(kind) for kind in ("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput")]


def _step_graph(step: Any) -> tf.Graph:
    """The graph of `training_step`, which is a partial call of Steps.train."""
    traced = step.func.__self__._train
    return traced.get_concrete_function(*step.args, tf.constant(0.0)).graph


@pytest.mark.usefixtures("quick_steps")
@pytest.mark.parametrize(
    ("fine_tune", "expected"), [("none", [5, 0, 0]), ("block4", [5, 2, 1]), ("all", [5, 5, 4])]
)
def test_bare_convolutions_are_those_of_a_step_on_the_same_frames(
    fine_tune: str, expected: list[int]
) -> None:
    config = ModelConfig(backbone_weights="none", fine_tune=fine_tune)
    fused = measure_model.build_fused(config, SPEC)
    batch = measure_model.random_batch(SPEC, 3)
    step = measure_model.training_step(fused, config, "float32", batch)
    bare: Any = measure_model.bare_convolutions(fused, batch[0])
    (images,) = bare.args
    bare_graph = bare.func.get_concrete_function(images).graph
    assert _num_convolutions(_step_graph(step)) == _num_convolutions(bare_graph) == expected
    assert images.shape == (6, 32, 32, 3)
    computed = bare()
    if fine_tune == "none":
        inputs = {"frames": batch[0], "mask": tf.ones([3, 2], tf.bool)}
        features = feature_extractor(fused)(inputs)
        np.testing.assert_allclose(tf.reshape(computed, [3, 2, 512]), features, rtol=1e-5, atol=1e-5)
    else:
        trained = fused.get_layer("backbone").trainable_variables
        assert [gradient.shape for gradient in computed] == [variable.shape for variable in trained]
        assert all(np.any(gradient) for gradient in computed)


@pytest.fixture(scope="module")
def vgg16() -> keras.Model:
    return keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))


@pytest.mark.parametrize(
    ("fine_tune", "expected"),
    [
        # VGG16 has 15.35 billion multiply-adds at 224 px (Simonyan and Zisserman, 2015).
        ("none", 2 * 15_346_630_656),
        # The last three convolutions, 14 x 14 x 9 x 512 x 512 each; the lowest passes no gradient on.
        ("block5", 2 * (15_346_630_656 + 5 * 462_422_016)),
        ("all", 2 * (3 * 15_346_630_656 - 224 * 224 * 3 * 9 * 64)),
    ],
)
def test_the_operations_of_a_step_are_those_of_vgg16(
    fine_tune: str, expected: int, vgg16: keras.Model
) -> None:
    freeze_blocks("vgg16", vgg16, fine_tune)
    assert measure_model.step_flops(vgg16, num_frames=7) == 7 * expected


@pytest.mark.usefixtures("quick_steps")
def test_all_frames_of_a_step_are_real() -> None:
    fused = measure_model.build_fused(ModelConfig(backbone_weights="none"), SPEC)
    batch = measure_model.random_batch(SPEC, 3)
    step: Any = measure_model.training_step(fused, ModelConfig(), "float32", batch)
    inputs, label, weight = step.args
    assert np.all(inputs["mask"]) and inputs["mask"].shape == (3, 2)
    assert np.all(weight == 1) and label.shape == (3,)


@pytest.mark.usefixtures("quick_steps")
def test_time_distributed_is_the_same_model_with_a_copy_for_each_frame() -> None:
    config = ModelConfig(backbone_weights="none")
    fused = measure_model.build_fused(config, SPEC)
    reference = measure_model.build_time_distributed(config, SPEC)
    reference.set_weights(fused.get_weights())
    frames, label = measure_model.random_batch(SPEC, 3)
    inputs = {"frames": frames, "mask": tf.constant([[True, True], [True, False], [True, True]])}
    np.testing.assert_allclose(fused(inputs), reference(inputs), rtol=1e-5, atol=1e-5)
    step = measure_model.training_step(reference, config, "float32", (frames, label))
    assert _num_convolutions(_step_graph(step)) == [2 * 5, 0, 0]


@pytest.mark.benchmark
@pytest.mark.usefixtures("quick_steps")
def test_train_measures_epochs_and_the_job_of_the_notebook(
    few_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for module in (measure_train, measurement):
        monkeypatch.setattr(module, "in_fresh_process", _in_this_process)
    monkeypatch.setattr(keras.applications, "VGG16", shallow_vgg16)
    monkeypatch.setattr(logging.getLogger(train.__name__), "level", logging.NOTSET)  # restores it afterwards
    rows, printed = _run("train", few_videos, capsys, "--image_size=32", "--num_frames=12")
    assert _names(rows) == [
        ("features and epoch 1", "a later epoch", "wall ms/clip"),
        ("features, steps of epoch 1", "steps of a later epoch", "wall ms/clip"),
        ("convert", "notebook", "wall ms/clip"),
        ("features", "notebook", "wall ms/clip"),
        ("10 epochs", "notebook", "wall ms/clip"),
        ("from videos to weights", "notebook", "wall ms/clip"),
        ("waiting for JPEG, frozen", "the epoch", "wall ms/clip"),
    ]
    epoch, steps, *parts, total, wait = rows
    assert wait["ratio"] < 1
    for side in ("vidpipe", "reference_value"):
        assert all(row[side] > 0 for row in rows)
        assert epoch[side] > steps[side]
        assert sum(part[side] for part in parts) == pytest.approx(total[side])
    # The ten epochs include nine later ones, the first, and what follows them.
    assert 9 * epoch["reference_value"] < 2 * parts[2]["vidpipe"]
    assert "\n\ntrain: 4 videos, 12 frames of 32 px\n" in printed


def test_train_compares_only_equal_work(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = measure_train.Job(1, 1, 1, 79), measure_train.Job(1, 1, 1, 80)
    monkeypatch.setattr(measure_train, "in_turn", lambda *_: jobs)
    expected = "the features of 79 frames, the notebook those of 80"
    with pytest.raises(measure_train.UnequalWorkError, match=expected):
        next(measure_train.measure(measurement.Workload(repeats=1, video_dir="videos")))


def test_the_sides_come_first_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def run_here(function: Callable) -> object:
        called.append(function)
        return function()

    monkeypatch.setattr(measurement, "in_fresh_process", run_here)
    vidpipe, reference = (lambda: "vidpipe"), (lambda: "reference")
    results = [measurement.in_turn(repeat, vidpipe, reference) for repeat in range(2)]
    assert results == [("vidpipe", "reference"), ("vidpipe", "reference")]
    assert called == [reference, vidpipe, vidpipe, reference]
