"""SIGTERM and Ctrl-C, which stop a run after the step in progress, with a checkpoint."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vidpipe import interruption
from vidpipe.errors import VidpipeError

_log = logging.getLogger(__name__)


class StoppedError(VidpipeError):
    """A signal stopped the run; the same command resumes it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignal:
    """The first signal that asks the run to stop, to be obeyed after the step in progress.

    A second one raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._message: str | None = None

    @property
    def is_requested(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    @contextmanager
    def raised(self, message: str, *, is_saved: bool) -> Iterator[None]:
        """Raises StoppedError in a block, when a signal comes.

        Args:
          message: what the user reads after the name of the signal.
          is_saved: whether there is nothing to save after the block, so that Ctrl-C may end the process.
        """
        self._message = message
        try:
            with interruption.handled(times=0 if is_saved else 1):
                yield
        finally:
            self._message = None

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handles a signal."""
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        name = signal.Signals(number).name
        if self._message is not None:
            raise StoppedError(f"{name}: {self._message}", number)
        _log.warning("%s: stopping after this step. Send it again to stop at once.", name)


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catches SIGTERM and SIGINT inside a block."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with interruption.handled(times=1):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
