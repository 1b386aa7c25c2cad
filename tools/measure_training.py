"""The training side's half of `benchmark.py`: a step, a run's epochs, and the notebook's whole job.

TensorFlow is imported inside the functions that use it: the process that prints the table never needs it.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil, prod
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import cv2
import numpy as np

import cli
from measure_input import Rounds, in_fresh_process, link_many, load_as_notebook, row
from vidpipe.config import PRECISIONS, ClipConfig, ConversionConfig, ManifestConfig, ModelConfig, TrainConfig
from vidpipe.manifest import VideoRow
from vidpipe.spec import ClipSpec, VidpipeError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_NUM_CLASSES = 5
_EPOCHS = 10
_NOTEBOOK_BATCH = 64
_FED_BATCH = 8
_SIDE_SEC = 1.0  # a side's steps in a round take this long at least: on a GPU one step is too short to time
_GPU_SIDE, _CPU_SIDE = 8192, 2048  # of the square matrices whose product is the peak
_GPU_COPIES = 10  # of each video where clips are fed to a GPU: an epoch must outlast the start of its input

_Result = TypeVar("_Result")
Step = Callable[[], object]


class UnequalWorkError(VidpipeError):
    """The two sides of a measurement did not do the same work."""


@dataclass(frozen=True)
class Job:
    """What it took to come from video files to trained weights, seconds.

    Attributes:
      load: until the frames are in memory, or in records.
      features: from then on until there are features of every frame; with the building of VGG16.
      train: from then on until the last epoch's weights are on the disk.
      num_frames: of which features were computed.
      encode: the part of `features` in which VGG16 ran; this and what follows, of ours alone.
      epochs: each with all that is written after it; the first from the start of `train` on.
      epoch_steps: the steps of each.
    """

    load: float
    features: float
    train: float
    num_frames: int
    encode: float = 0.0
    epochs: Sequence[float] = ()
    epoch_steps: Sequence[float] = ()

    @property
    def whole(self) -> float:
        """From the first video to the last weights."""
        return self.load + self.features + self.train


def benchmark_model(num_clips: int, clip: ClipConfig, repeats: int, on_gpu: bool) -> Iterator[dict[str, Any]]:
    """A fused step against TimeDistributed, its convolutions, the device's peak, XLA and its estimate."""
    spec = clip.model_spec()
    ours, theirs = (partial(_first_step_sec, build) for build in (build_fused, build_time_distributed))
    first = [_in_turn(repeat, ours, theirs, spec, num_clips) for repeat in range(repeats)]
    yield row("first step, frozen", "wall s", "TimeDistributed", first)
    for precision in PRECISIONS[1:] if on_gpu else ("float32",):
        for fine_tune in ("none", "block5", "all"):
            of = f"{'frozen' if fine_tune == 'none' else fine_tune}, {precision.removeprefix('mixed_')}"
            steps = in_fresh_process(_later_steps, fine_tune, precision, spec, num_clips, repeats, on_gpu)
            for (against, clock), rounds in steps.clip_ms.items():
                yield row(f"step, {of}", f"{clock} ms/clip", against, rounds)
            if steps.peak_mib > 0:
                yield row(f"memory, {of}", "MiB", "the estimate", [(steps.peak_mib, steps.estimated_mib)])
        if on_gpu:
            rounds = in_fresh_process(_head_steps, precision, spec, num_clips, repeats)
            what = f"head's step, {precision.removeprefix('mixed_')}"
            yield row(what, "wall ms/clip", "LSTM without cuDNN", rounds)


def benchmark_train(
    video_dir: str, videos: list[VideoRow], clip: ClipConfig, repeats: int, on_gpu: bool
) -> Iterator[dict[str, Any]]:
    """First epoch against later ones, the job against the notebook's, part by part; and waiting for data."""
    rounds = [
        _in_turn(repeat, vidpipe_job, notebook_job, video_dir, videos, clip) for repeat in range(repeats)
    ]
    for ours, theirs in rounds:
        if ours.num_frames != theirs.num_frames:
            raise UnequalWorkError(
                f"vidpipe computed the features of {ours.num_frames} frames, the notebook those of "
                f"{theirs.num_frames}. Leave out the videos that only one of them can read."
            )

    def clip_row(what: str, against: str, pairs: Iterable[tuple[float, float]]) -> dict[str, Any]:
        per_clip = 1000 / len(videos)
        return row(
            what, "wall ms/clip", against, [(one * per_clip, other * per_clip) for one, other in pairs]
        )

    jobs = [job for job, _ in rounds]
    yield clip_row(
        "features and epoch 1",
        "a later epoch",
        [(job.encode + job.epochs[0], median(job.epochs[1:])) for job in jobs],
    )
    yield clip_row(
        "features and epoch 1's steps",
        "a later epoch's",
        [(job.encode + job.epoch_steps[0], median(job.epoch_steps[1:])) for job in jobs],
    )
    parts = {"convert": "load", "features": "features", f"{_EPOCHS} epochs": "train"}
    for what, part in (parts | {"from videos to weights": "whole"}).items():
        pairs = [(getattr(ours, part), getattr(theirs, part)) for ours, theirs in rounds]
        yield clip_row(what, "the notebook", pairs)
    paths = [str(Path(video_dir, video.path)) for video in videos]
    waits = in_fresh_process(_waits_ms, video_dir, paths, clip, repeats, _GPU_COPIES if on_gpu else 1)
    yield row("waiting for JPEG, frozen", "wall ms/clip", "the epoch", waits)


def _in_turn(
    repeat: int, ours: Callable[..., _Result], theirs: Callable[..., _Result], *arguments: object
) -> tuple[_Result, _Result]:
    """Both, each in a fresh process. Who comes first alternates: the second finds files in the caches."""
    if repeat % 2:
        first = in_fresh_process(ours, *arguments)
        return first, in_fresh_process(theirs, *arguments)
    first = in_fresh_process(theirs, *arguments)
    return in_fresh_process(ours, *arguments), first


def build_fused(config: ModelConfig, spec: ClipSpec) -> "keras.Model":
    """Our model; with it, as in a run, the two that it is cut into."""
    from vidpipe.model import build_model

    return build_model(config, spec, _NUM_CLASSES).fused


def build_time_distributed(config: ModelConfig, spec: ClipSpec) -> "keras.Model":
    """The same model with Keras's layer for what is done to each time step."""
    import keras
    from keras import layers

    from vidpipe.backbone import build_backbone, freeze_blocks
    from vidpipe.model import build_head

    preprocess, backbone = build_backbone(config.backbone, config.backbone_weights, spec)
    freeze_blocks(config.backbone, backbone, config.fine_tune)
    frames = keras.Input((spec.num_frames, spec.height, spec.width, 3), dtype="uint8", name="frames")
    mask = keras.Input((spec.num_frames,), dtype="bool", name="mask")
    # Those of padding too; the heads leave them out.
    features = layers.TimeDistributed(backbone)(layers.TimeDistributed(preprocess)(frames))
    return keras.Model({"frames": frames, "mask": mask}, build_head(config, mask, _NUM_CLASSES)(features))


def random_batch(spec: ClipSpec, num_clips: int) -> tuple["tf.Tensor", ...]:
    """uint8 frames [B, T, H, W, 3] and int32 labels [B]."""
    import tensorflow as tf

    random = np.random.default_rng(1)
    shape = (num_clips, spec.num_frames, spec.height, spec.width, 3)
    frames = tf.constant(random.integers(0, 256, shape, np.uint8))
    return frames, tf.constant(random.integers(0, _NUM_CLASSES, num_clips, np.int32))


def training_step(
    model: "keras.Model",
    config: ModelConfig,
    precision: str,
    batch: tuple["tf.Tensor", ...],
    name: str = "frames",
) -> "tuple[tf.types.experimental.PolymorphicFunction, tuple[Any, ...]]":
    """The step of a run, and what it is called with: a batch whose frames, or features, are all real."""
    import tensorflow as tf

    from vidpipe.optimizer import build_optimizer, layer_scales
    from vidpipe.step import Steps

    run = TrainConfig("", "", config)
    scales = {}
    if config.fine_tune != "none":
        backbone = model.get_layer("backbone")
        scales = layer_scales(backbone, run.optimizer.backbone_lr_scale, run.optimizer.layer_decay)
    optimizer = build_optimizer(run.optimizer, model.trainable_variables, scales, precision)
    steps = Steps(run, model, optimizer, tf.distribute.get_strategy(), np.ones(_NUM_CLASSES, np.float32))
    frames, label = batch
    inputs = {name: frames, "mask": tf.ones(frames.shape[:2], tf.bool)}
    return steps.train, (inputs, label, tf.ones(label.shape), tf.constant(0.0))


def bare_convolutions(
    model: "keras.Model", batch: tuple["tf.Tensor", ...]
) -> "tuple[tf.types.experimental.PolymorphicFunction, tuple[Any, ...]]":
    """The floor of a step of `build_fused`'s model, and what it is called with: all frames, preprocessed.

    It returns the features [B * T, D] of a frozen backbone, else the gradients of what of it is trained.
    """
    import tensorflow as tf

    backbone, frames = model.get_layer("backbone"), batch[0]
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

    return (forward_and_backward if trained else forward), (images,)


def gpu_names() -> list[str]:
    """Of the GPUs that TensorFlow sees."""
    cli.load_tensorflow()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]


def step_flops(backbone: "keras.Model", num_frames: int) -> int:
    """Operations in the convolutions of a step, those of the backward pass through what is trained too."""
    from keras import layers

    flops, trained_below = 0, False
    for layer in backbone.layers:
        if isinstance(layer, layers.Conv2D):
            forward = 2 * prod(layer.kernel.shape) * prod(layer.output.shape[1:3])
            # Its kernel's gradient, and that of its input where someone below needs it, are as much again.
            flops += forward * (1 + layer.trainable + trained_below) * num_frames
            trained_below |= layer.trainable
    return flops


def _prepare(precision: str = TrainConfig.precision) -> str:
    """Does what a run does before it builds its model; returns the dtype policy."""
    cli.load_tensorflow()
    import keras
    import tensorflow as tf

    from vidpipe import train

    precision = train.resolve_precision(precision)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(TrainConfig.seed)
    keras.config.set_dtype_policy(precision)
    return precision


def _first_step_sec(
    build: Callable[[ModelConfig, ClipSpec], "keras.Model"], spec: ClipSpec, num_clips: int
) -> float:
    """Until a model is built and its first step, which has to be traced, is over; TensorFlow is loaded."""
    precision, config = _prepare(), ModelConfig(backbone_weights="none")
    batch = random_batch(spec, num_clips)
    start = time.perf_counter()
    step, arguments = training_step(build(config, spec), config, precision, batch)
    _spent_sec(partial(step, *arguments), 1)
    return time.perf_counter() - start


@dataclass(frozen=True)
class _LaterSteps:
    """What steps took after the first.

    Attributes:
      clip_ms: ours and the other side's of each round, by what the other is and by which clock.
      peak_mib: of the tensors in memory, until the end of the first step; 0 where TensorFlow does not count.
      estimated_mib: what a run expects.
    """

    clip_ms: dict[tuple[str, str], Rounds]
    peak_mib: float
    estimated_mib: float


def _peak_bytes(device: str) -> int:
    """The most that tensors took on a device so far; 0 where TensorFlow does not count."""
    import tensorflow as tf

    try:
        return int(tf.config.experimental.get_memory_info(device)["peak"])
    except ValueError:  # a CPU whose allocator is not oneDNN's
        return 0


def _later_steps(
    fine_tune: str, precision: str, spec: ClipSpec, num_clips: int, repeats: int, with_xla: bool
) -> _LaterSteps:
    _prepare(precision)
    import tensorflow as tf

    from vidpipe import memory

    config = ModelConfig(backbone_weights="none", fine_tune=fine_tune)
    device, side = ("GPU:0", _GPU_SIDE) if tf.config.list_physical_devices("GPU") else ("CPU:0", _CPU_SIDE)
    batch = random_batch(spec, num_clips)
    fused = build_fused(config, spec)
    step, arguments = training_step(fused, config, precision, batch)
    _spent_sec(partial(step, *arguments), 1)
    peak = _peak_bytes(device)

    calls = {"ours": (step, arguments), "bare convolutions": bare_convolutions(fused, batch)}
    if fine_tune == "none":
        other = build_time_distributed(config, spec)
        calls["TimeDistributed"] = training_step(other, config, precision, batch)
    if with_xla:
        compiled = tf.function(step.python_function, jit_compile=True)
        try:
            compiled(*arguments)
        except tf.errors.OpError as error:
            reason = (error.message or "it does not say why").splitlines()[0]
            print(f"XLA cannot compile the next step, and its row is left out: {reason}", flush=True)
        else:
            calls["compiled by XLA"] = compiled, arguments
    factor = tf.cast(tf.random.normal([side, side]), fused.compute_dtype)
    calls["matrix product"] = tf.function(tf.linalg.matmul), (factor, factor)
    spent = _in_rounds(
        {name: partial(step, *arguments) for name, (step, arguments) in calls.items()}, repeats
    )
    ours = spent.pop("ours")

    # What of the others makes one clip. Of matrix products: as many operations.
    flops = step_flops(fused.get_layer("backbone"), spec.num_frames)
    parts = dict.fromkeys(spent, 1 / num_clips) | {"matrix product": flops / (2 * side**3)}
    return _LaterSteps(
        clip_ms={
            (name, clock): [
                (own / num_clips, other * parts[name]) for own, other in zip(ours[clock], others, strict=True)
            ]
            for name, by_clock in spent.items()
            for clock, others in by_clock.items()
        },
        peak_mib=peak / 2**20,
        estimated_mib=memory.estimate(fused, num_clips, slots_per_weight=2).total / 2**20,
    )


def _head_steps(precision: str, spec: ClipSpec, num_clips: int, repeats: int) -> Rounds:
    """Steps on stored features, ms/clip: as they are, and with the LSTM kept off cuDNN's kernel."""
    _prepare(precision)
    import tensorflow as tf
    from keras import layers

    from vidpipe.model import build_model

    config = ModelConfig(backbone_weights="none")
    sides = {}
    for use_cudnn in ("auto", False):
        trained = build_model(config, spec, _NUM_CLASSES).trained
        assert trained is not None
        for layer in trained.get_layer("head").layers:
            if isinstance(layer, layers.LSTM):
                layer.use_cudnn = use_cudnn
        features = tf.random.normal([num_clips, *trained.input["features"].shape[1:]])
        label = tf.zeros([num_clips], tf.int32)
        step, arguments = training_step(trained, config, precision, (features, label), "features")
        sides[str(use_cudnn)] = partial(step, *arguments)
    spent = [by_clock["wall"] for by_clock in _in_rounds(sides, repeats).values()]
    return [(with_it / num_clips, off / num_clips) for with_it, off in zip(*spent, strict=True)]


def _in_rounds(sides: Mapping[str, Step], repeats: int) -> dict[str, dict[str, list[float]]]:
    """What a call of each side takes, ms, by clock, in each round."""
    import tensorflow as tf

    for step in sides.values():
        _spent_sec(step, 1)  # traced and warm
    calls = {name: ceil(_SIDE_SEC / _spent_sec(step, 1)["wall"]) for name, step in sides.items()}
    # What a process spends of the CPU is not what a step on a GPU takes.
    clocks = ["wall"] if tf.config.list_physical_devices("GPU") else ["wall", "CPU"]
    spent: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in sides}
    for repeat in range(repeats):
        # In turn, and each comes first once: a machine that slows down slows all.
        order = [*sides][repeat % len(sides) :] + [*sides][: repeat % len(sides)]
        for name in order:
            seconds = _spent_sec(sides[name], calls[name])
            for clock in clocks:
                spent[name][clock].append(1000 * seconds[clock] / calls[name])
    return spent


def _spent_sec(step: Step, num_steps: int) -> dict[str, float]:
    """Of so many steps one after the other; a GPU is waited for once, at the end, as a run does."""
    import tensorflow as tf

    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(num_steps):
        step()
    tf.test.experimental.sync_devices()
    return {"wall": time.perf_counter() - start, "CPU": time.process_time() - cpu_start}


def vidpipe_job(video_dir: str, videos: list[VideoRow], clip: ClipConfig) -> Job:
    """Converts, computes features and trains the notebook's head; all clips are trained on."""
    cli.load_tensorflow()
    from vidpipe import convert, feature_cache, loop, train

    logging.getLogger(train.__name__).setLevel(logging.ERROR)  # it warns that there is no validation split
    with (
        tempfile.TemporaryDirectory() as folder,
        _noted(feature_cache, "cached_features") as cached,
        _noted(loop, "save_checkpoint") as saved,
    ):
        data_dir, run_dir = f"{folder}/records", f"{folder}/run"
        config = TrainConfig(
            data_dir,
            run_dir,
            ModelConfig(backbone_weights="none", head="notebook"),
            epochs=_EPOCHS,
            batch_size=min(_NOTEBOOK_BATCH, len(videos)),
            cache_features="on",
        )
        start = time.perf_counter()
        convert.convert(ConversionConfig(data_dir, ManifestConfig(video_dir, val_fraction=0), clip))
        converted = time.perf_counter()
        train.train(config)
        end = time.perf_counter()
        history = np.genfromtxt(f"{run_dir}/history.csv", delimiter=",", names=True)
        ((table, encode_start, encoded),) = cached
        num_frames = int(table.mask.sum())
    return Job(
        load=converted - start,
        features=encoded - converted,
        train=end - encoded,
        num_frames=num_frames,
        encode=encoded - encode_start,
        epochs=[end - start for start, end in pairwise([encoded, *(end for _, _, end in saved)])],
        epoch_steps=history["seconds"].tolist(),
    )


@contextmanager
def _noted(module: ModuleType, name: str) -> Iterator[list[tuple[Any, float, float]]]:
    """Inside the block, notes what each call of a function returns, when it began and when it ended."""
    function = getattr(module, name)
    calls: list[tuple[Any, float, float]] = []

    def noting(*arguments: object, **named: object) -> object:
        start = time.perf_counter()
        returned = function(*arguments, **named)
        calls.append((returned, start, time.perf_counter()))
        return returned

    with mock.patch.object(module, name, noting):
        yield calls


def notebook_job(video_dir: str, videos: list[VideoRow], clip: ClipConfig) -> Job:
    """As the keras-io CNN-RNN example: frame after frame through predict(), then `fit` of the head."""
    cli.load_tensorflow()
    import keras
    from keras import applications, layers

    from vidpipe.model import notebook_head

    classes = sorted({video.label_name for video in videos})
    labels = np.array([classes.index(video.label_name) for video in videos])
    mask = np.zeros([len(videos), clip.num_frames], bool)
    features = np.zeros([*mask.shape, 512], np.float32)

    start = time.perf_counter()
    images = keras.Input((clip.image_size, clip.image_size, 3))
    network = applications.VGG16(weights=None, include_top=False, pooling="avg", input_shape=images.shape[1:])
    extractor = keras.Model(images, network(applications.vgg16.preprocess_input(images)))
    load = 0.0
    for number, video in enumerate(videos):
        load_start = time.perf_counter()
        frames = load_as_notebook(cv2.VideoCapture(str(Path(video_dir, video.path))), clip.image_size)
        load += time.perf_counter() - load_start
        for place, frame in enumerate(frames[: clip.num_frames]):
            features[number, place] = extractor.predict(frame[np.newaxis], verbose=0)
            mask[number, place] = True
    encoded = time.perf_counter()

    feature_input = keras.Input(features.shape[1:])
    mask_input = keras.Input(mask.shape[1:], dtype="bool")
    probabilities = layers.Dense(len(classes), activation="softmax")
    head = notebook_head(feature_input, mask_input)(0)
    model = keras.Model([feature_input, mask_input], probabilities(head))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        best = keras.callbacks.ModelCheckpoint(
            f"{folder}/best.weights.h5", "loss", save_best_only=True, save_weights_only=True
        )
        model.fit([features, mask], labels, _NOTEBOOK_BATCH, _EPOCHS, verbose=0, callbacks=[best])
        end = time.perf_counter()
    return Job(load=load, features=encoded - start - load, train=end - encoded, num_frames=int(mask.sum()))


def _waits_ms(video_dir: str, paths: list[str], clip: ClipConfig, repeats: int, copies: int) -> Rounds:
    """Of a frozen run that reads JPEG shards in every epoch: the wait for data and all, ms/clip, by epoch."""
    cli.load_tensorflow()
    from vidpipe import convert, train

    logging.getLogger(train.__name__).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        link_many(paths, video_dir, f"{folder}/videos", copies)
        manifest = ManifestConfig(f"{folder}/videos", val_fraction=0)
        convert.convert(ConversionConfig(f"{folder}/records", manifest, clip))
        config = TrainConfig(
            f"{folder}/records",
            f"{folder}/run",
            ModelConfig(backbone_weights="none"),
            epochs=1 + repeats,
            batch_size=_FED_BATCH,
            cache_features="off",
        )
        train.train(config)
        # Not the first: it has the tracing of the step.
        history = np.genfromtxt(f"{folder}/run/history.csv", delimiter=",", names=True)[1:]
    epoch_ms = 1000 * history["seconds"] / (copies * len(paths))
    return list(zip((epoch_ms * history["data_wait"]).tolist(), epoch_ms.tolist(), strict=True))
