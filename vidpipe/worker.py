"""Videos read in processes of their own: one that crashes, hangs or takes too much memory costs itself only.

The processes are spawned, not forked: OpenCV is not fork-safe. What they run is importable by name, and is
free of TensorFlow.
"""

import contextlib
import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from vidpipe import video

# Videos in flight per worker: enough to ride out a slow one, and the bound on the parent's memory.
_WINDOW_PER_WORKER = 4

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Outcome(Generic[_Value]):
    """What was read of a video, or the reason why there is nothing."""

    value: _Value | None
    reason: str = ""


_END: Outcome[Any] = Outcome(None)


class Workers:
    """Reads videos in a pool of processes; a context manager, which starts them and ends them.

    Args:
      num_workers: processes.
      timeout_sec: a video that takes longer is given up.
      memory_mb: a video that needs more is given up, in 2**20 bytes.
    """

    def __init__(self, num_workers: int, timeout_sec: float, memory_mb: int) -> None:
        self._num_workers, self._timeout_sec, self._memory_mb = num_workers, timeout_sec, memory_mb
        self._pool = self._new_pool()
        self._lock = threading.Lock()

    def __enter__(self) -> "Workers":
        _ = self._pool.active  # asked, pebble starts the processes: sooner than with the first video
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._pool.close()
        else:
            self._pool.stop()
        self._pool.join()

    def read(self, function: Callable[..., _Value], *arguments: Any) -> Outcome[_Value]:
        """Calls `function(*arguments)` in one of the processes and waits for it.

        Of its errors VideoReadError, OSError and MemoryError, a crash and a timeout become reasons.
        """
        return self._outcome(self._start(function, arguments))

    def read_in_order(
        self, function: Callable[..., _Value], calls: Iterable[Sequence[Any]]
    ) -> Iterator[Outcome[_Value]]:
        """Yields an outcome per call, in order, with a bounded number in flight.

        A crash or a timeout gets a second try: it is not always the video's fault. The machine was busy, its
        clock was set, its memory was full.
        """

        def outcome(arguments: Sequence[Any], future: Future) -> Outcome[_Value]:
            first: Outcome[_Value] = self._outcome(future)
            return self.read(function, *arguments) if may_pass(first.reason) else first

        in_flight: deque[tuple[Sequence[Any], Future]] = deque()
        for arguments in calls:
            in_flight.append((arguments, self._start(function, arguments)))
            if len(in_flight) >= _WINDOW_PER_WORKER * self._num_workers:
                yield outcome(*in_flight.popleft())
        while in_flight:
            yield outcome(*in_flight.popleft())

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            self._num_workers,
            context=multiprocessing.get_context("spawn"),
            initializer=video.limit_memory,
            initargs=[self._memory_mb],
        )

    def _start(self, function: Callable[..., _Value], arguments: Sequence[Any]) -> Future:
        with self._lock:
            if not self._pool.active:
                # A process was killed while none had work, as by a system short of memory: to pebble that is
                # the end of all of them.
                self._pool.stop()
                self._pool.join()
                self._pool = self._new_pool()
            return self._pool.schedule(function, arguments, timeout=self._timeout_sec)

    def _outcome(self, future: Future) -> Outcome[_Value]:
        try:
            return Outcome(future.result())
        except FutureTimeoutError:
            return Outcome(None, _timed_out(self._timeout_sec))
        except ProcessExpired as error:
            return Outcome(None, _crashed(error.exitcode))
        except BrokenProcessPool:
            return Outcome(None, _crashed(None))
        except (video.VideoReadError, OSError, MemoryError) as error:
            return Outcome(None, _reason(error))


def may_pass(reason: str) -> bool:
    """Whether a video that was given up for this reason may be read another time."""
    return reason.startswith(("timed out", "crashed"))


def stream(
    function: Callable[..., Iterator[_Value]],
    arguments: Sequence[Any],
    timeout_sec: float,
    memory_mb: int,
) -> Iterator[Outcome[_Value]]:
    """Yields what the generator `function(*arguments)` yields in a process of its own, as it comes.

    The process is at most one value ahead, and what a pipe holds.

    Args:
      function: reads a video bit by bit.
      arguments: its arguments.
      timeout_sec: how long a value may take.
      memory_mb: of the process, in 2**20 bytes.

    Yields:
      The values; at the end the reason if it came too early, of those that `Workers.read` knows.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, memory_mb, function, arguments), daemon=True)
    process.start()
    sender.close()  # the process has its own; with this one open its death would not show
    try:
        while receiver.poll(timeout_sec):
            outcome: Outcome[_Value] = receiver.recv()
            if outcome == _END:
                return
            yield outcome
        yield Outcome(None, _timed_out(timeout_sec))
    except (EOFError, OSError):  # at the end of the pipe, or amid a value
        process.join()
        yield Outcome(None, _crashed(process.exitcode))
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send_all(
    sender: Connection, memory_mb: int, function: Callable[..., Iterator[Any]], arguments: Sequence[Any]
) -> None:
    """Runs in the process."""
    video.limit_memory(memory_mb)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # nobody reads any more
        try:
            for value in function(*arguments):
                sender.send(Outcome(value))
        except (video.VideoReadError, OSError, MemoryError) as error:
            sender.send(Outcome(None, _reason(error)))
        sender.send(_END)


def _reason(error: video.VideoReadError | OSError | MemoryError) -> str:
    if isinstance(error, video.VideoReadError):
        return error.reason
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else video.OUT_OF_MEMORY


def _timed_out(timeout_sec: float) -> str:
    return f"timed out after {timeout_sec:g} s"


def _crashed(exit_code: int | None) -> str:
    """None: it was another decoder than its own."""
    return "crashed the decoder" + (f" (exit code {exit_code})" if exit_code is not None else "")
