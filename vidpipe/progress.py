"""Shows the progress of a job: a bar on a terminal, a line every 30 seconds in a log."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_log = logging.getLogger(__name__)
_LOG_EVERY_SEC = 30


class Progress:
    """Reports the progress of a job on stderr; a context manager.

    On a terminal it shows a tqdm bar with the rate and the time left, and log lines appear above the bar.
    Otherwise it logs a line every 30 seconds.

    Args:
      description: name of the job, such as "Converting".
      total: number of items.
      unit: what the items are, such as "videos".
      closing_line: log a line at the end; False if the caller logs a better one.
      done: number of items that were done before.
    """

    def __init__(
        self, description: str, total: int, unit: str, *, closing_line: bool = True, done: int = 0
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._closing_line = closing_line
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=description, total=total, unit=unit, initial=done, disable=not self._on_terminal, leave=False
        )
        self._redirect = logging_redirect_tqdm()
        self._count = self._done_before = done
        self._note = ""
        self._start = self._last_log = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._on_terminal:
            self._redirect.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._on_terminal:
            self._redirect.__exit__(exc_type, exc_value, traceback)
        if exc_type is None and self._closing_line:
            self._write()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished items; from now on `note` is shown after the numbers."""
        self._count += count
        self._note = note
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        is_due = time.monotonic() - self._last_log > _LOG_EVERY_SEC and self._count < self._total
        if is_due and not self._on_terminal:
            self._write()

    def _write(self) -> None:
        self._last_log = time.monotonic()
        elapsed = self._last_log - self._start
        rate = (self._count - self._done_before) / elapsed if elapsed > 0 else 0.0
        speed = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
        figures = f"{self._count}/{self._total} {self._unit} in {elapsed:.0f} s, {speed} {self._unit}/s"
        if rate > 0 and self._count < self._total:
            figures += f", {(self._total - self._count) / rate:.0f} s left"
        _log.info("%s: %s%s", self._description, figures, f", {self._note}" if self._note else "")
