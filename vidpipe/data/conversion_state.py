"""The state of a conversion, in the folder `.conversion/` of the dataset.

It holds the settings and, for each finished shard, the outcome of each of its videos. It is kept after the
commit, so that the same command can repair the dataset later.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import posixpath
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from filelock import FileLock, Timeout

from vidpipe.config import fingerprint
from vidpipe.data.conversion_plan import ShardPlan
from vidpipe.data.conversion_tasks import Task
from vidpipe.data.shards import ShardInfo
from vidpipe.data.skip_reason import SkipReason
from vidpipe.data.video_row import VideoRow
from vidpipe.storage import files, remote

STATE_DIR = ".conversion"
_SETTINGS = "plan"
_TASK_LOCK = "task.lock"
_log = logging.getLogger(__name__)

# Size of a source file in bytes and its modification time in ns; None if there is no file.
SourceState = list[int] | None


def address_of(output_dir: str, name: str) -> str:
    """Returns the address of a file in the state folder."""
    return posixpath.join(output_dir, STATE_DIR, name)


def lock(output_dir: str) -> FileLock:
    """Makes the lock that allows one conversion of this folder at a time.

    The lock of a remote folder is valid on this machine only. Two machines that convert to the same remote
    folder do the work twice, but write the same bytes.
    """
    return FileLock(_lock_path(output_dir, "lock"), timeout=0)


@contextmanager
def waiting_lock(output_dir: str) -> Iterator[None]:
    """Holds the same lock during the block, after waiting for another process that has it."""
    own = lock(output_dir)
    try:
        own.acquire(timeout=1)
    except Timeout:
        _log.info("Waiting for another process that works on %s.", output_dir)
        own.acquire(timeout=-1)
    try:
        yield
    finally:
        own.release()


@contextmanager
def task_lock(output_dir: str, task: Task) -> Iterator[None]:
    """Holds a lock that allows each task to run once at a time, as `lock` does.

    Raises:
      Timeout: it is running already.
    """
    path = _lock_path(output_dir, f"{task.index}-of-{task.count}.{_TASK_LOCK}")
    with FileLock(path, timeout=0):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running_task(output_dir: str) -> str | None:
    """Returns the name of a running task, such as `3-of-8`; None if there is none.

    The locks of tasks that were killed are deleted.
    """
    for path in _lock_path(output_dir, "lock").parent.glob(f"*.{_TASK_LOCK}"):
        try:
            with FileLock(path, timeout=0):
                path.unlink()
        except Timeout:
            return path.name.removesuffix(f".{_TASK_LOCK}")
    return None


def _lock_path(output_dir: str, name: str) -> Path:
    if remote.is_remote(output_dir):
        digest = hashlib.sha256(output_dir.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"vidpipe-{digest}"
        folder.mkdir(exist_ok=True)
        return folder / name
    return Path(output_dir) / STATE_DIR / name


def staging_dir(output_dir: str) -> str:
    """Returns the folder for new shards of a finished dataset, and their states, until they are complete."""
    return address_of(output_dir, "next")


def make_folders(output_dir: str) -> None:
    """Makes a folder for shards, and for their states; an object store needs none."""
    if not remote.is_remote(output_dir):
        Path(output_dir, STATE_DIR).mkdir(parents=True, exist_ok=True)


def move_staged(output_dir: str, names: Iterable[str]) -> None:
    """Moves shards and their states from the staging folder to their places."""
    staged = staging_dir(output_dir)
    for name in names:
        files.move(posixpath.join(staged, name), posixpath.join(output_dir, name))
        files.move(address_of(staged, f"{name}.json"), address_of(output_dir, f"{name}.json"))


def write_settings(output_dir: str, settings: dict[str, Any]) -> None:
    """Writes the settings of the conversion."""
    files.write_text(address_of(output_dir, f"{_SETTINGS}.json"), json.dumps(settings, indent=2) + "\n")


def read_settings(output_dir: str) -> dict[str, Any] | None:
    """Reads the settings of an earlier conversion; None if there are none or they cannot be read."""
    try:
        return json.loads(files.read_text(address_of(output_dir, f"{_SETTINGS}.json")))
    except (tf.errors.NotFoundError, ValueError):
        return None


def write_shard_state(output_dir: str, shard: ShardInfo, videos: list[dict[str, Any]]) -> None:
    """Marks a shard as finished.

    Args:
      output_dir: address of the dataset.
      shard: the shard that was written.
      videos: for each of its videos the row of videos.csv, and the `source_state` of the file under "source".
    """
    state = {"shard": dataclasses.asdict(shard), "videos": videos}
    text = json.dumps(state | {"sha256": fingerprint(state)}) + "\n"
    files.write_text(address_of(output_dir, f"{shard.name}.json"), text)


def read_shard_state(output_dir: str, plan: ShardPlan) -> tuple[ShardInfo, list[dict[str, Any]]]:
    """Reads the ShardInfo and the rows that `write_shard_state` wrote.

    Raises:
      tf.errors.NotFoundError: the shard is not finished.
      ValueError, KeyError, TypeError: the file is corrupt, or belongs to another plan.
    """
    state = json.loads(files.read_text(address_of(output_dir, f"{plan.name}.json")))
    if fingerprint({"shard": state["shard"], "videos": state["videos"]}) != state["sha256"]:
        raise ValueError(f"the state of {plan.name} is corrupt")
    planned = [(row.video_id, row.split, row.label_name, row.group) for row in plan.rows]
    videos = [(row["video_id"], row["split"], row["label"], row["group"]) for row in state["videos"]]
    if videos != planned or state["shard"]["name"] != plan.name:
        raise ValueError(f"the state of {plan.name} is that of other videos")
    return ShardInfo(**state["shard"]), state["videos"]


def source_state(video_dir: str, row: VideoRow) -> SourceState:
    """Returns the state of a video file, from which a later run detects that the file has changed."""
    try:
        stat = Path(video_dir, row.path).stat() if row.path else None
    except OSError:
        stat = None
    return [stat.st_size, stat.st_mtime_ns] if stat else None


def names_of_states(output_dir: str) -> set[str]:
    """Returns the names of the shards that have a state, here or in the staging folder."""
    folders = [posixpath.join(folder, STATE_DIR) for folder in (output_dir, staging_dir(output_dir))]
    names = [name for folder in folders if tf.io.gfile.isdir(folder) for name in tf.io.gfile.listdir(folder)]
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


def is_finished(output_dir: str, video_dir: str, plan: ShardPlan, *, retry: bool = True) -> bool:
    """Whether an earlier run wrote this shard, it is valid, and its source files have not changed.

    A shard is not finished if one of its videos was skipped for a retryable reason, or for a reason that
    this version does not know; without `retry` it is.
    """
    try:
        info, videos = read_shard_state(output_dir, plan)
        for row, video in zip(plan.rows, videos, strict=True):
            if video["source"] != source_state(video_dir, row):
                return False
            if retry and video["status"] != "ok" and SkipReason(video["reason"]).is_retryable:
                return False
        address = posixpath.join(output_dir, plan.name)
        return files.size_of(address) == info.bytes and files.sha256_of(address) == info.sha256
    except (tf.errors.NotFoundError, ValueError, KeyError, TypeError):
        return False


def delete_temporary_files(output_dir: str, names: Container[str] | None = None) -> None:
    """Deletes incomplete files of a killed conversion; a remote folder never contains any.

    Args:
      output_dir: address of the dataset.
      names: of the shards and other files of which they may be; None for all.
    """
    if remote.is_remote(output_dir):
        return
    for folder in (output_dir, staging_dir(output_dir)):
        for path in itertools.chain.from_iterable(
            Path(folder).glob(pattern) for pattern in ("*.tmp", f"{STATE_DIR}/*.tmp")
        ):
            # Such as train-00000-of-00002.tfrecord.json.0f1e2d3c.tmp, see `files.staged`.
            name = path.name.removesuffix(".tmp").rpartition(".")[0]
            if names is None or name.removesuffix(".json") in names:
                path.unlink(missing_ok=True)
