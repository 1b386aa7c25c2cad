r"""Converts videos into sharded TFRecords of sampled frames.

    python tools/convert_videos.py --video_dir=/data/UCF-101 --ucf101_lists=/data/ucfTrainTestlist \
        --output_dir=/data/ucf101-records

The list of videos comes from UCF101's lists, from CSV files, or from class folders in --video_dir. The same
command resumes an interrupted conversion, repairs a corrupt dataset, and reads replaced videos again.

A cluster that starts the same command many times gives each process a share of the shards; the last one
completes the dataset. In an array job of Slurm that needs no flag, elsewhere --task_index=3 --task_count=64.

With --runner=dask the workers of a Dask cluster write the shards:

    python tools/convert_videos.py --video_dir=/nfs/videos --output_dir=/nfs/records --runner=dask \
        --dask_scheduler=tcp://master:8786

With --runner=beam the machines of an Apache Beam cluster write the shards. Beam's own options follow `--`:

    python tools/convert_videos.py --video_dir=/nfs/videos --output_dir=s3://bucket/records --runner=beam \
        -- --runner=FlinkRunner --flink_master=master:8081 --parallelism=64
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidpipe import command_line
from vidpipe.config import ConversionConfig, check, setting
from vidpipe.data.conversion_tasks import choose_task
from vidpipe.errors import VidpipeError
from vidpipe.training.recipes import RECIPES

if TYPE_CHECKING:
    from vidpipe.data import convert

_COMMAND = command_line.Command(__doc__, arguments="[-- BEAM_OPTION...]")


@dataclass(frozen=True, kw_only=True)
class _RecipeChoice:
    recipe: str = setting(
        "frozen",
        help="Recipe whose sampling and frame size are the defaults; notebook samples the first frames.",
        group="Clips",
        choices=tuple(RECIPES),
    )

    def __post_init__(self) -> None:
        check(self)


_read_recipe = _COMMAND.settings(_RecipeChoice)
_read_config = _COMMAND.settings(ConversionConfig)


def main(arguments: list[str]) -> None:
    """Flags -> ConversionConfig -> convert."""
    clip = RECIPES[_read_recipe().recipe].clip
    config = _read_config(dataclasses.replace(_read_config(), clip=clip))
    if arguments and config.runner != "beam":
        _COMMAND.usage_error(f"unexpected arguments: {' '.join(arguments)}")
    # Not at the top: spawned decoding processes import this file too, and must stay free of TensorFlow.
    command_line.load_tensorflow()
    from vidpipe.data import convert

    task = choose_task(config) if config.runner == "local" else None
    report = convert.convert(config, make_shards=_make_shards(config, beam_args=arguments), task=task)
    clips = f"{report.written} clips, {len(report.skipped)} videos skipped"
    shards = f"{report.shards_made} shards written, {report.shards_kept} kept"
    if report.shards_missing:
        print(f"{config.output_dir}, {task}: {clips}; {shards}.")
        print(
            f"Other tasks have {report.shards_missing} shards to write; the last one completes the dataset."
        )
    else:
        print(f"{config.output_dir}: {clips}; {shards}.")
    for warning in report.warnings:
        print(f"Warning: {warning}")  # again, now that the progress has ended


def _make_shards(config: ConversionConfig, *, beam_args: list[str]) -> "convert.MakeShards | None":
    logging.disable(logging.WARNING)  # Beam logs every optional package that is not installed
    try:
        if config.dask_scheduler is not None:
            from vidpipe.data import convert_dask

            return convert_dask.make_shards_on(config.dask_scheduler)
        if config.runner == "beam":
            from vidpipe.data import convert_beam

            return convert_beam.make_shards_on(beam_args)
    except ImportError as error:
        name = config.runner
        raise VidpipeError(
            f"--runner={name} needs {name.title()}: pip install 'vidpipe[{name}]' ({error})."
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return None


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
