"""A TensorFlow profile of some steps of a run, for TensorBoard."""

import logging
from pathlib import Path

import tensorflow as tf

_log = logging.getLogger(__name__)


class Profiler:
    """Profiles the steps `first` to `last`, counted from 1; without them it does nothing.

    A run that is resumed between them profiles the remaining ones.

    Args:
      steps: (first, last), or None.
      folder: the log directory of TensorBoard.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path) -> None:
        self._steps, self._folder = steps, folder
        self._is_running = False

    def before_step(self, number: int) -> None:
        """Starts the profile if it contains this step and is not running."""
        if self._steps is not None and self._steps[0] <= number <= self._steps[1] and not self._is_running:
            tf.profiler.experimental.start(str(self._folder))
            self._is_running = True

    def is_last(self, number: int) -> bool:
        """Whether the profile ends with this step; wait for the step's result, then call `stop`."""
        return self._is_running and self._steps is not None and number == self._steps[1]

    def stop(self) -> None:
        """Ends a running profile and writes it."""
        if self._is_running:
            tf.profiler.experimental.stop()
            self._is_running = False
            _log.info("Profile written to %s.", self._folder)
