"""The training loop: resumable at any step, its model selected by validation loss.

Why not `fit`: Keras 3's `fit` can neither resume inside an epoch nor run under MultiWorkerMirroredStrategy
(Keras issue 20585). Models and datasets stay usable with `fit`. The loop knows no layer names: what it trains
is a `Trainee`, and the steps of an epoch are an `EpochSteps`.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from vidpipe.config import TrainConfig
from vidpipe.training import distribution
from vidpipe.training.batches import Batches
from vidpipe.training.epoch_selection import is_out_of_patience, run_metrics, selected_epoch
from vidpipe.training.epoch_steps import EpochSteps, RunState, non_finite_error
from vidpipe.training.head_fit import CrossValidation, HeadFit
from vidpipe.training.run_folder import RunFolder
from vidpipe.training.run_log import RunLog, history_row, log_epoch, loss_scale
from vidpipe.training.saved_state import SavedState
from vidpipe.training.step import StepSums
from vidpipe.training.stop_signal import StoppedError, StopSignal
from vidpipe.training.trainee import Trainee
from vidpipe.training.validation import Validation, validate

_log = logging.getLogger(__name__)
# Steps that took longer are saved before the validation, so that it may be stopped at any moment.
_LONG_EPOCH_SEC = 30
# Writing model.keras takes longer than an epoch of the head alone.
_SAVE_MODEL_EVERY_SEC = 60


class Loop:
    """One run, from its first step or its last checkpoint to its end.

    Args:
      config: of the run.
      trainee: what is trained.
      batches: what it is trained and validated on.
      epoch_steps: the steps of an epoch.
      head_fit: fits what steps do not train.
      folder: of the run.
      stop: whether the run was asked to stop.
      settings: the content of config.json.
      save_model: called with the averaged weights of the selected epoch in force: at the end, and before it
        at most once a minute.
      run_log: shows each epoch; None on workers other than the chief.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        trainee: Trainee,
        batches: Batches,
        epoch_steps: EpochSteps,
        head_fit: HeadFit,
        folder: RunFolder,
        stop: StopSignal,
        settings: Mapping[str, Any],
        save_model: Callable[[], None],
        run_log: RunLog | None,
    ) -> None:
        self._config, self._trainee, self._batches = config, trainee, batches
        self._epoch_steps, self._head_fit = epoch_steps, head_fit
        self._folder, self._stop = folder, stop
        self._save_model, self._run_log = save_model, run_log
        self._is_chief = distribution.is_chief(trainee.strategy)
        self._saved = SavedState(
            config,
            trainee=trainee,
            folder=folder,
            settings=settings,
            steps_per_epoch=epoch_steps.steps_per_epoch,
        )
        self._state = RunState()
        self._saved_epoch: int | None = None  # whose model this process wrote last
        self._model_saved = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns the content of metrics.json.

        Raises:
          TrainError: a loss or a gradient is non-finite.
          CheckpointError: a weight is.
          StoppedError: a signal asked the run to stop.
        """
        self._restore()
        try:
            while self._state.epoch < self._config.epochs and not self._is_out_of_patience():
                self._run_epoch()
        finally:
            self._epoch_steps.profiler.stop()
        if self._is_out_of_patience():
            _log.info("Early stopping: val_loss has not improved for %d epochs.", self._config.patience)
        metrics = run_metrics(self._state.history)
        if self._is_chief:
            self._folder.write_history(self._state.history)
            if self._saved_epoch != metrics["selected_epoch"]:
                if self._state.epoch != metrics["selected_epoch"]:
                    self._saved.restore_selected(self._state.history)
                self._save_model_of(metrics["selected_epoch"])
            self._folder.write_metrics(metrics)
        return metrics

    def _restore(self) -> None:
        with self._stop.raised("stopped. The same command starts again.", is_saved=True):
            restored = self._saved.restore()
            if restored is not None:
                self._state = restored
                self._head_fit.resume()
                _log.info(
                    "Resuming from epoch %d, step %d.", self._state.epoch + 1, self._state.step_in_epoch
                )
            elif self._config.init_from is None:
                self._head_fit.start(self._batches.first_inputs())
        distribution.check_agreement(self._trainee.strategy, self._state.step)

    def _is_out_of_patience(self) -> bool:
        return is_out_of_patience(self._state.history, self._config.patience)

    def _run_epoch(self) -> None:
        state = self._state
        # Closing it removes the progress bar before an error is reported.
        with closing(self._epoch_steps.run(state)) as steps:
            for stop_requested in steps:
                if stop_requested:
                    self._stop_run()
                elif self._is_checkpoint_due():
                    self._save_checkpoint()
        (cross_validation, validation), spent = self._validate(), self._epoch_steps.spent
        learning_rate = self._epoch_steps.learning_rate.at(state.step - 1)
        row = history_row(
            state.epoch + 1,
            state.sums,
            validation,
            cross_validation,
            learning_rate=learning_rate,
            spent=spent,
        )
        log_epoch(
            row,
            epochs=self._config.epochs,
            clips_per_sec=spent.num_clips / spent.seconds,
            optimizer=self._trainee.optimizer,
            num_steps=state.step,
        )
        state.history.append(row)
        is_selected = self._is_chief and selected_epoch(state.history) is row
        if is_selected and time.monotonic() - self._model_saved > _SAVE_MODEL_EVERY_SEC:
            self._save_model_of(row["epoch"])
        state.epoch, state.step_in_epoch, state.sums = state.epoch + 1, 0, StepSums()
        if self._run_log is not None:
            is_last = state.epoch == self._config.epochs or self._is_out_of_patience()
            scale = loss_scale(self._trainee.optimizer)
            self._run_log.write(state.history, validation, is_last=is_last, loss_scale=scale)
        # The checkpoint comes last: everything it counts as done is on the disk by then.
        self._save_checkpoint()

    def _validate(self) -> tuple[CrossValidation | None, Validation | None]:
        is_saved = self._epoch_steps.spent.seconds > _LONG_EPOCH_SEC
        if is_saved:
            self._save_checkpoint()
        with self._stop_in_validation(is_saved=is_saved), self._trainee.averaged_weights():
            cross_validation = self._head_fit.update()
            if self._batches.val is None:
                return cross_validation, None
            batches = distribution.distribute(self._trainee.strategy, self._batches.val)
            validation = validate(self._epoch_steps.steps, batches)
        if not math.isfinite(validation.loss):
            raise non_finite_error(
                f"validation loss ({validation.loss}) in epoch {self._state.epoch + 1}", self._folder
            )
        return cross_validation, validation

    @contextmanager
    def _stop_in_validation(self, *, is_saved: bool) -> Iterator[None]:
        """Stops a validation in the middle; the run resumes before it."""
        if distribution.num_workers(self._trainee.strategy) > 1:
            yield  # the others would wait; they all stop after the next step
            return
        try:
            where = f"the validation of epoch {self._state.epoch + 1}"
            with self._stop.raised(f"stopped in {where}. The same command resumes there.", is_saved=is_saved):
                yield
        except StoppedError:
            if not is_saved:
                self._save_checkpoint()
            raise

    def _is_checkpoint_due(self) -> bool:
        every, state = self._config.checkpoint_every, self._state
        # The end of an epoch has its own checkpoint, after validation.
        is_epoch_end = state.step_in_epoch == self._epoch_steps.steps_per_epoch
        return every is not None and state.step % every == 0 and not is_epoch_end

    def _stop_run(self) -> None:
        number, state = self._stop.number or signal.SIGTERM, self._state
        resumes = "The same command resumes from the last checkpoint."
        # A tf.data service decides the order of clips: its runs resume at the end of an epoch only.
        if self._config.data_service is None:
            self._save_checkpoint()
            resumes = "The same command resumes from here."
        where = f"epoch {state.epoch + 1}, step {state.step_in_epoch}"
        raise StoppedError(f"{signal.Signals(number).name}: stopped at {where}. {resumes}", number)

    def _save_checkpoint(self) -> None:
        self._epoch_steps.read_pending(self._state)
        self._saved.save(self._state)

    def _save_model_of(self, epoch: int) -> None:
        with self._trainee.averaged_weights():
            self._save_model()
        self._saved_epoch, self._model_saved = epoch, time.monotonic()
