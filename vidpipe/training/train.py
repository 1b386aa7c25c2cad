"""From settings to a run: prepares dataset, model, precision, memory and devices, then runs the loop."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vidpipe import devices
from vidpipe.config import TrainConfig, to_dict
from vidpipe.data import input_pipeline
from vidpipe.data.dataset import Dataset, open_dataset
from vidpipe.errors import first_line
from vidpipe.model import feature_cache
from vidpipe.model.fused import FusedModel
from vidpipe.model.model_file import ModelMetadata, save_model
from vidpipe.storage import files
from vidpipe.training import distribution
from vidpipe.training.batch_size import StepMemory, resolve_batch_size
from vidpipe.training.batches import (
    Batches,
    feature_batches,
    frame_batches,
    without_fillers,
)
from vidpipe.training.earlier_run import EarlierRun, read_earlier_run
from vidpipe.training.epoch_steps import EpochSteps
from vidpipe.training.head_fit import HeadFit, TrainingClips, cross_fitting_folds, member_weights
from vidpipe.training.loop import Loop
from vidpipe.training.optimizer import LearningRate
from vidpipe.training.precision import dtype_policy, resolve_precision
from vidpipe.training.run_folder import RunFolder, TrainError, cannot_write
from vidpipe.training.run_log import SHOWN_CLIPS, RunLog
from vidpipe.training.step import balanced_class_weights
from vidpipe.training.stop_signal import StopSignal, stop_signal
from vidpipe.training.trainee import Trainee, build_trainee

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
      run_dir: where its artifacts are.
      metrics: the content of metrics.json: `selected_epoch`, `epochs`, and for the selected epoch `loss`,
        `accuracy`, `val_loss`, `val_accuracy` (None without a validation split) and the rest of history.csv.
    """

    run_dir: Path
    metrics: dict[str, Any]


def train(config: TrainConfig) -> TrainResult:
    """Trains a model on a committed dataset, or resumes the run in `config.run_dir`.

    Raises:
      TrainError: the memory is too small, half precision has no GPU, or the loss is non-finite.
      RunFolderError: the run folder holds a run with other settings.
      StoppedError: SIGTERM or Ctrl-C came; a checkpoint is written.
      ShardError, BackboneError, ModelError: the dataset or the weights are invalid.
      ShardCacheError, FeatureCacheError: copies or features cannot be written.
      DistributionError: the workers cannot reach each other, or are at different steps.
    """
    # First: collectives must be set up before TensorFlow does anything.
    strategy = distribution.make_strategy(config.strategy)
    folder = RunFolder(Path(config.run_dir))
    with open_dataset(config.data_dir, config.cache_dir) as dataset:
        settings = _run_settings(config, dataset)
        if folder.is_finished and (result := _finished(folder, settings)) is not None:
            return result  # without the lock: the folder may be read-only
        with folder.lock() if distribution.is_chief(strategy) else nullcontext():
            earlier = read_earlier_run(folder, settings)
            if earlier is not None and earlier.metrics is not None:
                return TrainResult(folder.path, earlier.metrics)  # another training has just ended
            return _train(config, dataset, strategy, settings, earlier)


def _finished(folder: RunFolder, settings: Mapping[str, Any]) -> TrainResult | None:
    earlier = read_earlier_run(folder, settings)
    if earlier is None or earlier.metrics is None:
        return None
    _log.info("%s is finished: it has a metrics.json. Nothing to do.", folder.path)
    return TrainResult(folder.path, earlier.metrics)


def _train(
    config: TrainConfig,
    dataset: Dataset,
    strategy: tf.distribute.Strategy,
    settings: Mapping[str, Any],
    earlier: EarlierRun | None,
) -> TrainResult:
    """Prepares all that the loop needs, and runs it."""
    folder = RunFolder(Path(config.run_dir))
    for split in dataset.train_splits:
        dataset.fetch(split)
    num_frames = dataset.clip.resolve_num_frames(config.num_frames)
    num_replicas = strategy.num_replicas_in_sync
    precision = resolve_precision(config.precision, num_replicas=num_replicas)
    _log.info("Training on %s, %s.", devices.names(num_replicas), precision)
    _make_repeatable(config)
    with strategy.scope(), dtype_policy(precision):
        trainee, fused = build_trainee(
            config,
            dataset,
            num_frames=num_frames,
            strategy=strategy,
            precision=precision,
            was_cached=earlier.settings.get("caches_features") if earlier else None,
        )
    if not trainee.is_cross_fitted:
        _check_validation_split(config, dataset)
    batch_size = _batch_size(config, trainee, earlier.settings if earlier else {})
    batches, head_fit = _make_batches(
        config, dataset, trainee, fused, batch_size=batch_size, num_frames=num_frames
    )
    _log.info(
        "%d train, %d val clips of %d classes; batches of %d clips%s.",
        dataset.num_clips("train"), dataset.num_clips("val"), len(dataset.classes), batch_size,
        f" on {num_replicas} replicas" if num_replicas > 1 else "",
    )  # fmt: skip
    if earlier is not None:
        for repair in earlier.repairs:
            _log.warning("%s", repair)
        _log_other_length(config, earlier, steps_per_epoch=-(-batches.num_clips // batch_size))
        settings = earlier.resolved_settings(settings)
    settings = {
        **settings,
        "resolved_batch_size": batch_size,
        "caches_features": trainee.model is fused.trained,
    }
    with _named_failures(config, strategy):
        if distribution.is_chief(strategy):
            folder.metrics.unlink(missing_ok=True)  # it marks a finished run, which this one is no longer
            folder.write_settings(settings)
        with distribution.chief_watched(strategy), stop_signal() as stop:
            metrics = _run_loop(
                config,
                dataset,
                trainee,
                batches,
                head_fit,
                settings=settings,
                num_frames=num_frames,
                stop=stop,
            )
        return TrainResult(folder.path, metrics)


def _log_other_length(config: TrainConfig, earlier: EarlierRun, *, steps_per_epoch: int) -> None:
    """Says what another number of epochs means for a run that has begun."""
    before = earlier.settings["epochs"]
    if before == config.epochs or earlier.num_steps == 0:
        return
    _log.info("The run goes on with epochs=%d instead of %d.", config.epochs, before)
    old, new = (
        LearningRate(config.optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
        for epochs in (before, config.epochs)
    )
    if config.optimizer.schedule != "constant":
        _log.warning(
            "The learning rate follows the schedule of %d epochs from here on: %.2g in the next step, %.2g "
            "in the last one. A run of %d epochs from the start would have other weights; config.json tells "
            "(earlier_epochs).",
            config.epochs, new.at(earlier.num_steps), old.at(earlier.num_steps - 1), config.epochs,
        )  # fmt: skip


def _run_loop(
    config: TrainConfig,
    dataset: Dataset,
    trainee: Trainee,
    batches: Batches,
    head_fit: HeadFit,
    *,
    settings: Mapping[str, Any],
    num_frames: int,
    stop: StopSignal,
) -> dict[str, Any]:
    """Runs the training loop; returns the content of metrics.json."""
    folder = RunFolder(Path(config.run_dir))

    def shown_clips() -> tuple[Any, Any]:
        first = input_pipeline.eval_dataset(
            dataset, batch_size=SHOWN_CLIPS, split="val", num_frames=num_frames
        )
        ((inputs, label, weight),) = first.take(1)
        return without_fillers(inputs, weight), label.numpy()[weight.numpy() > 0]

    is_chief = distribution.is_chief(trainee.strategy)
    metadata = ModelMetadata(
        dataset.classes,
        dataset.clip,
        num_frames,
        clip_sec=dataset.clip_sec("train"),
        background=dataset.info.settings.get("background"),
    )
    epoch_steps = EpochSteps(
        config,
        trainee=trainee,
        batches=batches,
        folder=folder,
        class_weights=_class_weights(config, dataset),
        stop=stop,
    )
    loop = Loop(
        config,
        trainee=trainee,
        batches=batches,
        epoch_steps=epoch_steps,
        head_fit=head_fit,
        folder=folder,
        stop=stop,
        settings=settings,
        save_model=lambda: save_model(trainee.saved, metadata, folder.model),
        run_log=RunLog(folder, dataset.classes, shown_clips) if is_chief else None,
    )
    return loop.run()


def _run_settings(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Returns the content of config.json: the settings, and digests of dataset and initial weights."""
    if config.init_from is not None:
        start = RunFolder(Path(config.init_from)).model
    else:
        start = Path(config.model.backbone_weights)
    # Checkpoints lack the frozen weights: a run must not be resumed over others.
    digest = files.sha256_of(str(start))[:16] if start.is_file() else None
    return to_dict(config) | {"dataset": dataset.info.fingerprint[:16], "start_weights": digest}


def _check_validation_split(config: TrainConfig, dataset: Dataset) -> None:
    if dataset.num_clips("val") > 0:
        return
    if config.patience is not None:
        raise TrainError(
            f"patience={config.patience} needs a validation split, and {dataset.data_dir} has none."
        )
    _log.warning("The dataset has no val split: model.keras will be the last epoch's model, however good.")


def _make_repeatable(config: TrainConfig) -> None:
    if config.deterministic:
        # cuBLAS, and with it cuDNN's LSTM, repeats its sums only with workspaces of a fixed size (cuBLAS
        # documentation, "Results reproducibility").
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.deterministic or not tf.config.list_physical_devices("GPU"):
        # Threads of a CPU sum gradients in any order; this makes a resumed run bit-identical.
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)


def _batch_size(config: TrainConfig, trainee: Trainee, earlier: Mapping[str, Any]) -> int:
    """Resolves the batch size; one that `auto` found holds for all starts of the run."""
    step = StepMemory(
        model=trainee.model,
        optimizer=config.optimizer,
        num_replicas=trainee.strategy.num_replicas_in_sync,
        num_workers=distribution.num_workers(trainee.strategy),
        accumulate=config.accumulate,
        clips_per_call=trainee.clips_per_call,
    )
    return resolve_batch_size(config.batch_size or earlier.get("resolved_batch_size"), step)


def _make_batches(
    config: TrainConfig,
    dataset: Dataset,
    trainee: Trainee,
    fused: FusedModel,
    *,
    batch_size: int,
    num_frames: int,
) -> tuple[Batches, HeadFit]:
    rows = dataset.clip_rows("train")
    video_ids, group = ([row[name] for row in rows] for name in ("video_id", "group"))

    def head_fit(batches: Batches, fold: np.ndarray | None) -> HeadFit:
        clips = TrainingClips(
            batches=batches.train_in_order,
            video_ids=video_ids,
            group=group,
            class_weights=_class_weights(config, dataset),
        )
        return HeadFit(trainee.model, config.model.head, clips, fold)

    if fused.frozen is None or trainee.model is fused.fused:
        batches = frame_batches(
            config,
            dataset,
            batch_size=batch_size,
            num_frames=num_frames,
            clips_per_call=trainee.clips_per_call,
        )
        return batches, head_fit(batches, None)
    tables = {
        split: feature_cache.cached_features(
            fused.frozen,
            dataset,
            split=split,
            cache_dirs=feature_cache.cache_dirs(dataset, config.run_dir),
            cache_gb=config.cache_gb,
        )
        for split in dataset.train_splits
    }
    fold = None
    if trainee.is_cross_fitted:
        fold = cross_fitting_folds(tables["train"].label, group, trainee.ensemble_size)
    batches = feature_batches(
        tables,
        dataset,
        video_ids=video_ids,
        batch_size=batch_size,
        seed=config.seed,
        num_frames=num_frames,
        weight=None if fold is None else member_weights(fold, trainee.ensemble_size),
    )
    return batches, head_fit(batches, fold)


def _class_weights(config: TrainConfig, dataset: Dataset) -> np.ndarray:
    if config.class_weights == "none":
        return np.ones(len(dataset.classes), np.float32)
    labels = [row["label"] for row in dataset.clip_rows("train")]
    return balanced_class_weights(np.array([labels.count(name) for name in dataset.classes]))


@contextmanager
def _named_failures(config: TrainConfig, strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns errors of TensorFlow and of the file system that the user can correct into one line."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise TrainError(
            f"Out of memory with {config.accumulate} microbatch(es) per step ({first_line(error)}). In a new "
            f"run_dir give --accumulate={2 * config.accumulate}, which takes the same steps with half the "
            "memory, or a smaller --batch_size."
        ) from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if distribution.num_workers(strategy) == 1:
            raise  # not from a worker, but from something else such as an object store
        raise distribution.DistributionError(
            f"A worker is gone ({first_line(error)}). {distribution.RESTART}"
        ) from error
    except OSError as error:
        raise cannot_write(config.run_dir, error) from error
