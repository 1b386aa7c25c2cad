"""The benchmark has all its rows, says which peers are missing, and they do the same work as ours."""

import importlib.util
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

import benchmark
import measure_input
import measure_training
from synthetic import write_class_folders
from test_tools import run_tool
from vidpipe import video
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.model import feature_extractor


@pytest.fixture
def few_videos(tmp_path: Path) -> Path:
    write_class_folders(tmp_path / "videos", {"long": [22, 23], "short": [10, 11]})
    return tmp_path / "videos"


def run_benchmark(name: str, video_dir: Path, *more: str) -> tuple[list[dict], str]:
    """The rows of one round, as written with --json, and what was printed."""
    table = video_dir / "table.json"
    ended = run_tool(
        "benchmark.py", name, f"--video_dir={video_dir}", "--repeats=1", f"--json={table}", *more
    )
    assert ended.returncode == 0, ended.stderr
    return checked_rows(table, ended.stdout), ended.stdout


def checked_rows(table: Path, printed: str) -> list[dict]:
    rows = json.loads(table.read_text())["rows"]
    for row in rows:
        assert list(row) == [
            "benchmark", "what", "unit", "against", "ours", "per_sec", "theirs", "ratio", "ratio_min",
            "ratio_max",
        ]  # fmt: skip
        assert row["ratio_min"] == row["ratio"] == row["ratio_max"] == row["ours"] / row["theirs"]
        assert f"{row['against']}, {row['unit']}\n" in printed
    return rows


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
    assert max(map(len, printed.splitlines())) <= 120
    missing = [line for line in printed.splitlines() if "decord" in line]
    assert missing == [
        "decord is not installed; its rows are left out. pip install '.[benchmark]' brings it."
    ]


def test_all_are_measured_on_videos_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def fake(name: str) -> Callable[..., Iterator[dict]]:
        def measured(*arguments: Any) -> Iterator[dict]:
            asked.append((name, arguments))
            yield measure_input.row(name, "ms", "nothing", [(1.0, 2.0), (3.0, 2.0), (5.0, 2.0)])

        return measured

    monkeypatch.setattr(measure_input, "installed_peers", dict)
    monkeypatch.setattr(measure_input, "installed_loader", lambda: None)
    for name in ("decode", "convert", "input"):
        monkeypatch.setattr(measure_input, f"benchmark_{name}", fake(name))
    for name in ("model", "train"):
        monkeypatch.setattr(measure_training, f"benchmark_{name}", fake(name))
    load = benchmark.Load(repeats=3, num_frames=8, image_size=64, clips=1, num_videos=(3, 2))
    rows = benchmark.measure_and_print(benchmark.NAMES, None, load, tmp_path)
    assert [name for name, _ in asked] == ["decode", "convert", "input", "model", "train"]
    assert [row["benchmark"] for row in rows] == [row["what"] for row in rows] == list(benchmark.NAMES)
    assert (rows[0]["ratio"], rows[0]["ratio_min"], rows[0]["ratio_max"]) == (1.5, 0.5, 2.5)
    (paths, _, repeats), (_, videos, clip, *_) = asked[0][1], asked[4][1]
    assert (len(paths), repeats, len(videos), clip.sampling) == (3, 3, 2, "head")
    read = video.read_clip(paths[0], ClipConfig(num_frames=200, image_size=64))
    assert len(read.frames) == 180
    assert np.abs(np.diff(read.frames.astype(int), axis=0)).mean() > 2  # they move
    assert capsys.readouterr().out.splitlines()[1].startswith("decode: 3 videos")


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
    assert max(map(len, printed.splitlines())) <= 120
    peers = [line for line in printed.splitlines() if "PyTorch" in line]
    if importlib.util.find_spec("av"):
        assert peers == [
            "PyTorch is not installed; its rows are left out. pip install '.[benchmark]' brings it."
        ]


def test_pytorch_loads_every_clip(few_videos: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("torch")
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert measure_input.in_fresh_process(measure_input._load_epoch, videos_in(few_videos), cores) > 0


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


def videos_in(video_dir: Path) -> measure_input._Videos:
    paths = [str(path) for path in sorted(video_dir.rglob("*.avi"))]
    return measure_input._Videos(paths, [video.read_clip(path, ClipConfig()).frame_indices for path in paths])


@pytest.mark.parametrize(("module", "peer"), [("av", measure_input._pyav), ("decord", measure_input._decord)])
@pytest.mark.parametrize("image_size", [32, 16])
def test_a_peer_gives_the_same_frames(
    module: str, peer: measure_input.Peer, image_size: int, few_videos: Path
) -> None:
    pytest.importorskip(module)
    path = str(few_videos / "long" / "video_00.avi")
    ours = video.read_clip(path, ClipConfig(num_frames=5, image_size=image_size))
    theirs = peer(path, ours)
    assert isinstance(theirs, np.ndarray)
    # Half a step of brightness between frames is 5.
    np.testing.assert_allclose(theirs.astype(int), ours.frames, atol=2)


def test_the_notebook_loads_every_frame_and_those_of_ours_first(few_videos: Path) -> None:
    path = str(few_videos / "long" / "video_00.avi")
    ours = video.read_clip(path, ClipConfig(num_frames=4, sampling="head", image_size=32))
    frames = measure_input.load_as_notebook(cv2.VideoCapture(path), 32)
    assert frames.shape == (22, 32, 32, 3)
    np.testing.assert_allclose(frames[:4].astype(int), ours.frames, atol=2)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spares five imports of TensorFlow. What a fresh process gets still has to go through pickle."""

    def run_here(run: Callable, *arguments: object) -> object:
        run, arguments = pickle.loads(pickle.dumps((run, arguments)))
        return run(*arguments)

    monkeypatch.setattr(measure_training, "in_fresh_process", run_here)
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


def test_model_measures_against_time_distributed_and_bare_convolutions(
    in_this_process: None,
) -> None:
    clip = ClipConfig(num_frames=2, image_size=32)
    rows = list(measure_training.benchmark_model(num_clips=2, clip=clip, repeats=1, on_gpu=False))
    clocks = ["wall"] if tf.config.list_physical_devices("GPU") else ["wall", "CPU"]
    # A CPU's allocator counts only with oneDNN, which TensorFlow chooses by the processor.
    counted = measure_training._peak_bytes("CPU:0") > 0

    def against(of: str, *others: str) -> list[tuple[str, ...]]:
        steps = [(f"step, {of}, float32", other, f"{clock} ms/clip") for other in others for clock in clocks]
        return [*steps, *([(f"memory, {of}, float32", "the estimate", "MiB")] if counted else [])]

    assert [(row["what"], row["against"], row["unit"]) for row in rows] == [
        ("first step, frozen", "TimeDistributed", "wall s"),
        *against("frozen", "bare convolutions", "TimeDistributed", "matrix product"),
        *against("block5", "bare convolutions", "matrix product"),
        *against("all", "bare convolutions", "matrix product"),
    ]
    first, frozen = rows[:2]
    assert frozen["ours"] == rows[1 + len(clocks)]["ours"]
    assert frozen["per_sec"] == 1000 / frozen["ours"] and first["per_sec"] is None
    # A first step has the model built and the step traced.
    assert 1000 * first["ours"] > 3 * frozen["ours"]
    assert all(row["ours"] > 0 and row["theirs"] > 0 for row in rows)


def test_memory_is_a_row_where_tensorflow_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str) -> dict[str, int]:
        raise ValueError(f"Allocator stats not available for device '{device}'")

    monkeypatch.setattr(measure_training, "_in_turn", lambda *_: (1.0, 1.0))
    for get_memory_info, num_rows in ((lambda _: {"peak": 2**21}, 3), (refuse, 0)):
        monkeypatch.setattr(tf.config.experimental, "get_memory_info", get_memory_info)
        steps = measure_training._LaterSteps({}, measure_training._peak_bytes("CPU:0") / 2**20, 4.0)
        monkeypatch.setattr(measure_training, "in_fresh_process", lambda *_, steps=steps: steps)
        rows = list(measure_training.benchmark_model(1, ClipConfig(), 1, on_gpu=False))
        assert [row["ratio"] for row in rows if row["what"].startswith("memory")] == num_rows * [0.5]


def test_a_step_and_the_others_are_told_for_one_clip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    spent = {"ours": 60.0, "bare convolutions": 30.0, "TimeDistributed": 90.0, "matrix product": 0.5}
    called: list[str] = []

    def fake_rounds(sides: dict[str, Callable], repeats: int) -> dict:
        called.extend(sides)
        for step in sides.values():
            step()
        return {name: {"wall": [spent[name]] * repeats} for name in sides}

    monkeypatch.setattr(measure_training, "_in_rounds", fake_rounds)
    measured = measure_training._later_steps("none", "float32", SPEC, num_clips=3, repeats=2, with_xla=True)
    assert called == [*spent]
    # VGG16's of two frames; 2 * 2048**3 take half a millisecond.
    flops = 2 * 2 * 313_196_544
    assert measured.clip_ms == {
        ("bare convolutions", "wall"): [(20.0, 10.0)] * 2,
        ("TimeDistributed", "wall"): [(20.0, 30.0)] * 2,
        ("matrix product", "wall"): [(20.0, pytest.approx(0.5 * flops / (2 * 2048**3)))] * 2,
    }
    # On a CPU the steps are deterministic, and of pooling XLA has no such gradient.
    assert capsys.readouterr().out.startswith(
        "XLA cannot compile the next step, and its row is left out: GPU MaxPool gradient ops do not"
    )


def test_the_lstm_is_kept_off_cudnn_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    build = keras.layers.LSTM.build

    def noting(self: keras.layers.LSTM, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        asked.append(self)
        build(self, sequences_shape, initial_state_shape)

    monkeypatch.setattr(keras.layers.LSTM, "build", noting)
    ((ours, theirs),) = measure_training._head_steps("float32", SPEC, num_clips=2, repeats=1)
    assert ours > 0 and theirs > 0
    assert [layer.use_cudnn for layer in asked] == 5 * ["auto"] + 5 * [False]


SPEC = ClipConfig(num_frames=2, image_size=32).model_spec()


def num_convolutions(traced: tuple[Any, tuple]) -> list[int]:
    """Of a step: forward, backward to kernels, backward to feature maps."""
    function, arguments = traced
    graph = function.get_concrete_function(*arguments).graph
    # What nothing depends on is traced too, and dropped before the first step.
    waiting = [*(output.op for output in graph.outputs), *graph.control_outputs]
    found = set()
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    kinds = [operation.type for operation in found]
    return [kinds.count(kind) for kind in ("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput")]


@pytest.mark.parametrize(
    ("fine_tune", "expected"), [("none", [13, 0, 0]), ("block5", [13, 3, 2]), ("all", [13, 13, 12])]
)
def test_the_floor_has_the_convolutions_of_a_step_on_the_same_frames(
    fine_tune: str, expected: list[int]
) -> None:
    config = ModelConfig(backbone_weights="none", fine_tune=fine_tune)
    fused = measure_training.build_fused(config, SPEC)
    batch = measure_training.random_batch(SPEC, 3)
    step = measure_training.training_step(fused, config, "float32", batch)
    floor, images = measure_training.bare_convolutions(fused, batch)
    assert num_convolutions(step) == num_convolutions((floor, images)) == expected
    assert images[0].shape == (6, 32, 32, 3)
    gained = floor(*images)
    if fine_tune == "none":
        np.testing.assert_allclose(
            tf.reshape(gained, [3, 2, 512]), feature_extractor(fused)(step[1][0]), rtol=1e-5, atol=1e-5
        )
    else:
        trained = fused.get_layer("backbone").trainable_variables
        assert [gradient.shape for gradient in gained] == [variable.shape for variable in trained]
        assert all(np.any(gradient) for gradient in gained)


@pytest.mark.parametrize(
    ("fine_tune", "expected"),
    [
        # VGG16 has 15.35 billion multiplications at 224 px (Simonyan and Zisserman, 2015).
        ("none", 2 * 15_346_630_656),
        # The last three convolutions, 14 x 14 x 9 x 512 x 512 each; the lowest passes no gradient on.
        ("block5", 2 * (15_346_630_656 + 5 * 462_422_016)),
        ("all", 2 * (3 * 15_346_630_656 - 224 * 224 * 3 * 9 * 64)),
    ],
)
def test_the_operations_of_a_step_are_those_of_vgg16(fine_tune: str, expected: int) -> None:
    spec = ClipConfig(num_frames=1).model_spec()
    fused = measure_training.build_fused(ModelConfig(backbone_weights="none", fine_tune=fine_tune), spec)
    assert measure_training.step_flops(fused.get_layer("backbone"), num_frames=7) == 7 * expected


def test_a_step_counts_all_frames_as_real() -> None:
    _, (inputs, label, weight, _) = measure_training.training_step(
        measure_training.build_fused(ModelConfig(backbone_weights="none"), SPEC), ModelConfig(), "float32",
        measure_training.random_batch(SPEC, 3),
    )  # fmt: skip
    assert np.all(inputs["mask"]) and inputs["mask"].shape == (3, 2)
    assert np.all(weight == 1) and label.shape == (3,)


def test_time_distributed_is_the_same_model_with_a_copy_for_each_frame() -> None:
    config = ModelConfig(backbone_weights="none")
    ours = measure_training.build_fused(config, SPEC)
    theirs = measure_training.build_time_distributed(config, SPEC)
    theirs.set_weights(ours.get_weights())
    frames, label = measure_training.random_batch(SPEC, 3)
    inputs = {"frames": frames, "mask": tf.constant([[True, True], [True, False], [True, True]])}
    np.testing.assert_allclose(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)
    step = measure_training.training_step(theirs, config, "float32", (frames, label))
    assert num_convolutions(step) == [2 * 13, 0, 0]


def test_train_measures_epochs_and_the_notebooks_job(few_videos: Path) -> None:
    rows, printed = run_benchmark("train", few_videos, "--image_size=32", "--num_frames=12")
    assert [(row["what"], row["against"], row["unit"]) for row in rows] == [
        ("features and epoch 1", "a later epoch", "wall ms/clip"),
        ("features and epoch 1's steps", "a later epoch's", "wall ms/clip"),
        ("convert", "the notebook", "wall ms/clip"),
        ("features", "the notebook", "wall ms/clip"),
        ("10 epochs", "the notebook", "wall ms/clip"),
        ("from videos to weights", "the notebook", "wall ms/clip"),
        ("waiting for JPEG, frozen", "the epoch", "wall ms/clip"),
    ]
    epoch, steps, *parts, whole, wait = rows
    assert wait["ratio"] < 1
    for side in ("ours", "theirs"):
        assert all(row[side] > 0 for row in rows)
        assert epoch[side] > steps[side]
        assert sum(part[side] for part in parts) == pytest.approx(whole[side])
    # Nine later epochs are in the ten; so are the first, and what comes after it.
    assert 9 * epoch["theirs"] < 2 * parts[2]["ours"]
    assert "\n\ntrain: 4 videos, 12 frames, 32 px\n" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_train_compares_equal_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {measure_training.vidpipe_job: 79, measure_training.notebook_job: 80}
    monkeypatch.setattr(
        measure_training, "in_fresh_process", lambda run, *_: measure_training.Job(1, 1, 1, jobs[run])
    )
    with pytest.raises(measure_training.UnequalWorkError, match="of 79 frames, the notebook those of 80"):
        next(measure_training.benchmark_train("videos", [], ClipConfig(), 1, on_gpu=False))


def test_ours_and_theirs_come_first_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def run_here(run: Callable) -> object:
        called.append(run)
        return run()

    monkeypatch.setattr(measure_training, "in_fresh_process", run_here)
    ours, theirs = (lambda: "ours"), (lambda: "theirs")
    both = [measure_training._in_turn(repeat, ours, theirs) for repeat in range(2)]
    assert both == [("ours", "theirs"), ("ours", "theirs")]
    assert called == [theirs, ours, ours, theirs]


@pytest.mark.parametrize("name", ["decode", "convert", "input", "train"])
def test_what_reads_videos_asks_for_them(name: str) -> None:
    ended = run_tool("benchmark.py", name)
    assert ended.returncode == 2
    assert f"{name} needs --video_dir" in ended.stderr
