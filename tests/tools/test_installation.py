"""An installed vidpipe, without its checkout: the commands run from any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment into which vidpipe was installed from a copy that is deleted.

    Its dependencies are those of this environment: that folder is added to the path, and the .pth file in it
    by which a checkout is installed has no effect there.
    """
    folder = tmp_path_factory.mktemp("installed")
    environment, copy = folder / "environment", folder / "copy"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    binaries = environment / "bin"
    ignored = shutil.ignore_patterns(".*", "demo", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    install = [
        str(binaries / "pip"),
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        str(copy),
    ]
    subprocess.run(install, check=True)
    shutil.rmtree(copy)
    (site_packages,) = environment.glob("lib/python3*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


def _run(binaries: Path, *command: str, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [str(binaries / command[0]), *command[1:]], capture_output=True, text=True, cwd=cwd, env=env
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_package_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    printed = _run(installed, "python", "-c", "import vidpipe; print(vidpipe.__file__)", cwd=tmp_path)
    assert Path(printed.strip()).is_relative_to(installed.parent)


def test_the_commands_are_listed(installed: Path, tmp_path: Path) -> None:
    printed = _run(installed, "vidpipe", "--help", cwd=tmp_path)
    assert "vidpipe convert           Converts videos into sharded TFRecords" in printed
    assert "vidpipe train             Trains" in printed
    assert _run(installed, "vidpipe", "--version", cwd=tmp_path).startswith("vidpipe 0.")


def test_an_unknown_command_is_wrong_usage(installed: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [str(installed / "vidpipe"), "trian"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("vidpipe: no command trian; there are convert, inspect, train, ")


def test_videos_become_an_evaluated_model(installed: Path, tmp_path: Path, video_dir: Path) -> None:
    """Decoding processes are spawned from the installed command, and the report's templates are installed."""
    clip = ("--num_frames=4", "--image_size=32", "--val_fraction=0.2")
    _run(
        installed,
        "vidpipe",
        "convert",
        f"--video_dir={video_dir}",
        "--output_dir=records",
        *clip,
        cwd=tmp_path,
    )
    printed = _run(installed, "vidpipe", "inspect", "--data_dir=records", "--verify", cwd=tmp_path)
    assert "Verified: " in printed
    train = (
        "--data_dir=records",
        "--run_dir=run",
        "--backbone_weights=none",
        "--epochs=1",
        "--ensemble_size=1",
    )
    assert "run/model.keras: epoch 1 of 1" in _run(installed, "vidpipe", "train", *train, cwd=tmp_path)
    evaluate = ("--data_dir=records", "--run_dir=run", "--split=test")
    assert "run/eval_test/report.html" in _run(installed, "vidpipe", "evaluate", *evaluate, cwd=tmp_path)
    assert json.loads((tmp_path / "run/eval_test/metrics.json").read_text())["num_clips"] == 6
