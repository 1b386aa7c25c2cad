"""The steps of an epoch: batches, optimizer steps, progress, and the report of a non-finite loss."""

import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from vidpipe.config import TrainConfig
from vidpipe.progress import Progress
from vidpipe.training import distribution
from vidpipe.training.batches import Batches
from vidpipe.training.optimizer import LearningRate
from vidpipe.training.profiler import Profiler
from vidpipe.training.run_folder import RunFolder, TrainError
from vidpipe.training.step import PendingStep, Steps, StepSums
from vidpipe.training.stop_signal import StopSignal
from vidpipe.training.trainee import Trainee


@dataclass
class RunState:
    """Where a run stands; with the variables, all that resuming needs.

    Attributes:
      epoch: finished epochs.
      step: finished steps, in all epochs.
      step_in_epoch: finished steps of the present epoch.
      sums: over those steps.
      history: a row per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    sums: StepSums = field(default_factory=StepSums)
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> "RunState":
        """Inverts `dataclasses.asdict`, after a round trip through JSON; other keys are left out."""
        own = {name: values[name] for name in (attribute.name for attribute in fields(cls))}
        return cls(**own | {"sums": StepSums(*own["sums"])})


class EpochTime(NamedTuple):
    """How long the steps of an epoch took.

    Attributes:
      seconds: in all.
      waiting: those of them that were spent waiting for data.
      num_clips: clips of the steps.
    """

    seconds: float
    waiting: float
    num_clips: int


class EpochSteps:
    """Takes the steps of an epoch, one by one.

    Args:
      config: of the run.
      trainee: what is trained.
      batches: what it is trained on.
      folder: of the run; gets the profile, and is named in messages.
      class_weights: float32 [C].
      stop: whether the run was asked to stop.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        trainee: Trainee,
        batches: Batches,
        folder: RunFolder,
        class_weights: np.ndarray,
        stop: StopSignal,
    ) -> None:
        self._config, self._trainee, self._batches = config, trainee, batches
        self._folder, self._stop = folder, stop
        self.steps_per_epoch = math.ceil(batches.num_clips / batches.batch_size)
        self.learning_rate = LearningRate(
            config.optimizer, epochs=config.epochs, steps_per_epoch=self.steps_per_epoch
        )
        self.steps = Steps(
            config,
            model=trainee.model,
            ensemble=trainee.ensemble,
            answers=trainee.answers,
            optimizer=trainee.optimizer,
            strategy=trainee.strategy,
            class_weights=class_weights,
            clips_per_call=trainee.clips_per_call,
        )
        is_chief = distribution.is_chief(trainee.strategy)
        self.profiler = Profiler(config.profile_steps if is_chief else None, folder.tensorboard)
        self.spent = EpochTime(0.0, 0.0, 0)
        self._has_peers = distribution.num_workers(trainee.strategy) > 1
        # The newest step. Its result is read one step later, so that a GPU need not wait for Python.
        self._pending: PendingStep | None = None
        self._stop_was_read = False

    def run(self, state: RunState) -> Generator[bool, None, None]:
        """Takes the remaining steps of an epoch; `spent` has their time afterwards.

        Yields:
          After each step, whether the run must stop.

        Raises:
          TrainError: the loss or a gradient is non-finite.
        """
        start, waiting = time.perf_counter(), 0.0
        done_before = self._num_clips(state.step_in_epoch)
        batches = self._epoch_batches(state)
        title = f"Epoch {state.epoch + 1}/{self._config.epochs}"
        with Progress(
            title, self._batches.num_clips, "clips", closing_line=False, done=done_before
        ) as progress:
            while state.step_in_epoch < self.steps_per_epoch:
                wait_start = time.perf_counter()
                batch = next(batches)
                waiting += time.perf_counter() - wait_start
                before = self._num_clips(state.step_in_epoch)
                stop_requested = self._step(batch, state)
                note = self._progress_note(state, waiting / (time.perf_counter() - start))
                progress.advance(self._num_clips(state.step_in_epoch) - before, note)
                yield stop_requested
            self.read_pending(state)
        num_clips = self._batches.num_clips - done_before
        self.spent = EpochTime(time.perf_counter() - start, waiting, num_clips)

    def read_pending(self, state: RunState) -> None:
        """Waits for the newest step and adds its sums to those of the state.

        Raises:
          TrainError: its loss or a gradient is non-finite.
        """
        if self._pending is None:
            return
        result, self._pending = self._pending.read(), None
        if not math.isfinite(result.sums.loss):
            # The step whose result is read is the one before that in progress, if one is.
            step = state.step_in_epoch - 1
            clips = self._batches.clips_of_step(state.epoch, step)
            raise non_finite_error(
                f"loss or gradient (NaN or Inf) in epoch {state.epoch + 1}, step {step + 1}, on {clips}",
                self._folder,
            )
        state.sums = state.sums.plus(result.sums)
        self._stop_was_read |= result.stop_requested

    def _epoch_batches(self, state: RunState) -> Iterator[Any]:
        epoch, skip = state.epoch, state.step_in_epoch
        return iter(
            distribution.distribute(
                self._trainee.strategy,
                lambda num_workers, worker: self._batches.train(epoch, skip, num_workers, worker),
            )
        )

    def _step(self, batch: tuple[Any, Any, Any], state: RunState) -> bool:
        """Takes one step; returns whether the run must stop after it."""
        number = state.step + 1
        self.profiler.before_step(number)
        self._trainee.optimizer.learning_rate = self.learning_rate.at(state.step)
        pending = self.steps.train(*batch, stop_requested=self._stop.is_requested)
        self.read_pending(state)
        self._pending = pending
        state.step += 1
        state.step_in_epoch += 1
        if self.profiler.is_last(number):
            pending.read()
            self.profiler.stop()
        # Workers must stop after the same step: the one in which all of them have read the request.
        return self._stop_was_read if self._has_peers else self._stop.is_requested

    def _num_clips(self, num_steps: int) -> int:
        """Returns the number of clips in the first steps of an epoch."""
        return min(num_steps * self._batches.batch_size, self._batches.num_clips)

    def _progress_note(self, state: RunState, waiting_fraction: float) -> str:
        """Formats what the progress line shows beside clips/s and the time left."""
        sums, means = state.sums, ""
        if sums.weight:
            means = f"loss {sums.mean_loss:.4f}, accuracy {sums.accuracy:.3f}, "
        rate = self.learning_rate.at(state.step - 1)
        return f"{means}learning rate {rate:.2g}, {100 * waiting_fraction:.0f} % waiting for data"


def non_finite_error(what: str, folder: RunFolder) -> TrainError:
    """Makes the error of a run whose numbers have become NaN or Inf.

    Args:
      what: the number, where it was found, and on which clips.
      folder: of the run.
    """
    return TrainError(
        f"Non-finite {what}. Earlier checkpoints are kept in {folder.path}. In a new run_dir try a smaller "
        "--learning_rate, --clip_norm=1 or --precision=float32."
    )
