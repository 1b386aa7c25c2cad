"""Ctrl-C ends a command within two seconds and with one line, whatever it is doing."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
TESTS = Path(__file__).parent
# A call in C that takes a minute, and in which Python runs no signal handler.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)"
SCRIPT = """
import hashlib, os, signal, sys, threading, time
from vidpipe import command_line, interruption

def main(arguments):
    print("started", flush=True)
{body}

command_line.leave(command_line.Command("Does nothing.").run(main, ["tool"]))
"""
BODIES = {
    "Python": "time.sleep(60)",
    "a call in C": BUSY,
    "an interrupt that is lost": """
        class Lost:
            def __del__(self):
                while True:
                    pass
        Lost()
        time.sleep(60)""",
    "an interrupt that is ignored": """
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass""",
    "an import that makes another error of it": """
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("numpy.core failed to import") from None""",
    "threads that Python waits for at its end": """
        threading.Thread(target=time.sleep, args=[60]).start()
        time.sleep(60)""",
    "a silenced stderr, as in the import of TensorFlow": f"""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        {BUSY}""",
    "a block that handles the first one": f"""
        with interruption.handled(times=1):
            signal.signal(signal.SIGINT, lambda *_: None)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(2.5)
            print("alive", flush=True)
            {BUSY}""",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_command_ends_with_one_line(name: str) -> None:
    body = textwrap.indent(textwrap.dedent(BODIES[name]).strip(), "    ")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    if "alive" in BODIES[name]:
        assert process.stdout.readline() == "alive\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 2
    assert (process.returncode, output, errors) == (130, "", "tool: interrupted\n")


def test_the_line_stands_below_a_progress_bar() -> None:
    """On a terminal."""
    controller, terminal = pty.openpty()
    body = f"    print('bar', end='', file=sys.stderr, flush=True)\n    {BUSY}"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)], stdout=subprocess.DEVNULL, stderr=terminal
    )
    os.close(terminal)
    with os.fdopen(controller, "rb", buffering=0) as screen:
        assert screen.read(1000) == b"bar"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        shown = b""
        # A read gives what has arrived so far; behind the end it fails.
        with contextlib.suppress(OSError):
            while part := screen.read(1000):
                shown += part
    assert process.wait(timeout=20) == 130
    assert shown == b"\r\r\ntool: interrupted\r\n"


# Imports TensorFlow once. A fork for each phase patches a function of it to press Ctrl-C and then be busy in
# C.
PHASES = """
import hashlib, importlib, os, signal, sys, threading, time
from dataclasses import replace

from conftest import shallow_vgg16
from vidpipe import command_line

command_line.load_tensorflow()
from vidpipe.model.backbone import BACKBONES
from vidpipe.tools import convert_videos, evaluate, train
from vidpipe.training import loop, train as _
from vidpipe.data import convert
from vidpipe.evaluation import evaluate as _

BACKBONES["vgg16"] = replace(BACKBONES["vgg16"], application=shallow_vgg16)
data_dir, video_dir, folder = sys.argv[1:]
TRAIN = [f"--data_dir={data_dir}", "--backbone_weights=none", "--epochs=1"]
PHASES = {
    "reading the list": ("vidpipe.data.convert", "read_manifest", "convert"),
    "checking shards": ("vidpipe.data.conversion_state", "is_finished", "convert"),
    "copying": ("vidpipe.data.shard_cache", "fetch_shards", "train"),
    "features": ("vidpipe.model.feature_cache", "_compute", "train"),
    "standardization": ("vidpipe.model.standardization", "adapt_standardization", "train"),
    "validation": ("vidpipe.training.loop", "validate", "train"),
    "loading a model": ("vidpipe.evaluation.evaluate", "load_model", "evaluate"),
}
COMMANDS = {
    "convert": (convert_videos, [f"--video_dir={video_dir}", f"--output_dir={folder}/records"]),
    "train": (train, [f"--run_dir={folder}/run", *TRAIN]),
    "evaluate": (evaluate, [f"--run_dir={folder}/run", f"--data_dir={data_dir}"]),
}

def interrupted(*_, calls=[], **__):
    calls.append(time.monotonic())
    if len(calls) > 1:  # in another thread
        time.sleep(60)
    print(time.monotonic() + 0.3, flush=True)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)

for name, (module, function, command) in PHASES.items():
    print(f"{name}:", end=" ", flush=True)
    child = os.fork()
    if child == 0:
        loop._LONG_EPOCH_SEC = 0  # the steps of such an epoch are saved before its validation
        setattr(importlib.import_module(module), function, interrupted)
        tool, arguments = COMMANDS[command]
        command_line.leave(tool.run([command, *arguments]))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), time.monotonic(), flush=True)
"""


def test_every_phase_ends_within_two_seconds(tmp_path: Path, data_dir: str, video_dir: Path) -> None:
    copy = shutil.copytree(data_dir, tmp_path / "data")
    ended = subprocess.run(
        [sys.executable, "-c", PHASES, str(copy), str(video_dir), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = ended.stdout.splitlines()
    assert len(lines) == 14, ended.stderr
    for line, result in zip(lines[::2], lines[1::2], strict=True):
        name, start = line.split(": ")
        code, end = result.split()
        assert code == "130", (name, ended.stderr)
        assert float(end) - float(start) < 2, name
    assert ended.stderr.count(": interrupted\n") == 7
    assert "Traceback" not in ended.stderr
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000001.npz"]
