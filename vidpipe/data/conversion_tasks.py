"""Which shards of a conversion this process makes, where a cluster starts the same command many times."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vidpipe.config import ConfigError, ConversionConfig

_Item = TypeVar("_Item")
# Set in each task of an array job of Slurm (https://slurm.schedmd.com/job_array.html), and in each pod of an
# indexed job of Kubernetes, which does not say how many there are.
_SLURM_ID, _SLURM_FIRST = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN"
_SLURM_COUNT, _SLURM_STEP = "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_STEP"
_KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class Task:
    """One of several processes that share a conversion.

    Attributes:
      index: from 0.
      count: how many there are.
    """

    index: int
    count: int

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Returns every `count`-th item, from number `index` on: the shares of all tasks are all items."""
        return items[self.index :: self.count]

    def __str__(self) -> str:
        return f"task {self.index} of {self.count}"


def choose_task(config: ConversionConfig, environment: Mapping[str, str] = os.environ) -> Task | None:
    """Returns the task that the settings name, or the cluster's job; None for a conversion by one process.

    Raises:
      ConfigError: only one of index and count is known, or there is no such task.
    """
    index, count, source = config.task_index, config.task_count, "--task_index"
    if index is None and count == 1:
        return None
    if index is None:
        index, count, source = _of_job(count, environment)
    if index is None and count is None:
        return None
    if index is None:
        raise ConfigError("--task_count needs --task_index, which counts from 0.")
    if count is None:
        raise ConfigError(
            f"{source} needs --task_count, the number of tasks; 1 for a conversion by one process."
        )
    if index >= count:
        raise ConfigError(
            f"There is no task {index} ({source}) of {count}: they are 0 to {count - 1}. Give the "
            "number of all tasks as --task_count; an array job of Slurm then needs --array=0-N."
        )
    return None if count == 1 else Task(index, count)


def _of_job(count: int | None, environment: Mapping[str, str]) -> tuple[int | None, int | None, str]:
    """Returns index and number of tasks as far as the job says them, and the name of the index's variable."""
    if count is None and _SLURM_COUNT in environment:
        first, step = int(environment.get(_SLURM_FIRST, 0)), int(environment.get(_SLURM_STEP, 1))
        return (int(environment[_SLURM_ID]) - first) // step, int(environment[_SLURM_COUNT]), _SLURM_ID
    for name in (_SLURM_ID, _KUBERNETES_INDEX):
        if name in environment:
            return int(environment[name]), count, name
    return None, count, ""
