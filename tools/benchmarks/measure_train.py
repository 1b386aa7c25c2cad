"""The complete job of the Keras notebook, from video files to trained weights, each side in a fresh process.

The notebook loads every frame of a video, keeps the first T, computes the features of each frame with a
predict() of its own, and fits its head for ten epochs. vidpipe converts the videos with --sampling=head
(the same frames), computes the features and trains --recipe=notebook. Neither has a validation split. After
an epoch vidpipe writes its model and a checkpoint, the notebook writes weights that are better. All values
are wall time per clip, without the import of TensorFlow.

features and epoch 1
    including all that is written after the epoch, against a later epoch, which reads cached features. The
    goal is fifty times
features, steps of epoch 1
    the same for the steps alone
convert, features, 10 epochs, from videos to weights
    the three parts of the job and their sum, against those of the notebook. Building VGG16 counts as
    features
waiting for JPEG, frozen
    of a frozen run that caches no features and reads JPEG in every epoch: the time in which steps wait for
    data, against the complete epoch

A round passes all frames through VGG16 twice: without a GPU, eight videos are enough.
"""

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any
from unittest import mock

import cv2
import numpy as np

from measurement import Rounds, Row, Workload, in_fresh_process, in_turn, make_row
from references import load_all_frames
from video_folders import link_copies
from vidpipe import command_line
from vidpipe.config import (
    ClipConfig,
    ConversionConfig,
    ManifestConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from vidpipe.data.video_row import VideoRow
from vidpipe.errors import VidpipeError
from vidpipe.training.recipes import RECIPES

_RECIPE = RECIPES["notebook"]
_EPOCHS, _NOTEBOOK_BATCH = 10, 64
_WAITING_BATCH = 8
_GPU_COPIES = (
    10  # of each video where steps wait for data: on a GPU an epoch must outlast the start of its input
)


class UnequalWorkError(VidpipeError):
    """The two sides of a measurement did not do the same work."""


@dataclass(frozen=True)
class Job:
    """What it took to come from video files to trained weights, seconds.

    Attributes:
      load: until the frames are in memory, or in records.
      features: from then on until the features of every frame are computed; includes building VGG16.
      train: from then on until the last epoch's weights are on the disk.
      num_frames: the number of frames whose features were computed.
      encode: vidpipe only: the part of `features` in which VGG16 ran.
      epochs: vidpipe only: each with all that is written after it; the first from the start of `train`.
      epoch_steps: vidpipe only: the steps of each epoch.
    """

    load: float
    features: float
    train: float
    num_frames: int
    encode: float = 0.0
    epochs: Sequence[float] = ()
    epoch_steps: Sequence[float] = ()

    @property
    def total(self) -> float:
        """From the first video to the last weights."""
        return self.load + self.features + self.train


def measure(workload: Workload) -> Iterator[Row]:
    """Measures both jobs, and how long steps wait for data.

    Raises:
      UnequalWorkError: the two sides computed the features of different numbers of frames.
    """
    clip = replace(workload.clip, sampling=_RECIPE.clip.sampling)
    jobs = [
        in_turn(repeat, vidpipe_job, notebook_job, workload.video_dir, workload.videos, clip)
        for repeat in range(workload.repeats)
    ]
    for vidpipe, notebook in jobs:
        if vidpipe.num_frames != notebook.num_frames:
            raise UnequalWorkError(
                f"vidpipe computed the features of {vidpipe.num_frames} frames, the notebook those of "
                f"{notebook.num_frames}. Remove the videos that only one of them can read from --video_dir."
            )
    yield from _job_rows(jobs, len(workload.videos))
    copies = _GPU_COPIES if workload.on_gpu else 1
    waits = in_fresh_process(waits_ms, workload.video_dir, workload.paths, clip, workload.repeats, copies)
    yield make_row("waiting for JPEG, frozen", unit="wall ms/clip", reference="the epoch", rounds=waits)


def _job_rows(jobs: Sequence[tuple[Job, Job]], num_clips: int) -> Iterator[Row]:
    def row(what: str, reference: str, seconds: Iterable[tuple[float, float]]) -> Row:
        rounds = [(1000 * first / num_clips, 1000 * second / num_clips) for first, second in seconds]
        return make_row(what, unit="wall ms/clip", reference=reference, rounds=rounds)

    own = [vidpipe for vidpipe, _ in jobs]
    yield row(
        "features and epoch 1",
        "a later epoch",
        [(job.encode + job.epochs[0], median(job.epochs[1:])) for job in own],
    )
    yield row(
        "features, steps of epoch 1",
        "steps of a later epoch",
        [(job.encode + job.epoch_steps[0], median(job.epoch_steps[1:])) for job in own],
    )
    yield row("convert", "notebook", [(vidpipe.load, notebook.load) for vidpipe, notebook in jobs])
    yield row("features", "notebook", [(vidpipe.features, notebook.features) for vidpipe, notebook in jobs])
    yield row(
        f"{_EPOCHS} epochs", "notebook", [(vidpipe.train, notebook.train) for vidpipe, notebook in jobs]
    )
    yield row(
        "from videos to weights", "notebook", [(vidpipe.total, notebook.total) for vidpipe, notebook in jobs]
    )


def vidpipe_job(video_dir: str, videos: Sequence[VideoRow], clip: ClipConfig) -> Job:
    """Converts the videos, computes features and trains the recipe `notebook`, on all clips."""
    _load_quiet_tensorflow()
    from vidpipe.data import convert
    from vidpipe.model import feature_cache
    from vidpipe.training import saved_state, train
    from vidpipe.training.run_folder import RunFolder

    with (
        tempfile.TemporaryDirectory() as folder,
        _recorded_calls(feature_cache, "cached_features") as cached,
        _recorded_calls(saved_state, "save_checkpoint") as saved,
    ):
        data_dir, run_dir = f"{folder}/records", f"{folder}/run"
        config = _RECIPE.train_config(data_dir=data_dir, run_dir=run_dir)
        config = replace(
            config,
            model=replace(config.model, backbone_weights="none"),
            batch_size=min(_NOTEBOOK_BATCH, len(videos)),
            cache_features="on",
        )
        start = time.perf_counter()
        convert.convert(_conversion(video_dir, data_dir, clip))
        converted = time.perf_counter()
        train.train(config)
        end = time.perf_counter()
        history = RunFolder(Path(run_dir)).read_history()
        ((table, encode_start, encoded),) = cached
        num_frames = int(table.mask.sum())
    return Job(
        load=converted - start,
        features=encoded - converted,
        train=end - encoded,
        num_frames=num_frames,
        encode=encoded - encode_start,
        epochs=[stop - start for start, stop in pairwise([encoded, *(stop for _, _, stop in saved)])],
        epoch_steps=[row["seconds"] for row in history],
    )


def notebook_job(video_dir: str, videos: Sequence[VideoRow], clip: ClipConfig) -> Job:
    """Does as the Keras CNN-RNN example: one predict() per frame, then `fit` of the head."""
    command_line.load_tensorflow()
    import keras
    from keras import applications, layers

    from vidpipe.model.heads import notebook_head

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
        frames = load_all_frames(cv2.VideoCapture(str(Path(video_dir, video.path))), clip.image_size)
        load += time.perf_counter() - load_start
        for index, frame in enumerate(frames[: clip.num_frames]):
            features[number, index] = extractor.predict(frame[np.newaxis], verbose=0)
            mask[number, index] = True
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


def waits_ms(video_dir: str, paths: Sequence[str], clip: ClipConfig, repeats: int, copies: int) -> Rounds:
    """Trains a frozen run that reads JPEG shards in every epoch.

    Returns:
      The wait for data and the complete epoch, ms per clip, of each epoch after the first, which includes
      tracing.
    """
    _load_quiet_tensorflow()
    from vidpipe.data import convert
    from vidpipe.training import train
    from vidpipe.training.run_folder import RunFolder

    with tempfile.TemporaryDirectory() as folder:
        link_copies(paths, video_dir, f"{folder}/videos", copies)
        convert.convert(_conversion(f"{folder}/videos", f"{folder}/records", clip))
        config = TrainConfig(
            data_dir=f"{folder}/records",
            run_dir=f"{folder}/run",
            model=ModelConfig(backbone_weights="none"),
            optimizer=OptimizerConfig(ema=0.0),
            label_smoothing=0.0,
            epochs=1 + repeats,
            batch_size=_WAITING_BATCH,
            cache_features="off",
        )
        train.train(config)
        history = RunFolder(Path(config.run_dir)).read_history()[1:]
    epochs_ms = [1000 * row["seconds"] / (copies * len(paths)) for row in history]
    return [(epoch_ms * row["data_wait"], epoch_ms) for epoch_ms, row in zip(epochs_ms, history, strict=True)]


def _load_quiet_tensorflow() -> None:
    command_line.load_tensorflow()
    from vidpipe.training import train

    # It warns that there is no validation split.
    logging.getLogger(train.__name__).setLevel(logging.ERROR)


def _conversion(video_dir: str, data_dir: str, clip: ClipConfig) -> ConversionConfig:
    manifest = ManifestConfig(video_dir=video_dir, val_fraction=0)
    return ConversionConfig(output_dir=data_dir, manifest=manifest, clip=clip)


@contextmanager
def _recorded_calls(module: ModuleType, name: str) -> Iterator[list[tuple[Any, float, float]]]:
    """Records, inside the block, the result, the start and the end of each call of a function."""
    function = getattr(module, name)
    calls: list[tuple[Any, float, float]] = []

    def recorded(*arguments: object, **named: object) -> object:
        start = time.perf_counter()
        result = function(*arguments, **named)
        calls.append((result, start, time.perf_counter()))
        return result

    with mock.patch.object(module, name, recorded):
        yield calls
