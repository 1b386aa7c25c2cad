"""Videos to shards: a pool of decoding processes, a writer, and a folder that is whole or not there.

Which clip goes into which shard is decided before the first video is read, by the manifest and the settings
alone. So the same bytes come out for any number of workers, and a conversion that was interrupted goes on
with the shards that are missing.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import posixpath
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from filelock import FileLock, Timeout

from vidpipe import remote, shards, video, worker
from vidpipe.config import ClipConfig, ConversionConfig, differences, fingerprint, to_dict
from vidpipe.manifest import VideoRow, class_names, read_manifest
from vidpipe.progress import Progress
from vidpipe.records import SCHEMA_VERSION, encode_clip
from vidpipe.spec import SPLITS, VidpipeError

ReadEncodedClip = Callable[[str, ClipConfig, str, int], video.EncodedClip]
_Outcome = worker.Outcome[video.EncodedClip]
# Size in bytes and time of the last change in ns; None where there is no file.
_SourceState = list[int] | None
_Read = tuple[_Outcome, _SourceState]
MakeShards = Callable[["Sequence[ShardPlan]", ConversionConfig, list[str], ReadEncodedClip], None]

# What the conversion knows of itself while it runs, and what a repair needs later: the plan and, per
# finished shard, the outcome of each of its videos.
STATE_DIR = ".conversion"
# Natural frames of 224 pixels; JPEG at quality 95. An estimate decides how many shards there are.
_BYTES_PER_PIXEL = {"jpeg": 0.4, "png": 2.0, "raw": 3.0}
_log = logging.getLogger(__name__)


class ConversionError(VidpipeError):
    """A conversion cannot start, go on or be accepted. Finished shards are kept."""


@dataclass(frozen=True)
class ConvertReport:
    """What became of every video.

    Attributes:
      written: clips in the dataset.
      skipped: (video_id, reason) of every other video.
      shards_kept: shards that an earlier run had finished.
      shards_made: shards that this run wrote.
    """

    written: int
    skipped: list[tuple[str, str]]
    shards_kept: int
    shards_made: int


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: its file name and its videos, in the order of its records."""

    name: str
    rows: tuple[VideoRow, ...]


def convert(
    config: ConversionConfig,
    read: ReadEncodedClip = video.read_encoded_clip,
    runner: MakeShards | None = None,
) -> ConvertReport:
    """Converts the manifest's videos into a dataset in `config.output_dir`, or goes on with it.

    Args:
      config: the conversion.
      read: what a worker calls for each video; importable by name, since workers are spawned.
      runner: makes the shards that are missing; None for `make_shards`, here and now.

    Returns:
      What became of every video.

    Raises:
      ConversionError: the folder holds another dataset or is in use, it cannot be written, or more than
        `config.max_skipped` of the videos had to be skipped.
      ManifestError: the list of videos is at fault.
    """
    rows = read_manifest(config.manifest)
    _refuse_missing(rows, config)
    classes = class_names(rows)
    settings = _settings(config, rows, classes)
    output_dir = config.output_dir
    remote.connect(output_dir)
    try:
        _refuse_other_dataset(output_dir, settings)
        if not remote.is_remote(output_dir):
            (Path(output_dir) / STATE_DIR).mkdir(parents=True, exist_ok=True)
        with _lock(output_dir):
            return _convert_locked(config, rows, classes, settings, read, runner or make_shards)
    except Timeout:
        raise ConversionError(
            f"Another conversion is writing to {output_dir}. Wait for it, or choose another output_dir."
        ) from None
    except (OSError, tf.errors.OpError) as error:
        raise ConversionError(
            f"Cannot write to {output_dir}: {shards.first_line(error)}. Finished shards are kept; "
            "when there is room and permission, run the same command again."
        ) from error


def plan_shards(rows: Iterable[VideoRow], split: str, num_shards: int) -> list[ShardPlan]:
    """Deals a split's videos to its shards.

    Videos are ordered by a hash of their name, which mixes the classes in every shard and keeps each
    video's place when the manifest is reordered, then cut into `num_shards` runs of equal length (+-1).
    """
    ordered = sorted(
        (row for row in rows if row.split == split),
        key=lambda row: hashlib.sha256(row.video_id.encode()).digest(),
    )
    bounds = [index * len(ordered) // max(1, num_shards) for index in range(num_shards + 1)]
    return [
        ShardPlan(shards.shard_name(split, index, num_shards), tuple(ordered[start:stop]))
        for index, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def make_shards(
    plans: Sequence[ShardPlan],
    config: ConversionConfig,
    classes: list[str],
    read: ReadEncodedClip = video.read_encoded_clip,
) -> None:
    """Makes these shards, and the state of each, with a pool of decoding processes on this machine.

    Args:
      plans: the shards; a part of a conversion's is as good as all.
      config: the conversion.
      classes: ordered; a label is an index into it.
      read: as in `convert`.
    """
    total = sum(len(plan.rows) for plan in plans)
    workers = worker.Workers(_num_workers(config), config.timeout_sec, config.worker_memory_mb)
    with workers, Progress("Converting", total, "videos") as progress:
        outcomes = _watched(_read_in_order(workers, plans, config, read), progress)
        for plan in plans:
            _make_shard(plan, itertools.islice(outcomes, len(plan.rows)), config, classes)


def _convert_locked(
    config: ConversionConfig,
    rows: Sequence[VideoRow],
    classes: list[str],
    settings: dict[str, Any],
    read: ReadEncodedClip,
    runner: MakeShards,
) -> ConvertReport:
    output_dir = config.output_dir
    _delete_staged(output_dir)
    shards.write_text(_state(output_dir, "plan"), json.dumps(settings, indent=2) + "\n")
    plans = {
        split: plan_shards(rows, split, _num_shards(config, sum(row.split == split for row in rows)))
        for split in SPLITS
    }
    every_plan = [plan for split in SPLITS for plan in plans[split]]
    # Side by side: a finished shard is read to its end, which is mostly waiting where the folder is remote.
    with ThreadPoolExecutor() as threads:
        finished = list(threads.map(functools.partial(_is_finished, config=config), every_plan))
    to_make = [plan for plan, is_finished in zip(every_plan, finished, strict=True) if not is_finished]
    kept = len(every_plan) - len(to_make)
    if kept:
        _log.info("%d of %d shards are finished already.", kept, len(every_plan))
    if to_make:
        # From here on, until it is written again, the folder is not a dataset.
        _delete(posixpath.join(output_dir, shards.INFO_NAME))
        runner(to_make, config, classes, read)
    return _finish(config, plans, classes, settings, kept)


def _make_shard(
    plan: ShardPlan,
    outcomes: Iterable[_Read],
    config: ConversionConfig,
    classes: list[str],
) -> None:
    """Writes one shard from the outcomes of its videos, in order, and then its state."""
    videos: list[dict[str, Any]] = []

    def examples() -> Iterator[bytes]:
        position = 0
        for row, (outcome, source) in zip(plan.rows, outcomes, strict=True):
            videos.append(_video_row(row, outcome, source, plan.name, position))
            if outcome.value is None:
                _log.warning("Skipped %s: %s", row.video_id, outcome.reason)
            else:
                yield _encode(row, outcome.value, classes, config)
                position += 1

    info = shards.write_shard(posixpath.join(config.output_dir, plan.name), examples())
    state = {"shard": dataclasses.asdict(info), "videos": videos}
    shards.write_text(_state(config.output_dir, plan.name), json.dumps(state) + "\n")


def _watched(outcomes: Iterable[_Read], progress: Progress) -> Iterator[_Read]:
    skipped = 0
    for outcome, source in outcomes:
        skipped += outcome.value is None
        progress.advance(note=f"{skipped} skipped")
        yield outcome, source


def _num_workers(config: ConversionConfig) -> int:
    return config.num_workers or os.cpu_count() or 1


def _read_in_order(
    workers: worker.Workers, plans: Sequence[ShardPlan], config: ConversionConfig, read: ReadEncodedClip
) -> Iterator[_Read]:
    """Yields the outcome of every planned video, in order, and the state of its file before it was read.

    A file that is still being copied has another state later, by which the next run knows to read it again.
    """
    rows = [row for plan in plans for row in plan.rows]
    states: deque[_SourceState] = deque()

    def calls() -> Iterator[tuple[str, ClipConfig, str, int]]:
        for row in rows:
            if row.path:
                states.append(_source_state(row, config))
                path = str(Path(config.manifest.video_dir) / row.path)
                yield path, config.clip, config.encoding, config.jpeg_quality

    outcomes = workers.read_in_order(read, calls())
    for row in rows:
        if row.path:
            yield next(outcomes), states.popleft()
        else:
            yield worker.Outcome(None, "not found under video_dir"), None


def _encode(row: VideoRow, clip: video.EncodedClip, classes: list[str], config: ConversionConfig) -> bytes:
    return encode_clip(
        clip.encoded_frames,
        clip.frame_indices,
        classes.index(row.label_name),
        row.label_name,
        row.video_id,
        config.encoding,
        clip.height,
        clip.width,
    )


def _video_row(
    row: VideoRow, outcome: _Outcome, source: _SourceState, shard: str, position: int
) -> dict[str, Any]:
    """The video's row of videos.csv, and the state of its file, by which a later run sees a change."""
    common = {
        "video_id": row.video_id, "split": row.split, "label": row.label_name, "group": row.group,
        "source": source,
    }  # fmt: skip
    if outcome.value is None:
        return common | {"status": "skipped", "reason": outcome.reason}
    return (
        common
        | {"status": "ok", "shard": shard, "position": position}
        | {"frames_kept": len(outcome.value.encoded_frames)}
        | dataclasses.asdict(outcome.value.info)
    )


def _source_state(row: VideoRow, config: ConversionConfig) -> _SourceState:
    try:
        stat = (Path(config.manifest.video_dir) / row.path).stat() if row.path else None
    except OSError:
        stat = None
    return [stat.st_size, stat.st_mtime_ns] if stat else None


def _is_finished(plan: ShardPlan, config: ConversionConfig) -> bool:
    """Whether an earlier run made this shard, it is undamaged, and its sources are what they were."""
    try:
        state = _read_state(config, plan)
        for row, outcome in zip(plan.rows, state["videos"], strict=True):
            if outcome["video_id"] != row.video_id or outcome["source"] != _source_state(row, config):
                return False
            if worker.may_pass(outcome.get("reason", "")):
                return False
        info = shards.ShardInfo(**state["shard"])
        address = posixpath.join(config.output_dir, plan.name)
        return shards.size_of(address) == info.bytes and shards.sha256_of(address) == info.sha256
    except (tf.errors.NotFoundError, ValueError, KeyError, TypeError):
        return False


def _finish(
    config: ConversionConfig,
    plans: dict[str, list[ShardPlan]],
    classes: list[str],
    settings: dict[str, Any],
    shards_kept: int,
) -> ConvertReport:
    """Writes videos.csv from the shards' states, judges the skips, and commits the dataset."""
    output_dir = config.output_dir
    written, skipped = 0, []
    splits: dict[str, tuple[shards.ShardInfo, ...]] = {}
    table = posixpath.join(output_dir, shards.VIDEOS_NAME)
    with shards.committed_csv(table, shards.VIDEO_COLUMNS) as writer:
        for split in SPLITS:
            infos = []
            for plan in plans[split]:
                state = _read_state(config, plan)
                infos.append(shards.ShardInfo(**state["shard"]))
                written += infos[-1].clips
                for row in state["videos"]:
                    writer.writerow(row)
                    if row["status"] != "ok":
                        skipped.append((row["video_id"], row["reason"]))
            splits[split] = tuple(infos)
    total = written + len(skipped)
    if len(skipped) > config.max_skipped * total or written == 0:
        reasons = "; ".join(
            f"{count} x {reason}" for reason, count in Counter(reason for _, reason in skipped).most_common(3)
        )
        raise ConversionError(
            f"{len(skipped)} of {total} videos were skipped ({reasons}); max_skipped={config.max_skipped:g} "
            f"allows {int(config.max_skipped * total)}. They are listed in {table}. Mend them, or allow "
            "more, and run the same command again: the rest is kept."
        )
    info = shards.DatasetInfo(
        schema_version=SCHEMA_VERSION,
        classes=tuple(classes),
        clip=config.clip,
        encoding=config.encoding,
        splits=splits,
        fingerprint=fingerprint(settings),
        settings=settings,
        videos_sha256=shards.sha256_of(table),
    )
    shards.write_info(output_dir, info)
    made = sum(map(len, plans.values())) - shards_kept
    return ConvertReport(written, skipped, shards_kept, made)


def _settings(config: ConversionConfig, rows: Sequence[VideoRow], classes: list[str]) -> dict[str, Any]:
    """Everything that decides the bytes of the dataset, and nothing else: no path, no worker count."""
    listed = [[row.video_id, row.label_name, row.split, row.group] for row in rows]
    return {
        "schema_version": SCHEMA_VERSION,
        "clip": to_dict(config.clip),
        "encoding": config.encoding,
        "jpeg_quality": config.jpeg_quality if config.encoding == "jpeg" else None,
        "shard_size_mb": config.shard_size_mb,
        "classes": classes,
        "videos": dict(sorted(Counter(row.split for row in rows).items())),
        "val_fraction": config.manifest.val_fraction,
        "seed": config.manifest.seed,
        "manifest_sha256": fingerprint(sorted(listed))[:16],
    }


def _num_shards(config: ConversionConfig, num_videos: int) -> int:
    if num_videos == 0:
        return 0
    height, width = config.clip.frame_size(3, 4)  # the videos' own shapes are not known yet
    pixels = num_videos * config.clip.num_frames * height * width
    size = pixels * _BYTES_PER_PIXEL[config.encoding]
    return min(num_videos, max(1, round(size / (config.shard_size_mb * 2**20))))


def _refuse_missing(rows: Sequence[VideoRow], config: ConversionConfig) -> None:
    missing = [row.video_id for row in rows if not row.path]
    if len(missing) > config.max_skipped * len(rows):
        raise ConversionError(
            f"{len(missing)} of {len(rows)} listed videos are not under {config.manifest.video_dir}, as "
            f"{missing[0]}. Correct video_dir, choose classes, or raise max_skipped={config.max_skipped:g}."
        )


def _refuse_other_dataset(output_dir: str, settings: dict[str, Any]) -> None:
    if not tf.io.gfile.isdir(output_dir):
        return
    try:
        earlier = json.loads(shards.read_text(_state(output_dir, "plan")))
    except (tf.errors.NotFoundError, ValueError):
        found = shards.shard_names_in(output_dir)
        if found:
            raise ConversionError(
                f"{output_dir} holds {found[0]}, which this tool did not begin. Choose another output_dir."
            ) from None
        return
    changed = differences(earlier, settings)
    if changed:
        raise ConversionError(
            f"{output_dir} holds a dataset with other settings ({'; '.join(changed)}). "
            "Choose another output_dir, or delete that one."
        )


def _lock(output_dir: str) -> FileLock:
    """Held by the one conversion of this folder; of a remote folder, by the one on this machine.

    Two machines that convert to one remote folder do work twice but no harm: they write the same bytes.
    """
    if remote.is_remote(output_dir):
        name = hashlib.sha256(output_dir.encode()).hexdigest()[:16]
        return FileLock(Path(tempfile.gettempdir()) / f"vidpipe-{name}.lock", timeout=0)
    return FileLock(Path(output_dir) / STATE_DIR / "lock", timeout=0)


def _state(output_dir: str, name: str) -> str:
    return posixpath.join(output_dir, STATE_DIR, f"{name}.json")


def _read_state(config: ConversionConfig, plan: ShardPlan) -> dict[str, Any]:
    return json.loads(shards.read_text(_state(config.output_dir, plan.name)))


def _delete_staged(output_dir: str) -> None:
    """Clears what a conversion that was killed had half written; nothing is ever half there elsewhere."""
    if not remote.is_remote(output_dir):
        for pattern in ("*.tmp", f"{STATE_DIR}/*.tmp"):
            for path in Path(output_dir).glob(pattern):
                path.unlink()


def _delete(address: str) -> None:
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(address)
