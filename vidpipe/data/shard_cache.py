"""Local copies of the files of a remote dataset: copied once, and checked by sha256 before every use.

Each version of a dataset has its own folder in the cache, named by the digest of its dataset_info.json, which
holds the digests of all other files. So a dataset that was converted again is never mixed with older copies.
The folder is read like any local dataset.
"""

import hashlib
import logging
import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf
from filelock import FileLock

from vidpipe.data import shards
from vidpipe.errors import VidpipeError
from vidpipe.progress import Progress
from vidpipe.storage import files, remote

_log = logging.getLogger(__name__)
# An object store answers slowly, but many requests at once.
_PARALLEL_COPIES = 8
_BLOCK_BYTES = 8 << 20


class ShardCacheError(VidpipeError):
    """The local copies cannot be written."""


def cached_dir(data_dir: str, cache_dir: str | None) -> str:
    """Returns the folder to read instead of `data_dir`; `fetch_shards` puts its shards there.

    Args:
      data_dir: a committed dataset.
      cache_dir: the folder for copies; None reads a remote dataset over the network.

    Returns:
      `data_dir` for a local dataset or without a cache. Otherwise a local folder with copies of
      dataset_info.json and videos.csv. If the remote dataset cannot be reached, the folder of its last known
      version, with a warning.

    Raises:
      ShardError, RemoteError: as in `shards.read_info`.
      ShardCacheError: the copies cannot be written.
      tf.errors.OpError: a file cannot be read.
    """
    if cache_dir is None or not remote.is_remote(data_dir):
        return data_dir
    last_version = Path(cache_dir) / f"last-seen-{_digest(data_dir)}"
    try:
        info = shards.read_info(data_dir)
        text = files.read_text(posixpath.join(data_dir, shards.INFO_NAME))
    except shards.UnreachableError as error:
        if not last_version.exists():
            raise
        folder = Path(cache_dir) / last_version.read_text(encoding="utf-8", errors="replace")
        _check_info(folder, data_dir)
        _log.warning("%s Reading the local copies in %s instead.", error, folder)
        return str(folder)
    folder = Path(cache_dir) / _digest(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / shards.INFO_NAME, text)
        _fetch(data_dir, folder, shards.VIDEOS_NAME, info.videos_sha256)
        files.write_text(last_version, folder.name)
    except OSError as error:
        raise _cannot_write(cache_dir, error) from error
    return str(folder)


def fetch_shards(data_dir: str, folder: str, info: shards.DatasetInfo, split: str) -> None:
    """Copies the shards of a split that are missing or corrupt in `folder`; does nothing for a local dataset.

    Reads every existing copy once to check its sha256. Two processes may do this at the same time: one of
    them copies a file, and the file appears under its name when it is complete.

    Args:
      data_dir: address of the dataset.
      folder: the folder returned by `cached_dir`.
      info: the content of its dataset_info.json.
      split: which shards.

    Raises:
      ShardError: the sha256 of a copied shard differs from the one in dataset_info.json.
      ShardCacheError: the copies cannot be written.
      tf.errors.OpError: a shard cannot be read.
    """
    if folder == data_dir:
        return

    def fetch(shard: shards.ShardInfo) -> int:
        _fetch(data_dir, Path(folder), shard.name, shard.sha256)
        return shard.clips

    pool = ThreadPoolExecutor(_PARALLEL_COPIES)
    try:
        with Progress(f"Local copies of {split} in {folder}", info.num_clips(split), "clips") as progress:
            for num_clips in pool.map(fetch, info.splits[split]):
                progress.advance(num_clips)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check_info(folder: Path, data_dir: str) -> None:
    """Checks the copy of dataset_info.json by the name of its folder; it has the digests of all other files.

    Raises:
      ShardCacheError: it is missing or corrupt.
    """
    try:
        text = (folder / shards.INFO_NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    if _digest(text) != folder.name:
        raise ShardCacheError(
            f"The local copy {folder / shards.INFO_NAME} is missing or corrupt, and {data_dir} does not "
            "answer. Run the same command again when it does."
        )


def _fetch(data_dir: str, folder: Path, name: str, sha256: str) -> None:
    """Copies a file into `folder` unless a valid copy is there."""
    path, temporary = folder / name, folder / f"{sha256}.tmp"
    with FileLock(folder / f"{sha256}.lock"):
        if path.exists():
            if files.sha256_of(path) == sha256:
                return
            _log.warning("The local copy %s is corrupt; copying it again.", path)
        try:
            address = posixpath.join(data_dir, name)
            if _copy(address, temporary) != sha256:
                raise shards.ShardError(
                    f"{address} was copied, but its sha256 differs from the one in {shards.INFO_NAME}. Run "
                    "the same command again. If that does not help, tools/inspect_shards.py "
                    f"--data_dir={data_dir} --verify names the corrupt files, and the "
                    "tools/convert_videos.py command that made the dataset repairs them."
                )
            files.commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _copy(address: str, path: Path) -> str:
    """Copies a file; returns the sha256 of the bytes that arrived."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(address, "rb") as source, path.open("wb") as file:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _cannot_write(folder: str, error: OSError) -> ShardCacheError:
    return ShardCacheError(
        f"Cannot write local copies to {folder} ({error.strerror}). Free disk space, choose another "
        "--cache_dir, or leave it out to read over the network."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
