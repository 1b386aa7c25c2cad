"""All that training, caching, evaluation and prediction compute has kernels for a GPU.

TensorFlow's packages for machines without a GPU register these kernels too, so that the test needs none.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import kernels

from vidpipe.config import TrainConfig
from vidpipe.data.dataset import Dataset
from vidpipe.model import heads
from vidpipe.training.precision import dtype_policy
from vidpipe.training.step import Steps
from vidpipe.training.trainee import build_trainee

MakeConfig = Callable[..., TrainConfig]
_FUNCTIONS = attrgetter("library.function")
# They run graphs, or stand for inputs and results of graphs.
_WITHOUT_KERNEL = {
    "While",
    "StatelessWhile",
    "If",
    "StatelessIf",
    "PartitionedCall",
    "StatefulPartitionedCall",
    "Placeholder",
}


def without_gpu_kernel(graph_def: Any) -> set[str]:
    """Names the operations of a graph and its functions for which no kernel for GPUs is registered."""
    nodes = [
        *graph_def.node,
        *(node for function in _FUNCTIONS(graph_def) for node in function.node_def),
    ]
    return {
        f"{node.op} {sorted(types.values())}"
        for node in nodes
        if node.op not in _WITHOUT_KERNEL
        for types in [_types(node)]
        if not any(_fits(kernel, types) for kernel in kernels.get_registered_kernels_for_op(node.op).kernel)
    }


def _types(node: Any) -> dict[str, str]:
    return {
        name: types_pb2.DataType.Name(value.type)
        for name, value in node.attr.items()
        if value.HasField("type")
    }


def _fits(kernel: Any, types: Mapping[str, str]) -> bool:
    allowed = {
        constraint.name: {types_pb2.DataType.Name(value) for value in constraint.allowed_values.list.type}
        for constraint in kernel.constraint
    }
    return kernel.device_type in ("GPU", "DEFAULT") and all(
        types[name] in names for name, names in allowed.items() if name in types
    )


def test_an_operation_without_a_kernel_is_named() -> None:
    @tf.function
    def gather(frames: tf.Tensor) -> tf.Tensor:
        return tf.gather(frames, [0])

    @tf.function
    def nested(frames: tf.Tensor) -> tf.Tensor:
        return (
            tf.map_fn(gather, tf.cast(frames, tf.float32)) if frames.dtype == tf.float32 else gather(frames)
        )

    for dtype, expected in ((tf.float32, set()), (tf.uint8, {"GatherV2"})):
        graph = nested.get_concrete_function(tf.zeros([3, 2], dtype)).graph.as_graph_def()
        assert {name.split()[0] for name in without_gpu_kernel(graph)} == expected


@pytest.fixture
def traced(dataset: Dataset, train_config: MakeConfig) -> Callable[..., Iterator[tuple[str, Any]]]:
    """Traces the functions of a run with an ensemble of 1, in microbatches; yields their names and graphs."""

    def trace(
        precision: str, model: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        strategy = tf.distribute.get_strategy()
        config = train_config(Path("run"), **settings)
        config = replace(config, model=replace(config.model, ensemble_size=1, **model))
        with dtype_policy(precision):
            trainee, fused = build_trainee(
                config, dataset, num_frames=4, strategy=strategy, precision=precision
            )
        steps = Steps(
            config,
            model=trainee.model,
            ensemble=trainee.ensemble,
            answers=trainee.answers,
            optimizer=trainee.optimizer,
            strategy=strategy,
            class_weights=np.ones(2, np.float32),
            clips_per_call=3,
        )
        inputs = {
            name: tf.zeros([6, *tensor.shape[1:]], tensor.dtype)
            for name, tensor in trainee.model.input.items()
        }
        label, weight = tf.zeros([6], tf.int32), tf.ones([6])
        yield "train", steps._train.get_concrete_function(inputs, label, weight, tf.constant(0.0))
        yield "evaluate", steps.evaluate.get_concrete_function(inputs, label, weight)
        if fused.frozen is not None:
            yield "frozen blocks", fused.frozen._step.get_concrete_function()
        statistics = heads.statistics_extractor(trainee.model)
        yield (
            "statistics",
            tf.function(lambda values: statistics(values, training=False)).get_concrete_function(inputs),
        )

    return trace


@pytest.mark.parametrize(
    ("precision", "model", "settings"),
    [
        ("float32", {"fine_tune": "all"}, {"augment": "flip_crop_colour", "mixup": 0.4}),
        ("mixed_bfloat16", {}, {}),
        (
            "mixed_bfloat16",
            {"fine_tune": "block5", "pixel_differences": True},
            {"batch_size": 6, "accumulate": 2},
        ),
        pytest.param("mixed_float16", {"fine_tune": "all"}, {}, marks=pytest.mark.slow),
        pytest.param("mixed_float16", {"head": "notebook"}, {}, marks=pytest.mark.slow),
        pytest.param(
            "float32", {"fine_tune": "block5", "backbone": "mobilenet_v2"}, {}, marks=pytest.mark.slow
        ),
        pytest.param(
            "mixed_bfloat16", {"fine_tune": "block4", "backbone": "convnext_tiny"}, {}, marks=pytest.mark.slow
        ),
    ],
)
def test_all_that_a_run_computes_has_kernels(
    traced: Callable[..., Iterator[tuple[str, Any]]],
    precision: str,
    model: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    names = []
    for name, function in traced(precision, model, settings):
        names.append(name)
        assert without_gpu_kernel(function.graph.as_graph_def()) == set(), name
    assert names[:2] == ["train", "evaluate"]
