"""Writes the shards of a conversion on Apache Beam, in parallel on the machines of a cluster.

Each shard is written by `convert.make_shards_here` on one machine, so the bytes are the same as without Beam.
This is the only importer of Beam.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from vidpipe.config import ConversionConfig
from vidpipe.data import conversion_state, convert
from vidpipe.data.conversion_plan import ShardPlan
from vidpipe.data.moment import to_moment
from vidpipe.data.video_row import VideoRow
from vidpipe.storage import files, remote

# The plans of all shards, one JSON line each. As part of the pipeline they would exceed Dataflow's limit of
# 20 MB at about 100,000 videos.
_PLANS_NAME = "plans.jsonl"


def make_shards_on(beam_args: Sequence[str]) -> convert.MakeShards:
    """Returns a `make_shards` for `convert.convert` that runs a Beam pipeline.

    Args:
      beam_args: Beam's own options, such as `["--runner=FlinkRunner", "--parallelism=64"]`; empty for Beam's
        local runner. vidpipe must be installed on all machines, and `video_dir` and `output_dir` must be the
        same files there.
    """
    return functools.partial(_run_pipeline, list(beam_args))


def _run_pipeline(
    beam_args: list[str],
    plans: Sequence[ShardPlan],
    config: ConversionConfig,
    classes: Sequence[str],
    read: convert.ReadEncodedClip,
) -> None:
    if config.num_workers is None:  # clusters expect one process per slot
        config = dataclasses.replace(config, num_workers=1)
    options = PipelineOptions(beam_args)
    if options.view_as(StandardOptions).runner is None:
        # Beam's default would download and start the Prism runner.
        options.view_as(StandardOptions).runner = "FnApiRunner"
    address = conversion_state.address_of(config.output_dir, _PLANS_NAME)
    spans = list(_write_plans(address, plans))
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Plans" >> beam.Create(spans)
                | "Spread" >> beam.Reshuffle()
                | "Convert" >> beam.Map(_make_shard, address, config, classes, read)
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise convert.ConversionError(
            f"The Beam pipeline failed: {reason}. Finished shards are kept; run the same command again."
        ) from error
    files.delete(address)


def _write_plans(address: str, plans: Sequence[ShardPlan]) -> Iterator[tuple[int, int]]:
    """Writes one line per plan; yields the offset and the length of each line in bytes."""
    with files.staged(address) as temporary, temporary.open("wb") as file:
        for plan in plans:
            line = json.dumps(dataclasses.asdict(plan)).encode() + b"\n"
            yield file.tell(), len(line)
            file.write(line)


def _make_shard(
    span: tuple[int, int],
    address: str,
    config: ConversionConfig,
    classes: Sequence[str],
    read: convert.ReadEncodedClip,
) -> None:
    """Writes one shard, on a machine of the cluster."""
    remote.connect(config.output_dir)
    offset, length = span
    with tf.io.gfile.GFile(address, "rb") as file:
        file.seek(offset)
        plan = json.loads(file.read(length))
    rows = tuple(VideoRow(**row | {"moment": to_moment(row["moment"])}) for row in plan["rows"])
    convert.make_shards_here([ShardPlan(plan["name"], rows)], config, classes, read)
