"""The training loop: resumable at any step, weights kept by validation loss, papers left in the run folder.

The loop is our own and not `fit`: Keras 3's `fit` can neither resume inside an epoch nor run under
MultiWorkerMirroredStrategy. Models and datasets stay usable with `fit` all the same.
"""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vidpipe import distribution, input_pipeline, report, shards
from vidpipe.checkpoint import restore_checkpoint, save_checkpoint
from vidpipe.config import TrainConfig
from vidpipe.model import (
    FusedModel,
    ModelCard,
    adapt_standardization,
    refresh_standardization,
    save_model,
)
from vidpipe.optimizer import averaged, learning_rate_at
from vidpipe.progress import Progress
from vidpipe.spec import VidpipeError
from vidpipe.step import NUM_SUMS, Steps, balanced_class_weights, clip_losses

HISTORY_COLUMNS = (
    "epoch", "loss", "accuracy", "val_loss", "val_loss_error", "val_accuracy", "learning_rate", "seconds",
    "data_wait",
)  # fmt: skip
_DRAW_EVERY_SEC = 60
_DRAWN_CLIPS = 4
_NAMED_CLIPS = 8
_REMEDIES = "a smaller --learning_rate, --clip_norm=1 or --precision=float32"
_log = logging.getLogger(__name__)


class TrainError(VidpipeError):
    """A run cannot start, go on or end well. What its folder holds is kept."""


class StoppedError(TrainError):
    """A signal ended the run; the same command goes on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Batches:
    """Where a run's batches come from. A worker's share is asked for by (number of workers, this worker).

    Attributes:
      batch_size: clips of a step, all workers' together.
      train: (epoch, batches to skip, number of workers, worker) -> its share of each step.
      val: likewise; None without a validation split.
      some: inputs of the trained model from the start of the train split, for `adapt_standardization`.
    """

    batch_size: int
    train: Callable[[int, int, int, int], tf.data.Dataset]
    val: Callable[[int, int], tf.data.Dataset] | None
    some: Callable[[], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Trained:
    """What a run trains.

    Attributes:
      model: all of it; `fused` is what gets saved.
      part: what runs in each step: `model.fused`, or `model.trained` where features are stored.
      optimizer: built for the trainable variables of `part`.
      strategy: in whose scope these were made.
    """

    model: FusedModel
    part: keras.Model
    optimizer: keras.Optimizer
    strategy: tf.distribute.Strategy


@dataclass
class _State:
    """Where a run stands; with the variables, all that resuming needs.

    Attributes:
      epoch: epochs that are over.
      step: steps that are over, in all epochs.
      step_in_epoch: in the present one.
      sums: over those of the present epoch, of loss, right answers and weights.
      history: a row per epoch.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * (NUM_SUMS - 1))
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Validation:
    """What the model says of the validation split, in the order of its records.

    Attributes:
      label: int32 [N].
      logits: float32 [N, C].
    """

    label: np.ndarray
    logits: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """Of each clip, float64 [N]."""
        return clip_losses(tf.constant(self.label), tf.constant(self.logits)).numpy().astype(np.float64)

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.logits.argmax(axis=1) == self.label))

    @property
    def confusion(self) -> np.ndarray:
        """int64 [C, C], rows true, columns predicted."""
        num_classes = self.logits.shape[1]
        pairs = self.label * num_classes + self.logits.argmax(axis=1)
        return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


class StopSignal:
    """SIGTERM or Ctrl-C, kept until the step in progress is over. A second one ends at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    def receive(self, number: int, _: FrameType | None) -> None:
        """The signal's handler."""
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        _log.warning("%s: ending after this step. Once more ends at once.", signal.Signals(number).name)


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catches the signals that ask a run to end, inside the block."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Loop:
    """One run, from its first step or its last checkpoint on.

    Args:
      config: its `data_dir` is where the data are read from.
      info: of that dataset.
      trained: what is trained.
      batches: with what.
      stop: asks the loop to end.
    """

    def __init__(
        self,
        config: TrainConfig,
        info: shards.DatasetInfo,
        trained: Trained,
        batches: Batches,
        stop: StopSignal,
    ) -> None:
        self._config, self._info, self._batches, self._stop = config, info, batches, stop
        self._model, self._part = trained.model, trained.part
        self._optimizer, self._strategy = trained.optimizer, trained.strategy
        self._run_dir = Path(config.run_dir)
        self._chief = distribution.is_chief(self._strategy)
        self._alone = distribution.num_workers(self._strategy) == 1
        self._num_clips = info.num_clips("train")
        self._batch_size = batches.batch_size
        self._steps_in_epoch = math.ceil(self._num_clips / self._batch_size)
        self._steps = Steps(config, self._part, self._optimizer, self._strategy, self._class_weights())
        self._state = _State()
        # The sums of the newest step: read one step later, so that a GPU need not wait for Python.
        self._unread: tf.Tensor | None = None
        # The first epochs of a short run are not worth a second each for their pictures.
        self._drawn = time.monotonic()
        self._profiling = False
        # A frozen backbone is rebuilt from its weights file or seed; all that changes is saved.
        self._saved = [*self._part.variables, *self._optimizer.variables]
        self._summaries = tf.summary.create_noop_writer()
        if self._chief:
            self._summaries = tf.summary.create_file_writer(str(self._run_dir / "tensorboard"))
        if self._part is self._model.fused and self._model.frozen is not None:
            frozen = {id(variable) for variable in self._model.frozen.variables}
            self._saved = [variable for variable in self._saved if id(variable) not in frozen]

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns what metrics.json holds.

        Raises:
          TrainError: the loss is no number any more.
          StoppedError: as asked.
        """
        self._restore()
        try:
            while self._state.epoch < self._config.epochs and not self._out_of_patience():
                self._run_epoch()
        finally:
            self._end_profile()
        if self._out_of_patience():
            _log.info("No lower validation loss in %d epochs: the run ends.", self._config.patience)
        kept = report.kept_epoch(self._state.history)
        metrics = {"kept_epoch": kept["epoch"], "epochs": self._state.epoch}
        metrics |= {name: value for name, value in kept.items() if name != "epoch"}
        if self._chief:
            shards.write_text(self._run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        return metrics

    def _restore(self) -> None:
        restored = restore_checkpoint(self._run_dir / "checkpoints", self._saved)
        if restored is not None:
            self._state = _State(**restored)
            refresh_standardization(self._part)
            _log.info("Going on at epoch %d, step %d.", self._state.epoch + 1, self._state.step_in_epoch + 1)
        elif self._config.init_from is None:
            adapt_standardization(self._part, self._batches.some())
        distribution.check_agreement(self._strategy, self._state.step)

    def _out_of_patience(self) -> bool:
        patience, history = self._config.patience, self._state.history
        if patience is None or not history:
            return False
        lowest = min(history, key=lambda row: row["val_loss"])
        return self._state.epoch - lowest["epoch"] >= patience

    def _run_epoch(self) -> None:
        state = self._state
        start, done_before = time.perf_counter(), self._clips(state.step_in_epoch)
        waited = self._train_epoch()
        loss, right, clips = state.sums
        seconds = time.perf_counter() - start
        validation = self._evaluate()
        val_loss, val_loss_error, val_accuracy = None, None, None
        if validation is not None:
            losses, val_accuracy = validation.losses, validation.accuracy
            val_loss = float(losses.mean())
            val_loss_error = float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0
            if not math.isfinite(val_loss):
                raise TrainError(
                    f"The validation loss of epoch {state.epoch + 1} is {val_loss}. The last good checkpoint "
                    f"is kept in {self._run_dir}; in a new run_dir try {_REMEDIES}."
                )
        row = {
            "epoch": state.epoch + 1, "loss": loss / clips, "accuracy": right / clips,
            "val_loss": val_loss, "val_loss_error": val_loss_error, "val_accuracy": val_accuracy,
            "learning_rate": self._learning_rate(state.step - 1), "seconds": seconds,
            "data_wait": waited / seconds,
        }  # fmt: skip
        validated = "" if val_loss is None else f", val loss {val_loss:.4f}, accuracy {val_accuracy:.3f}"
        _log.info(
            "Epoch %d/%d: loss %.4f, accuracy %.3f%s; learning rate %.2g, %.1f clips/s, %.0f %% of the time "
            "waiting for data%s.",
            row["epoch"], self._config.epochs, row["loss"], row["accuracy"], validated, row["learning_rate"],
            (self._num_clips - done_before) / seconds, 100 * waited / seconds, self._loss_scale(),
        )  # fmt: skip
        state.history.append(row)
        self._keep()
        state.epoch, state.step_in_epoch, state.sums = state.epoch + 1, 0, [0.0] * (NUM_SUMS - 1)
        if self._chief:
            self._write_papers(row, validation)
        # The checkpoint comes last: what it says is done is on the disk.
        self._save_checkpoint()

    def _train_epoch(self) -> float:
        """The steps that are left of an epoch; returns the seconds that they waited for data."""
        state, waited = self._state, 0.0
        batches = iter(
            distribution.deal(
                self._strategy,
                lambda num_workers, worker: self._batches.train(
                    state.epoch, state.step_in_epoch, num_workers, worker
                ),
            )
        )
        title = f"Epoch {state.epoch + 1}/{self._config.epochs}"
        start = time.perf_counter()
        with Progress(title, self._num_clips, "clips", False, self._clips(state.step_in_epoch)) as progress:
            while state.step_in_epoch < self._steps_in_epoch:
                wait_start = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - wait_start
                before = self._clips(state.step_in_epoch)
                stop = self._step(batch)
                progress.advance(
                    self._clips(state.step_in_epoch) - before, self._note(waited, time.perf_counter() - start)
                )
                # The end of an epoch has its own checkpoint, after validation.
                every = self._config.checkpoint_every
                due = every is not None and state.step % every == 0
                if stop:
                    self._end_early()
                elif due and state.step_in_epoch < self._steps_in_epoch:
                    self._save_checkpoint()
            self._read_sums()
        return waited

    def _step(self, batch: tuple[Any, Any, Any]) -> bool:
        """One step; returns whether the run is to end after it."""
        state, profiled = self._state, self._config.profile_steps
        number = state.step + 1
        # A run that goes on in the middle of these steps has a profile of the rest.
        if self._chief and profiled is not None and profiled[0] <= number <= profiled[1]:
            self._begin_profile()
        self._optimizer.learning_rate = self._learning_rate(state.step)
        sums = self._steps.train(*batch, tf.constant(float(self._stop.number is not None)))
        asked_before = self._read_sums()
        self._unread = sums
        state.step += 1
        state.step_in_epoch += 1
        if profiled is not None and number == profiled[1]:
            sums.numpy()
            self._end_profile()
        # Several workers must end after the same step: that in which all have read of it.
        return self._stop.number is not None if self._alone else asked_before

    def _begin_profile(self) -> None:
        if not self._profiling:
            tf.profiler.experimental.start(str(self._run_dir / "tensorboard"))
            self._profiling = True

    def _end_profile(self) -> None:
        if self._profiling:
            tf.profiler.experimental.stop()
            self._profiling = False
            _log.info("The profile is in %s/tensorboard.", self._run_dir)

    def _read_sums(self) -> bool:
        """Adds up what the last step found; returns whether a worker was asked to end before it.

        Raises:
          TrainError: its loss or a gradient is no number.
        """
        if self._unread is None:
            return False
        *sums, stop = (float(value) for value in self._unread.numpy())
        self._unread = None
        if not math.isfinite(sums[0]):
            raise TrainError(self._no_number())
        self._state.sums = [total + value for total, value in zip(self._state.sums, sums, strict=True)]
        return stop > 0

    def _no_number(self) -> str:
        # The step whose sums are read is the one before that in progress, if one is.
        config, state = self._config, self._state
        place = state.step_in_epoch - 1
        if config.data_service is None:
            places = input_pipeline.places_in_epoch_order(
                self._info, "train", config.seed, state.epoch, place * self._batch_size
            )
            rows = shards.clip_rows(config.data_dir, "train")
            names = [rows[clip]["video_id"] for clip in places.take(self._batch_size).as_numpy_iterator()]
            more = f" and {len(names) - _NAMED_CLIPS} more" if len(names) > _NAMED_CLIPS else ""
            clips = f"on {', '.join(names[:_NAMED_CLIPS])}{more}"
        else:
            clips = "on clips that the tf.data service chose"
        return (
            f"No number as loss or gradient in epoch {state.epoch + 1}, step {place + 1}, {clips}. The last "
            f"good checkpoint is kept in {self._run_dir}; in a new run_dir try {_REMEDIES}."
        )

    def _end_early(self) -> None:
        self._read_sums()
        number = self._stop.number or signal.SIGTERM
        state = self._state
        kept = "at its last checkpoint"
        if self._config.data_service is None:
            self._save_checkpoint()
            kept = "there"
        raise StoppedError(
            f"{signal.Signals(number).name} after epoch {state.epoch + 1}, step {state.step_in_epoch}. "
            f"The same command goes on {kept}.",
            number,
        )

    def _evaluate(self) -> _Validation | None:
        if self._batches.val is None:
            return None
        logits, labels = [], []
        with averaged(self._optimizer, self._part.trainable_variables):
            for batch in distribution.deal(self._strategy, self._batches.val):
                batch_logits, label, weight = (part.numpy() for part in self._steps.evaluate(*batch))
                logits.append(batch_logits[weight > 0])
                labels.append(label[weight > 0])
        return _Validation(np.concatenate(labels), np.concatenate(logits))

    def _keep(self) -> None:
        """Saves model.keras where the epoch just over is the one to keep."""
        history = self._state.history
        if self._chief and report.kept_epoch(history) is history[-1]:
            card = ModelCard(self._info.classes, self._info.clip, self._config.num_frames)
            with averaged(self._optimizer, self._part.trainable_variables):
                save_model(self._model.fused, card, self._run_dir / "model.keras")

    def _save_checkpoint(self) -> None:
        self._read_sums()
        if self._chief:
            save_checkpoint(
                self._run_dir / "checkpoints",
                self._state.step,
                self._saved,
                asdict(self._state),
                self._config.keep_checkpoints,
            )

    def _clips(self, steps: int) -> int:
        return min(steps * self._batch_size, self._num_clips)

    def _learning_rate(self, step: int) -> float:
        optimizer = self._config.optimizer
        num_steps = self._config.epochs * self._steps_in_epoch
        warmup_steps = round(optimizer.warmup_epochs * self._steps_in_epoch)
        return learning_rate_at(step, num_steps, warmup_steps, optimizer)

    def _class_weights(self) -> np.ndarray:
        if self._config.class_weights == "none":
            return np.ones(len(self._info.classes), np.float32)
        labels = [row["label"] for row in shards.clip_rows(self._config.data_dir, "train")]
        return balanced_class_weights(np.array([labels.count(name) for name in self._info.classes]))

    def _note(self, waited: float, elapsed: float) -> str:
        """What the progress line says beside clips/s and the time left."""
        loss, right, clips = self._state.sums
        means = f"loss {loss / clips:.4f}, accuracy {right / clips:.3f}, " if clips else ""
        rate = self._learning_rate(self._state.step - 1)
        return f"{means}learning rate {rate:.2g}, {100 * waited / elapsed:.0f} % waiting for data"

    def _loss_scale(self) -> str:
        """With float16, what its loss scaling does."""
        if not isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer):
            return ""
        skipped = self._state.step - int(self._optimizer.iterations)
        return f"; loss scale {float(self._optimizer.dynamic_scale):g}, {skipped} steps skipped so far"

    def _write_papers(self, row: dict[str, Any], validation: _Validation | None) -> None:
        with shards.committed_csv(self._run_dir / "history.csv", HISTORY_COLUMNS) as writer:
            writer.writerows(self._state.history)
        with self._summaries.as_default(step=self._state.epoch):
            for name, value in row.items():
                if value is not None and name != "epoch":
                    tf.summary.scalar(name, value)
            if isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer):
                tf.summary.scalar("loss_scale", self._optimizer.dynamic_scale)
            over = self._state.epoch == self._config.epochs or self._out_of_patience()
            if over or time.monotonic() - self._drawn > _DRAW_EVERY_SEC:
                self._draw(validation)
        self._summaries.flush()

    def _draw(self, validation: _Validation | None) -> None:
        self._drawn = time.monotonic()
        report.learning_curves(self._state.history, self._run_dir / "history.png")
        if validation is None:
            return
        matrix = report.confusion_matrix_image(validation.confusion, self._info.classes)
        tf.summary.image("validation/confusion", matrix[np.newaxis])
        ((inputs, label, weight),) = input_pipeline.eval_dataset(
            self._config.data_dir, self._info, _DRAWN_CLIPS, "val", self._config.num_frames
        ).take(1)
        probabilities = tf.nn.softmax(validation.logits[:_DRAWN_CLIPS]).numpy()
        said, names = probabilities.argmax(axis=1), self._info.classes
        clips = np.flatnonzero(weight)
        image = report.predicted_clips_image(
            inputs["frames"].numpy()[clips],
            inputs["mask"].numpy()[clips],
            [f"{names[label[i]]}, predicted\n{names[said[i]]} {probabilities[i].max():.2f}" for i in clips],
            [bool(label[i] != said[i]) for i in clips],
        )
        tf.summary.image("validation/clips", image[np.newaxis])
