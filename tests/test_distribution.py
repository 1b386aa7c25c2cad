"""Two replicas, on virtual devices or in two processes, take the steps of one."""

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidpipe import distribution, loop, train
from vidpipe.config import OptimizerConfig, TrainConfig

MakeConfig = Callable[..., TrainConfig]

# Runs one process of a run, which dies by SIGKILL after a step if it is told to.
PROCESS = """
import os, signal, sys
import tensorflow as tf
if {devices} > 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * {devices}
    )
from vidpipe import loop, train
from vidpipe.config import ModelConfig, OptimizerConfig, TrainConfig
from vidpipe.spec import VidpipeError
step = loop.Loop._step
def step_then_die(self, batch):
    stop = step(self, batch)
    if self._state.step == {die_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return stop
loop.Loop._step = step_then_die
try:
    train.train({config!r})
except VidpipeError as error:
    sys.exit(str(error))
"""


def _start(
    config: TrainConfig, devices: int = 1, die_at: int = -1, tf_config: str = "{}"
) -> subprocess.Popen:
    script = PROCESS.format(config=config, devices=devices, die_at=die_at)
    environment = os.environ | {"TF_CONFIG": tf_config, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True
    )


def _start_pair(configs: list[TrainConfig], die_at: tuple[int, int] = (-1, -1)) -> list[subprocess.Popen]:
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in free]
    for each in free:
        each.close()
    cluster = {"worker": workers}
    return [
        _start(config, 1, die, json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
        for index, (config, die) in enumerate(zip(configs, die_at, strict=True))
    ]


def _ended(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def _history(run_dir: str) -> np.ndarray:
    with Path(run_dir, "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in loop.HISTORY_COLUMNS if name not in ("seconds", "data_wait")]
    return np.array([[float(row[name]) for name in columns] for row in rows])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, train_config: MakeConfig) -> TrainConfig:
    """A run of one replica whose steps replicas can share: without dropout, which each draws for itself."""
    optimizer = OptimizerConfig("adamw", 1e-4, "cosine", 0.5, 0.1, 0.9, 0.01, clip_norm=0.5, ema=0.5)
    config = train_config(
        tmp_path_factory.mktemp("alone"), "block5", optimizer=optimizer, epochs=3, batch_size=6,
        checkpoint_every=1, cache_features="off", label_smoothing=0.1, class_weights="balanced",
    )  # fmt: skip
    config = replace(config, model=replace(config.model, dropout=0.0))
    train.train(config)
    return config


@pytest.mark.parametrize("cached", [False, True], ids=["frames", "cached features"])
def test_two_devices_give_the_losses_of_one(tmp_path: Path, alone: TrainConfig, cached: bool) -> None:
    """In parts too: neither may change a step."""
    if cached:
        frozen = replace(alone.model, fine_tune="none")
        alone = replace(alone, run_dir=str(tmp_path / "alone"), model=frozen, cache_features="on")
        train.train(alone)
    config = replace(alone, run_dir=str(tmp_path / "two"), strategy="mirrored", accumulate=3)
    code, errors = _ended(_start(config, devices=2))
    assert code == 0, errors
    np.testing.assert_allclose(_history(config.run_dir), _history(alone.run_dir), rtol=1e-5)


def test_two_processes_give_the_losses_of_one_whoever_is_killed(tmp_path: Path, alone: TrainConfig) -> None:
    config = replace(alone, run_dir=str(tmp_path / "run"), strategy="multi_worker")
    chief, other = _start_pair([config, config], die_at=(-1, 2))
    code, errors = _ended(chief)
    assert code == 1
    assert "A worker is gone" in errors
    assert "Start all workers again" in errors
    assert _ended(other)[0] == -9

    chief, other = _start_pair([config, replace(config, run_dir=str(tmp_path / "elsewhere"))])
    for process in (chief, other):
        code, errors = _ended(process)
        assert code == 1
        assert "The workers' checkpoints differ" in errors
        assert "a file system that they share" in errors

    chief, other = _start_pair([config, config], die_at=(4, -1))
    assert _ended(chief)[0] == -9
    code, errors = _ended(other)
    assert code == 1
    assert "The chief at 127.0.0.1:" in errors or "A worker is gone" in errors

    for process in _start_pair([config, config]):
        assert _ended(process)[0] == 0
    np.testing.assert_allclose(_history(config.run_dir), _history(alone.run_dir), rtol=1e-5)


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("", "strategy=multi_worker needs TF_CONFIG"),
        ("{", "TF_CONFIG is no JSON object"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "nobody", "index": 0}}', "TF_CONFIG does not"),
    ],
)
def test_a_wrong_cluster_is_refused(tf_config: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(distribution.DistributionError, match=message):
        distribution.make_strategy("multi_worker")


def test_float16_is_refused_on_several_replicas(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        num_replicas_in_sync = 2

    monkeypatch.setattr(distribution, "make_strategy", lambda _: Two())
    monkeypatch.setattr(train, "resolve_precision", lambda _: "mixed_float16")
    with pytest.raises(train.TrainError, match="does not go with several replicas.*=mixed_bfloat16"):
        train.train(train_config(tmp_path / "run"))


def test_a_batch_that_replicas_and_parts_do_not_divide_is_refused(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train._build

    def on_two(*arguments: object) -> loop.Trained:
        class Two:
            num_replicas_in_sync = 2

        return replace(original(*arguments), strategy=Two())  # type: ignore[arg-type]

    monkeypatch.setattr(train, "_build", on_two)
    with pytest.raises(train.TrainError, match="batch_size=6 .* 2 replica.* accumulate=6 .* multiple of 12"):
        train.train(train_config(tmp_path / "run", batch_size=6, accumulate=6))


def test_auto_is_refused_where_machines_could_choose_differently(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "num_workers", lambda _: 2)
    with pytest.raises(train.TrainError, match="several would choose differently. Give a number"):
        train.train(train_config(tmp_path / "run", batch_size=None))
