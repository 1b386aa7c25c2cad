"""Converts videos into sharded TFRecords of sampled frames.

    python tools/convert_videos.py --video_dir=/data/UCF-101 --ucf101_lists=/data/ucfTrainTestlist \
        --output_dir=/data/ucf101-records

The list of videos comes from UCF101's lists, from CSV files, or from class folders in --video_dir. A
conversion that was interrupted goes on when the same command is run again.

With --runner=beam the machines of an Apache Beam cluster make the shards. What follows `--` is for Beam:

    python tools/convert_videos.py --video_dir=/nfs/videos --output_dir=s3://bucket/records --runner=beam \
        -- --runner=FlinkRunner --flink_master=master:8081 --parallelism=64
"""

import logging
from typing import TYPE_CHECKING

from absl import flags

import cli
from vidpipe.config import ENCODINGS, ConversionConfig, ManifestConfig
from vidpipe.spec import VidpipeError

if TYPE_CHECKING:
    from vidpipe import convert

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The dataset goes here.", required=True)
_VIDEO_DIR = flags.DEFINE_string("video_dir", None, "Where the videos lie.", required=True)
_TRAIN_MANIFEST = flags.DEFINE_string(
    "train_manifest", None, "CSV with the columns video_name, tag and optional group, split."
)
_TEST_MANIFEST = flags.DEFINE_string("test_manifest", None, "CSV like --train_manifest, of the test videos.")
_UCF101_LISTS = flags.DEFINE_string("ucf101_lists", None, "Folder with trainlist01.txt and the like.")
_FOLD = flags.DEFINE_integer("fold", ManifestConfig.fold, "Which of the UCF101 lists: 1, 2 or 3.")
_CLASSES = flags.DEFINE_list("classes", None, "Only these classes.")
_TOP_CLASSES = flags.DEFINE_integer("top_classes", None, "Only the N classes with most training videos.")
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction", ManifestConfig.val_fraction, "Share of the training videos held out for validation."
)
_SEED = flags.DEFINE_integer("seed", ManifestConfig.seed, "Of the validation split.")
_CLIP = cli.define_clip_flags()
_ENCODING = flags.DEFINE_enum("encoding", ConversionConfig.encoding, ENCODINGS, "Of each frame.")
_JPEG_QUALITY = flags.DEFINE_integer("jpeg_quality", ConversionConfig.jpeg_quality, "1 to 100.")
_SHARD_SIZE_MB = flags.DEFINE_float("shard_size_mb", ConversionConfig.shard_size_mb, "About, per shard.")
_NUM_WORKERS = flags.DEFINE_integer("num_workers", None, "Decoding processes; one per core if left out.")
_MAX_SKIPPED = flags.DEFINE_float(
    "max_skipped", ConversionConfig.max_skipped, "Fail if a larger fraction of the videos is unreadable."
)
_TIMEOUT_SEC = flags.DEFINE_float(
    "timeout_sec", ConversionConfig.timeout_sec, "A video that takes longer, twice, is skipped."
)
_WORKER_MEMORY_MB = flags.DEFINE_integer(
    "worker_memory_mb",
    ConversionConfig.worker_memory_mb,
    "A video that needs more memory to decode is skipped.",
)
_RUNNER = flags.DEFINE_enum(
    "runner", "local", ["local", "beam"], "beam: on a cluster; its options follow after `--`."
)


def main(arguments: list[str]) -> None:
    """Flags -> ConversionConfig -> convert."""
    if _RUNNER.value != "beam":
        cli.no_arguments(arguments)
    config = ConversionConfig(
        output_dir=_OUTPUT_DIR.value,
        manifest=ManifestConfig(
            video_dir=_VIDEO_DIR.value,
            train_manifest=_TRAIN_MANIFEST.value,
            test_manifest=_TEST_MANIFEST.value,
            ucf101_lists=_UCF101_LISTS.value,
            fold=_FOLD.value,
            classes=tuple(_CLASSES.value) if _CLASSES.value is not None else None,
            top_classes=_TOP_CLASSES.value,
            val_fraction=_VAL_FRACTION.value,
            seed=_SEED.value,
        ),
        clip=_CLIP(),
        encoding=_ENCODING.value,
        jpeg_quality=_JPEG_QUALITY.value,
        shard_size_mb=_SHARD_SIZE_MB.value,
        num_workers=_NUM_WORKERS.value,
        max_skipped=_MAX_SKIPPED.value,
        timeout_sec=_TIMEOUT_SEC.value,
        worker_memory_mb=_WORKER_MEMORY_MB.value,
    )
    # Loaded here: spawned workers import this file too, and must stay free of TensorFlow.
    cli.load_tensorflow()
    from vidpipe import convert

    report = convert.convert(config, runner=_runner(arguments))
    print(
        f"{config.output_dir}: {report.written} clips, {len(report.skipped)} videos skipped; "
        f"{report.shards_made} shards written, {report.shards_kept} kept."
    )


def _runner(beam_args: list[str]) -> "convert.MakeShards | None":
    if _RUNNER.value == "local":
        return None
    logging.disable(logging.WARNING)  # Beam names every optional package that is not installed
    try:
        from vidpipe import convert_beam
    except ImportError as error:
        raise VidpipeError(f"--runner=beam needs Beam: pip install 'vidpipe[beam]' ({error}).") from None
    finally:
        logging.disable(logging.NOTSET)
    return convert_beam.runner(beam_args)


if __name__ == "__main__":
    cli.run(main)
