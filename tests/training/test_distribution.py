"""Replicas, on virtual devices or in several processes, take the steps of one."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from vidpipe.config import OptimizerConfig, TrainConfig
from vidpipe.training import distribution, train
from vidpipe.training.run_folder import HISTORY_COLUMNS, RunFolder, TrainError

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("", "strategy=multi_worker needs TF_CONFIG"),
        ("{", "TF_CONFIG is not a JSON object"),
        ("[]", "TF_CONFIG is not a JSON object"),
        ('{"cluster": ["a:1"]}', "TF_CONFIG is not a JSON object"),
        ('{"cluster": {"worker": 5}}', "TF_CONFIG is not a JSON object"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "nobody", "index": 0}}', "TF_CONFIG is invalid"),
    ],
)
def test_an_invalid_cluster_is_rejected(
    tf_config: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(distribution.DistributionError, match=message):
        distribution.make_strategy("multi_worker")


@pytest.mark.parametrize("name", ["auto", "one"])
def test_without_gpus_and_other_machines_there_is_one_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    strategy = distribution.make_strategy(name)
    assert strategy.num_replicas_in_sync == 1
    assert distribution.is_chief(strategy)
    assert distribution.num_workers(strategy) == 1


def test_one_device_takes_whole_batches() -> None:
    asked: list[tuple[int, int]] = []

    def batches(num_workers: int, worker: int) -> tf.data.Dataset:
        asked.append((num_workers, worker))
        return tf.data.Dataset.range(6).batch(3, drop_remainder=True)

    distributed = distribution.distribute(tf.distribute.get_strategy(), batches)
    assert [batch.numpy().tolist() for batch in distributed] == [[0, 1, 2], [3, 4, 5]]
    assert asked == [(1, 0)]


@pytest.mark.parametrize(
    ("num_workers", "worker", "expected"),
    [(1, 0, [[0, 1, 2, 3], [4, 5, 6, 7]]), (2, 0, [[0, 1], [4, 5]]), (2, 1, [[2, 3], [6, 7]])],
)
def test_the_rows_of_a_worker(num_workers: int, worker: int, expected: list[list[int]]) -> None:
    steps = tf.data.Dataset.range(8).batch(4, drop_remainder=True)
    rows = distribution.rows_of_worker(steps, num_workers, worker)
    assert [batch.numpy().tolist() for batch in rows] == expected


class _Worker:
    """The strategy of worker 1 of a cluster whose chief should listen on a port of this machine."""

    def __init__(self, port: int) -> None:
        cluster = tf.train.ClusterSpec({"worker": [f"127.0.0.1:{port}", "127.0.0.1:1"]})
        self.cluster_resolver = SimpleNamespace(task_type="worker", task_id=1, cluster_spec=lambda: cluster)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_worker_ends_when_its_chief_is_lost(
    is_lost: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_codes: list[int] = []
    has_ended = threading.Event()

    def end(code: int) -> None:
        exit_codes.append(code)
        has_ended.set()

    monkeypatch.setattr(distribution.os, "_exit", end)
    monkeypatch.setattr(distribution, "_CHIEF_CHECK_EVERY_SEC", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if is_lost:
            server.close()
        with distribution.chief_watched(_Worker(port)):
            has_ended.wait(30 if is_lost else 0.3)
    assert exit_codes == ([1] if is_lost else [])
    message = capsys.readouterr().err
    assert (f"The chief at 127.0.0.1:{port} is gone" in message) == is_lost
    assert ("Start all workers again" in message) == is_lost


def test_a_lost_worker_is_reported(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "num_workers", lambda _: 2)
    strategy = tf.distribute.get_strategy()
    with (
        pytest.raises(
            distribution.DistributionError, match=r"A worker is gone \(socket closed\)\. Start all"
        ),
        train._named_failures(train_config(tmp_path), strategy),
    ):
        raise tf.errors.UnavailableError(None, None, "socket closed\nmore")


def test_float16_is_rejected_on_several_replicas(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = SimpleNamespace(num_replicas_in_sync=2, cluster_resolver=None)
    monkeypatch.setattr(distribution, "make_strategy", lambda _: two)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["a GPU", "another"])
    with pytest.raises(TrainError, match="not supported on several replicas.*=mixed_bfloat16"):
        train.train(train_config(tmp_path / "run", precision="mixed_float16"))


def _trainee(num_replicas: int) -> Any:
    strategy = SimpleNamespace(num_replicas_in_sync=num_replicas, cluster_resolver=None)
    return SimpleNamespace(model=None, strategy=strategy, clips_per_call=64)


def test_a_batch_that_replicas_and_microbatches_do_not_divide_is_rejected(train_config: MakeConfig) -> None:
    config = train_config(Path("run"), batch_size=6, accumulate=6)
    with pytest.raises(TrainError, match="batch_size=6 .* 2 replica.* accumulate=6 .* multiple of 12"):
        train._batch_size(config, _trainee(2), {})


def test_auto_is_rejected_where_machines_could_choose_differently(
    train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "num_workers", lambda _: 2)
    with pytest.raises(TrainError, match="several could choose differently. Give a number"):
        train._batch_size(train_config(Path("run"), batch_size=None), _trainee(2), {})


# One process of a run, which dies by SIGKILL before a step if it is asked to.
PROCESS = """
import dataclasses, os, signal, sys
import tensorflow as tf
if {devices} > 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * {devices}
    )
from conftest import shallow_vgg16
from vidpipe.config import ModelConfig, OptimizerConfig, TrainConfig
from vidpipe.errors import VidpipeError
from vidpipe.model.backbone import BACKBONES
from vidpipe.training import profiler, train
BACKBONES["vgg16"] = dataclasses.replace(BACKBONES["vgg16"], application=shallow_vgg16)
before_step = profiler.Profiler.before_step
def step_or_act(self, number):
    if number == {die_at} + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == {stop_at}:
        os.kill(os.getpid(), signal.SIGTERM)
    before_step(self, number)
profiler.Profiler.before_step = step_or_act
try:
    train.train({config!r})
except VidpipeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
_NEVER = -2


def _start(
    config: TrainConfig, devices: int = 1, die_at: int = _NEVER, stop_at: int = _NEVER, tf_config: str = "{}"
) -> subprocess.Popen:
    script = PROCESS.format(config=config, devices=devices, die_at=die_at, stop_at=stop_at)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"TF_CONFIG": tf_config, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True
    )


def _start_pair(
    configs: list[TrainConfig],
    die_at: tuple[int, int] = (_NEVER, _NEVER),
    stop_at: tuple[int, int] = (_NEVER, _NEVER),
) -> list[subprocess.Popen]:
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in free]
    for each in free:
        each.close()
    cluster = {"worker": workers}
    return [
        _start(
            config, 1, die, stop, json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        )
        for index, (config, die, stop) in enumerate(zip(configs, die_at, stop_at, strict=True))
    ]


def _ended(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=400)
    return process.returncode, errors


def _assert_same_history(run_dir: str, alone: str) -> None:
    for ours, theirs in zip(
        *(RunFolder(Path(folder)).read_history() for folder in (run_dir, alone)), strict=True
    ):
        for name in set(HISTORY_COLUMNS) - {"seconds", "data_wait"}:
            # The error of two losses is their difference, which has as large a rounding error as they have.
            size = theirs[name.removesuffix("_error")]
            expected = size if size is None else pytest.approx(theirs[name], rel=0, abs=1e-5 * size)
            assert ours[name] == expected, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, train_config: MakeConfig) -> TrainConfig:
    """A run of one replica whose steps replicas can share: without dropout, of which each has its own."""
    optimizer = OptimizerConfig(
        learning_rate=1e-4, schedule="cosine", warmup_epochs=0.5, backbone_lr_scale=0.1, layer_decay=0.9,
        weight_decay=0.01, clip_norm=0.5, ema=0.5,
    )  # fmt: skip
    config = train_config(
        tmp_path_factory.mktemp("alone"), "block5", optimizer=optimizer, epochs=3, batch_size=6,
        checkpoint_every=1, cache_features="off", label_smoothing=0.1, class_weights="balanced",
    )  # fmt: skip
    config = replace(config, model=replace(config.model, dropout=0.0, ensemble_size=1))
    train.train(config)
    return config


@pytest.mark.devices
@pytest.mark.parametrize("cached", [False, True], ids=["frames", "cached features"])
def test_two_devices_give_the_losses_of_one(tmp_path: Path, alone: TrainConfig, cached: bool) -> None:
    """In microbatches too: neither may change a step."""
    if cached:
        frozen = replace(alone.model, fine_tune="none")
        alone = replace(alone, run_dir=str(tmp_path / "alone"), model=frozen, cache_features="on")
        train.train(alone)
    config = replace(alone, run_dir=str(tmp_path / "two"), strategy="mirrored", accumulate=3)
    code, errors = _ended(_start(config, devices=2))
    assert code == 0, errors
    _assert_same_history(config.run_dir, alone.run_dir)


@pytest.mark.devices
def test_two_processes_give_the_losses_of_one_whoever_is_killed(tmp_path: Path, alone: TrainConfig) -> None:
    config = replace(alone, run_dir=str(tmp_path / "run"), strategy="multi_worker")
    chief, other = _start_pair([config, config], die_at=(_NEVER, 2))
    code, errors = _ended(chief)
    assert code == 1, errors
    assert "A worker is gone" in errors
    assert "Start all workers again" in errors
    code, errors = _ended(other)
    assert code == -9, errors

    chief, other = _start_pair([config, replace(config, run_dir=str(tmp_path / "elsewhere"))])
    for process in (chief, other):
        code, errors = _ended(process)
        assert code == 1, errors
        assert "The workers' checkpoints differ" in errors
        assert "one run_dir on a shared file system" in errors

    chief, other = _start_pair([config, config], die_at=(4, _NEVER))
    code, errors = _ended(chief)
    assert code == -9, errors
    code, errors = _ended(other)
    assert code == 1, errors
    assert "The chief at 127.0.0.1:" in errors or "A worker is gone" in errors

    # A signal to one worker stops both after the same step, although each step is followed by a checkpoint.
    for process in _start_pair([config, config], stop_at=(_NEVER, 5)):
        code, errors = _ended(process)
        assert code == 143, errors
        assert "SIGTERM: stopped at epoch 3, step 2. The same command resumes" in errors

    for process in _start_pair([config, config]):
        code, errors = _ended(process)
        assert code == 0, errors
    _assert_same_history(config.run_dir, alone.run_dir)
