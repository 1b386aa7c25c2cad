"""The training loop: resumable at any step, best weights by validation loss, papers left in the run folder.

The loop is our own and not `fit`: Keras 3's `fit` can neither resume inside an epoch nor run under
MultiWorkerMirroredStrategy. Models and datasets stay usable with `fit` all the same.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vidpipe import feature_cache, input_pipeline, remote, shard_cache, shards, verify
from vidpipe.checkpoint import restore_checkpoint, save_checkpoint
from vidpipe.config import TrainConfig, differences, to_dict
from vidpipe.model import (
    FusedModel,
    ModelCard,
    adapt_standardization,
    build_model,
    refresh_standardization,
    save_model,
)
from vidpipe.progress import Progress
from vidpipe.spec import VidpipeError

HISTORY_COLUMNS = (
    "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds", "data_wait",
)  # fmt: skip
# Clips whose features set the head's standardization: enough for a mean, few enough for a fine-tuned run.
_STANDARDIZATION_CLIPS = 512
_log = logging.getLogger(__name__)


class TrainError(VidpipeError):
    """A run cannot start, go on or end well. What its folder holds is kept."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
      run_dir: where its papers are.
      metrics: what metrics.json holds: `best_epoch`, `val_loss`, `val_accuracy` (None without a validation
        split), `loss`, `accuracy`, of the best epoch.
    """

    run_dir: Path
    metrics: dict[str, Any]


@dataclass
class _LoopState:
    """Where a run stands; with the variables, all that resuming needs."""

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    best_epoch: int = 0
    best_loss: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Batches:
    """Where a run's batches come from, and the model that takes them."""

    model: keras.Model
    train: Callable[[int, int], tf.data.Dataset]
    val: tf.data.Dataset | None
    standardization: Callable[[], Iterator[dict[str, np.ndarray]]]


def train(config: TrainConfig) -> TrainResult:
    """Trains a model on a committed dataset, or goes on with the run in `config.run_dir`.

    Raises:
      TrainError: the run folder has other settings, a GPU precision is asked for without a GPU, or the
        loss is no number any more.
      ShardError, BackboneError, ModelError: the dataset, the weights or the head are at fault.
      ShardCacheError, FeatureCacheError: copies or features cannot be written.
    """
    source = config.data_dir
    with verify.named_damage(source):
        data_dir = shard_cache.open_dataset(source, config.cache_dir)
        info = shards.read_info(data_dir)
    run_dir = Path(config.run_dir)
    settings = _run_settings(run_dir, config, info)
    finished = run_dir / "metrics.json"
    if finished.exists():
        _log.info("%s is finished: it has a metrics.json. Nothing to do.", run_dir)
        return TrainResult(run_dir, json.loads(finished.read_text(encoding="utf-8")))

    # From here on the data are where they are read from.
    config = replace(config, data_dir=data_dir)
    with verify.named_damage(source):
        for split in ("train", "val") if info.num_clips("val") else ("train",):
            shard_cache.fetch_shards(source, data_dir, info, split)
            shards.shard_paths(data_dir, info, split)
    precision = resolve_precision(config.precision)
    if not tf.config.list_physical_devices("GPU"):
        # Threads on a CPU add up gradients in any order; this makes a resumed run equal to the bit.
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    with _dtype_policy(precision):
        spec = info.clip.model_spec(config.num_frames)
        model = build_model(config.model, spec, len(info.classes))
    optimizer = keras.optimizers.Adam(config.learning_rate)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    with verify.named_damage(data_dir, source):
        batches = _batches(config, info, model)
    optimizer.build(batches.model.trainable_variables)
    _log.info(
        "%d train, %d val clips of %d classes; %s, batches of %d clips, %s.",
        info.num_clips("train"), info.num_clips("val"), len(info.classes), precision, config.batch_size,
        "features computed once" if batches.model is model.trained else "backbone in every step",
    )  # fmt: skip
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        shards.write_text(run_dir / "config.json", json.dumps(settings, indent=2) + "\n")
        with verify.named_damage(data_dir, source):
            return _Loop(config, info, model, optimizer, batches).run()
    except OSError as error:
        raise TrainError(f"Cannot write to {run_dir}: {error.strerror}. What it holds is kept.") from error


def resolve_precision(precision: str) -> str:
    """The dtype policy for `auto`: bfloat16 where the GPU has it, else float16, and float32 on a CPU.

    Raises:
      TrainError: half precision is asked for and there is no GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if precision != "auto":
        if precision != "float32" and not gpus:
            raise TrainError(
                f"--precision={precision} needs a GPU, and TensorFlow sees none. Use --precision=float32, or "
                "install vidpipe[gpu] and check the driver with nvidia-smi."
            )
        return precision
    if not gpus:
        return "float32"
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    # Tensor cores came with 7.0, bfloat16 in them with 8.0.
    return (
        "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
    )


def clip_losses(label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The cross-entropy of each clip.

    Args:
      label: int32 [B], or float32 [B, C], the shares of the classes in mixed clips.
      logits: float32 [B, C].

    Returns:
      float32 [B].
    """
    if label.shape.rank == 2:
        return keras.losses.categorical_crossentropy(label, logits, from_logits=True)
    return keras.losses.sparse_categorical_crossentropy(label, logits, from_logits=True)


class _Loop:
    """One run: the traced steps and the variables they share."""

    def __init__(
        self,
        config: TrainConfig,
        info: shards.DatasetInfo,
        model: FusedModel,
        optimizer: keras.Optimizer,
        batches: _Batches,
    ) -> None:
        self._config, self._info = config, info
        self._model, self._optimizer, self._batches = model, optimizer, batches
        self._run_dir = Path(config.run_dir)
        self._card = ModelCard(info.classes, info.clip, config.num_frames)
        self._loss, self._accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()
        self._state = _LoopState()
        trained = batches.model
        # A frozen backbone is rebuilt from its weights file or seed; all that changes is saved.
        self._saved = [*trained.variables, *optimizer.variables, *self._loss.variables]
        self._saved += self._accuracy.variables
        if trained is not model.trained and model.frozen is not None:
            frozen = {id(variable) for variable in model.frozen.variables}
            self._saved = [variable for variable in self._saved if id(variable) not in frozen]
        self._train_step = tf.function(self._train_step_eagerly)
        self._eval_step = tf.function(self._eval_step_eagerly)

    def run(self) -> TrainResult:
        restored = restore_checkpoint(self._run_dir / "checkpoints", self._saved)
        if restored is None:
            adapt_standardization(self._batches.model, self._batches.standardization())
        else:
            self._state = _LoopState(**restored)
            refresh_standardization(self._batches.model)
            _log.info("Going on at epoch %d, step %d.", self._state.epoch + 1, self._state.step_in_epoch + 1)
        summaries = tf.summary.create_file_writer(str(self._run_dir / "tensorboard"))
        while self._state.epoch < self._config.epochs:
            row = self._run_epoch()
            self._state.history.append(row)
            self._keep_best(row)
            self._state.epoch, self._state.step_in_epoch = self._state.epoch + 1, 0
            self._loss.reset_state()
            self._accuracy.reset_state()
            # The checkpoint comes last: what it says is done is on the disk.
            _write_history(self._run_dir / "history.csv", self._state.history)
            self._save_checkpoint()
            with summaries.as_default(step=self._state.epoch):
                for name, value in row.items():
                    if value is not None and name != "epoch":
                        tf.summary.scalar(name, value)
            summaries.flush()
        best = self._state.history[self._state.best_epoch - 1]
        metrics = {"best_epoch": best["epoch"], "epochs": self._config.epochs}
        metrics |= {name: value for name, value in best.items() if name != "epoch"}
        shards.write_text(self._run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        return TrainResult(self._run_dir, metrics)

    def _run_epoch(self) -> dict[str, Any]:
        state, config = self._state, self._config
        start = time.perf_counter()
        waited = 0.0
        num_clips = self._info.num_clips("train")
        steps = math.ceil(num_clips / config.batch_size)
        done = done_before = min(state.step_in_epoch * config.batch_size, num_clips)
        batches = iter(self._batches.train(state.epoch, state.step_in_epoch))
        with Progress(f"Epoch {state.epoch + 1}/{config.epochs}", num_clips, "clips", False) as progress:
            progress.advance(done_before)
            while state.step_in_epoch < steps:
                wait_start = time.perf_counter()
                inputs, label, weight = next(batches)
                waited += time.perf_counter() - wait_start
                self._train_step(inputs, label, weight)
                state.step += 1
                state.step_in_epoch += 1
                reached = min(state.step_in_epoch * config.batch_size, num_clips)
                progress.advance(reached - done)
                done = reached
                # The end of an epoch has its own checkpoint, after validation.
                every = config.checkpoint_every
                if every is not None and state.step % every == 0 and state.step_in_epoch < steps:
                    self._save_checkpoint()
        loss, accuracy = float(self._loss.result()), float(self._accuracy.result())
        if not math.isfinite(loss):
            raise TrainError(
                f"The loss of epoch {state.epoch + 1} is {loss}. The last good checkpoint is kept in "
                f"{self._run_dir}; try a smaller --learning_rate or --precision=float32 in a new run_dir."
            )
        seconds = time.perf_counter() - start
        val_loss, val_accuracy = self._evaluate()
        row = {
            "epoch": state.epoch + 1, "loss": loss, "accuracy": accuracy,
            "val_loss": val_loss, "val_accuracy": val_accuracy,
            "learning_rate": config.learning_rate, "seconds": seconds, "data_wait": waited / seconds,
        }  # fmt: skip
        validation = "" if val_loss is None else f", val loss {val_loss:.4f}, accuracy {val_accuracy:.3f}"
        _log.info(
            "Epoch %d/%d: loss %.4f, accuracy %.3f%s; %.1f clips/s, %.0f %% of the time waiting for data.",
            state.epoch + 1, config.epochs, loss, accuracy, validation,
            (num_clips - done_before) / seconds, 100 * waited / seconds,
        )  # fmt: skip
        return row

    def _evaluate(self) -> tuple[float | None, float | None]:
        if self._batches.val is None:
            return None, None
        loss, accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()
        for inputs, label, weight in self._batches.val:
            logits, losses = self._eval_step(inputs, label)
            loss.update_state(losses, sample_weight=weight)
            accuracy.update_state(label, logits, sample_weight=weight)
        return float(loss.result()), float(accuracy.result())

    def _train_step_eagerly(self, inputs: dict[str, tf.Tensor], label: tf.Tensor, weight: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = self._batches.model(inputs, training=True)
            losses = clip_losses(label, logits)
            loss = tf.reduce_sum(losses * weight) / tf.reduce_sum(weight)
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self._batches.model.trainable_variables)
        self._optimizer.apply(gradients)
        self._loss.update_state(losses, sample_weight=weight)
        most = tf.argmax(label, axis=1) if label.shape.rank == 2 else label
        self._accuracy.update_state(most, logits, sample_weight=weight)

    def _eval_step_eagerly(
        self, inputs: dict[str, tf.Tensor], label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self._batches.model(inputs, training=False)
        return logits, clip_losses(label, logits)

    def _keep_best(self, row: dict[str, Any]) -> None:
        """Saves model.keras where the validation loss is the lowest so far; every time without validation."""
        state = self._state
        if row["val_loss"] is None or state.best_loss is None or row["val_loss"] < state.best_loss:
            state.best_epoch, state.best_loss = row["epoch"], row["val_loss"]
            save_model(self._model.fused, self._card, self._run_dir / "model.keras")

    def _save_checkpoint(self) -> None:
        save_checkpoint(self._run_dir / "checkpoints", self._state.step, self._saved, asdict(self._state))


def _batches(config: TrainConfig, info: shards.DatasetInfo, model: FusedModel) -> _Batches:
    has_val = info.num_clips("val") > 0
    if not has_val:
        _log.warning("The dataset has no val split: model.keras is the last epoch's, not the best one's.")
    if config.data_service is not None:
        _log.info("Clips come in the order of the tf.data service at %s.", config.data_service)
    seed, batch_size, data_dir = config.seed, config.batch_size, config.data_dir
    if config.can_cache_features and config.cache_features != "off":
        kept_in = config.run_dir if remote.is_remote(data_dir) else data_dir
        tables = {
            split: feature_cache.cached_features(
                model.frozen, data_dir, info, split, _encode_batch(config), kept_in
            )
            for split in ("train", "val")
            if info.num_clips(split) > 0
        }
        first = slice(0, _STANDARDIZATION_CLIPS)
        return _Batches(
            model.trained,
            lambda epoch, skip: feature_cache.train_feature_dataset(
                tables["train"], info, batch_size, seed, epoch, skip
            ),
            feature_cache.eval_feature_dataset(tables["val"], batch_size) if has_val else None,
            lambda: iter(
                [{"features": tables["train"].features[first], "mask": tables["train"].mask[first]}]
            ),
        )

    def some_inputs() -> Iterator[dict[str, np.ndarray]]:
        left = _STANDARDIZATION_CLIPS
        batches = input_pipeline.eval_dataset(
            data_dir, info, _encode_batch(config), "train", config.num_frames
        )
        for inputs, _, weight in batches:
            real = np.flatnonzero(weight.numpy())[:left]
            left -= len(real)
            yield {name: values.numpy()[real] for name, values in inputs.items()}
            if left == 0:
                return

    return _Batches(
        model.fused,
        lambda epoch, skip: input_pipeline.train_dataset(
            data_dir,
            info,
            batch_size,
            seed,
            epoch,
            skip,
            num_frames=config.num_frames,
            augmentation=config.augment,
            mixup=config.mixup,
            service=config.data_service,
            ram_gb=config.input_ram_gb,
        ),
        input_pipeline.eval_dataset(data_dir, info, batch_size, "val", config.num_frames)
        if has_val
        else None,
        some_inputs,
    )


def _encode_batch(config: TrainConfig) -> int:
    """Clips per call of a backbone that only looks: small, since a larger one gains nothing on any device.

    A power of 2, as `cached_features` wants it.
    """
    return 1 << (min(config.batch_size, 8).bit_length() - 1)


def _run_settings(run_dir: Path, config: TrainConfig, info: shards.DatasetInfo) -> dict[str, Any]:
    """What config.json will hold; refuses a folder that holds a run of other settings."""
    # Where things lie may change between two starts of the same run; what they are may not.
    settings = to_dict(config) | {"dataset": info.fingerprint[:16]}
    path = run_dir / "config.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return settings
    except (json.JSONDecodeError, OSError) as error:
        raise TrainError(f"{path} cannot be read ({error}). Choose another run_dir.") from None
    places = {"run_dir": None, "data_dir": None, "cache_dir": None}
    changed = differences(earlier | places, settings | places)
    if changed:
        raise TrainError(
            f"{run_dir} holds a run with other settings ({'; '.join(changed)}). "
            "Choose another run_dir, or give the settings it was begun with."
        )
    return settings


def _write_history(path: Path, history: list[dict[str, Any]]) -> None:
    with shards.committed_csv(path, HISTORY_COLUMNS) as writer:
        writer.writerows(history)


@contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Keras builds layers in the global policy; this sets it for a block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
