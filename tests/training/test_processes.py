"""Runs that are killed or asked to stop as processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidpipe.config import TrainConfig
from vidpipe.training import train
from vidpipe.training.run_folder import RunFolder

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
# The first process of a run, which dies by SIGKILL after the checkpoint of step 2.
DYING_PROCESS = """
import dataclasses, os, signal
from conftest import shallow_vgg16
from vidpipe.config import ModelConfig, OptimizerConfig, TrainConfig
from vidpipe.model.backbone import BACKBONES
from vidpipe.training import saved_state, train
BACKBONES["vgg16"] = dataclasses.replace(BACKBONES["vgg16"], application=shallow_vgg16)
save = saved_state.save_checkpoint
def save_then_die(folder, *, step, **rest):
    save(folder, step=step, **rest)
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
saved_state.save_checkpoint = save_then_die
train.train({config!r})
"""
KINDS = [
    pytest.param({}, id="frozen"),
    pytest.param({"fine_tune": "block5", "augment": "flip_crop", "num_frames": 3}, id="fine-tuned"),
]


@pytest.mark.parametrize("settings", KINDS)
def test_sigkill_loses_nothing_before_the_last_checkpoint(
    tmp_path: Path, train_config: Callable[..., TrainConfig], settings: dict[str, Any]
) -> None:
    killed, straight = (
        train_config(tmp_path / name, epochs=2, checkpoint_every=1, **settings)
        for name in ("killed", "straight")
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ended = subprocess.run(
        [sys.executable, "-c", DYING_PROCESS.format(config=killed)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not RunFolder(tmp_path / "killed").is_finished
    resumed, expected = train.train(killed).metrics, train.train(straight).metrics
    for name in expected.keys() - {"seconds", "data_wait"}:
        assert resumed[name] == expected[name]


@pytest.mark.parametrize(
    "flags", [[], ["--fine_tune=block5", "--augment=flip"]], ids=["frozen", "fine-tuned"]
)
def test_the_tool_stops_at_sigterm_and_resumes(tmp_path: Path, data_dir: str, flags: list[str]) -> None:
    command = [
        sys.executable, "tools/train.py", f"--data_dir={data_dir}", f"--run_dir={tmp_path}",
        "--epochs=100000", "--batch_size=4", "--backbone_weights=none", "--ensemble_size=1", *flags,
    ]  # fmt: skip
    stopped, lines = _stop_after(command, "Epoch 2/")
    assert stopped == 143
    found = re.fullmatch(
        r"train.py: SIGTERM: stopped at epoch (\d+), step (\d)\. The same command resumes from here\.\n",
        lines[-1],
    )
    assert found is not None, lines
    resumed, lines = _stop_after(command, "Resuming")
    assert resumed == 143
    assert f"Resuming from epoch {found[1]}, step {found[2]}.\n" in lines


def _stop_after(command: list[str], start_of_line: str) -> tuple[int, list[str]]:
    """Runs a tool until it logs a line, and sends SIGTERM; returns its exit code and what it logged."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(start_of_line):
            process.send_signal(signal.SIGTERM)
            break
    lines += process.stderr.readlines()
    return process.wait(), lines
