"""The run folder: every file name, column and reader, and which settings of a run may change.

config.json              the run's settings
history.csv              one row per epoch
metrics.json             the selected epoch's metrics; written last, it marks a finished run
model.keras              the selected epoch's model
history.png              learning curves
checkpoints/             step-00000120.npz and so on: all that resuming needs
tensorboard/             event files and profiles
eval_SPLIT/              an evaluation: metrics.json, predictions.csv, report.html, classification_report.txt
event_rule.json          the windows and the rule by which events are found, if they were fitted
events_SPLIT/            an evaluation of events: metrics.json, events.csv, events.html
"""

import contextlib
import csv
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vidpipe.config import fingerprint
from vidpipe.errors import VidpipeError
from vidpipe.storage import files

HISTORY_COLUMNS = (
    "epoch", "loss", "accuracy", "val_loss", "val_loss_error", "val_accuracy", "linear_val_accuracy",
    "cv_loss", "cv_loss_error", "cv_accuracy", "linear_cv_accuracy", "network_share", "learning_rate",
    "seconds", "data_wait",
)  # fmt: skip
# Files of earlier versions do not have them.
_ADDED_COLUMNS = (
    "linear_val_accuracy", "cv_loss", "cv_loss_error", "cv_accuracy", "linear_cv_accuracy", "network_share",
)  # fmt: skip
# Where files lie, and what no weight depends on.
_WITHOUT_EFFECT = (
    "run_dir", "data_dir", "cache_dir", "init_from", "input_ram_gb", "checkpoint_every", "keep_checkpoints",
    "profile_steps", "cache_gb",
)  # fmt: skip
# Settings that may differ between two starts of a run.
MAY_CHANGE = (*_WITHOUT_EFFECT, "epochs", "patience")
# Settings that do not make two runs different methods.
NOT_COMPARED = (*_WITHOUT_EFFECT, "cache_features", "caches_features", "seed")
_PREDICTION_COLUMNS = ("video_id", "label", "predicted")
# Keys of metrics.json in version 0.1, and their present names.
_RENAMED_METRICS = {"kept_epoch": "selected_epoch"}


class TrainError(VidpipeError):
    """A run cannot start, resume or end. The content of its folder is kept."""


class RunFolderError(TrainError):
    """A run folder holds another run, or one of its files cannot be read."""


def cannot_write(run_dir: str | Path, error: OSError) -> TrainError:
    """Makes the error of a run folder that cannot be written."""
    return TrainError(f"Cannot write to {run_dir}: {error.strerror}. Its present content is kept.")


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
        """Reads metrics.json, as it was given to `write_metrics`.

        Raises:
          OSError, ValueError: it is missing, corrupt or edited.
        """
        metrics = _read_object(self.metrics)
        recorded = metrics.pop("fingerprint", None)
        if recorded != fingerprint(metrics):
            raise ValueError(f"{self.metrics.name} was changed, or another version wrote it")
        return metrics

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json, with a `fingerprint` of its content."""
        _write_object(self.metrics, {**metrics, "fingerprint": fingerprint(metrics)})

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
        columns = [*_PREDICTION_COLUMNS, *map(files.probability_column, scores[0])]
        with files.staged_csv(self.predictions, columns) as writer:
            for video_id, label, of_classes in zip(video_ids, labels, scores, strict=True):
                predicted = max(of_classes, key=lambda name: of_classes[name])
                row = {files.probability_column(name): score for name, score in of_classes.items()}
                writer.writerow(row | {"video_id": video_id, "label": label, "predicted": predicted})


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
    def event_rule(self) -> Path:
        """The windows and the rule by which events are found; made by fitting them."""
        return self.path / "event_rule.json"

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

    def event_evaluation(self, split: str) -> Path:
        """Returns the folder of the evaluation of events on a split."""
        return self.path / f"events_{split}"

    def evaluation(self, split: str) -> EvaluationFolder:
        """Returns the folder of the evaluation on a split."""
        return EvaluationFolder(self.path / f"eval_{split}")

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.metrics.exists()

    @property
    def has_intact_model(self) -> bool:
        """Whether model.keras is there, and its checksums are right."""
        try:
            with zipfile.ZipFile(self.model) as archive:
                return archive.testzip() is None
        except Exception:  # zipfile, zlib and struct each have their own for a corrupt file
            return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Allows one training in this folder at a time, which is made if it is missing.

        Raises:
          RunFolderError: another training is writing to it.
          TrainError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            raise RunFolderError(
                f"Another training is writing to {self.path}. Wait for it, or choose another run_dir."
            ) from None
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with held:
            yield

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
        except (OSError, ValueError, RecursionError) as error:
            raise RunFolderError(f"{self.settings} cannot be read ({error}).") from None

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes config.json."""
        _write_object(self.settings, settings)

    def read_history(self) -> list[dict[str, Any]]:
        """Reads the epochs of history.csv; numbers are float, missing ones None.

        Raises:
          FileNotFoundError: it is missing.
          RunFolderError: it cannot be read.
        """
        numbers = [name for name in HISTORY_COLUMNS if name != "epoch"]
        try:
            rows = _read_rows(self.history)
            history = [
                {"epoch": int(row["epoch"])}
                | {name: float(row[name]) if row[name] else None for name in numbers}
                for row in (dict.fromkeys(_ADDED_COLUMNS, "") | each for each in rows)
            ]
            unknown = sorted(set().union(*rows) - set(HISTORY_COLUMNS))
            if unknown:
                raise ValueError(f"it has an unknown column {unknown[0]!r}")
            return history
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
        """Reads metrics.json: `selected_epoch` and `epochs`, and of the former the rest of history.csv.

        Raises:
          RunFolderError: it cannot be read.
        """
        try:
            found = {
                _RENAMED_METRICS.get(name, name): value for name, value in _read_object(self.metrics).items()
            }
            for name in ("selected_epoch", "epochs"):
                if type(found.get(name)) is not int or found[name] < 1:
                    raise ValueError(f"{name} is {found.get(name)!r}")
            metrics = {name: found.get(name) for name in ("selected_epoch", "epochs", *HISTORY_COLUMNS[1:])}
            for name in HISTORY_COLUMNS[1:]:
                if not (metrics[name] is None or type(metrics[name]) in (int, float)):
                    raise ValueError(f"{name} is {metrics[name]!r}")
        except (OSError, ValueError, RecursionError) as error:
            raise RunFolderError(f"{self.metrics} cannot be read ({error}).") from None
        return metrics

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
