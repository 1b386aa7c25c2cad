"""The files of an export: metadata beside the model, and a path that only a complete export replaces."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vidpipe.errors import VidpipeError
from vidpipe.model.model_file import METADATA_NAME, ModelMetadata
from vidpipe.storage import remote

LABELS_NAME = "labels.txt"


class ExportError(VidpipeError):
    """An export cannot be written, or does not agree with the model."""


def metadata_files(metadata: ModelMetadata) -> dict[str, str]:
    """Returns the text files that accompany an export: name to content."""
    labels = "".join(f"{name}\n" for name in metadata.classes)
    return {LABELS_NAME: labels, METADATA_NAME: metadata.to_json()}


@contextmanager
def replaced(path: str, is_export: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a path for a new file or folder, which replaces `path` if the block succeeds.

    Args:
      path: a local path; whatever is there must be an export.
      is_export: whether a path holds an export of this format, written by vidpipe.

    Raises:
      ExportError: `path` is remote, holds something else, or cannot be written.
    """
    if remote.is_remote(path):
        raise ExportError(
            f"A model cannot be exported to {path}. Choose a local path and copy it from there."
        )
    old = Path(path)
    with report_write_errors(path):
        old.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not is_export(old):
        raise ExportError(
            f"{path} exists and is not an export of this format by vidpipe. Choose another path, or "
            "delete it."
        )
    with (
        report_write_errors(path),
        tempfile.TemporaryDirectory(".tmp", f"{old.name}.", old.parent) as folder,
    ):
        new = Path(folder) / "new"
        yield new
        if old.exists():
            old.rename(Path(folder) / "old")
        new.rename(old)


@contextmanager
def report_write_errors(path: str) -> Iterator[None]:
    """Raises an OSError of the block as an ExportError that names the output."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"Cannot write {path} ({error.strerror}). Its folder must be writable and have free space; or "
            "choose another path."
        ) from error


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drops what TensorFlow's C++ code writes to stderr, where the TFLite converter logs its passes."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
