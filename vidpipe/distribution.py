"""One device, several GPUs of a machine, or several machines: how a step's clips are dealt to the replicas.

A step has the same clips whatever the number of replicas: replica r of R takes the r-th of R equal parts. The
collectives are tf.distribute's.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf

from vidpipe.spec import VidpipeError

START_AGAIN = "Start all workers again: the run goes on from its last checkpoint."
_WATCH_EVERY_SEC, _WATCH_FAILURES, _ANSWER_SEC = 3, 4, 10


class DistributionError(VidpipeError):
    """The replicas cannot work together."""


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a name in `config.STRATEGIES`; call it before TensorFlow has done anything else.

    `auto` takes all machines of TF_CONFIG, else all GPUs of this one, else one device.

    Raises:
      DistributionError: TF_CONFIG is missing or makes no sense.
    """
    if name == "auto":
        name = "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one"
        if len(_cluster_workers()) > 1:
            name = "multi_worker"
    if name == "one":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if not _cluster_workers():
        raise DistributionError(
            "strategy=multi_worker needs TF_CONFIG in the environment of each process, such as "
            '{"cluster": {"worker": ["host1:5000", "host2:5000"]}, "task": {"type": "worker", "index": 0}}.'
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise DistributionError(f"TF_CONFIG does not work ({error}): {os.environ['TF_CONFIG']}") from error


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's papers."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    return (resolver.task_type, resolver.task_id) == _chief(strategy)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Processes that share the steps."""
    return max(1, len(_cluster_workers())) if strategy.cluster_resolver is not None else 1


def deal(
    strategy: tf.distribute.Strategy, batches: Callable[[int, int], tf.data.Dataset]
) -> tf.distribute.DistributedDataset:
    """Batches of whole steps to batches of replicas.

    Args:
      strategy: its number of replicas divides the batch.
      batches: (number of workers, this worker) -> this worker's share of every step.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = batches(context.num_input_pipelines, context.input_pipeline_id)
        local = context.num_replicas_in_sync // context.num_input_pipelines
        if local == 1:
            return dataset
        return dataset.rebatch(_batch_size(dataset) // local, drop_remainder=True)

    return strategy.distribute_datasets_from_function(of_worker)


def share_of(dataset: tf.data.Dataset, num_workers: int, worker: int) -> tf.data.Dataset:
    """A worker's rows of each batch, for datasets that give whole steps to everybody."""
    if num_workers == 1:
        return dataset
    parts = dataset.rebatch(_batch_size(dataset) // num_workers, drop_remainder=True)
    return parts.shard(num_workers, worker)


def check_agreement(strategy: tf.distribute.Strategy, step: int) -> None:
    """Fails where the workers would go on from different steps.

    Raises:
      DistributionError: they would; each names its own step.
    """
    if num_workers(strategy) == 1:
        return

    @tf.function
    def of_all() -> tf.Tensor:
        return strategy.gather(strategy.run(lambda: tf.constant([step])), axis=0)

    steps = of_all().numpy()
    if (steps != step).any():
        raise DistributionError(
            f"The workers' checkpoints differ: this one's is of step {step}, all of them {steps.tolist()}. "
            "Give them a run_dir on a file system that they share."
        )


@contextmanager
def chief_watched(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Ends this process with exit code 1 when the chief's is gone for some seconds, inside the block.

    TensorFlow itself tells the chief of a lost worker, and that worker's peers nothing of a lost chief: they
    wait for ever in a collective, which nothing in Python can end.
    """
    if is_chief(strategy):
        yield
        return
    host, _, port = strategy.cluster_resolver.cluster_spec().task_address(*_chief(strategy)).rpartition(":")
    over = threading.Event()

    def watch() -> None:
        failures = 0
        while not over.wait(_WATCH_EVERY_SEC):
            try:
                socket.create_connection((host, int(port)), _ANSWER_SEC).close()
                failures = 0
            except OSError as error:
                failures += 1
                if failures == _WATCH_FAILURES:
                    sys.stderr.write(f"The chief at {host}:{port} is gone ({error}). {START_AGAIN}\n")
                    sys.stderr.flush()
                    os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _chief(strategy: tf.distribute.Strategy) -> tuple[str, int]:
    jobs = strategy.cluster_resolver.cluster_spec().jobs
    return ("chief" if "chief" in jobs else "worker"), 0


def _batch_size(dataset: tf.data.Dataset) -> int:
    return tf.nest.flatten(dataset.element_spec)[0].shape[0]


def _cluster_workers() -> list[str]:
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    except (json.JSONDecodeError, AttributeError) as error:
        raise DistributionError(f"TF_CONFIG is no JSON object ({error}): {os.environ['TF_CONFIG']}") from None
    return [*cluster.get("chief", []), *cluster.get("worker", [])]
