"""One device, several GPUs of a machine, or several machines: how the clips of a step are distributed.

A step has the same clips whatever the number of replicas: replica r of R takes the r-th of R equal slices.
The collectives are those of tf.distribute.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf

from vidpipe.errors import VidpipeError

RESTART = "Start all workers again: the run resumes from its last checkpoint."
_CHIEF_CHECK_EVERY_SEC, _CHIEF_CHECK_FAILURES, _CONNECT_TIMEOUT_SEC = 3, 4, 10


class DistributionError(VidpipeError):
    """The replicas cannot work together."""


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Makes the strategy of a name in `config.STRATEGIES`; call it before TensorFlow does anything else.

    `auto` takes all machines of TF_CONFIG, else all GPUs of this machine, else one device.

    Raises:
      DistributionError: TF_CONFIG is missing or invalid.
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
        raise DistributionError(f"TF_CONFIG is invalid ({error}): {os.environ['TF_CONFIG']}") from error


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's artifacts."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    return (resolver.task_type, resolver.task_id) == _chief(strategy)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes among which the steps are divided."""
    return max(1, len(_cluster_workers())) if strategy.cluster_resolver is not None else 1


def distribute(
    strategy: tf.distribute.Strategy, batches: Callable[[int, int], tf.data.Dataset]
) -> tf.distribute.DistributedDataset:
    """Distributes the batches of steps to the replicas.

    Args:
      strategy: its number of replicas divides the batch size.
      batches: (number of workers, this worker) -> this worker's part of every step.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = batches(context.num_input_pipelines, context.input_pipeline_id)
        num_local_replicas = context.num_replicas_in_sync // context.num_input_pipelines
        if num_local_replicas == 1:
            return dataset
        return dataset.rebatch(_batch_size(dataset) // num_local_replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(of_worker)


def rows_of_worker(dataset: tf.data.Dataset, num_workers: int, worker: int) -> tf.data.Dataset:
    """Keeps one worker's rows of each batch, of a dataset that has the batches of all workers."""
    if num_workers == 1:
        return dataset
    slices = dataset.rebatch(_batch_size(dataset) // num_workers, drop_remainder=True)
    return slices.shard(num_workers, worker)


def check_agreement(strategy: tf.distribute.Strategy, step: int) -> None:
    """Checks that all workers resume from the same step.

    Raises:
      DistributionError: they do not; the message names all steps.
    """
    if num_workers(strategy) == 1:
        return

    @tf.function
    def of_all_workers() -> tf.Tensor:
        return strategy.gather(strategy.run(lambda: tf.constant([step])), axis=0)

    steps = of_all_workers().numpy()
    if (steps != step).any():
        raise DistributionError(
            f"The workers' checkpoints differ: this worker is at step {step}, and all of them are at "
            f"{steps.tolist()}. Give them one run_dir on a shared file system."
        )


@contextmanager
def chief_watched(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Ends this process with exit code 1 when the chief is lost for some seconds, inside a block.

    TensorFlow reports a lost worker to the chief, but a lost chief to nobody: the other workers would wait
    in a collective without end, and nothing in Python can interrupt that.
    """
    if is_chief(strategy):
        yield
        return
    host, _, port = strategy.cluster_resolver.cluster_spec().task_address(*_chief(strategy)).rpartition(":")
    is_over = threading.Event()

    def watch() -> None:
        failures = 0
        while not is_over.wait(_CHIEF_CHECK_EVERY_SEC):
            try:
                socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_SEC).close()
                failures = 0
            except OSError as error:
                failures += 1
                if failures == _CHIEF_CHECK_FAILURES:
                    sys.stderr.write(f"The chief at {host}:{port} is gone ({error}). {RESTART}\n")
                    sys.stderr.flush()
                    os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _chief(strategy: tf.distribute.Strategy) -> tuple[str, int]:
    jobs = strategy.cluster_resolver.cluster_spec().jobs
    return ("chief" if "chief" in jobs else "worker"), 0


def _batch_size(dataset: tf.data.Dataset) -> int:
    return tf.nest.flatten(dataset.element_spec)[0].shape[0]


def _cluster_workers() -> list[str]:
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        cluster = json.loads(text).get("cluster", {})
        return [*cluster.get("chief", []), *cluster.get("worker", [])]
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise DistributionError(f"TF_CONFIG is not a JSON object of clusters ({error}): {text}") from None
