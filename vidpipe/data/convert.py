"""Converts videos to shards: a pool of processes decodes, this process writes.

dataset_info.json is written last, so an interrupted conversion is not mistaken for a dataset.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import posixpath
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from filelock import FileLock, Timeout

from vidpipe.config import SPLITS, ConversionConfig, differences
from vidpipe.data import conversion_state, moment_reader, shards
from vidpipe.data.conversion_plan import ShardPlan, dataset_settings, plan_conversion
from vidpipe.data.conversion_state import SourceState
from vidpipe.data.conversion_tasks import Task
from vidpipe.data.manifest import class_names, read_manifest
from vidpipe.data.process_pool import ReaderPool, Result
from vidpipe.data.record_encoding import (
    SCHEMA_VERSION,
    ClipRecord,
    ReadEncodedClip,
    TemporaryFileError,
    read_record,
)
from vidpipe.data.skip_reason import Failure, SkipReason
from vidpipe.data.video_row import VideoRow
from vidpipe.errors import VidpipeError, first_line
from vidpipe.progress import Progress
from vidpipe.storage import files, remote

MakeShards = Callable[["Sequence[ShardPlan]", ConversionConfig, Sequence[str], ReadEncodedClip], None]

_RECORDS_PREFIX, _LOCK_NAME, _FRESH_SEC = "vidpipe-records-", "lock", 60
_NOT_FOUND = Failure(SkipReason.NOT_FOUND, "not found under video_dir")
_log = logging.getLogger(__name__)


class ConversionError(VidpipeError):
    """A conversion cannot start, resume or be committed. Finished shards are kept."""


@dataclass(frozen=True)
class Skipped:
    """A video without a clip in the dataset."""

    video_id: str
    reason: SkipReason
    message: str


@dataclass(frozen=True)
class ConversionReport:
    """The outcome of a conversion.

    Attributes:
      written: number of clips in the dataset.
      skipped: the videos without a clip.
      shards_kept: number of shards that an earlier run had finished.
      shards_made: number of shards that this run wrote.
      shards_missing: number of shards that other tasks have not made yet; 0 for a complete dataset.
      warnings: what was logged about the list of videos and the classes.
    """

    written: int
    skipped: list[Skipped]
    shards_kept: int
    shards_made: int
    shards_missing: int
    warnings: list[str]


@dataclass(frozen=True)
class _Request:
    """A video to read.

    Attributes:
      row: the video.
      source: the state of its file before it is read. If the file is still being copied, its state changes,
        and the next run reads it again.
      temporary_paths: the file that each attempt to read it writes.
    """

    row: VideoRow
    source: SourceState
    temporary_paths: list[str] = dataclasses.field(default_factory=list)


_Result = Result[_Request, ClipRecord]
# Makes the missing ones of some shards; returns these, and the folder where they are.
_MakeMissing = Callable[[Sequence[ShardPlan]], tuple[list[ShardPlan], str]]
# Takes what the former returns, and commits the dataset.
_Commit = Callable[[Sequence[ShardPlan], str], ConversionReport]


def convert(
    config: ConversionConfig,
    *,
    read: ReadEncodedClip = moment_reader.read_encoded_clip,
    make_shards: MakeShards | None = None,
    task: Task | None = None,
) -> ConversionReport:
    """Converts the listed videos into a dataset in `config.output_dir`; resumes an interrupted conversion.

    Args:
      config: the conversion.
      read: called in a decoding process for each video; importable by name, since processes are spawned.
      make_shards: writes the missing shards; None for `make_shards_here`.
      task: make only the shards of this task, and complete the dataset if all others are made; None for a
        conversion by one process.

    Raises:
      ConversionError: the folder holds another dataset or is in use, it cannot be written, or more than
        `config.max_skipped` of the videos had to be skipped.
      ManifestError: the list of videos is invalid.
    """
    with _recorded_warnings() as warnings:
        left_out = [] if remote.is_remote(config.output_dir) else [config.output_dir]
        rows = read_manifest(config.manifest, left_out=left_out, measure=functools.partial(_measure, config))
    _check_missing(rows, config)
    classes = class_names(rows)
    settings = dataset_settings(config, rows, classes)
    output_dir = config.output_dir
    remote.connect(output_dir)
    try:
        _check_same_dataset(output_dir, settings)
        conversion_state.make_folders(output_dir)
        plans = plan_conversion(rows, config)
        make = functools.partial(_make_missing, config, classes, read, make_shards or make_shards_here)
        commit = functools.partial(_commit, config, plans, classes, settings)
        every_plan = [plan for split in SPLITS for plan in plans[split]]
        if task is None:
            report = _convert_all(output_dir, settings, every_plan, make, commit)
        else:
            report = _convert_share(config, settings, every_plan, make, commit, task)
        return dataclasses.replace(report, warnings=warnings + report.warnings)
    except Timeout:
        raise ConversionError(
            f"Another conversion{f' of {task}' if task else ''} is writing to {output_dir}. Wait for it, or "
            "choose another output_dir."
        ) from None
    except TemporaryFileError as error:
        raise ConversionError(
            f"{error}. Finished shards are kept; free disk space, or choose another folder with TMPDIR, and "
            "run the same command again."
        ) from error
    except (OSError, tf.errors.OpError) as error:
        raise ConversionError(
            f"Cannot write to {output_dir}: {first_line(error)}. Finished shards are kept; free disk space "
            "or change the permissions, and run the same command again."
        ) from error


def _measure(config: ConversionConfig, paths: Sequence[str]) -> dict[str, moment_reader.VideoLength]:
    """Measures videos in parallel, without those that cannot be read: these will be skipped."""
    with _new_pool(config) as pool, Progress("Measuring", len(paths), "videos") as progress:
        lengths = {}
        video_dir = config.manifest.video_dir
        for result in pool.read_in_order(
            moment_reader.read_length, paths, lambda path: (f"{video_dir}/{path}",)
        ):
            if result.value is not None:
                lengths[result.request] = result.value
            progress.advance()
        return lengths


def _new_pool(config: ConversionConfig) -> ReaderPool:
    return ReaderPool(
        num_workers=config.num_workers or os.cpu_count() or 1,
        timeout_sec=config.timeout_sec,
        memory_mb=config.worker_memory_mb,
    )


def make_shards_here(
    plans: Sequence[ShardPlan],
    config: ConversionConfig,
    classes: Sequence[str],
    read: ReadEncodedClip = moment_reader.read_encoded_clip,
) -> None:
    """Writes these shards, and the state of each, with a pool of decoding processes on this machine.

    Args:
      plans: the shards; any subset of a conversion's shards.
      config: the conversion.
      classes: ordered; a label is an index into it.
      read: as in `convert`.
    """
    total = sum(len(plan.rows) for plan in plans)
    with (
        _records_dir() as records_dir,
        _new_pool(config) as pool,
        Progress("Converting", total, "videos") as progress,
    ):
        results = _counted(_read_in_order(pool, plans, config, classes, read, records_dir), progress)
        for plan in plans:
            _write_shard(plan, itertools.islice(results, len(plan.rows)), config)


@contextlib.contextmanager
def _records_dir() -> Iterator[str]:
    """Yields a folder for records between the processes, after deleting those of killed conversions."""
    for left in Path(tempfile.gettempdir()).glob(f"{_RECORDS_PREFIX}*"):
        # Not one that another conversion has just made and not locked yet. Others' folders are left alone.
        with contextlib.suppress(OSError, Timeout):
            if time.time() - left.stat().st_mtime > _FRESH_SEC:
                with FileLock(left / _LOCK_NAME, timeout=0):
                    shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=_RECORDS_PREFIX) as folder,
        FileLock(Path(folder) / _LOCK_NAME),
    ):
        yield folder


def _convert_all(
    output_dir: str,
    settings: dict[str, Any],
    plans: Sequence[ShardPlan],
    make_missing: _MakeMissing,
    commit: _Commit,
) -> ConversionReport:
    """Makes all missing shards and commits the dataset."""
    with conversion_state.lock(output_dir):
        running = conversion_state.running_task(output_dir)
        if running is not None:
            raise ConversionError(
                f"Task {running} of a conversion is writing to {output_dir}. Wait for it, or choose another "
                "output_dir."
            )
        _check_same_dataset(output_dir, settings)  # again: another conversion may have begun in between
        conversion_state.delete_temporary_files(output_dir)
        conversion_state.write_settings(output_dir, settings)
        report = commit(*make_missing(plans))
        conversion_state.delete_temporary_files(output_dir)  # of workers that were killed
        return report


def _convert_share(
    config: ConversionConfig,
    settings: dict[str, Any],
    plans: Sequence[ShardPlan],
    make_missing: _MakeMissing,
    commit: _Commit,
    task: Task,
) -> ConversionReport:
    """Makes the missing shards of a task, and commits the dataset if no other shard is missing."""
    output_dir = config.output_dir
    share = task.share(plans)
    with conversion_state.task_lock(output_dir, task):
        with conversion_state.waiting_lock(output_dir):
            _check_same_dataset(output_dir, settings)
            conversion_state.delete_temporary_files(output_dir, {plan.name for plan in share})
            conversion_state.write_settings(output_dir, settings)
        made, new_dir = make_missing(share)
        with conversion_state.waiting_lock(output_dir):
            report = _report_share(share, made, new_dir, output_dir)
            unmade, staged = _unmade(config, plans)
            if unmade:
                return dataclasses.replace(report, shards_missing=unmade)
            whole = commit(staged, _new_dir(output_dir))
            conversion_state.delete_temporary_files(output_dir, {shards.VIDEOS_NAME, shards.INFO_NAME})
            return dataclasses.replace(whole, shards_kept=report.shards_kept, shards_made=report.shards_made)


def _report_share(
    share: Sequence[ShardPlan], made: Sequence[ShardPlan], new_dir: str, output_dir: str
) -> ConversionReport:
    """Counts the clips of a task's shards; those in a staging folder may have been committed already."""
    dir_of = dict.fromkeys([plan.name for plan in made], new_dir)
    videos = []
    for plan in share:
        try:
            _, rows = conversion_state.read_shard_state(dir_of.get(plan.name, output_dir), plan)
        except tf.errors.NotFoundError:
            _, rows = conversion_state.read_shard_state(output_dir, plan)
        videos += rows
    skipped = [_skipped(row) for row in videos if row["status"] != "ok"]
    return ConversionReport(len(videos) - len(skipped), skipped, len(share) - len(made), len(made), 0, [])


def _unmade(config: ConversionConfig, plans: Sequence[ShardPlan]) -> tuple[int, list[ShardPlan]]:
    """Counts the shards that tasks have still to make; returns those in the staging folder, too."""
    output_dir, video_dir = config.output_dir, config.manifest.video_dir
    # A listing first: of ten thousand tasks, only the last ones look at every shard.
    known = conversion_state.names_of_states(output_dir)
    num_unknown = sum(plan.name not in known for plan in plans)
    if num_unknown:
        return num_unknown, []
    new_dir = _new_dir(output_dir)
    is_made = functools.partial(conversion_state.is_finished, video_dir=video_dir)
    with ThreadPoolExecutor() as threads:

        def select(folder: str, among: Sequence[ShardPlan], *, retry: bool) -> list[ShardPlan]:
            found = threads.map(lambda plan: is_made(folder, plan=plan, retry=retry), among)
            return [plan for plan, is_there in zip(among, found, strict=True) if is_there]

        staged = select(new_dir, plans, retry=False) if new_dir != output_dir else []
        names = {plan.name for plan in staged}
        others = [plan for plan in plans if plan.name not in names]
        # Where a task has made shards of a finished dataset again, others retry their skipped videos, too.
        in_place = select(output_dir, others, retry=bool(staged))
        return len(others) - len(in_place), staged


def _new_dir(output_dir: str) -> str:
    """Returns where new shards are written: a finished dataset stays as it is until they are complete."""
    is_dataset = files.size_of(posixpath.join(output_dir, shards.INFO_NAME)) is not None
    return conversion_state.staging_dir(output_dir) if is_dataset else output_dir


def _make_missing(
    config: ConversionConfig,
    classes: Sequence[str],
    read: ReadEncodedClip,
    make_shards: MakeShards,
    plans: Sequence[ShardPlan],
) -> tuple[list[ShardPlan], str]:
    """Makes those of the shards that are not finished; returns them, and the folder where they are."""
    output_dir, video_dir = config.output_dir, config.manifest.video_dir
    # In parallel: each finished shard is read completely, and a remote file system is mostly waiting.
    with ThreadPoolExecutor() as threads:
        check = functools.partial(conversion_state.is_finished, output_dir, video_dir)
        finished = list(threads.map(check, plans))
    missing = [plan for plan, is_finished in zip(plans, finished, strict=True) if not is_finished]
    num_kept = len(plans) - len(missing)
    if num_kept:
        _log.info("%d of %d shards are already finished.", num_kept, len(plans))
    new_dir = _new_dir(output_dir)
    conversion_state.make_folders(new_dir)
    if missing:
        to_make = [plan for plan in missing if not conversion_state.is_finished(new_dir, video_dir, plan)]
        make_shards(to_make, dataclasses.replace(config, output_dir=new_dir), classes, read)
    return missing, new_dir


def _read_in_order(
    pool: ReaderPool,
    plans: Sequence[ShardPlan],
    config: ConversionConfig,
    classes: Sequence[str],
    read: ReadEncodedClip,
    records_dir: str,
) -> Iterator[_Result]:
    """Yields the result of every planned video, in order.

    A record is overwritten while later videos are read: use it before asking for the next one.
    """
    video_dir = config.manifest.video_dir.rstrip("/") or "/"
    rows = [row for plan in plans for row in plan.rows]
    labels = {name: index for index, name in enumerate(classes)}
    new_paths = (f"{records_dir}/{number}" for number in itertools.count())
    free_paths: list[str] = []

    def requests() -> Iterator[_Request]:
        for row in rows:
            if row.path:
                yield _Request(row, conversion_state.source_state(video_dir, row))

    def arguments(request: _Request) -> tuple[Any, ...]:
        row = request.row
        temporary_path = free_paths.pop() if free_paths else next(new_paths)
        request.temporary_paths.append(temporary_path)
        how = (read, f"{video_dir}/{row.path}", config.clip, config.encoding, config.jpeg_quality)
        return *how, labels[row.label_name], row.label_name, row.video_id, row.moment, temporary_path

    def video_of_moment(request: _Request) -> str | None:
        return None if request.row.moment is None else request.row.path

    results = pool.read_in_order(read_record, requests(), arguments, video_of_moment)
    for row in rows:
        result = next(results) if row.path else Result(_Request(row, None), failure=_NOT_FOUND)
        yield result
        free_paths += result.request.temporary_paths


def _counted(results: Iterable[_Result], progress: Progress) -> Iterator[_Result]:
    skipped = 0
    for result in results:
        skipped += result.failure is not None
        progress.advance(note=f"{skipped} skipped")
        yield result


def _write_shard(plan: ShardPlan, results: Iterable[_Result], config: ConversionConfig) -> None:
    """Writes one shard from the results of its videos, in order, and then its state."""
    videos: list[dict[str, Any]] = []

    def examples() -> Iterator[bytes]:
        position = 0
        for result in results:
            videos.append(_video_row(result, plan.name, position))
            row, record = result.request.row, result.value
            if result.failure is not None:
                log_skipped(row, result.failure.message)
            if record is not None:
                yield record.read()
                position += 1

    info = shards.write_shard(posixpath.join(config.output_dir, plan.name), examples())
    conversion_state.write_shard_state(config.output_dir, info, videos)


def log_skipped(row: VideoRow, message: str) -> None:
    """Logs that a video has no clip; of a moment also the line of the list."""
    where = f" ({row.listed_at})" if row.moment is not None and row.listed_at else ""
    _log.warning("Skipped %s%s: %s", row.video_id, where, message)


def _video_row(result: _Result, shard: str, position: int) -> dict[str, Any]:
    """Makes the row of videos.csv, and adds the state of the video file as `source`."""
    row = result.request.row
    common = {
        "video_id": row.video_id, "split": row.split, "label": row.label_name, "group": row.group,
        "source": result.request.source,
    }  # fmt: skip
    if result.failure is not None:
        failure = {"reason": result.failure.reason.value, "message": result.failure.message}
        return common | {"status": "skipped"} | failure
    assert result.value is not None
    return (
        common
        | {"status": "ok", "shard": shard, "position": position}
        | {"frames_kept": result.value.frames_kept}
        | vars(result.value.info)
    )


def _commit(
    config: ConversionConfig,
    plans: dict[str, list[ShardPlan]],
    classes: Sequence[str],
    settings: dict[str, Any],
    made: Sequence[ShardPlan],
    new_dir: str,
) -> ConversionReport:
    """Writes videos.csv from the shards' states, checks max_skipped, and commits the dataset.

    Args:
      config: the conversion.
      plans: all shards of each split.
      classes: ordered.
      settings: of the dataset.
      made: the shards that lie in `new_dir`; the others are in the output folder.
      new_dir: the output folder, or one that replaces a part of it.
    """
    output_dir = config.output_dir
    dir_of = dict.fromkeys([plan.name for plan in made], new_dir)
    written, skipped = Counter[tuple[str, str]](), []
    splits: dict[str, tuple[shards.ShardInfo, ...]] = {}
    table = posixpath.join(new_dir, shards.VIDEOS_NAME)
    with files.staged_csv(table, shards.VIDEO_COLUMNS) as writer:
        for split in SPLITS:
            shard_infos = []
            for plan in plans[split]:
                shard_info, videos = conversion_state.read_shard_state(
                    dir_of.get(plan.name, output_dir), plan
                )
                shard_infos.append(shard_info)
                for row in videos:
                    writer.writerow(row)
                    if row["status"] == "ok":
                        written[row["split"], row["label"]] += 1
                    else:
                        skipped.append(_skipped(row))
            splits[split] = tuple(shard_infos)
    total = written.total() + len(skipped)
    if len(skipped) > config.max_skipped * total or not written:
        counts = Counter(each.message for each in skipped).most_common(3)
        messages = "; ".join(f"{count} x {message}" for message, count in counts)
        raise ConversionError(
            f"{len(skipped)} of {total} videos were skipped ({messages}); max_skipped={config.max_skipped:g} "
            f"allows {int(config.max_skipped * total)}. They are listed in {table}. Repair or remove them, "
            "or raise max_skipped, and run the same command again: finished shards are kept."
        )
    warnings = _check_classes_written(plans, classes, written, table)
    info = shards.DatasetInfo(
        schema_version=SCHEMA_VERSION,
        classes=tuple(classes),
        clip=config.clip,
        encoding=config.encoding,
        splits=splits,
        fingerprint=shards.fingerprint_of(settings, splits),
        settings=settings,
        videos_sha256=files.sha256_of(table),
    )
    if new_dir == output_dir:
        shards.write_info(output_dir, info)
    elif made or not shards.is_committed(output_dir, info):
        # The folder is not a dataset until this file is written again.
        files.delete(posixpath.join(output_dir, shards.INFO_NAME))
        conversion_state.move_staged(output_dir, [plan.name for plan in made])
        files.move(table, posixpath.join(output_dir, shards.VIDEOS_NAME))
        shards.write_info(output_dir, info)
    files.delete_folder(conversion_state.staging_dir(output_dir))
    num_kept = sum(map(len, plans.values())) - len(made)
    return ConversionReport(written.total(), skipped, num_kept, len(made), 0, warnings)


def _skipped(row: dict[str, Any]) -> Skipped:
    return Skipped(row["video_id"], SkipReason(row["reason"]), row["message"])


def _check_classes_written(
    plans: dict[str, list[ShardPlan]], classes: Sequence[str], written: Counter[tuple[str, str]], table: str
) -> list[str]:
    """Returns warnings about classes that are listed in a split but have no clip there.

    Raises:
      ConversionError: a class has no training clip.
    """
    warnings = []
    for split in SPLITS:
        listed = {row.label_name for plan in plans[split] for row in plan.rows}
        lost = [name for name in classes if name in listed and not written[split, name]]
        if not lost:
            continue
        message = f"All {split} videos of the class {', '.join(lost)} were skipped; {table} says why."
        if split == "train":
            raise ConversionError(
                f"{message} Repair them, or leave the class out, and run the same command again."
            )
        _log.warning("%s", message)
        warnings.append(message)
    return warnings


@contextlib.contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Collects the warnings of this package that are logged in the block."""
    recorder = _Recorder(logging.WARNING)
    logger = logging.getLogger(__package__)
    logger.addHandler(recorder)
    try:
        yield recorder.messages
    finally:
        logger.removeHandler(recorder)


class _Recorder(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _check_missing(rows: Sequence[VideoRow], config: ConversionConfig) -> None:
    """Fails before the work when too many listed videos do not exist."""
    missing = [row.video_id for row in rows if not row.path]
    if len(missing) > config.max_skipped * len(rows):
        raise ConversionError(
            f"{len(missing)} of {len(rows)} listed videos are not under {config.manifest.video_dir}, such as "
            f"{missing[0]}. Correct video_dir, choose classes, or raise max_skipped={config.max_skipped:g}."
        )


def _check_same_dataset(output_dir: str, settings: dict[str, Any]) -> None:
    """Rejects a folder that holds a dataset with other settings, or shards that vidpipe did not write."""
    if not tf.io.gfile.isdir(output_dir):
        return
    earlier = conversion_state.read_settings(output_dir)
    if earlier is None:
        found = shards.shard_names_in(output_dir)
        if found:
            raise ConversionError(
                f"{output_dir} holds {found[0]}, which vidpipe did not write. Choose another output_dir."
            )
        return
    changed = differences(earlier, settings)
    if changed:
        raise ConversionError(
            f"{output_dir} holds a dataset with other settings ({'; '.join(changed)}). "
            "Choose another output_dir, or delete that one."
        )
