"""What a run folder holds when a run starts in it again: checked, and repaired from the newest checkpoint.

A checkpoint has checksums and holds the settings and the history of the run, so it decides where config.json,
history.csv or metrics.json were cut or edited. model.keras can be made again from the checkpoint of its
epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidpipe.config import differences
from vidpipe.training.checkpoint import read_state
from vidpipe.training.epoch_selection import is_out_of_patience, run_metrics
from vidpipe.training.run_folder import HISTORY_COLUMNS, MAY_CHANGE, RunFolder, RunFolderError

# What config.json has besides the settings of a start; `earlier_epochs` are those of starts before the last.
_OF_ALL_STARTS = ("resolved_batch_size", "caches_features", "earlier_epochs")


@dataclass(frozen=True)
class EarlierRun:
    """A run that is to go on, or has ended.

    Attributes:
      settings: the content of config.json at its last checkpoint.
      num_steps: optimizer steps so far.
      history: a row per finished epoch.
      repairs: a line for each file that has to be made again.
      metrics: the content of metrics.json where the run is finished with the settings of the new start and
        its files are intact; otherwise None.
    """

    settings: dict[str, Any]
    num_steps: int
    history: list[dict[str, Any]]
    repairs: list[str]
    metrics: dict[str, Any] | None

    def resolved_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Adds to the settings of a new start what holds for all starts of the run."""
        epochs, earlier_epochs = self.settings["epochs"], self.settings.get("earlier_epochs", [])
        if self.has_other_schedule(settings):
            earlier_epochs = [*earlier_epochs, epochs]
        return dict(settings) | ({"earlier_epochs": earlier_epochs} if earlier_epochs else {})

    def has_other_schedule(self, settings: Mapping[str, Any]) -> bool:
        """Whether steps were taken at learning rates that the settings of a new start do not give."""
        is_constant = settings["optimizer"]["schedule"] == "constant"
        return self.num_steps > 0 and not is_constant and self.settings["epochs"] != settings["epochs"]


def read_earlier_run(folder: RunFolder, settings: Mapping[str, Any]) -> EarlierRun | None:
    """Reads what a run folder holds; None where there is nothing to resume.

    Args:
      folder: of the run.
      settings: of the new start; only those of MAY_CHANGE may differ from the run's.

    Raises:
      RunFolderError: the folder holds a run with other settings, with more epochs, or without what is needed
        to go on.
      CheckpointError: all checkpoints are corrupt.
    """
    state = read_state(folder)
    if state is None:
        return _without_checkpoints(folder, settings)
    earlier, repairs = _settings(folder, state.get("settings") or {})
    _check_settings(folder, earlier, settings)
    history = [dict.fromkeys(HISTORY_COLUMNS) | row for row in state["history"]]
    if history and history[-1]["epoch"] > settings["epochs"]:
        raise RunFolderError(
            f"{folder.path} has trained {history[-1]['epoch']} epochs already; got "
            f"epochs={settings['epochs']}. Give at least as many, or choose another run_dir."
        )
    metrics = None
    if _has_ended(history, settings):
        expected = run_metrics(history)
        repairs += _damaged_results(folder, history, expected)
        if folder.is_finished and not repairs:
            metrics = expected
    return EarlierRun(earlier, state["step"], history, repairs, metrics)


def _without_checkpoints(folder: RunFolder, settings: Mapping[str, Any]) -> EarlierRun | None:
    """Reads a finished run whose checkpoints were deleted."""
    history = _history_or_none(folder)
    if not folder.is_finished:
        if history is not None and len(history) > 1:
            raise RunFolderError(
                f"{folder.path} holds {len(history)} epochs but no checkpoint, so the run cannot go on. "
                "Choose another run_dir, or delete the folder to train from the start."
            )
        return None  # started, but stopped before its first checkpoint
    try:
        earlier = folder.read_settings()
    except FileNotFoundError:
        raise RunFolderError(
            f"{folder.path} has a metrics.json but no config.json. Choose another run_dir."
        ) from None
    except RunFolderError as error:
        raise RunFolderError(f"{error} Choose another run_dir.") from None
    _check_settings(folder, earlier, settings)
    metrics = folder.read_metrics()
    if not folder.has_intact_model:
        raise RunFolderError(
            f"{folder.model} is missing or corrupt, and there is no checkpoint to make it from. Restore it, "
            "or delete the folder to train again."
        )
    if history and metrics != run_metrics(history):
        raise RunFolderError(
            f"{folder.metrics} and {folder.history.name} differ, and there is no checkpoint to tell which is "
            "right. Restore them, or choose another run_dir."
        )
    known = history or [{"epoch": metrics["epochs"], "val_loss": metrics["val_loss"]}]
    same_length = all(earlier.get(name) == settings[name] for name in ("epochs", "patience"))
    if not (same_length or _has_ended(known, settings)):
        raise RunFolderError(
            f"{folder.path} ended after {metrics['epochs']} epochs and has no checkpoint, so it cannot go on "
            f"to epochs={settings['epochs']}, patience={settings['patience']}. Choose another run_dir."
        )
    return EarlierRun(earlier, 0, known, [], metrics)


def _settings(folder: RunFolder, recorded: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Reads the settings of the run from its checkpoint, or from config.json where that has none."""
    again = f"{folder.settings} is missing, corrupt or edited; writing it again from the checkpoint."
    try:
        found = folder.read_settings()
    except (FileNotFoundError, RunFolderError) as error:
        if not recorded:
            reason = f"There is no {folder.settings}." if isinstance(error, FileNotFoundError) else str(error)
            raise RunFolderError(f"{reason} Choose another run_dir.") from None
        return recorded, [again]
    if not recorded:
        return found, []
    is_edited = bool(differences(found, recorded, ignored=(*MAY_CHANGE, *_OF_ALL_STARTS)))
    return recorded, [again] if is_edited else []


def _check_settings(folder: RunFolder, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name in ("epochs", "resolved_batch_size"):
        if type(earlier.get(name)) is not int:
            raise RunFolderError(
                f"{folder.settings} has {name}={earlier.get(name)!r}. Choose another run_dir."
            )
    changed = differences(earlier, settings, ignored=(*MAY_CHANGE, *_OF_ALL_STARTS))
    if changed:
        raise RunFolderError(
            f"{folder.path} holds a run with other settings ({'; '.join(changed)}). "
            "Choose another run_dir, or give the settings it was started with."
        )


def _has_ended(history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> bool:
    if not history:
        return False
    return history[-1]["epoch"] >= settings["epochs"] or is_out_of_patience(history, settings["patience"])


def _damaged_results(folder: RunFolder, history: list[dict[str, Any]], metrics: dict[str, Any]) -> list[str]:
    """Returns a line if files of an ended run do not agree with its checkpoint."""
    if not folder.is_finished:
        return []  # they are being written
    try:
        has_metrics = folder.read_metrics() == metrics
    except RunFolderError:
        has_metrics = False
    intact = {
        folder.metrics.name: has_metrics,
        folder.history.name: _history_or_none(folder) == history,
        folder.model.name: folder.has_intact_model,
    }
    damaged = ", ".join(name for name, is_intact in intact.items() if not is_intact)
    if not damaged:
        return []
    return [f"{folder.path}: missing, corrupt or edited: {damaged}; writing again from the checkpoints."]


def _history_or_none(folder: RunFolder) -> list[dict[str, Any]] | None:
    try:
        return folder.read_history()
    except (FileNotFoundError, RunFolderError):
        return None
