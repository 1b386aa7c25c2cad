"""The run folder: every file name, column and reader, and which settings of a run may change.

config.json              the run's settings
history.csv              one row per epoch
metrics.json             the selected epoch's metrics; written last, it marks a finished run
model.keras              the selected epoch's model
history.png              learning curves
checkpoints/             step-00000120.npz and so on: all that resuming needs
tensorboard/             event files and profiles
eval_SPLIT/              an evaluation: metrics.json, predictions.csv, report.html, classification_report.txt
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidpipe.config import differences
from vidpipe.errors import VidpipeError
from vidpipe.storage import files

HISTORY_COLUMNS = (
    "epoch", "loss", "accuracy", "val_loss", "val_loss_error", "val_accuracy", "learning_rate", "seconds",
    "data_wait",
)  # fmt: skip
# Settings that may differ between two starts of a run: where files lie, and what no weight depends on.
MAY_CHANGE = (
    "run_dir", "data_dir", "cache_dir", "init_from", "input_ram_gb", "checkpoint_every", "keep_checkpoints",
    "profile_steps",
)  # fmt: skip
# Settings that do not make two runs different methods.
NOT_COMPARED = (*MAY_CHANGE, "cache_features", "cache_gb", "seed")
_PREDICTION_COLUMNS = ("video_id", "label", "predicted")
# Keys of metrics.json in version 0.1, and their present names.
_RENAMED_METRICS = {"kept_epoch": "selected_epoch"}


class TrainError(VidpipeError):
    """A run cannot start, resume or end. The content of its folder is kept."""


class RunFolderError(TrainError):
    """A run folder holds another run, or one of its files cannot be read."""


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of an evaluation, `eval_SPLIT/` of a run."""

    path: Path

    @property
    def metrics(self) -> Path:
        """The metrics, for programs; written last."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """One row per video: video_id, label, predicted, then one probability per class."""
        return self.path / "predictions.csv"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def classification_report(self) -> Path:
        """Precision, recall and F1 per class, as scikit-learn prints them."""
        return self.path / "classification_report.txt"

    def read_metrics(self) -> dict[str, Any]:
        """Reads metrics.json.

        Raises:
          OSError, ValueError: it is missing or corrupt.
        """
        return _read_object(self.metrics)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json."""
        _write_object(self.metrics, metrics)

    def read_predictions(self) -> list[dict[str, str]]:
        """Reads the rows of predictions.csv.

        Raises:
          OSError, ValueError: it is missing or corrupt.
        """
        return _read_rows(self.predictions)

    def write_predictions(
        self, video_ids: Sequence[str], labels: Sequence[str], scores: Sequence[Mapping[str, float]]
    ) -> None:
        """Writes predictions.csv.

        Args:
          video_ids: N videos.
          labels: their class names.
          scores: the probability of each class, for each video.
        """
        with files.staged_csv(self.predictions, [*_PREDICTION_COLUMNS, *scores[0]]) as writer:
            for video_id, label, of_classes in zip(video_ids, labels, scores, strict=True):
                predicted = max(of_classes, key=lambda name: of_classes[name])
                writer.writerow({"video_id": video_id, "label": label, "predicted": predicted, **of_classes})


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def settings(self) -> Path:
        """The run's settings."""
        return self.path / "config.json"

    @property
    def history(self) -> Path:
        """One row per epoch."""
        return self.path / "history.csv"

    @property
    def learning_curves(self) -> Path:
        """A picture of the history."""
        return self.path / "history.png"

    @property
    def metrics(self) -> Path:
        """The selected epoch's metrics; a run with this file is finished."""
        return self.path / "metrics.json"

    @property
    def model(self) -> Path:
        """The selected epoch's model."""
        return self.path / "model.keras"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files and profiles."""
        return self.path / "tensorboard"

    def checkpoint(self, step: int) -> Path:
        """Returns the path of the checkpoint after a step."""
        return self.checkpoints / f"step-{step:08d}.npz"

    def checkpoint_paths(self) -> list[Path]:
        """Lists the existing checkpoints, corrupt ones included, the newest last."""
        return sorted(self.checkpoints.glob(f"step-{'[0-9]' * 8}.npz"))

    def evaluation(self, split: str) -> EvaluationFolder:
        """Returns the folder of the evaluation on a split."""
        return EvaluationFolder(self.path / f"eval_{split}")

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.metrics.exists()

    def read_settings(self) -> dict[str, Any]:
        """Reads config.json.

        Raises:
          FileNotFoundError: it is missing.
          RunFolderError: it cannot be read.
        """
        try:
            return _read_object(self.settings)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.settings} cannot be read ({error}).") from None

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes config.json."""
        _write_object(self.settings, settings)

    def earlier_settings(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Reads the settings of the run that is to be resumed here; None where there is nothing to resume.

        Args:
          settings: of the new start; only those of MAY_CHANGE may differ.

        Raises:
          RunFolderError: the folder holds a run with other settings.
        """
        try:
            earlier = self.read_settings()
        except FileNotFoundError:
            return None
        except RunFolderError as error:
            raise RunFolderError(f"{error} Choose another run_dir.") from None
        if not (self.checkpoint_paths() or self.is_finished):
            return None  # started, but stopped before its first checkpoint
        changed = differences(earlier, settings, ignored=(*MAY_CHANGE, "resolved_batch_size"))
        if changed:
            raise RunFolderError(
                f"{self.path} holds a run with other settings ({'; '.join(changed)}). "
                "Choose another run_dir, or give the settings it was started with."
            )
        return earlier

    def read_history(self) -> list[dict[str, Any]]:
        """Reads the epochs of history.csv; numbers are float, missing ones None.

        Raises:
          FileNotFoundError: it is missing.
          RunFolderError: it cannot be read.
        """
        numbers = [name for name in HISTORY_COLUMNS if name != "epoch"]
        try:
            return [
                {"epoch": int(row["epoch"])}
                | {name: float(row[name]) if row[name] else None for name in numbers}
                for row in _read_rows(self.history)
            ]
        except FileNotFoundError:
            raise
        except KeyError as error:
            raise RunFolderError(f"{self.history} has no column {error}.") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.history} cannot be read ({error}).") from None

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes history.csv."""
        with files.staged_csv(self.history, HISTORY_COLUMNS) as writer:
            writer.writerows(history)

    def read_metrics(self) -> dict[str, Any]:
        """Reads metrics.json.

        Raises:
          RunFolderError: it cannot be read.
        """
        try:
            metrics = _read_object(self.metrics)
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.metrics} cannot be read ({error}).") from None
        return {_RENAMED_METRICS.get(name, name): value for name, value in metrics.items()}

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json, which marks the run as finished."""
        _write_object(self.metrics, metrics)


def _read_object(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} instead of an object")
    return values


def _write_object(path: Path, values: Mapping[str, Any]) -> None:
    files.write_text(path, json.dumps(values, indent=2) + "\n")


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            rows = list(csv.DictReader(file))
        except csv.Error as error:
            raise ValueError(f"{path.name}: {error}") from None
    for number, row in enumerate(rows, start=1):
        # DictReader's way to mark a row with more or fewer values than the header has names.
        if None in row or None in row.values():
            raise ValueError(f"row {number} of {path.name} does not have a value for each column")
    return rows
