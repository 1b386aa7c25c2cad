"""A bar on a terminal, a plain line now and then in a log."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_LOG_EVERY_SEC = 30
_log = logging.getLogger(__name__)


class Progress:
    """Counts `total` things on stderr; use as a context manager.

    On a terminal it is a tqdm bar (rate and time left with it), and log lines appear above the bar.
    Elsewhere it logs the same facts every 30 seconds. Both end with one line, unless `closing_line` is False
    because the caller has a better one. `done` of them were so before.
    """

    def __init__(
        self, description: str, total: int, unit: str, closing_line: bool = True, done: int = 0
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
        """Counts `count` more; `note` stands behind the figures from now on."""
        self._count += count
        self._note = note
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        if not self._on_terminal and time.monotonic() - self._last_log > _LOG_EVERY_SEC:
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
