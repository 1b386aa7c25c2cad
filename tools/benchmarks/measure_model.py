"""Training steps on random frames, weights and labels; no videos are needed.

first step, frozen
    wall time of building the model, tracing the step and taking it, in a fresh process with TensorFlow
    loaded, in the precision that a run chooses; against the same model in which
    keras.layers.TimeDistributed applies VGG16
step, TRAINED, PRECISION
    a later step with a frozen backbone and no cached features, with --fine_tune=block5, and with the whole
    backbone trained; against
    - bare convolutions: VGG16's forward pass on the same frames, and the backward pass through its trained
      part, without preprocessing, head, loss and optimizer. The goal is a ratio of at most 1.10
    - TimeDistributed, as in the first step, with a frozen backbone
    - compiled by XLA: the same step, on a GPU
    - matrix product: that of two large matrices, for as many operations as the convolutions have. It shows
      the peak of the device: a ratio of 2.00 is half the peak
memory, TRAINED, PRECISION
    peak memory of the first step's tensors, against the estimate by which a run chooses its batch size;
    where TensorFlow counts memory, which it does on GPUs and on CPUs with oneDNN
head step, PRECISION
    a step of the head on cached features, against an LSTM without cuDNN; on a GPU

On a GPU, steps are measured in float32, bfloat16 and float16. Without one they are measured in float32, and
CPU time is measured too: it excludes other jobs on the machine and idle cores.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np

from measurement import Rounds, Row, Workload, in_fresh_process, in_turn, make_row
from vidpipe import command_line
from vidpipe.config import PRECISIONS, ClipSpec, ModelConfig, OptimizerConfig, TrainConfig

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_NUM_CLASSES = 5
_MIN_SEC = 1.0  # for a side's steps in a round: on a GPU one step is too short to time
_GPU_SIDE, _CPU_SIDE = 8192, 2048  # of the square matrices whose product is the peak
# --fine_tune, and its name in the table.
_TRAINED = {"none": "frozen", "block5": "block5", "all": "all trained"}
_log = logging.getLogger(__name__)

Step = Callable[[], object]
BuildModel = Callable[[ModelConfig, ClipSpec], "keras.Model"]
# By name of the side and by clock: ms per call in each round.
_Times = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, kw_only=True)
class LaterSteps:
    """What the steps after the first took.

    Attributes:
      clip_ms: by reference and clock: vidpipe's time per clip and the reference's in each round, ms.
      peak_mib: of the tensors in memory until the end of the first step; 0 where TensorFlow does not count.
      estimated_mib: the estimate of a run.
      xla_error: why XLA cannot compile the step; None if it can, or was not asked.
    """

    clip_ms: Mapping[tuple[str, str], Rounds]
    peak_mib: float
    estimated_mib: float
    xla_error: str | None = None


def measure(workload: Workload) -> Iterator[Row]:
    """Measures the first step, and later steps in each precision of the device."""
    spec, batch_size = workload.clip.spec(workload.clip.num_frames), workload.batch_size
    vidpipe, reference = (partial(first_step_sec, build) for build in (build_fused, build_time_distributed))
    first = [in_turn(repeat, vidpipe, reference, spec, batch_size) for repeat in range(workload.repeats)]
    yield make_row("first step, frozen", unit="wall s", reference="TimeDistributed", rounds=first)
    for precision in PRECISIONS[1:] if workload.on_gpu else ("float32",):
        short = precision.removeprefix("mixed_")
        for fine_tune, trained in _TRAINED.items():
            steps = in_fresh_process(
                later_steps, fine_tune, precision, spec, batch_size, workload.repeats, workload.on_gpu
            )
            yield from _later_rows(f"{trained}, {short}", steps)
        if workload.on_gpu:
            rounds = in_fresh_process(head_steps, precision, spec, batch_size, workload.repeats)
            yield make_row(
                f"head step, {short}", unit="wall ms/clip", reference="LSTM without cuDNN", rounds=rounds
            )


def _later_rows(name: str, steps: LaterSteps) -> Iterator[Row]:
    if steps.xla_error is not None:
        _log.warning("XLA cannot compile the step (%s), so its row is left out: %s", name, steps.xla_error)
    for (reference, clock), rounds in steps.clip_ms.items():
        yield make_row(f"step, {name}", unit=f"{clock} ms/clip", reference=reference, rounds=rounds)
    if steps.peak_mib > 0:
        memory = [(steps.peak_mib, steps.estimated_mib)]
        yield make_row(f"memory, {name}", unit="MiB", reference="the estimate", rounds=memory)


def build_fused(config: ModelConfig, spec: ClipSpec) -> "keras.Model":
    """Builds vidpipe's model, and as in a run the two parts it is cut into."""
    from vidpipe.model.fused import build_model

    return build_model(config, spec=spec, num_classes=_NUM_CLASSES, stored_frames=spec.num_frames).fused


def build_time_distributed(config: ModelConfig, spec: ClipSpec) -> "keras.Model":
    """Builds the same model with the layer of Keras that applies a network to each time step."""
    import keras
    from keras import layers

    from vidpipe.model.backbone import build_backbone, freeze_blocks
    from vidpipe.model.heads import build_head

    preprocess, backbone = build_backbone(config.backbone, config.backbone_weights, spec)
    freeze_blocks(config.backbone, backbone, config.fine_tune)
    frames = keras.Input((spec.num_frames, spec.height, spec.width, 3), dtype="uint8", name="frames")
    mask = keras.Input((spec.num_frames,), dtype="bool", name="mask")
    # Of padded frames too; the head ignores their features.
    features = layers.TimeDistributed(backbone)(layers.TimeDistributed(preprocess)(frames))
    return keras.Model({"frames": frames, "mask": mask}, build_head(config, mask, _NUM_CLASSES)(features))


def random_batch(spec: ClipSpec, batch_size: int) -> "tuple[tf.Tensor, tf.Tensor]":
    """Returns uint8 frames [B, T, H, W, 3] and int32 labels [B]."""
    import tensorflow as tf

    random = np.random.default_rng(1)
    shape = (batch_size, spec.num_frames, spec.height, spec.width, 3)
    frames = tf.constant(random.integers(0, 256, shape, np.uint8))
    return frames, tf.constant(random.integers(0, _NUM_CLASSES, batch_size, np.int32))


def training_step(
    model: "keras.Model",
    config: ModelConfig,
    precision: str,
    batch: "tuple[tf.Tensor, tf.Tensor]",
    input_name: str = "frames",
) -> Step:
    """Builds the training step of a run, on one batch in which every frame is real.

    Args:
      model: its inputs are `input_name` and `mask`.
      config: of the model.
      precision: the dtype policy.
      batch: frames or features [B, T, ...], and labels [B].
      input_name: `frames` or `features`.
    """
    import tensorflow as tf

    from vidpipe.model import memory
    from vidpipe.model.heads import ensemble_logits, with_linear_logits
    from vidpipe.training.optimizer import build_optimizer, layer_scales
    from vidpipe.training.step import Steps

    run = TrainConfig(
        data_dir="", run_dir="", model=config, optimizer=OptimizerConfig(ema=0.0), label_smoothing=0.0
    )
    scales = {}
    if config.fine_tune != "none":
        scales = layer_scales(
            model.get_layer("backbone"),
            backbone_lr_scale=run.optimizer.backbone_lr_scale,
            layer_decay=run.optimizer.layer_decay,
        )
    steps = Steps(
        run,
        model=model,
        ensemble=ensemble_logits(model),
        answers=with_linear_logits(model),
        optimizer=build_optimizer(
            run.optimizer, model.trainable_variables, scales=scales, precision=precision
        ),
        strategy=tf.distribute.get_strategy(),
        class_weights=np.ones(_NUM_CLASSES, np.float32),
        clips_per_call=memory.clips_per_call(model),
    )
    values, label = batch
    inputs = {input_name: values, "mask": tf.ones(values.shape[:2], tf.bool)}
    return partial(steps.train, inputs, label, tf.ones(label.shape), stop_requested=False)


def bare_convolutions(model: "keras.Model", frames: "tf.Tensor") -> Step:
    """Builds the least work of a training step: the convolutions of all its frames, already preprocessed.

    Args:
      model: of `build_fused`.
      frames: uint8 [B, T, H, W, 3].

    Returns:
      A step that returns the features [B * T, D] of a frozen backbone, or the gradients of its trained part.
    """
    import tensorflow as tf

    backbone = model.get_layer("backbone")
    trained = backbone.trainable_variables
    images = model.get_layer("preprocess")(tf.reshape(frames, [-1, *frames.shape[2:]]))

    @tf.function
    def forward(images: tf.Tensor) -> tf.Tensor:
        return backbone(images, training=False)

    @tf.function
    def forward_and_backward(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            features = backbone(images, training=True)
        return tape.gradient(features, trained)

    return partial(forward_and_backward if trained else forward, images)


def step_flops(backbone: "keras.Model", num_frames: int) -> int:
    """Counts the operations in a step's convolutions: forward, and backward through the trained part."""
    from keras import layers

    flops, trained_below = 0, False
    for layer in backbone.layers:
        if isinstance(layer, layers.Conv2D):
            forward = 2 * prod(layer.kernel.shape) * prod(layer.output.shape[1:3])
            # As many again for the gradient of its kernel, and of its input where a layer below is trained.
            flops += forward * (1 + layer.trainable + trained_below) * num_frames
            trained_below |= layer.trainable
    return flops


def first_step_sec(build: BuildModel, spec: ClipSpec, batch_size: int) -> float:
    """Returns the wall time of building a model, tracing its training step and taking it, seconds."""
    precision, config = _prepare(), ModelConfig(backbone_weights="none")
    batch = random_batch(spec, batch_size)
    start = time.perf_counter()
    _spent_sec(training_step(build(config, spec), config, precision, batch), 1)
    return time.perf_counter() - start


def later_steps(
    fine_tune: str, precision: str, spec: ClipSpec, batch_size: int, repeats: int, with_xla: bool
) -> LaterSteps:
    """Measures the steps after the first against the references."""
    _prepare(precision)
    import tensorflow as tf

    from vidpipe.model import memory

    config = ModelConfig(backbone_weights="none", fine_tune=fine_tune)
    device, side = ("GPU:0", _GPU_SIDE) if tf.config.list_physical_devices("GPU") else ("CPU:0", _CPU_SIDE)
    batch = random_batch(spec, batch_size)
    fused = build_fused(config, spec)
    step = training_step(fused, config, precision, batch)
    _spent_sec(step, 1)
    peak = peak_bytes(device)

    references: dict[str, Step] = {"bare convolutions": bare_convolutions(fused, batch[0])}
    if fine_tune == "none":
        time_distributed = build_time_distributed(config, spec)
        references["TimeDistributed"] = training_step(time_distributed, config, precision, batch)
    compiled, xla_error = None, None
    if with_xla:
        # A new step: its loops must be traced for XLA.
        compiled, xla_error = _compile_with_xla(training_step(fused, config, precision, batch))
    if compiled is not None:
        references["compiled by XLA"] = compiled
    factor = tf.cast(tf.random.normal([side, side]), fused.compute_dtype)
    references["matrix product"] = partial(tf.function(tf.linalg.matmul), factor, factor)
    times = _time_in_rounds({"vidpipe": step} | references, repeats)

    # How much of a call of a reference corresponds to one clip; of matrix products, as many operations.
    flops = step_flops(fused.get_layer("backbone"), spec.num_frames)
    per_clip = dict.fromkeys(references, 1 / batch_size) | {"matrix product": flops / (2 * side**3)}
    return LaterSteps(
        clip_ms={
            (name, clock): [
                (vidpipe / batch_size, reference * per_clip[name])
                for vidpipe, reference in zip(times["vidpipe"][clock], times[name][clock], strict=True)
            ]
            for name in references
            for clock in times[name]
        },
        peak_mib=peak / 2**20,
        estimated_mib=memory.estimate(fused, num_clips=batch_size, slots_per_weight=2).total / 2**20,
        xla_error=xla_error,
    )


def head_steps(precision: str, spec: ClipSpec, batch_size: int, repeats: int) -> Rounds:
    """Measures steps on cached features, ms per clip: as they are, and with LSTMs without cuDNN's kernel."""
    _prepare(precision)
    import tensorflow as tf
    from keras import layers

    from vidpipe.model.fused import build_model

    config = ModelConfig(backbone_weights="none")
    sides: dict[str, Step] = {}
    for use_cudnn in ("auto", False):
        trained = build_model(
            config, spec=spec, num_classes=_NUM_CLASSES, stored_frames=spec.num_frames
        ).trained
        assert trained is not None
        for layer in trained.get_layer("head").layers:
            if isinstance(layer, layers.LSTM):
                layer.use_cudnn = use_cudnn
        features = tf.random.normal([batch_size, *trained.input["features"].shape[1:]])
        batch = features, tf.zeros([batch_size], tf.int32)
        sides[str(use_cudnn)] = training_step(trained, config, precision, batch, input_name="features")
    times = [by_clock["wall"] for by_clock in _time_in_rounds(sides, repeats).values()]
    return [(auto / batch_size, without / batch_size) for auto, without in zip(*times, strict=True)]


def peak_bytes(device: str) -> int:
    """Returns the most memory that tensors have taken on a device; 0 where TensorFlow does not count it."""
    import tensorflow as tf

    try:
        return int(tf.config.experimental.get_memory_info(device)["peak"])
    except ValueError:  # a CPU whose allocator is not oneDNN's
        return 0


def _prepare(precision: str = TrainConfig.precision) -> str:
    """Does what a run does before it builds its model; returns the dtype policy."""
    command_line.load_tensorflow()
    import keras
    import tensorflow as tf

    from vidpipe.training.precision import resolve_precision

    policy = resolve_precision(precision)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(TrainConfig.seed)
    keras.config.set_dtype_policy(policy)
    return policy


def _compile_with_xla(step: Step) -> tuple[Step | None, str | None]:
    """Compiles a step that was not called before, and calls it; returns it, or None and the reason."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def compiled() -> None:
        step()

    try:
        compiled()
    except tf.errors.OpError as error:
        return None, (error.message or "no reason given").splitlines()[0]
    return compiled, None


def _time_in_rounds(sides: Mapping[str, Step], repeats: int) -> _Times:
    """Measures what a call of each side takes in each round."""
    import tensorflow as tf

    for step in sides.values():
        _spent_sec(step, 1)  # includes tracing
    num_calls = {name: ceil(_MIN_SEC / _spent_sec(step, 1)["wall"]) for name, step in sides.items()}
    # On a GPU the CPU time of the process is not that of the step.
    clocks = ["wall"] if tf.config.list_physical_devices("GPU") else ["wall", "CPU"]
    times: _Times = {name: {clock: [] for clock in clocks} for name in sides}
    names = list(sides)
    for repeat in range(repeats):
        # In turn, and another one first in each round: a machine that slows down slows all of them.
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds = _spent_sec(sides[name], num_calls[name])
            for clock in clocks:
                times[name][clock].append(1000 * seconds[clock] / num_calls[name])
    return times


def _spent_sec(step: Step, num_calls: int) -> dict[str, float]:
    """Measures calls one after the other, by clock; waits for a GPU once, at the end, as a run does."""
    import tensorflow as tf

    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(num_calls):
        step()
    tf.test.experimental.sync_devices()
    return {"wall": time.perf_counter() - start, "CPU": time.process_time() - cpu_start}
