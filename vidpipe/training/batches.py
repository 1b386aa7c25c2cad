"""Where a run's batches come from: decoded frames, or cached features of the frozen blocks."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from vidpipe.config import TrainConfig
from vidpipe.data import input_pipeline
from vidpipe.data.dataset import Dataset
from vidpipe.model.feature_cache import FeatureTable
from vidpipe.model.feature_dataset import eval_feature_dataset, train_feature_dataset
from vidpipe.training import distribution

# Clips whose features set the head's standardization: enough for a mean, few enough for a fine-tuned run.
_STANDARDIZATION_CLIPS = 512
# Clips per forward pass of a backbone: more gain nothing.
_FORWARD_CLIPS = 8
# The same of a head alone: on a CPU half the time of batches of 8.
_HEAD_FORWARD_CLIPS = 64
_NAMED_CLIPS = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a run, in which each of several workers asks for its own part of every step.

    Attributes:
      batch_size: clips of a step, of all workers together.
      num_clips: clips of an epoch.
      train: (epoch, batches to skip, number of workers, this worker) -> this worker's part of each step.
      val: (number of workers, this worker) -> likewise; None without a validation split.
      first_inputs: inputs from the start of the train split, without fillers, for the head's standardization.
      train_in_order: (inputs, label, weight) of the train split in the order of its records.
      clips_of_step: (epoch, step in it, both from 0) -> the clips of a step's batch, for a message.
    """

    batch_size: int
    num_clips: int
    train: Callable[[int, int, int, int], tf.data.Dataset]
    val: Callable[[int, int], tf.data.Dataset] | None
    first_inputs: Callable[[], Iterator[dict[str, Any]]]
    train_in_order: Callable[[], tf.data.Dataset]
    clips_of_step: Callable[[int, int], str]


def frame_batches(
    config: TrainConfig, dataset: Dataset, *, batch_size: int, num_frames: int, clips_per_call: int
) -> Batches:
    """Builds the batches of a run whose backbone runs in every step.

    Args:
      config: of the run.
      dataset: an open dataset.
      batch_size: clips of a step.
      num_frames: frames of a clip (T).
      clips_per_call: clips that the model may take at once.
    """
    if config.data_service is not None:
        _log.info("Clips come in the order of the tf.data service at %s.", config.data_service)

    def train_batches(epoch: int, skip: int, num_workers: int, worker: int) -> tf.data.Dataset:
        return input_pipeline.train_dataset(
            dataset,
            batch_size=batch_size // num_workers,
            seed=config.seed,
            epoch=epoch,
            num_frames=num_frames,
            skip_batches=skip,
            augmentation=config.augment,
            mixup=config.mixup,
            num_replicas=num_workers,
            replica=worker,
            data_service=config.data_service,
            ram_gb=config.input_ram_gb,
        )

    def eval_batches(split: str, batch_size: int) -> tf.data.Dataset:
        return input_pipeline.eval_dataset(dataset, batch_size=batch_size, split=split, num_frames=num_frames)

    def clips_of_step(epoch: int, step: int) -> str:
        if config.data_service is not None:
            return "clips that the tf.data service chose"
        return _clips_of_step(
            dataset,
            dataset.video_ids("train"),
            batch_size=batch_size,
            seed=config.seed,
            epoch=epoch,
            step=step,
        )

    return _batches(
        dataset,
        batch_size=batch_size,
        forward_clips=min(_FORWARD_CLIPS, clips_per_call),
        train_batches=train_batches,
        eval_batches=eval_batches,
        clips_of_step=clips_of_step,
    )


def feature_batches(
    tables: Mapping[str, FeatureTable],
    dataset: Dataset,
    *,
    video_ids: Sequence[str],
    batch_size: int,
    seed: int,
    num_frames: int,
    weight: np.ndarray | None = None,
) -> Batches:
    """Builds the batches of a run from the cached features of its frozen blocks.

    Args:
      tables: of `train`, and of `val` if there is one.
      dataset: an open dataset; the order of an epoch depends on its number of clips and its shards.
      video_ids: of the clips of `train`.
      batch_size: clips of a step.
      seed: of the order and of the sampled frames.
      num_frames: frames of a clip (T).
      weight: float32 [clips, M], of the clips of `train` for each member; None for 1.
    """

    def train_batches(epoch: int, skip: int, num_workers: int, worker: int) -> tf.data.Dataset:
        steps = train_feature_dataset(
            tables["train"],
            dataset,
            video_ids=video_ids,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            num_frames=num_frames,
            skip_batches=skip,
            weight=weight,
        )
        return distribution.rows_of_worker(steps, num_workers, worker)

    def eval_batches(split: str, batch_size: int) -> tf.data.Dataset:
        return eval_feature_dataset(tables[split], batch_size=batch_size, num_frames=num_frames)

    def clips_of_step(epoch: int, step: int) -> str:
        return _clips_of_step(dataset, video_ids, batch_size=batch_size, seed=seed, epoch=epoch, step=step)

    is_head_alone = tables["train"].features.ndim == 3
    return _batches(
        dataset,
        batch_size=batch_size,
        forward_clips=_HEAD_FORWARD_CLIPS if is_head_alone else _FORWARD_CLIPS,
        train_batches=train_batches,
        eval_batches=eval_batches,
        clips_of_step=clips_of_step,
    )


def _batches(
    dataset: Dataset,
    *,
    batch_size: int,
    forward_clips: int,
    train_batches: Callable[[int, int, int, int], tf.data.Dataset],
    eval_batches: Callable[[str, int], tf.data.Dataset],
    clips_of_step: Callable[[int, int], str],
) -> Batches:
    def val_batches(num_workers: int, worker: int) -> tf.data.Dataset:
        return distribution.rows_of_worker(eval_batches("val", batch_size), num_workers, worker)

    def first_inputs() -> Iterator[dict[str, tf.Tensor]]:
        steps = -(-min(_STANDARDIZATION_CLIPS, dataset.num_clips("train")) // forward_clips)
        for inputs, _, weight in eval_batches("train", forward_clips).take(steps):
            yield without_fillers(inputs, weight)

    return Batches(
        batch_size=batch_size,
        num_clips=dataset.num_clips("train"),
        train=train_batches,
        val=val_batches if dataset.num_clips("val") > 0 else None,
        first_inputs=first_inputs,
        train_in_order=lambda: eval_batches("train", forward_clips),
        clips_of_step=clips_of_step,
    )


def without_fillers(inputs: Mapping[str, tf.Tensor], weight: tf.Tensor) -> dict[str, tf.Tensor]:
    """Keeps the rows of a batch that are clips, of weight above 0."""
    return {name: tf.boolean_mask(values, weight > 0) for name, values in inputs.items()}


def _clips_of_step(
    dataset: Dataset, video_ids: Sequence[str], *, batch_size: int, seed: int, epoch: int, step: int
) -> str:
    indices = input_pipeline.indices_in_epoch_order(
        dataset, split="train", seed=seed, epoch=epoch, skip_clips=step * batch_size
    )
    names = [video_ids[index] for index in indices.take(batch_size).as_numpy_iterator()]
    more = f" and {len(names) - _NAMED_CLIPS} more" if len(names) > _NAMED_CLIPS else ""
    return f"{', '.join(names[:_NAMED_CLIPS])}{more}"
