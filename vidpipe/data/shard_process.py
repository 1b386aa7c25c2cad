"""Makes shards in a process of their own, for workers of a cluster.

A worker may be a process that must not have children of `multiprocessing`; this one may. It lives as long as
the worker, since importing TensorFlow takes as long as a small shard. This module imports nothing else of
vidpipe, so that workers stay small.
"""

import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from typing import BinaryIO

_processes = threading.local()


class ShardProcessError(Exception):
    """A shard was not made; the message has the reason."""


def make_in_process(job: bytes) -> None:
    """Makes shards in this thread's process, which is started at the first call; a worker calls this.

    Args:
      job: a pickled tuple, the arguments of `convert.make_shards_here`.

    Raises:
      ShardProcessError: it failed.
    """
    process: subprocess.Popen[bytes] | None = getattr(_processes, "process", None)
    if process is None or process.poll() is not None:
        command = [sys.executable, "-m", "vidpipe.data.shard_process"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _processes.process = process
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(len(job).to_bytes(8, "big") + job)
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = b""
    if not answer:
        raise ShardProcessError(f"its process ended with exit code {process.wait()}")
    error = json.loads(answer)["error"]
    if error is not None:
        raise ShardProcessError(error)


def main() -> None:
    """Makes the shards of each job on stdin, and answers on stdout; ends with the worker."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(os.fdopen(0, "rb"), jobs), daemon=True).start()
    while True:
        answers.write(json.dumps({"error": _failure(jobs.get())}).encode() + b"\n")


def _receive(stdin: BinaryIO, jobs: "queue.SimpleQueue[bytes]") -> None:
    """Passes jobs on. The worker's end, also when it is killed, ends this process in the middle of a job."""
    while len(size := stdin.read(8)) == 8:
        jobs.put(stdin.read(int.from_bytes(size, "big")))
    os._exit(0)


def _failure(job: bytes) -> str | None:
    """Makes the shards of a job; returns why that failed, None if it did not."""
    from vidpipe.data import convert
    from vidpipe.errors import first_line
    from vidpipe.storage import remote

    try:
        plans, config, classes, read = pickle.loads(job)
        remote.connect(config.output_dir)
        convert.make_shards_here(plans, config, classes, read)
    except Exception as error:
        traceback.print_exc()
        return first_line(error)
    return None


if __name__ == "__main__":
    main()
