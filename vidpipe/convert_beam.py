"""The conversion's shards on Apache Beam, each made by some machine of a cluster: the only importer of Beam.

A machine does for its shard what `convert.make_shards` does for all on one, so the bytes are the same.
"""

import dataclasses
import functools
import json
import posixpath
from collections.abc import Iterator, Sequence

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from vidpipe import convert, remote, shards
from vidpipe.config import ConversionConfig
from vidpipe.manifest import VideoRow

# The plans of all shards, a JSON line each. A pipeline that carried them itself would be too large for
# Dataflow (at most 20 MB) from some 100,000 videos on.
_PLANS_NAME = "plans.jsonl"


def runner(beam_args: Sequence[str]) -> convert.MakeShards:
    """What `convert.convert` takes as its `runner`.

    Args:
      beam_args: Beam's own options, as `["--runner=FlinkRunner", "--parallelism=64"]`; none for Beam's local
        runner. The machines need vidpipe, and see `video_dir` and `output_dir` under the same names.
    """
    return functools.partial(_make_shards, list(beam_args))


def _make_shards(
    beam_args: list[str],
    plans: Sequence[convert.ShardPlan],
    config: ConversionConfig,
    classes: list[str],
    read: convert.ReadEncodedClip,
) -> None:
    if config.num_workers is None:  # a slot of the cluster is meant for one process
        config = dataclasses.replace(config, num_workers=1)
    options = PipelineOptions(beam_args)
    if options.view_as(StandardOptions).runner is None:
        # Beam's own default would download a program first, Prism.
        options.view_as(StandardOptions).runner = "FnApiRunner"
    address = posixpath.join(config.output_dir, convert.STATE_DIR, _PLANS_NAME)
    places = list(_write_plans(address, plans))
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Plans" >> beam.Create(places)
                | "Spread" >> beam.Reshuffle()
                | "Convert" >> beam.Map(_make_shard, address, config, classes, read)
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise convert.ConversionError(
            f"The Beam pipeline failed: {reason}. Finished shards are kept; run the same command again."
        ) from error
    tf.io.gfile.remove(address)


def _write_plans(address: str, plans: Sequence[convert.ShardPlan]) -> Iterator[tuple[int, int]]:
    """Writes a line per plan; yields where each starts, and its length, in bytes."""
    with shards.staged(address) as temporary, temporary.open("wb") as file:
        for plan in plans:
            line = json.dumps(dataclasses.asdict(plan)).encode() + b"\n"
            yield file.tell(), len(line)
            file.write(line)


def _make_shard(
    place: tuple[int, int],
    address: str,
    config: ConversionConfig,
    classes: list[str],
    read: convert.ReadEncodedClip,
) -> None:
    """Runs on a machine of the cluster."""
    remote.connect(config.output_dir)
    start, length = place
    with tf.io.gfile.GFile(address, "rb") as file:
        file.seek(start)
        plan = json.loads(file.read(length))
    rows = tuple(VideoRow(**row) for row in plan["rows"])
    convert.make_shards([convert.ShardPlan(plan["name"], rows)], config, classes, read)
