"""A remote dataset's files on a local disk: copied once, and believed for their sha256 alone.

Each state of a dataset has a folder of its own, named by the digest of its dataset_info.json, which holds the
digests of all other files: what was copied before a dataset changed is never read after it. The folder is
read as any local dataset is.
"""

import hashlib
import logging
import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf
from filelock import FileLock

from vidpipe import remote, shards
from vidpipe.progress import Progress
from vidpipe.spec import VidpipeError

# An object store answers slowly and many at once.
_COPIED_SIDE_BY_SIDE = 8
_BLOCK_BYTES = 8 << 20
_log = logging.getLogger(__name__)


class ShardCacheError(VidpipeError):
    """The copies cannot be written."""


def open_dataset(data_dir: str, cache_dir: str | None) -> str:
    """The folder to read in place of `data_dir`; its shards are there after `fetch_shards`.

    Args:
      data_dir: a committed dataset. A local one is its own folder.
      cache_dir: where copies are kept; None reads from where the data lie.

    Returns:
      A local folder with the dataset's dataset_info.json and videos.csv, or `data_dir`. When a remote dataset
      cannot be reached, the folder of the state it was last seen in, with a warning.

    Raises:
      ShardError, RemoteError: as `shards.read_info`.
      ShardCacheError: the copies cannot be written.
      tf.errors.OpError: a file cannot be read.
    """
    if cache_dir is None or not remote.is_remote(data_dir):
        return data_dir
    last_seen = Path(cache_dir) / f"last-seen-{_digest(data_dir)}"
    try:
        info = shards.read_info(data_dir)
        text = shards.read_text(posixpath.join(data_dir, shards.INFO_NAME))
    except shards.UnreachableError as error:
        if not last_seen.exists():
            raise
        folder = Path(cache_dir) / last_seen.read_text(encoding="utf-8")
        _log.warning("%s Reading on from the copy in %s.", error, folder)
        return str(folder)
    folder = Path(cache_dir) / _digest(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shards.write_text(folder / shards.INFO_NAME, text)
        _fetch(data_dir, folder, shards.VIDEOS_NAME, info.videos_sha256)
        shards.write_text(last_seen, folder.name)
    except OSError as error:
        raise _cannot_write(cache_dir, error) from error
    return str(folder)


def fetch_shards(data_dir: str, folder: str, info: shards.DatasetInfo, split: str) -> None:
    """Copies what `folder` lacks of a split, and what is damaged there; nothing to do for a local dataset.

    Every copy is read once for its sha256, at every start. Two processes may do this at once: a file is
    copied by one of them, and appears under its name when it is whole.

    Args:
      data_dir: where the dataset lies.
      folder: what `open_dataset` returned for it.
      info: its dataset_info.
      split: which shards.

    Raises:
      ShardError: what arrives is not what dataset_info.json says.
      ShardCacheError: the copies cannot be written.
      tf.errors.OpError: a shard cannot be read.
    """
    if folder == data_dir:
        return

    def fetch(shard: shards.ShardInfo) -> int:
        _fetch(data_dir, Path(folder), shard.name, shard.sha256)
        return shard.clips

    pool = ThreadPoolExecutor(_COPIED_SIDE_BY_SIDE)
    try:
        with Progress(f"Copies of {split} in {folder}", info.num_clips(split), "clips") as progress:
            for clips in pool.map(fetch, info.splits[split]):
                progress.advance(clips)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(data_dir: str, folder: Path, name: str, sha256: str) -> None:
    path, temporary = folder / name, folder / f"{sha256}.tmp"
    with FileLock(folder / f"{sha256}.lock"):
        if path.exists():
            if shards.sha256_of(path) == sha256:
                return
            _log.warning("The copy %s is damaged; copying it again.", path)
        try:
            address = posixpath.join(data_dir, name)
            if _copy(address, temporary) != sha256:
                raise shards.ShardError(
                    f"{address}: what arrives has not the sha256 that {shards.INFO_NAME} says. Run the same "
                    f"command again; if that does not help, tools/inspect_shards.py --data_dir={data_dir} "
                    "--verify names what is damaged, and the tools/convert_videos.py command that made it "
                    "repairs it."
                )
            shards.commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _copy(address: str, path: Path) -> str:
    """Copies a file, and returns the sha256 of what arrived."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(address, "rb") as source, path.open("wb") as file:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _cannot_write(folder: str, error: OSError) -> ShardCacheError:
    return ShardCacheError(
        f"Cannot write copies to {folder} ({error.strerror}). Make room, or give another --cache_dir or none."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
