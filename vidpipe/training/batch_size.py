"""How many clips a step takes, and whether they fit the device's memory."""

import logging
from dataclasses import dataclass

import keras

from vidpipe.config import OptimizerConfig
from vidpipe.model import memory
from vidpipe.training.run_folder import TrainError

_LARGEST_AUTO_BATCH = 64
# Variables that each optimizer keeps for a trained weight.
_SLOTS = {"adamw": 2, "sgd": 1}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """What the memory of a step depends on, beside the number of its clips.

    Attributes:
      model: runs in each step, `trainable` set.
      optimizer: `name` and `ema`.
      num_replicas: devices that share a batch, of all machines.
      num_workers: machines.
      accumulate: microbatches of a step on each device.
      clips_per_call: of which a microbatch has no more.
    """

    model: keras.Model
    optimizer: OptimizerConfig
    num_replicas: int
    num_workers: int
    accumulate: int
    clips_per_call: int

    def estimate(self, num_clips: int, accumulate: int = 2) -> memory.MemoryEstimate:
        """Estimates the memory of a microbatch; with several of them, their summed gradients are in it."""
        slots = _SLOTS[self.optimizer.name] + (self.optimizer.ema > 0)
        accumulates = accumulate > 1 or num_clips > self.clips_per_call
        num_clips = min(num_clips, self.clips_per_call)
        return memory.estimate(self.model, num_clips=num_clips, slots_per_weight=slots + accumulates)


def resolve_batch_size(batch_size: int | None, step: StepMemory) -> int:
    """Checks that a batch size fits the memory, or finds the largest power of two up to 64 that does.

    Args:
      batch_size: clips of a step; None asks for the largest.
      step: what its memory depends on.

    Raises:
      TrainError: it does not fit, or cannot be divided among replicas and microbatches.
    """
    divisor = step.num_replicas * step.accumulate
    available = memory.available_bytes()
    if batch_size is None:
        batch_size = _largest(step, available, divisor)
    if batch_size % divisor:
        raise TrainError(
            f"batch_size={batch_size} cannot be divided among {step.num_replicas} replica(s) with "
            f"accumulate={step.accumulate} microbatches each. Give a multiple of {divisor}."
        )
    num_clips = batch_size // divisor
    needed = step.estimate(num_clips, step.accumulate)
    _log.info("Estimated memory of a step: %s.", needed)
    if available is not None and needed.total > available:
        microbatches = memory.microbatches_that_fit(
            step.estimate, batch_size=batch_size // step.num_replicas, available=available
        )
        advice = "Train fewer blocks (--fine_tune), or take fewer frames (--num_frames)."
        if microbatches is not None:
            advice = f"--accumulate={microbatches} takes the same steps in that many microbatches each."
        raise TrainError(f"{_too_large(needed, num_clips, available)} {advice}")
    return batch_size


def _largest(step: StepMemory, available: int | None, divisor: int) -> int:
    if available is None:
        raise TrainError("batch_size=auto cannot find out how much memory there is. Give a number.")
    if step.num_workers > 1:
        raise TrainError(
            "batch_size=auto knows the memory of one machine only, and several could choose differently. "
            "Give a number."
        )
    fitting = memory.largest_batch(
        step.estimate, available=available, at_most=max(1, _LARGEST_AUTO_BATCH // divisor)
    )
    if fitting is None:
        raise TrainError(f"{_too_large(step.estimate(1), 1, available)} Train fewer blocks (--fine_tune).")
    return fitting * divisor


def _too_large(needed: memory.MemoryEstimate, num_clips: int, available: int) -> str:
    return (
        f"A step on {num_clips} clip(s) at a time needs about {needed}, but only {available / 2**30:.1f} GiB "
        "are free."
    )
