"""What one training step needs of the device's memory, foretold from the model and the batch size."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_MIB, _GIB = 2**20, 2**30
# What a recurrent layer keeps of each time step, its output aside, as multiples of that: gates, products of
# them, states, masks. Measured with LSTMs of 456 and 64 units, 50 frames: 13 and 12.
_RECURRENT_KEPT = 14
# TensorFlow's allocator hands out a free block whole when less than 128 MiB, or less than what is asked for,
# would be left of it. Measured on a CPU, beside the tensors' own bytes: up to 64 % of them while they are few
# and large, 5 to 8 % of 1 to 5 GB kept for the backward pass.
_ROUNDING, _MOST_ROUNDING, _ROUNDING_OF_MANY = 0.65, 256 * _MIB, 0.1
# What a process on a CPU takes beside its tensors: graphs, compiled kernels, free blocks. Measured: 70 to 220
# MiB.
_HOST_RESERVE = 256 * _MIB
# Files under /sys/fs/cgroup: limit, usage with the page cache, and where to find how much of that is cache.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


@dataclass(frozen=True)
class MemoryEstimate:
    """What one training step needs at its peak, in bytes.

    Attributes:
      weights: all variables of the model.
      gradients: one for every trained weight.
      slots: what the optimizer keeps for every trained weight.
      activations: the tensors between the layers that are alive together, and the allowance for what the
        kernels take beside them.
      input: the batch itself, once. Prefetched batches wait in host memory.
    """

    weights: int
    gradients: int
    slots: int
    activations: int
    input: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.gradients + self.slots + self.activations + self.input

    def __str__(self) -> str:
        parts = ("weights", "gradients", "slots", "activations", "input")
        unit, name_of_unit = (_GIB, "GiB") if self.total >= _GIB else (_MIB, "MiB")
        sizes = ", ".join(f"{name} {getattr(self, name) / unit:.1f}" for name in parts)
        return f"{self.total / unit:.1f} {name_of_unit} ({sizes})"


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor of the graph; equal to itself only.

    Attributes:
      rows: the length of its first axis for each clip: 1, or T where the frames of all clips lie in one axis.
      size: bytes of its own; 0 for the model's inputs, which are counted apart.
      trained: whether a gradient flows through it.
    """

    rows: int
    size: int
    trained: bool


@dataclass(frozen=True)
class _Step:
    """One operation of the graph: what it reads and writes, and whether a gradient flows through it."""

    reads: list[_Tensor]
    writes: list[_Tensor]
    trained: bool


def estimate(model: keras.Model, num_clips: int, slots_per_weight: int) -> MemoryEstimate:
    """Foretells the memory of one training step, every frame taken as real.

    A tensor lives until its last reader is done, or, where a gradient flows, until the backward pass comes
    to it; that pass goes from the last operation to the first, and the gradients of what an operation reads
    and writes live beside all that was kept up to it.

    A convolution with its bias and ReLU keeps one tensor: TensorFlow works them in place, and the backward
    pass needs what ReLU gives and not what it gets.

    Args:
      model: a functional model as it is trained, `trainable` set; its shapes are known but for the batch.
      num_clips: clips of one step (B); with gradient accumulation those of one part.
      slots_per_weight: variables that the optimizer keeps for each trained weight: Adam 2, SGD with
        momentum 1, and one more for an average of the weights.
    """
    tensors = {id(tensor): _Tensor(1, 0, False) for tensor in model.inputs}
    peak = _peak(list(_walk(model, tensors, num_clips)))
    rounding = max(min(_ROUNDING * peak, _MOST_ROUNDING), _ROUNDING_OF_MANY * peak)
    trained = sum(map(_variable_size, model.trainable_variables))
    return MemoryEstimate(
        weights=sum(map(_variable_size, model.variables)),
        gradients=trained,
        slots=slots_per_weight * trained,
        activations=peak + int(rounding),
        input=sum(_size(tensor, num_clips) for tensor in model.inputs),
    )


def available_bytes() -> int | None:
    """What a run may take: of the smallest GPU, or of this machine where there is none.

    On a GPU it is the limit of TensorFlow's allocator, whether that takes all at once or grows; where it
    grows, what other processes took since is not seen. On a CPU it is what is free now within the limit of
    the control group, less a reserve for the process: ask before the model is built.

    Returns:
      Bytes, at least 0; None where the system does not say, as on macOS.
    """
    if tf.config.list_logical_devices("GPU"):
        # The one public way: get_memory_info tells use and peak only. The session shares the allocator that
        # the line above made.
        with tf.compat.v1.Session() as session:
            return min(d.memory_limit_bytes for d in session.list_devices() if d.device_type == "GPU")
    return _host_bytes(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))


def parts_that_fit(
    estimate_for: Callable[[int], MemoryEstimate], batch_size: int, available: int
) -> int | None:
    """The smallest number of equal parts into which a batch must be cut to fit.

    Args:
      estimate_for: clips of one part to the memory of its step; fewer than `batch_size` are accumulated, so
        its slots hold one more for the sum of the gradients.
      batch_size: clips of one optimizer step.
      available: bytes.

    Returns:
      A divisor of `batch_size`; None when a single clip does not fit.
    """
    for parts in range(1, batch_size + 1):
        if batch_size % parts == 0 and estimate_for(batch_size // parts).total <= available:
            return parts
    return None


def largest_batch(
    estimate_for: Callable[[int], MemoryEstimate], available: int, at_most: int = 64
) -> int | None:
    """The largest power of two, up to `at_most`, of clips that fit; None when a single clip does not.

    Args:
      estimate_for: clips of one step to its memory.
      available: bytes.
      at_most: clips, at least 1. Larger batches want another learning rate.
    """
    sizes = [2**i for i in range(at_most.bit_length())]
    return max((size for size in sizes if estimate_for(size).total <= available), default=None)


def _host_bytes(meminfo: Path, cgroup: Path) -> int | None:
    """See `available_bytes`; the arguments are the files that Linux tells it in."""
    try:
        available = [_named_number(meminfo, "MemAvailable:") * 1024]
    except (OSError, LookupError):
        return None
    for limit, usage, stat, cache in _CGROUP_FILES:
        try:
            limit_bytes = int((cgroup / limit).read_text())
            used = int((cgroup / usage).read_text()) - _named_number(cgroup / stat, cache)
        except (OSError, ValueError, LookupError):
            continue  # not this version of control groups, or "max"
        available.append(limit_bytes - used)
    return max(min(available) - _HOST_RESERVE, 0)


def _named_number(path: Path, name: str) -> int:
    """The number behind `name` in a file of lines `name number ...`."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if line[0] == name}[name]


def _walk(model: keras.Model, tensors: dict[int, _Tensor], num_clips: int) -> Iterator[_Step]:
    """The operations of a model in their order, with those of the models inside it.

    Args:
      model: a functional model.
      tensors: those of its inputs, by the id of the KerasTensor; the others are added.
      num_clips: clips of one step.
    """
    # Keras tells a model's operations, but only here which call of a shared one is this model's.
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            if node.is_input:
                continue
            reads = [tensors[id(tensor)] for tensor in node.input_tensors]
            if isinstance(node.operation, keras.Model):
                inside = dict(zip(map(id, node.operation.inputs), reads, strict=True))
                yield from _walk(node.operation, inside, num_clips)
                writes = [inside[id(tensor)] for tensor in node.operation.outputs]
            else:
                step = _step(node, reads, num_clips)
                writes = step.writes[: len(node.outputs)]
                yield step
            tensors.update(zip(map(id, node.outputs), writes, strict=True))


def _step(node: Any, reads: list[_Tensor], num_clips: int) -> _Step:
    """One call of an operation; what it writes begins with its outputs."""
    operation, first = node.operation, node.input_tensors[0]
    trained = any(read.trained for read in reads) or bool(getattr(operation, "trainable_variables", ()))
    rows = max(read.rows for read in reads)
    if type(operation).__name__ == "Reshape":
        # The only one that folds frames into the batch, and unfolds them. Its output shares the memory.
        rows = rows * math.prod(first.shape[1:]) // math.prod(node.outputs[0].shape[1:])
        return _Step(reads, [_Tensor(rows, 0, trained)], trained)
    writes = [_Tensor(rows, _size(tensor, rows * num_clips), trained) for tensor in node.outputs]
    if isinstance(operation, keras.layers.RNN) and trained:
        # Its output may be that of the last step only.
        outputs = rows * num_clips * first.shape[1] * node.outputs[0].shape[-1]
        size = _RECURRENT_KEPT * outputs * tf.as_dtype(operation.compute_dtype).size
        writes.append(_Tensor(rows, size, False))
    return _Step(reads, writes, trained)


def _peak(steps: list[_Step]) -> int:
    """The most bytes that are alive together, see `estimate`."""
    last_step = {tensor: i for i, step in enumerate(steps) for tensor in (*step.reads, *step.writes)}
    kept = {tensor for step in steps if step.trained for tensor in (*step.reads, *step.writes)}
    alive = peak = 0
    for i, step in enumerate(steps):
        touched = {*step.reads, *step.writes}
        alive += sum(tensor.size for tensor in step.writes)
        gradients = sum(tensor.size for tensor in touched if tensor.trained)
        peak = max(peak, alive + gradients)
        alive -= sum(tensor.size for tensor in touched - kept if last_step[tensor] == i)
    return peak


def _size(tensor: keras.KerasTensor, rows: int) -> int:
    """Bytes of a tensor whose first axis, if it is of unknown length, has `rows`."""
    shape = [rows if length is None else length for length in tensor.shape]
    return math.prod(shape) * tf.as_dtype(tensor.dtype).size


def _variable_size(variable: keras.Variable) -> int:
    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
