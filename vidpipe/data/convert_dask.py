"""Writes the shards of a conversion on a Dask cluster, in parallel on its workers.

Each shard is written by `convert.make_shards_here` on one machine, so the bytes are the same as without Dask.
This is the only importer of Dask.
"""

import dataclasses
import functools
import itertools
import logging
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from distributed import Client, Future, as_completed
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from vidpipe.config import ConversionConfig
from vidpipe.data import conversion_state, convert
from vidpipe.data.conversion_plan import ShardPlan
from vidpipe.data.shard_process import make_in_process
from vidpipe.errors import first_line
from vidpipe.progress import Progress
from vidpipe.storage import remote

_CONNECT_SEC = 30
_RETRIES = 2
# Shards at the scheduler for each thread of a worker: enough that none waits; bounds the scheduler's memory.
_IN_FLIGHT_PER_THREAD = 2
_KEPT = "Finished shards are kept; run the same command again."
_log = logging.getLogger(__name__)


def make_shards_on(scheduler: str) -> convert.MakeShards:
    """Returns a `make_shards` for `convert.convert` that uses the workers of a Dask cluster.

    Args:
      scheduler: its address, such as `tcp://10.0.0.1:8786`. vidpipe must be installed on all machines, and
        `video_dir` and `output_dir` must be the same files there. A worker makes a shard in each of its
        threads, with `num_workers` decoding processes, one by default.
    """
    return functools.partial(_make_shards, scheduler)


def _make_shards(
    scheduler: str,
    plans: Sequence[ShardPlan],
    config: ConversionConfig,
    classes: Sequence[str],
    read: convert.ReadEncodedClip,
) -> None:
    config = dataclasses.replace(
        config,
        num_workers=config.num_workers or 1,  # workers expect one process per thread
        # Workers run in other folders.
        output_dir=_absolute(config.output_dir),
        manifest=dataclasses.replace(config.manifest, video_dir=_absolute(config.manifest.video_dir)),
    )
    try:
        client = Client(scheduler, timeout=_CONNECT_SEC, set_as_default=False)
    except (OSError, ValueError) as error:
        raise convert.ConversionError(
            f"No Dask scheduler answers at {scheduler} ({first_line(error)}). Give its address as "
            "--dask_scheduler, such as tcp://host:8786."
        ) from error
    total = sum(len(plan.rows) for plan in plans)
    with client, Progress("Converting", total, "videos") as progress:
        num_skipped = 0
        for plan in _made(client, plans, config, classes, read):
            for row, video in zip(plan.rows, _videos_of(plan, config.output_dir), strict=True):
                if video["status"] != "ok":
                    num_skipped += 1
                    convert.log_skipped(row, video["message"])
            progress.advance(len(plan.rows), note=f"{num_skipped} skipped")


def _made(
    client: Client,
    plans: Sequence[ShardPlan],
    config: ConversionConfig,
    classes: Sequence[str],
    read: convert.ReadEncodedClip,
) -> Iterator[ShardPlan]:
    """Yields each shard when a worker has made it; the scheduler knows a bounded number of them."""
    waiting = iter(plans)
    in_flight: dict[Future, ShardPlan] = {}
    done = as_completed(loop=client.loop)

    def submit() -> None:
        num_threads = sum(client.nthreads().values())  # workers come and go
        if not num_threads:
            _log.warning("The Dask cluster has no workers yet; waiting for them.")
        for plan in itertools.islice(waiting, _IN_FLIGHT_PER_THREAD * max(1, num_threads) - len(in_flight)):
            job = pickle.dumps(([plan], config, classes, read))
            future = client.submit(make_in_process, job, pure=False, retries=_RETRIES)
            in_flight[future] = plan
            done.add(future)

    try:
        submit()
        for future in done:
            plan = in_flight.pop(future)
            _raise_failure(future, plan)
            yield plan
            submit()
    except OSError as error:
        raise convert.ConversionError(
            f"The Dask scheduler was lost ({first_line(error)}). {_KEPT}"
        ) from error


def _absolute(address: str) -> str:
    return address if remote.is_remote(address) else str(Path(address).absolute())


def _videos_of(plan: ShardPlan, output_dir: str) -> list[dict[str, Any]]:
    try:
        return conversion_state.read_shard_state(output_dir, plan)[1]
    except tf.errors.NotFoundError:
        raise convert.ConversionError(
            f"A Dask worker made {plan.name}, but it is not in {output_dir} of this machine. All machines "
            "must see the same folder under this name."
        ) from None


def _raise_failure(future: Future, plan: ShardPlan) -> None:
    try:
        future.result()
        return
    except KilledWorker:
        reason = "the workers that made it died, several times"
    except FutureCancelledError:
        reason = "the scheduler was lost"
    except Exception as error:  # such as a worker without vidpipe
        reason = first_line(error)
    raise convert.ConversionError(f"Dask cannot make {plan.name}: {reason}. {_KEPT}")
