"""Where a run stands, saved to its checkpoints and restored from them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vidpipe.config import TrainConfig
from vidpipe.training import distribution
from vidpipe.training.checkpoint import restore_checkpoint, restore_step, save_checkpoint
from vidpipe.training.epoch_selection import History, selected_epoch
from vidpipe.training.epoch_steps import RunState
from vidpipe.training.run_folder import RunFolder
from vidpipe.training.trainee import Trainee


class SavedState:
    """The checkpoints of a run.

    Args:
      config: of the run.
      trainee: whose variables they hold.
      folder: of the run.
      settings: the content of config.json, which a checkpoint holds too.
      steps_per_epoch: of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        trainee: Trainee,
        folder: RunFolder,
        settings: Mapping[str, Any],
        steps_per_epoch: int,
    ) -> None:
        self._trainee, self._folder, self._settings = trainee, folder, settings
        self._keep, self._steps_per_epoch = config.keep_checkpoints, steps_per_epoch
        self._is_chief = distribution.is_chief(trainee.strategy)

    def restore(self) -> RunState | None:
        """Restores the newest valid checkpoint; None where there are no checkpoints.

        Raises:
          CheckpointError: all are corrupt, or the newest valid one is that of another model.
        """
        restored = restore_checkpoint(self._folder, self._trainee.checkpointed)
        if restored is None:
            return None
        self._trainee.refresh()
        return RunState.restored(restored)

    def restore_selected(self, history: History) -> None:
        """Restores the variables of the selected epoch.

        Raises:
          CheckpointError: its checkpoint is missing or corrupt.
        """
        restore_step(self._folder, self._last_step_of_selected(history), self._trainee.checkpointed)
        self._trainee.refresh()

    def save(self, state: RunState) -> None:
        """Saves a checkpoint; only the chief does.

        Raises:
          CheckpointError: a variable is non-finite.
        """
        if self._is_chief:
            save_checkpoint(
                self._folder,
                step=state.step,
                variables=self._trainee.checkpointed,
                state=asdict(state) | {"settings": dict(self._settings)},
                keep=self._keep,
                selected_step=self._last_step_of_selected(state.history) if state.history else None,
            )

    def _last_step_of_selected(self, history: History) -> int:
        return int(selected_epoch(history)["epoch"]) * self._steps_per_epoch
