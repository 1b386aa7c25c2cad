"""Atomic writes, digests and small reads of files, on local disks and object stores.

Everything that vidpipe writes goes through `staged`, so a file is either complete or absent. An address is a
local path or a remote address (`vidpipe.storage.remote`); tf.io.gfile handles both.
"""

import csv
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import tensorflow as tf

from vidpipe.storage import remote
from vidpipe.storage.remote import Address


@contextmanager
def staged(address: Address) -> Iterator[Path]:
    """Yields a local path to write to; the file appears at `address` if the block succeeds.

    A process that is killed inside the block leaves a `*.tmp` file with a unique name.
    """
    if remote.is_remote(address):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "staged"
            yield temporary
            remote.upload(temporary, address)
        return
    path = Path(address)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def commit(temporary: Path, path: Path) -> None:
    """Moves a complete file to its final name durably: fsync, rename, fsync of the folder."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(address: Address, text: str) -> None:
    """Writes a small file atomically: readers see either the old content or the new content."""
    with staged(address) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def staged_csv(address: Address, columns: Sequence[str]) -> Iterator["csv.DictWriter[str]"]:
    """Yields a writer of a CSV file that appears at `address` if the block succeeds.

    The writer ignores keys of a row that are not columns.
    """
    with staged(address) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        yield writer


def probability_column(class_name: str) -> str:
    """Returns the name of a class's column in a CSV file, which no fixed column can have.

    >>> probability_column("label")
    'p(label)'
    """
    return f"p({class_name})"


def read_text(address: Address) -> str:
    """Reads a small file.

    Raises:
      tf.errors.OpError: it cannot be read; NotFoundError if it does not exist.
    """
    return read_bytes(address).decode()


def read_bytes(address: Address) -> bytes:
    """Reads a small file, as `read_text` does."""
    with tf.io.gfile.GFile(address, "rb") as file:
        return file.read()


def size_of(address: Address) -> int | None:
    """Returns the size of a file in bytes; None if there is no such file."""
    try:
        found = tf.io.gfile.stat(address)
    except tf.errors.NotFoundError:
        return None
    return None if found.is_directory else found.length


def sha256_of(address: Address) -> str:
    """Returns the sha256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(address, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def move(source: Address, target: Address) -> None:
    """Moves a complete file within one file system, over an older one; an object store copies it."""
    tf.io.gfile.rename(source, target, overwrite=True)


def delete_folder(address: Address) -> None:
    """Deletes a folder with its content if it exists."""
    if tf.io.gfile.isdir(address):
        tf.io.gfile.rmtree(address)


def delete(address: Address) -> None:
    """Deletes a file if it exists."""
    with suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(address)
