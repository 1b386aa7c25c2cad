"""Estimates the device memory of a training step from the model and the batch size, before the first step.

The estimate follows the model's graph: which tensors are alive at the same time in the forward and the
backward pass. It does not include the workspace of cuDNN's kernels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_MIB, _GIB = 2**20, 2**30
# What a recurrent layer stores for the backward pass besides its output (gates, their products, states,
# masks), as a multiple of its output over all time steps. Measured with LSTMs of 456 and 64 units, 50 frames:
# 13 and 12.
_RECURRENT_STATE = 14
# Allowance for TensorFlow's allocator, which does not split a free block when less than 128 MiB, or less than
# the requested size, would be left of it. Measured on a CPU: up to 64 % of the tensors' bytes while they are
# few and large, 5 to 8 % of 1 to 5 GB. The allowance is 65 % up to 256 MiB, and at least 10 %.
_ALLOWANCE, _MAX_ALLOWANCE, _MIN_ALLOWANCE = 0.65, 256 * _MIB, 0.1
# What a process on a CPU takes besides its tensors: graphs, compiled kernels, free blocks. Measured: 70 to
# 220 MiB.
_HOST_RESERVE = 256 * _MIB
# Files under /sys/fs/cgroup, for control groups v2 and v1: the limit, the usage including the page cache, and
# the file and the field with the size of that cache.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The memory of one training step at its peak, in bytes.

    Attributes:
      weights: all variables of the model.
      gradients: one for each trained weight.
      slots: the optimizer's variables for the trained weights.
      activations: tensors between the layers that are alive at the same time, with an allowance for the
        allocator.
      input: one batch. Prefetched batches are in host memory.
    """

    weights: int
    gradients: int
    slots: int
    activations: int
    input: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.slots + self.activations + self.input

    def __str__(self) -> str:
        parts = ("weights", "gradients", "slots", "activations", "input")
        unit, unit_name = (_GIB, "GiB") if self.total >= _GIB else (_MIB, "MiB")
        sizes = ", ".join(f"{name} {getattr(self, name) / unit:.1f}" for name in parts)
        return f"{self.total / unit:.1f} {unit_name} ({sizes})"


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor of the graph, compared by identity.

    Attributes:
      rows: length of its first axis per clip: 1, or T if the frames of all clips are in one axis.
      size: bytes that it adds; 0 for the model's inputs, which are counted separately.
      trained: whether a gradient flows through it.
      elements: how many it has, 0 for inputs.
    """

    rows: int
    size: int
    trained: bool
    elements: int = 0


@dataclass(frozen=True)
class _Step:
    """An operation of the graph: the tensors it reads and writes, and whether a gradient flows through it."""

    reads: list[_Tensor]
    writes: list[_Tensor]
    trained: bool


def estimate(model: keras.Model, *, num_clips: int, slots_per_weight: int) -> MemoryEstimate:
    """Estimates the memory of one training step on clips without padding frames.

    A tensor is alive until its last reader has finished or, if a gradient flows through it, until the
    backward pass reaches it. The backward pass goes from the last operation to the first; at each one, the
    gradients of the tensors that it read and wrote are alive, together with all tensors that were stored up
    to it.

    A convolution with its bias and ReLU stores one tensor: TensorFlow computes them in place, and the
    backward pass needs the output of ReLU, not its input.

    Args:
      model: a functional model with `trainable` set; all its shapes are known except the batch size.
      num_clips: clips of one step (B), or of one microbatch with gradient accumulation.
      slots_per_weight: variables of the optimizer per trained weight: 2 for Adam, 1 for SGD with momentum,
        and one more for an average of the weights.
    """
    tensors = {id(tensor): _Tensor(1, 0, False) for tensor in model.inputs}
    peak = _peak(list(_walk(model, tensors, num_clips)))
    allowance = max(min(_ALLOWANCE * peak, _MAX_ALLOWANCE), _MIN_ALLOWANCE * peak)
    trained = sum(map(_variable_size, model.trainable_variables))
    return MemoryEstimate(
        weights=sum(map(_variable_size, model.variables)),
        gradients=trained,
        slots=slots_per_weight * trained,
        activations=peak + int(allowance),
        input=sum(_size(tensor, num_clips) for tensor in model.inputs),
    )


def clips_per_call(model: keras.Model) -> int:
    """Returns how many clips a call of a model may take, at least 0: no tensor may have 2^31 elements.

    TensorFlow's kernels for GPUs count elements with 31 bits, and BiasAdd ends the process above that
    (tensorflow issue 99894). 668 frames of 224 x 224 pixels are the most in block 1 of VGG16.

    Args:
      model: a functional model; all its shapes are known except the batch size.
    """
    tensors = {id(tensor): _Tensor(1, 0, False) for tensor in model.inputs}
    steps = _walk(model, tensors, num_clips=1)
    return (2**31 - 1) // max(tensor.elements for step in steps for tensor in step.writes)


def available_bytes() -> int | None:
    """Returns the memory that a run may use on the smallest GPU, or on this machine if it has no GPU.

    On a GPU this is the limit of TensorFlow's allocator; if the allocator grows on demand, memory that other
    processes have taken since is not seen. On a CPU it is the free memory within the limit of the control
    group, minus a reserve for the process. Call it before the model is built.

    Returns:
      Bytes, at least 0; None if the system does not report them, as macOS.
    """
    if tf.config.list_logical_devices("GPU"):
        # The only public way: get_memory_info gives the current and the peak usage. The session shares the
        # allocator that the line above created.
        with tf.compat.v1.Session() as session:
            return min(d.memory_limit_bytes for d in session.list_devices() if d.device_type == "GPU")
    return _host_bytes(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))


def microbatches_that_fit(
    estimate_for: Callable[[int], MemoryEstimate], *, batch_size: int, available: int
) -> int | None:
    """Finds the smallest number of equal microbatches into which a batch must be divided to fit the memory.

    Args:
      estimate_for: estimates the memory for a microbatch of that many clips; with several microbatches it
        must include the sum of the gradients.
      batch_size: clips of one optimizer step.
      available: bytes.

    Returns:
      A divisor of `batch_size`; None if a single clip does not fit.
    """
    for microbatches in range(1, batch_size + 1):
        num_clips, rest = divmod(batch_size, microbatches)
        if rest == 0 and estimate_for(num_clips).total <= available:
            return microbatches
    return None


def largest_batch(
    estimate_for: Callable[[int], MemoryEstimate], *, available: int, at_most: int
) -> int | None:
    """Finds the largest power of two of clips, up to `at_most`, that fits the memory.

    Args:
      estimate_for: estimates the memory for a step of that many clips.
      available: bytes.
      at_most: clips, at least 1.

    Returns:
      The number of clips; None if a single clip does not fit.
    """
    sizes = [2**i for i in range(at_most.bit_length())]
    return max((size for size in sizes if estimate_for(size).total <= available), default=None)


def _host_bytes(meminfo: Path, cgroup: Path) -> int | None:
    """Computes `available_bytes` on a CPU from Linux's files /proc/meminfo and /sys/fs/cgroup."""
    try:
        available = [_named_number(meminfo, "MemAvailable:") * 1024]
    except (OSError, LookupError):
        return None
    for limit, usage, stat, cache in _CGROUP_FILES:
        try:
            limit_bytes = int((cgroup / limit).read_text())
            used = int((cgroup / usage).read_text()) - _named_number(cgroup / stat, cache)
        except (OSError, ValueError, LookupError):
            continue  # another version of control groups, or no limit ("max")
        available.append(limit_bytes - used)
    return max(min(available) - _HOST_RESERVE, 0)


def _named_number(path: Path, name: str) -> int:
    """Returns the number after `name` in a file of lines `name number ...`."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if line[0] == name}[name]


def _walk(model: keras.Model, tensors: dict[int, _Tensor], num_clips: int) -> Iterator[_Step]:
    """Yields the operations of a model in their order, including those of nested models.

    Args:
      model: a functional model.
      tensors: maps the id of a KerasTensor to its _Tensor; contains the model's inputs, and the outputs of
        each operation are added.
      num_clips: clips of one step.
    """
    # A private attribute: model.operations does not tell which call of a shared layer belongs to this model.
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            if node.is_input:
                continue
            reads = [tensors[id(tensor)] for tensor in node.input_tensors]
            if isinstance(node.operation, keras.Model):
                # A Sequential model, of which ConvNeXt has some, holds its graph in another one.
                inner = getattr(node.operation, "_functional", node.operation)
                inside = dict(zip(map(id, inner.inputs), reads, strict=True))
                yield from _walk(inner, inside, num_clips)
                writes = [inside[id(tensor)] for tensor in inner.outputs]
            else:
                step = _step(node, reads, num_clips)
                writes = step.writes[: len(node.outputs)]
                yield step
            tensors.update(zip(map(id, node.outputs), writes, strict=True))


def _step(node: Any, reads: list[_Tensor], num_clips: int) -> _Step:
    """Describes one call of an operation; the tensors that it writes begin with its outputs."""
    operation, first = node.operation, node.input_tensors[0]
    trained = any(read.trained for read in reads) or bool(getattr(operation, "trainable_variables", ()))
    rows = max(read.rows for read in reads)
    if type(operation).__name__ == "Reshape":
        # The only operation that merges the axes of clips and frames, or splits them. It copies nothing.
        rows = rows * math.prod(first.shape[1:]) // math.prod(node.outputs[0].shape[1:])
        return _Step(reads, [_Tensor(rows, 0, trained)], trained)
    writes = [
        _Tensor(
            rows,
            _size(tensor, rows * num_clips),
            trained,
            elements=math.prod(_shape(tensor, rows * num_clips)),
        )
        for tensor in node.outputs
    ]
    if isinstance(operation, keras.layers.RNN) and trained:
        # Its own output may contain the last time step only.
        outputs = rows * num_clips * first.shape[1] * node.outputs[0].shape[-1]
        size = _RECURRENT_STATE * outputs * tf.as_dtype(operation.compute_dtype).size
        writes.append(_Tensor(rows, size, False))
    return _Step(reads, writes, trained)


def _peak(steps: list[_Step]) -> int:
    """Returns the largest number of bytes that are alive at the same time, as described in `estimate`."""
    last_step = {tensor: i for i, step in enumerate(steps) for tensor in (*step.reads, *step.writes)}
    stored = {tensor for step in steps if step.trained for tensor in (*step.reads, *step.writes)}
    alive = peak = 0
    for i, step in enumerate(steps):
        touched = {*step.reads, *step.writes}
        alive += sum(tensor.size for tensor in step.writes)
        gradients = sum(tensor.size for tensor in touched if tensor.trained)
        peak = max(peak, alive + gradients)
        alive -= sum(tensor.size for tensor in touched - stored if last_step[tensor] == i)
    return peak


def _size(tensor: keras.KerasTensor, rows: int) -> int:
    """Returns the bytes of a tensor; axes of unknown length have `rows`."""
    return math.prod(_shape(tensor, rows)) * tf.as_dtype(tensor.dtype).size


def _shape(tensor: keras.KerasTensor, rows: int) -> list[int]:
    return [rows if length is None else length for length in tensor.shape]


def _variable_size(variable: keras.Variable) -> int:
    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
