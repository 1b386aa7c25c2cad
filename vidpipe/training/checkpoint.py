"""All that a run needs to resume exactly where it stopped: its variables and the state of the loop.

A checkpoint is one npz file, written under a temporary name and renamed. Several are kept, so that a corrupt
newest one costs the steps since the one before, and not the run.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from vidpipe.errors import VidpipeError
from vidpipe.storage.files import commit
from vidpipe.training.run_folder import RunFolder

_log = logging.getLogger(__name__)
_STATE = "state"


class CheckpointError(VidpipeError):
    """The state of a run is not worth saving."""


def save_checkpoint(
    folder: RunFolder, *, step: int, variables: Sequence[keras.Variable], state: dict[str, Any], keep: int
) -> None:
    """Writes a checkpoint and removes all but the newest ones.

    Args:
      folder: of the run.
      step: optimizer steps so far.
      variables: in an order that the next process repeats.
      state: JSON values.
      keep: number of checkpoints to keep.

    Raises:
      CheckpointError: a variable is non-finite; the existing checkpoints are kept.
    """
    arrays: dict[str, Any] = {f"v{index:05d}": variable.numpy() for index, variable in enumerate(variables)}
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
        old.unlink()


def restore_checkpoint(folder: RunFolder, variables: Sequence[keras.Variable]) -> dict[str, Any] | None:
    """Assigns the variables of the newest valid checkpoint; a corrupt one is skipped with a warning.

    Returns:
      Its state; None where there is no valid checkpoint.
    """
    for path in reversed(folder.checkpoint_paths()):
        try:
            with np.load(path) as saved:
                state = json.loads(saved[_STATE].tobytes())
                arrays = [saved[f"v{index:05d}"] for index in range(len(variables))]
        except Exception as error:  # zip, zlib, json and numpy each have their own for a corrupt file
            _log.warning("%s is corrupt (%s); trying the checkpoint before it.", path, error)
            continue
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return state
    return None
