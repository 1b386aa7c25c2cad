"""The command line as a user meets it: exit codes, one clear line, no traceback."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def run_tool(tool: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    # A tool must be quiet of itself.
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)


_CONVERT = ("convert_videos.py", "--output_dir=o", "--video_dir=v")
_TRAIN = ("train.py", "--data_dir=d", "--run_dir=r")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("convert_videos.py", "--output_dir=o"), 2, "Flag --video_dir must have a value"),
        ((*_CONVERT, "--colour=red"), 2, "Unknown command line flag 'colour'"),
        ((*_CONVERT, "--encoding=bmp"), 2, "--encoding=bmp: value should be one of <jpeg|png|raw>"),
        ((*_CONVERT, "--resize=pad"), 2, "--resize=pad: value should be one of <crop|short_side>"),
        ((*_CONVERT, "--num_frames=many"), 2, "--num_frames=many"),
        ((*_CONVERT, "x"), 2, "unexpected arguments: x"),
        ((*_CONVERT, "--", "--runner=FlinkRunner"), 2, "unexpected arguments: --runner=FlinkRunner"),
        ((*_CONVERT, "--num_frames=0"), 1, "num_frames must be at least 1; got 0"),
        ((*_CONVERT, "--image_size=0"), 1, "image_size must be at least 1; got 0"),
        (_CONVERT, 1, "There is no folder v (video_dir)"),
        (_TRAIN, 1, "There is no folder d"),
        ((*_TRAIN, "--epochs=0"), 1, "epochs must be at least 1; got 0"),
        ((*_TRAIN, "--batch_size=many"), 2, "--batch_size must be a number or auto; got many"),
        ((*_TRAIN, "--profile_steps=5"), 2, "--profile_steps must be FIRST:LAST, such as 10:15; got 5"),
        ((*_TRAIN, "--recipe=best"), 2, "--recipe=best: value should be one of <frozen|fine_tune>"),
        ((*_TRAIN, "--data_service=h:1", "--checkpoint_every=5"), 1, "does not go with data_service"),
        (("evaluate.py", "--data_dir=d", "--run_dir=r"), 1, "There is no trained model r/model.keras"),
        (("predict.py", "--run_dir=r"), 2, "name at least one video"),
    ],
)
def test_wrong_input_gets_one_line_and_its_code(
    tmp_path: Path, command: tuple[str, ...], code: int, message: str
) -> None:
    ended = run_tool(*command, cwd=tmp_path)
    assert ended.returncode == code
    assert message in ended.stderr
    assert ended.stderr.startswith(f"{command[0]}: ")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        ("open('/nowhere/a.png', 'w')", 1, "-c: No such file or directory: /nowhere/a.png\n"),
        ("print('x' * 10**6)", 141, ""),
        ("print('x')", 141, ""),
    ],
)
def test_what_the_system_refuses_is_no_traceback(main: str, code: int, message: str) -> None:
    """Nobody reads the output."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", f"import cli; cli.run(lambda _: {main})"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=TOOLS, env=buffered, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (code, message)


def test_help_names_the_flags_and_an_example() -> None:
    ended = run_tool("train.py", "--help")
    assert ended.returncode == 0
    assert "--fine_tune: <none|block5|block4|block3|block2|block1|all>" in ended.stdout
    assert "python tools/train.py --data_dir=" in ended.stdout


@pytest.fixture
def videos(video_dir: Path, tmp_path: Path) -> Path:
    """`video_dir` with a broken file in it."""
    folder = Path(shutil.copytree(video_dir, tmp_path / "videos"))
    (folder / "train" / "short" / "broken.avi").write_bytes(b"garbage")
    return folder


def test_the_whole_path_through_the_tools(tmp_path: Path, videos: Path) -> None:
    records, run_dir = tmp_path / "records", tmp_path / "run"
    convert = (
        "convert_videos.py", f"--video_dir={videos}", f"--output_dir={records}",
        "--num_frames=4", "--image_size=32", "--resize=short_side", "--encoding=raw", "--max_skipped=0.1",
    )  # fmt: skip
    ended = run_tool(*convert)
    assert ended.returncode == 0, ended.stderr
    assert "16 clips, 1 videos skipped; 3 shards written, 0 kept" in ended.stdout
    assert "Skipped train/short/broken.avi: does not open as a video" in ended.stderr

    inspect = (
        "inspect_shards.py",
        f"--data_dir={records}",
        "--verify",
        f"--contact_sheet={tmp_path}/clips.png",
    )
    shard = next(records.glob("train-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    ended = run_tool(*inspect)
    assert ended.returncode == 1
    assert f"{shard.name}: {len(whole) - 1} bytes instead of {len(whole)}" in ended.stdout
    assert not (tmp_path / "clips.png").exists()

    train = (
        "train.py", f"--data_dir={records}", f"--run_dir={run_dir}", "--backbone_weights=none",
        "--epochs=1", "--batch_size=4", "--head=notebook",
    )  # fmt: skip
    ended = run_tool(*train)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"train.py: {shard} has {len(whole) - 1} bytes; dataset_info.json says")
    assert ended.stderr.count("\n") == 1

    ended = run_tool(*convert)
    assert "1 shards written, 2 kept" in ended.stdout
    assert shard.read_bytes() == whole
    ended = run_tool(*inspect)
    assert ended.returncode == 0, ended.stdout
    assert f"{records}: 4 frames of 32 pixels on the short side, uniform, raw; 2 classes" in ended.stdout
    assert "skipped: 1\n        1  does not open as a video\nVerified: nothing is wrong." in ended.stdout
    assert (tmp_path / "clips.png").read_bytes()[:4] == b"\x89PNG"

    ended = run_tool(*train)
    assert ended.returncode == 0, ended.stderr
    assert f"{run_dir}/model.keras: epoch 1 of 1" in ended.stdout

    ended = run_tool("evaluate.py", f"--data_dir={records}", f"--run_dir={run_dir}", "--split=test")
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((run_dir / "eval_test" / "metrics.json").read_text())
    assert f"test accuracy {metrics['accuracy']:.4f} of 6 clips" in ended.stdout

    ended = run_tool(
        "export.py", f"--data_dir={records}", f"--run_dir={run_dir}", "--split=val", "--format=features",
        f"--output={tmp_path}/val.npz",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{tmp_path}/val.npz: 2 val clips of up to 4 frames, 512 features each.\n"
    with np.load(tmp_path / "val.npz", allow_pickle=False) as arrays:
        assert arrays["features"].shape == (2, 4, 512)
        names = arrays["classes"][arrays["label"]].tolist()
        assert names == [video_id.split("/")[1] for video_id in arrays["video_id"]]

    shard = next(records.glob("test-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    ended = run_tool("evaluate.py", f"--data_dir={records}", f"--run_dir={run_dir}", "--split=test")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    looking, told = ended.stderr.splitlines()
    assert looking.endswith("cannot be read (corrupted record); looking for it.")
    with (records / "videos.csv").open() as file:
        video = next(r for r in csv.DictReader(file) if (r["shard"], r["position"]) == (shard.name, "0"))
    assert told.startswith(
        f"evaluate.py: A shard of {records} is damaged: {shard.name}, position 0, {video['video_id']}: "
    )

    good = str(videos / "test" / "long" / "video_00.avi")
    ended = run_tool("predict.py", f"--run_dir={run_dir}", "--json", good, "nowhere.avi")
    assert ended.returncode == 1
    assert "nowhere.avi: no such file" in ended.stderr
    told, prediction = map(json.loads, ended.stdout.splitlines())
    assert told == {"video": "nowhere.avi", "error": "no such file"}
    assert (prediction["video"], set(prediction["probabilities"])) == (good, {"long", "short"})
    assert prediction["predicted"] == max(prediction["probabilities"], key=prediction["probabilities"].get)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (64, 10, "none", 0.0)),
        (["--recipe=frozen"], (16, 30, "none", 0.1)),
        (["--recipe=fine_tune"], (16, 20, "block5", 0.1)),
        (["--recipe=fine_tune", "--epochs=10", "--batch_size=auto"], (None, 10, "block5", 0.1)),
        (["--recipe=fine_tune", "--fine_tune=all", "--label_smoothing=0"], (16, 20, "all", 0.0)),
    ],
)
def test_a_recipe_is_a_set_of_defaults(arguments: list[str], expected: tuple) -> None:
    """In a process, since flags can be defined and parsed once only."""
    script = (
        "import sys, json, train; from absl import flags; from vidpipe.config import to_dict;"
        "flags.FLAGS(sys.argv); print(json.dumps(to_dict(train._read_config())))"
    )
    command = [sys.executable, "-c", script, "--data_dir=d", "--run_dir=r", *arguments]
    printed = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, check=True)
    config = json.loads(printed.stdout)
    found = (config["batch_size"], config["epochs"], config["model"]["fine_tune"], config["label_smoothing"])
    assert found == expected
