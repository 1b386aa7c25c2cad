"""All that a run needs to resume exactly where it stopped: its variables and the state of the loop.

A checkpoint is one npz file, written under a temporary name and renamed. Several are kept, so that a corrupt
newest one costs the steps since the one before, and not the run.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vidpipe.errors import VidpipeError, first_line
from vidpipe.storage.files import commit
from vidpipe.training.run_folder import RunFolder

_log = logging.getLogger(__name__)
_STATE = "state"


class CheckpointError(VidpipeError):
    """The state of a run is not worth saving, or cannot be restored."""


def save_checkpoint(
    folder: RunFolder,
    *,
    step: int,
    variables: Sequence[keras.Variable],
    state: dict[str, Any],
    keep: int,
    selected_step: int | None = None,
) -> None:
    """Writes a checkpoint and removes all but the newest ones.

    Args:
      folder: of the run.
      step: optimizer steps so far.
      variables: in an order that the next process repeats.
      state: JSON values.
      keep: number of checkpoints to keep.
      selected_step: the step at the end of the selected epoch, whose checkpoint is kept besides: model.keras
        can be made again from it.

    Raises:
      CheckpointError: a variable is non-finite; the existing checkpoints are kept.
    """
    arrays: dict[str, Any] = {_name(index): variable.numpy() for index, variable in enumerate(variables)}
    for variable, array in zip(variables, arrays.values(), strict=True):
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{variable.path} is non-finite (NaN or Inf) after step {step}. Earlier checkpoints are kept "
                f"in {folder.path}. In a new run_dir try a smaller --learning_rate or --clip_norm=1."
            )
    arrays[_STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    path = folder.checkpoint(step)
    # One temporary name for a step: killed again and again, a run leaves no pile of incomplete files.
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    commit(temporary, path)
    for old in folder.checkpoint_paths()[:-keep]:
        if selected_step is None or old != folder.checkpoint(selected_step):
            old.unlink()


def read_state(folder: RunFolder) -> dict[str, Any] | None:
    """Reads the state of the newest valid checkpoint; None where there are no checkpoints.

    Raises:
      CheckpointError: all checkpoints are corrupt.
    """
    newest = _newest(folder, logging.DEBUG)  # restoring the checkpoint warns
    return None if newest is None else newest[0]


def restore_checkpoint(folder: RunFolder, variables: Sequence[keras.Variable]) -> dict[str, Any] | None:
    """Assigns the variables of the newest valid checkpoint; a corrupt one is skipped with a warning.

    Returns:
      Its state; None where there are no checkpoints.

    Raises:
      CheckpointError: all checkpoints are corrupt, or the newest valid one is that of another model.
    """
    newest = _newest(folder, logging.WARNING)
    if newest is None:
        return None
    state, arrays = newest
    _assign(folder, arrays, variables)
    return state


def restore_step(folder: RunFolder, step: int, variables: Sequence[keras.Variable]) -> None:
    """Assigns the variables of one checkpoint.

    Raises:
      CheckpointError: it is missing or corrupt, or that of another model.
    """
    path = folder.checkpoint(step)
    try:
        _, arrays = _read(path)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}).") from None
    _assign(folder, arrays, variables)


def _newest(folder: RunFolder, level: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    paths = folder.checkpoint_paths()
    for path in reversed(paths):
        try:
            return _read(path)
        except Exception as error:  # zip, zlib, json and numpy each have their own for a corrupt file
            _log.log(level, "%s is corrupt (%s); trying the checkpoint before it.", path, first_line(error))
    if paths:
        raise CheckpointError(
            f"All checkpoints of {folder.path} are corrupt, so the run cannot go on. Restore them from a "
            "backup, choose another run_dir, or delete the folder to train from the start."
        )
    return None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a whole checkpoint, which checks its checksums."""
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files}
    state = json.loads(arrays.pop(_STATE).tobytes())
    if not isinstance(state, dict):
        raise ValueError("its state is not an object")
    return state, arrays


def _assign(folder: RunFolder, arrays: dict[str, np.ndarray], variables: Sequence[keras.Variable]) -> None:
    expected = {_name(index): tuple(variable.shape) for index, variable in enumerate(variables)}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise CheckpointError(
            f"The checkpoints of {folder.path} are those of another model, perhaps of another version of "
            "vidpipe. Choose another run_dir."
        )
    for variable, name in zip(variables, expected, strict=True):
        variable.assign(arrays[name])


def _name(index: int) -> str:
    return f"v{index:05d}"
