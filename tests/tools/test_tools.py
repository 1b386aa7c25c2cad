"""The tools as a user meets them: exit codes, one clear line, no traceback, and one path through them."""

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def run_tool(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a tool as a process, with nothing in the environment that would keep TensorFlow quiet."""
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


_CONVERT = ("convert_videos", "--output_dir=o", "--video_dir=v")
_TRAIN = ("train", "--data_dir=d", "--run_dir=r")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("convert_videos", "--output_dir=o"), 2, "--video_dir is required"),
        ((*_CONVERT, "--colour=red"), 2, "Unknown command line flag 'colour'"),
        ((*_CONVERT, "--encoding=bmp"), 2, "encoding must be one of jpeg, png, raw; got bmp"),
        ((*_CONVERT, "--resize=pad"), 2, "resize must be one of crop, short_side; got pad"),
        ((*_CONVERT, "--num_frames=many"), 2, "--num_frames=many"),
        ((*_CONVERT, "x"), 2, "unexpected arguments: x"),
        ((*_CONVERT, "--", "--runner=FlinkRunner"), 2, "unexpected arguments: --runner=FlinkRunner"),
        ((*_CONVERT, "--num_frames=0"), 2, "num_frames must be at least 1; got 0"),
        ((*_CONVERT, "--image_size=0"), 2, "image_size must be at least 1; got 0"),
        ((*_CONVERT, "--seed=-1"), 2, "seed must be in [0, 4294967296); got -1"),
        ((*_CONVERT, "--classes="), 2, "classes is an empty list"),
        (_CONVERT, 1, "There is no folder v (video_dir)"),
        (_TRAIN, 1, "There is no folder d"),
        ((*_TRAIN, "--epochs=0"), 2, "epochs must be at least 1; got 0"),
        ((*_TRAIN, "--backbone=VGG16"), 2, "backbone must be one of vgg16, resnet50, "),
        ((*_TRAIN, "--head=lstm"), 2, "head must be one of motion, notebook; got lstm"),
        ((*_TRAIN, "--batch_size=many"), 2, "batch_size must be a number or auto; got many"),
        ((*_TRAIN, "--profile_steps=5"), 2, "profile_steps must be FIRST:LAST, such as 10:15; got 5"),
        ((*_TRAIN, "--recipe=best"), 2, "recipe must be one of frozen, fine_tune, notebook; got best"),
        ((*_TRAIN, "--data_service=h:1", "--checkpoint_every=5"), 2, "cannot be combined with data_service"),
        (("evaluate", "--data_dir=d", "--run_dir=r"), 1, "There is no trained model r/model.keras"),
        (("evaluate", "--data_dir=d", "--run_dir=r", "--split=dev"), 2, "split must be one of train, val"),
        (("compare_runs", "r"), 2, "give at least two runs"),
        (("compare_runs", "r", "s"), 1, "r"),
        (("predict", "--run_dir=r"), 2, "at least one video"),
        (("predict", "--run_dir=r", "--window_sec=3", "a.mp4"), 2, "--timeline"),
        (("serve", "--run_dir=r", "--port=99999"), 2, "port must be in [0, 65535]; got 99999"),
        (
            ("export", "--run_dir=r", "--data_dir=d", "--output=o", "--format=onnx"),
            2,
            "format must be one of saved_model, tflite, features; got onnx",
        ),
        (("inspect_shards", "--data_dir=d"), 1, "There is no folder d"),
    ],
)  # fmt: skip
def test_wrong_input_gets_one_line_and_its_exit_code(
    tmp_path: Path, command: tuple[str, ...], code: int, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tool, *flags = command
    assert importlib.import_module(f"tools.{tool}").run([f"{tool}.py", *flags]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith(f"{tool}.py: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def videos(video_dir: Path, tmp_path: Path) -> Path:
    """`video_dir` with a broken file in it."""
    folder = Path(shutil.copytree(video_dir, tmp_path / "videos"))
    (folder / "train" / "short" / "broken.avi").write_bytes(b"garbage")
    return folder


@pytest.mark.processes
def test_the_path_through_the_tools(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Converts with a broken video, damages and repairs the dataset, trains, evaluates, exports, predicts.

    In this process, but for errors after the start of TensorFlow, which must not add lines of its own.
    """

    def run_here(tool: str, *arguments: str) -> subprocess.CompletedProcess:
        capsys.readouterr()
        code = importlib.import_module(f"tools.{tool.removesuffix('.py')}").run([tool, *arguments])
        return subprocess.CompletedProcess([tool], code, *capsys.readouterr())

    records, run_dir = tmp_path / "records", tmp_path / "run"
    convert = (
        "convert_videos.py", f"--video_dir={videos}", f"--output_dir={records}",
        "--num_frames=4", "--image_size=32", "--resize=short_side", "--encoding=raw", "--max_skipped=0.1",
    )  # fmt: skip
    ended = run_here(*convert)
    assert ended.returncode == 0, ended.stderr
    assert "16 clips" in ended.stdout
    assert "Skipped train/short/broken.avi: does not open as a video" in ended.stderr
    with (records / "videos.csv").open() as file:
        (skipped,) = (row for row in csv.DictReader(file) if row["status"] == "skipped")
    assert (skipped["reason"], skipped["message"]) == ("cannot_open", "does not open as a video")

    inspect = (
        "inspect_shards.py",
        f"--data_dir={records}",
        "--verify",
        f"--contact_sheet={tmp_path}/clips.png",
    )
    shard = next(records.glob("train-*"))
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-1])
    ended = run_here(*inspect)
    assert ended.returncode == 1
    assert f"{shard.name}: {len(intact) - 1} bytes instead of {len(intact)}" in ended.stdout
    assert not (tmp_path / "clips.png").exists()

    train = (
        "train.py", f"--data_dir={records}", f"--run_dir={run_dir}", "--backbone_weights=none",
        "--epochs=1", "--batch_size=4", "--head=notebook",
    )  # fmt: skip
    ended = run_tool(*train)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"train.py: {shard} has {len(intact) - 1} bytes; dataset_info.json says")
    assert ended.stderr.count("\n") == 1

    ended = run_here(*convert)
    assert ended.returncode == 0, ended.stderr
    assert shard.read_bytes() == intact
    ended = run_here(*inspect)
    assert ended.returncode == 0, ended.stdout
    assert f"{records}: 4 frames of 32 pixels on the short side, uniform, raw; 2 classes" in ended.stdout
    assert (tmp_path / "clips.png").read_bytes()[:4] == b"\x89PNG"

    ended = run_here(*train)
    assert ended.returncode == 0, ended.stderr
    assert f"{run_dir}/model.keras: epoch 1 of 1" in ended.stdout

    evaluate = ("evaluate.py", f"--data_dir={records}", f"--run_dir={run_dir}", "--split=test")
    ended = run_here(*evaluate)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((run_dir / "eval_test" / "metrics.json").read_text())
    assert f"accuracy {metrics['accuracy']:.4f}" in ended.stdout

    ended = run_here(
        "export.py", f"--data_dir={records}", f"--run_dir={run_dir}", "--split=val", "--format=features",
        f"--output={tmp_path}/val.npz",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    with np.load(tmp_path / "val.npz", allow_pickle=False) as arrays:
        assert arrays["features"].shape == (2, 4, 512)
        names = arrays["classes"][arrays["label"]].tolist()
        assert names == [video_id.split("/")[1] for video_id in arrays["video_id"]]

    shard = next(records.glob("test-*"))
    intact = shard.read_bytes()
    shard.write_bytes(intact[:200] + bytes([intact[200] ^ 1]) + intact[201:])
    ended = run_tool(*evaluate)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    features, _, searching, named = ended.stderr.splitlines()
    assert features.startswith("Features of test: 6 clips of 4 x 512 float32, ")
    assert searching.endswith("cannot be read (corrupted record); searching for it.")
    with (records / "videos.csv").open() as file:
        video = next(r for r in csv.DictReader(file) if (r["shard"], r["position"]) == (shard.name, "0"))
    assert named.startswith(
        f"evaluate.py: A shard of {records} is corrupt: {shard.name}, position 0, {video['video_id']}: "
    )

    good = str(videos / "test" / "long" / "video_00.avi")
    ended = run_here("predict.py", f"--run_dir={run_dir}", "--json", good, "nowhere.avi")
    assert ended.returncode == 1
    assert "nowhere.avi: no such file" in ended.stderr
    failed, prediction = map(json.loads, ended.stdout.splitlines())
    assert failed == {"video": "nowhere.avi", "error": "no such file"}
    assert (prediction["video"], set(prediction["probabilities"])) == (good, {"long", "short"})
    assert prediction["predicted"] == max(prediction["probabilities"], key=prediction["probabilities"].get)
