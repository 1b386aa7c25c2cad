"""Which batch sizes fit: a clip takes a GiB in all tests here."""

from collections.abc import Callable

import keras
import pytest

from vidpipe.config import OptimizerConfig
from vidpipe.model import memory
from vidpipe.training.batch_size import StepMemory, resolve_batch_size
from vidpipe.training.run_folder import TrainError

Machine = Callable[[int | None], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes a machine on which a step of `largest` clips fits, and none of more; None: it does not say."""

    def estimate(model: keras.Model, *, num_clips: int, slots_per_weight: int) -> memory.MemoryEstimate:
        return memory.MemoryEstimate(weights=0, gradients=0, slots=0, activations=num_clips * 2**30, input=0)

    def make(largest: int | None) -> None:
        monkeypatch.setattr(memory, "available_bytes", lambda: largest and largest * 2**30)
        monkeypatch.setattr(memory, "estimate", estimate)

    return make


def _step(
    accumulate: int = 1, num_replicas: int = 1, num_workers: int = 1, clips_per_call: int = 64
) -> StepMemory:
    return StepMemory(
        model=None,
        optimizer=OptimizerConfig(),
        num_replicas=num_replicas,
        num_workers=num_workers,
        accumulate=accumulate,
        clips_per_call=clips_per_call,
    )


def test_a_batch_that_fits_is_taken(machine: Machine) -> None:
    machine(8)
    assert resolve_batch_size(8, _step()) == 8


def test_a_batch_that_does_not_fit_is_rejected_with_the_microbatches_that_do(machine: Machine) -> None:
    machine(3)
    with pytest.raises(
        TrainError,
        match=r"on 8 clip\(s\) at a time needs about 8\.0 GiB.*only 3\.0 GiB are free.*--accumulate=4 ",
    ):
        resolve_batch_size(8, _step())
    assert resolve_batch_size(8, _step(accumulate=4)) == 8


def test_microbatches_are_counted_on_each_replica(machine: Machine) -> None:
    machine(3)
    with pytest.raises(TrainError, match=r"on 8 clip\(s\) at a time.*--accumulate=4 "):
        resolve_batch_size(16, _step(num_replicas=2))
    assert resolve_batch_size(16, _step(num_replicas=2, accumulate=4)) == 16


@pytest.mark.parametrize("batch_size", [8, None])
def test_where_no_clip_fits_fewer_blocks_are_advised(machine: Machine, batch_size: int | None) -> None:
    machine(0)
    with pytest.raises(TrainError, match="Train fewer blocks"):
        resolve_batch_size(batch_size, _step())


@pytest.mark.parametrize(
    ("largest", "step", "expected"),
    [
        pytest.param(3, _step(), 2, id="the largest power of two"),
        pytest.param(1000, _step(), 64, id="at most 64"),
        pytest.param(3, _step(accumulate=4), 8, id="in microbatches"),
        pytest.param(3, _step(num_replicas=3), 6, id="on three replicas"),
        pytest.param(1000, _step(num_replicas=128), 128, id="a clip for each replica at least"),
    ],
)
def test_auto(machine: Machine, largest: int, step: StepMemory, expected: int) -> None:
    machine(largest)
    assert resolve_batch_size(None, step) == expected


def test_auto_needs_to_know_the_memory(machine: Machine) -> None:
    machine(None)
    with pytest.raises(TrainError, match="cannot find out how much memory there is. Give a number"):
        resolve_batch_size(None, _step())
    assert resolve_batch_size(8, _step()) == 8


def test_auto_is_rejected_where_machines_could_choose_differently(machine: Machine) -> None:
    machine(8)
    with pytest.raises(TrainError, match="several could choose differently. Give a number"):
        resolve_batch_size(None, _step(num_workers=2))


def test_a_batch_that_replicas_and_microbatches_do_not_divide_is_rejected(machine: Machine) -> None:
    machine(100)
    with pytest.raises(TrainError, match="batch_size=6 .* 2 replica.* accumulate=6 .* multiple of 12"):
        resolve_batch_size(6, _step(num_replicas=2, accumulate=6))


@pytest.mark.parametrize(
    ("name", "ema", "accumulate", "clips_per_call", "slots"),
    [
        ("sgd", 0.0, 1, 2, 1),
        ("adamw", 0.0, 1, 2, 2),
        ("adamw", 0.9, 1, 2, 3),
        ("adamw", 0.9, 2, 2, 4),
        ("adamw", 0.9, 1, 1, 4),
    ],
)
def test_the_variables_of_the_optimizer_are_counted(
    name: str, ema: float, accumulate: int, clips_per_call: int, slots: int
) -> None:
    """And the sums of the gradients of microbatches."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(5)(inputs))
    step = StepMemory(
        model=model,
        optimizer=OptimizerConfig(name=name, ema=ema),
        num_replicas=1,
        num_workers=1,
        accumulate=accumulate,
        clips_per_call=clips_per_call,
    )
    estimate = step.estimate(2, accumulate)
    assert estimate.slots == slots * estimate.gradients == slots * (3 * 5 + 5) * 4


def test_a_batch_that_is_divided_needs_the_memory_of_a_part(machine: Machine) -> None:
    machine(3)
    assert resolve_batch_size(8, _step(clips_per_call=2)) == 8
    with pytest.raises(TrainError, match=r"on 8 clip\(s\) at a time needs about 4\.0 GiB.*--accumulate=4 "):
        resolve_batch_size(8, _step(clips_per_call=4))
