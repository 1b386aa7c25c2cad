"""Everything a run needs to go on exactly where it stopped: every variable and the state of the loop.

A checkpoint is one npz file, written under a temporary name and renamed. Several are kept, so that a newest
one that turns out damaged costs the steps since the one before, not the run.
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vidpipe.shards import commit
from vidpipe.spec import VidpipeError

_STATE = "state"
_log = logging.getLogger(__name__)


class CheckpointError(VidpipeError):
    """There is nothing worth keeping."""


def save_checkpoint(
    folder: Path, step: int, variables: Sequence[keras.Variable], state: dict[str, Any], keep: int
) -> None:
    """Writes `step-00000012.npz` and removes all but the newest.

    Args:
      folder: made if missing.
      step: optimiser updates so far.
      variables: in an order that the next process can repeat.
      state: JSON values.
      keep: how many stay.

    Raises:
      CheckpointError: a variable holds something that is no number; the folder stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"v{place:05d}": value.numpy() for place, value in enumerate(variables)}
    for variable, array in zip(variables, arrays.values(), strict=True):
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"After step {step} {variable.path} is no number any more. The last good checkpoint is kept "
                f"in {folder}; in a new run_dir try a smaller --learning_rate or --clip_norm=1."
            )
    arrays[_STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    path = folder / f"step-{step:08d}.npz"
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    commit(temporary, path)
    for old in _checkpoints(folder)[:-keep]:
        old.unlink()


def restore_checkpoint(folder: Path, variables: Sequence[keras.Variable]) -> dict[str, Any] | None:
    """Assigns the newest readable checkpoint and returns its state; None where there is none.

    A damaged one is left out with a warning.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            with np.load(path) as saved:
                state = json.loads(saved[_STATE].tobytes())
                arrays = [saved[f"v{place:05d}"] for place in range(len(variables))]
        except Exception as error:  # zip, zlib, json and numpy each have their own for a damaged file
            _log.warning("%s is damaged (%s); going back to the one before.", path, error)
            continue
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return state
    return None


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to go on from, damaged or not."""
    return bool(_checkpoints(folder))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.npz") if re.fullmatch(r"step-\d{8}\.npz", path.name))
