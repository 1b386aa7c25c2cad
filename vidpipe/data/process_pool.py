"""Reads videos in separate processes, so that a crash, a hang or a lack of memory affects one video only.

The processes are spawned, not forked: OpenCV is not fork-safe. The functions that they call must be
importable by name, from modules that do not import TensorFlow.
"""

import contextlib
import itertools
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from vidpipe.data import video
from vidpipe.data.skip_reason import OUT_OF_MEMORY, Failure, SkipReason, VideoReadError

# Calls in progress per process: enough that a slow video does not stop the others; bounds our own memory.
_IN_FLIGHT_PER_PROCESS = 4
# Requests in one call at most, where they belong together.
_MAX_TOGETHER = 8

_Request = TypeVar("_Request")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Result(Generic[_Request, _Value]):
    """The outcome of a request.

    Attributes:
      request: the request itself.
      value: the return value of the function; None if it failed.
      failure: why it failed; None if it succeeded.
    """

    request: _Request
    value: _Value | None = None
    failure: Failure | None = None


class ReaderPool:
    """A pool of processes that read videos; a context manager that starts and ends them.

    Args:
      num_workers: number of processes.
      timeout_sec: time limit of a video in seconds.
      memory_mb: memory that a video may take, in MiB.
    """

    def __init__(self, *, num_workers: int, timeout_sec: float, memory_mb: int) -> None:
        self._num_workers, self._timeout_sec, self._memory_mb = num_workers, timeout_sec, memory_mb
        self._pool = self._new_pool()
        self._lock = threading.Lock()

    def __enter__(self) -> "ReaderPool":
        _ = self._pool.active  # makes pebble start the processes now instead of at the first video
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

    def read(self, function: Callable[..., _Value], *arguments: Any) -> Result[Sequence[Any], _Value]:
        """Calls `function(*arguments)` in one of the processes and waits for it, without a second attempt.

        VideoReadError, OSError, MemoryError, a crash and a timeout become a failure. Other errors are raised.
        """
        return self._result(arguments, self._start(function, arguments))

    def read_in_order(
        self,
        function: Callable[..., _Value],
        requests: Iterable[_Request],
        arguments: Callable[[_Request], Sequence[Any]],
        together: Callable[[_Request], Hashable | None] = lambda _: None,
    ) -> Iterator[Result[_Request, _Value]]:
        """Yields a result per request, in order, with a bounded number of requests in progress.

        A request that fails for a transient reason, or stands in one call with one that crashes, gets a
        second attempt.

        Args:
          function: called in a process for each request.
          requests: any values.
          arguments: maps a request to the arguments of `function`, for each attempt.
          together: maps a request to a key; one process reads a few successive requests of the same key, one
            after the other. None for a request that is read by itself.
        """
        in_flight: deque[tuple[list[_Request], Future]] = deque()

        def finish() -> Iterator[Result[_Request, _Value]]:
            batch, future = in_flight.popleft()
            called = self._result(batch, future)
            outcomes = called.value or [called.failure] * len(batch)
            for request, outcome in zip(batch, outcomes, strict=True):
                if not isinstance(outcome, Failure):
                    yield Result(request, value=outcome)
                elif outcome.reason.is_transient or (called.failure and len(batch) > 1):
                    yield self._result(request, self._start(function, arguments(request)))
                else:
                    yield Result(request, failure=outcome)

        for batch in _batches(requests, together):
            each = [arguments(request) for request in batch]
            in_flight.append((batch, self._start(_call_each, (function, each), len(batch))))
            if len(in_flight) >= _IN_FLIGHT_PER_PROCESS * self._num_workers:
                yield from finish()
        while in_flight:
            yield from finish()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            self._num_workers,
            context=multiprocessing.get_context("spawn"),
        )

    def _start(self, function: Callable[..., Any], arguments: Sequence[Any], num_videos: int = 1) -> Future:
        with self._lock:
            if not self._pool.active:
                # Pebble stops the whole pool if an idle process is killed, for example when memory runs out.
                self._pool.stop()
                self._pool.join()
                self._pool = self._new_pool()
            call = (self._memory_mb, function, *arguments)
            return self._pool.schedule(_call_with_limit, call, timeout=num_videos * self._timeout_sec)

    def _result(self, request: _Request, future: Future) -> Result[_Request, Any]:
        try:
            return Result(request, value=future.result())
        except FutureTimeoutError:
            failure = _timed_out(self._timeout_sec)
        except ProcessExpired as error:
            failure = _crashed(error.exitcode)
        except BrokenProcessPool:
            failure = _crashed(None)
        except (VideoReadError, OSError, MemoryError) as error:
            failure = _failure(error)
        return Result(request, failure=failure)


def _call_with_limit(memory_mb: int, function: Callable[..., _Value], *arguments: Any) -> _Value:
    video.limit_memory(memory_mb)
    return function(*arguments)


def _call_each(function: Callable[..., _Value], arguments: Sequence[Sequence[Any]]) -> list[_Value | Failure]:
    """Calls a function with each of the arguments; what fails does not stop the others."""

    def call(each: Sequence[Any]) -> _Value | Failure:
        try:
            return function(*each)
        except (VideoReadError, OSError, MemoryError) as error:
            return _failure(error)

    return [call(each) for each in arguments]


def _batches(
    requests: Iterable[_Request], together: Callable[[_Request], Hashable | None]
) -> Iterator[list[_Request]]:
    for key, group in itertools.groupby(requests, together):
        while batch := list(itertools.islice(group, 1 if key is None else _MAX_TOGETHER)):
            yield batch


def stream(
    function: Callable[..., Iterator[_Value]],
    arguments: Sequence[Any],
    *,
    timeout_sec: float,
    memory_mb: int,
) -> Iterator[_Value | Failure]:
    """Runs the generator `function(*arguments)` in a separate process and yields its values.

    The process is at most one value ahead of the consumer, plus what the pipe buffers.

    Args:
      function: reads a video value by value.
      arguments: arguments of `function`.
      timeout_sec: time limit of each value in seconds.
      memory_mb: memory that the video may take, in MiB.

    Yields:
      The values, and finally a Failure if the process did not reach the end.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, memory_mb, function, arguments), daemon=True)
    # Ctrl-C at a terminal goes to both processes. Ours ends the other one, which would print a traceback.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    sender.close()  # the process has its own copy; while ours is open, its death would not be noticed
    try:
        while receiver.poll(timeout_sec):
            message = receiver.recv()
            if message is None:
                return
            yield message
        yield _timed_out(timeout_sec)
    except (EOFError, OSError):  # the pipe was closed, perhaps in the middle of a value
        process.join()
        yield _crashed(process.exitcode)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send_all(
    sender: Connection, memory_mb: int, function: Callable[..., Iterator[Any]], arguments: Sequence[Any]
) -> None:
    """Runs in the process: sends the values, a Failure if there is one, and finally None."""
    video.limit_memory(memory_mb)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # the consumer has ended
        try:
            for value in function(*arguments):
                sender.send(value)
        except (VideoReadError, OSError, MemoryError) as error:
            sender.send(_failure(error))
        sender.send(None)


def _failure(error: VideoReadError | OSError | MemoryError) -> Failure:
    if isinstance(error, VideoReadError):
        return error.failure
    if isinstance(error, OSError):
        return Failure(SkipReason.UNREADABLE, f"cannot be read: {error.strerror}")
    return OUT_OF_MEMORY


def _timed_out(timeout_sec: float) -> Failure:
    return Failure(SkipReason.TIMED_OUT, f"timed out after {timeout_sec:g} s")


def _crashed(exit_code: int | None) -> Failure:
    """Makes the failure of a process that died; `exit_code` is None if it is unknown."""
    code = f" (exit code {exit_code})" if exit_code is not None else ""
    return Failure(SkipReason.CRASHED, f"crashed the decoder{code}")
