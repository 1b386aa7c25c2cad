"""Ctrl-C ends a command within two seconds, with one line.

Python handles a signal in the main thread, between two of its own instructions. TensorFlow may be minutes
away from the next one, and an import may lose the exception. So a thread hears of the signal, too, and ends
the process where the command has not ended by itself.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT
_GRACE_SEC = 1.2


class _Watch:
    """What the thread and the main thread share.

    Attributes:
      is_interrupted: whether Ctrl-C came and was raised as KeyboardInterrupt.
      num_handled: how many more Ctrl-C the main thread handles itself, since it has something to save.
    """

    is_interrupted = False
    num_handled = 0


_watch = _Watch()


def is_interrupted() -> bool:
    """Whether Ctrl-C ended what the command was doing."""
    return _watch.is_interrupted


@contextlib.contextmanager
def watched(program: str) -> Iterator[None]:
    """Watches for Ctrl-C in a block: it raises KeyboardInterrupt, and then ends the process.

    Args:
      program: the command, for the line on stderr.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    stderr = os.dup(2)  # while TensorFlow is imported, 2 is another file
    _watch.is_interrupted, _watch.num_handled = False, 0
    ended = threading.Event()
    thread = threading.Thread(target=_wait, args=(receiver, stderr, program, ended), daemon=True)
    handler, hook = signal.signal(signal.SIGINT, _interrupt), sys.unraisablehook
    wakeup_fd, sys.unraisablehook = signal.set_wakeup_fd(sender), _show_unraisable
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_fd)
        signal.signal(signal.SIGINT, handler)
        sys.unraisablehook = hook
        ended.set()
        os.close(sender)
        thread.join()
        for descriptor in (receiver, stderr):
            os.close(descriptor)


@contextlib.contextmanager
def handled(times: int) -> Iterator[None]:
    """Leaves the next `times` Ctrl-C to the main thread, in a block that has its own handler."""
    before, _watch.num_handled = _watch.num_handled, times
    try:
        yield
    finally:
        _watch.num_handled = before


def _interrupt(_: int, __: FrameType | None) -> None:
    _watch.is_interrupted = True
    raise KeyboardInterrupt


def _wait(receiver: int, stderr: int, program: str, ended: threading.Event) -> None:
    while numbers := os.read(receiver, 1):
        if numbers[0] != signal.SIGINT:
            continue
        if _watch.num_handled > 0:
            _watch.num_handled -= 1
        elif not ended.wait(_GRACE_SEC):
            start = b"\r\n" if os.isatty(stderr) else b""  # below a progress bar
            os.write(stderr, start + f"{program}: interrupted\n".encode())
            os._exit(EXIT_CODE)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Says nothing of a KeyboardInterrupt that cannot be raised, as in a destructor: the thread ends it."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
