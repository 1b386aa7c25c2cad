"""From settings to a run: data, model, precision, memory and replicas are made ready, then `loop` trains."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vidpipe import distribution, feature_cache, input_pipeline, memory, remote, shard_cache, shards, verify
from vidpipe.checkpoint import has_checkpoint
from vidpipe.config import TrainConfig, differences, to_dict
from vidpipe.loop import Batches, Loop, Trained, TrainError, stop_signal
from vidpipe.model import FusedModel, build_model, load_weights
from vidpipe.optimizer import build_optimizer, layer_scales

# Clips whose features set the head's standardization: enough for a mean, few enough for a fine-tuned run.
_STANDARDIZATION_CLIPS = 512
# Clips per call of a backbone that only looks, at most: more gain nothing on any device.
_ENCODED_CLIPS = 8
_LARGEST_AUTO_BATCH = 64
# Settings of a run that may differ between two starts: where things lie, and what no weight depends on.
_FREE = (
    "run_dir", "data_dir", "cache_dir", "init_from", "input_ram_gb", "checkpoint_every", "keep_checkpoints",
    "profile_steps",
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
      run_dir: where its papers are.
      metrics: what metrics.json holds: `kept_epoch`, and of that epoch `loss`, `accuracy`, `val_loss`,
        `val_accuracy` (None without a validation split) and what else history.csv has.
    """

    run_dir: Path
    metrics: dict[str, Any]


def train(config: TrainConfig) -> TrainResult:
    """Trains a model on a committed dataset, or goes on with the run in `config.run_dir`.

    Raises:
      TrainError: the run folder has other settings, the memory is too small, a GPU precision is asked for
        without a GPU, or the loss is no number any more.
      StoppedError: SIGTERM or Ctrl-C came; a checkpoint is written.
      ShardError, BackboneError, ModelError: the dataset, the weights or the head are at fault.
      ShardCacheError, FeatureCacheError: copies or features cannot be written.
      DistributionError: the machines of a multi_worker run do not find or do not match each other.
    """
    # First: collectives must be set up before TensorFlow does anything.
    strategy = distribution.make_strategy(config.strategy)
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
    if config.patience is not None and info.num_clips("val") == 0:
        raise TrainError(f"patience={config.patience} needs a validation split, and {source} has none.")

    # From here on the data are where they are read from.
    config = replace(config, data_dir=data_dir)
    with verify.named_damage(source):
        for split in _splits(info):
            shard_cache.fetch_shards(source, data_dir, info, split)
            shards.shard_paths(data_dir, info, split)
    precision = resolve_precision(config.precision)
    if precision == "mixed_float16" and strategy.num_replicas_in_sync > 1:
        raise TrainError(
            "mixed_float16 does not go with several replicas: Keras's loss scaling fails under tf.distribute "
            "(Keras issue 18666). Use --precision=mixed_bfloat16 or float32, or --strategy=one."
        )
    if config.deterministic or not tf.config.list_physical_devices("GPU"):
        # Threads on a CPU add up gradients in any order; this makes a resumed run equal to the bit.
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    with strategy.scope(), _dtype_policy(precision):
        trained = _build(config, info, strategy, precision)
    batch_size = settings["chosen_batch_size"] = _batch_size(config, settings["chosen_batch_size"], trained)
    with verify.named_damage(data_dir, source):
        batches = _batches(config, info, trained, batch_size)
    _log.info(
        "%d train, %d val clips of %d classes; %s, batches of %d clips%s.",
        info.num_clips("train"), info.num_clips("val"), len(info.classes), precision, batch_size,
        f" on {strategy.num_replicas_in_sync} replicas" if strategy.num_replicas_in_sync > 1 else "",
    )  # fmt: skip
    try:
        if distribution.is_chief(strategy):
            run_dir.mkdir(parents=True, exist_ok=True)
            shards.write_text(run_dir / "config.json", json.dumps(settings, indent=2) + "\n")
        with (
            verify.named_damage(data_dir, source),
            _named_failures(config, strategy),
            distribution.chief_watched(strategy),
            stop_signal() as stop,
        ):
            return TrainResult(run_dir, Loop(config, info, trained, batches, stop).run())
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


def _build(
    config: TrainConfig, info: shards.DatasetInfo, strategy: tf.distribute.Strategy, precision: str
) -> Trained:
    spec = info.clip.model_spec(config.num_frames)
    model = build_model(config.model, spec, len(info.classes), info.clip.num_frames)
    if config.init_from is not None:
        load_weights(model, Path(config.init_from, "model.keras"), info.classes)
    part = model.fused
    if model.trained is not None and _caches_features(config, info, model):
        part = model.trained
    scales = layer_scales(
        model.fused.get_layer("backbone"), config.optimizer.backbone_lr_scale, config.optimizer.layer_decay
    )
    optimizer = build_optimizer(config.optimizer, part.trainable_variables, scales, precision)
    return Trained(model, part, optimizer, strategy)


def _caches_features(config: TrainConfig, info: shards.DatasetInfo, model: FusedModel) -> bool:
    """Whether what is frozen is run once per clip, and stored.

    Raises:
      TrainError: it must be, and would take more disk than it may.
    """
    if not config.can_cache_features or config.cache_features == "off":
        return False
    needed = feature_cache.size_bytes(model.frozen, info, _splits(info)) / 2**30
    if needed <= config.cache_gb:
        return True
    too_much = f"The frozen blocks' features would take {needed:.1f} GiB, and cache_gb is {config.cache_gb:g}"
    if config.cache_features == "on":
        raise TrainError(f"{too_much}. Give a larger --cache_gb, or --cache_features=off.")
    _log.info("%s: the whole backbone runs in every step.", too_much)
    return False


def _batch_size(config: TrainConfig, chosen: int | None, trained: Trained) -> int:
    """What `auto` finds, once for all starts of the run; and a look at whether it fits.

    Raises:
      TrainError: it does not fit, or replicas and parts do not divide it.
    """
    replicas = trained.strategy.num_replicas_in_sync
    parts = replicas * config.accumulate
    slots = {"adamw": 2, "sgd": 1}[config.optimizer.name] + (config.optimizer.ema > 0)
    available = memory.available_bytes()

    def estimate(num_clips: int, parts: int = 2) -> memory.MemoryEstimate:
        # Parts have their gradients added up in memory of its own.
        return memory.estimate(trained.part, num_clips, slots + (parts > 1))

    batch_size = config.batch_size or chosen
    if batch_size is None:
        if available is None:
            raise TrainError("batch_size=auto does not see how much memory there is. Give a number.")
        if distribution.num_workers(trained.strategy) > 1:
            raise TrainError(
                "batch_size=auto looks at one machine's memory, and several would choose differently. Give a "
                "number."
            )
        fitting = memory.largest_batch(estimate, available, max(1, _LARGEST_AUTO_BATCH // parts))
        if fitting is None:
            raise TrainError(_too_large(estimate(1), 1, available) + " Train fewer blocks (--fine_tune).")
        batch_size = fitting * parts
    if batch_size % parts:
        raise TrainError(
            f"batch_size={batch_size} cannot be dealt to {replicas} replica(s) in "
            f"accumulate={config.accumulate} parts each. Give a multiple of {parts}."
        )
    expected = estimate(batch_size // parts, config.accumulate)
    _log.info("A step needs about %s of memory.", expected)
    if available is not None and expected.total > available:
        fitting_parts = memory.parts_that_fit(estimate, batch_size // replicas, available)
        advice = "Train fewer blocks (--fine_tune), or fewer frames (--num_frames)."
        if fitting_parts is not None:
            advice = f"--accumulate={fitting_parts} takes the same steps in that many parts each."
        raise TrainError(f"{_too_large(expected, batch_size // parts, available)} {advice}")
    return batch_size


def _too_large(expected: memory.MemoryEstimate, num_clips: int, available: int) -> str:
    return (
        f"A step on {num_clips} clip(s) at a time needs about {expected}, and "
        f"{available / 2**30:.1f} GiB are free."
    )


def _batches(config: TrainConfig, info: shards.DatasetInfo, trained: Trained, batch_size: int) -> Batches:
    if info.num_clips("val") == 0:
        _log.warning("The dataset has no val split: model.keras is the last epoch's, however good that is.")
    if trained.part is trained.model.fused:
        return _frame_batches(config, info, batch_size)
    encoded_clips = min(_ENCODED_CLIPS, 1 << batch_size.bit_length() - 1)  # a power of two fills parts
    kept_in = config.run_dir if remote.is_remote(config.data_dir) else config.data_dir
    tables = {
        split: feature_cache.cached_features(
            trained.model.frozen, config.data_dir, info, split, encoded_clips, kept_in
        )
        for split in _splits(info)
    }
    video_ids = [row["video_id"] for row in shards.clip_rows(config.data_dir, "train")]
    return feature_batches(tables, info, video_ids, batch_size, config.seed, config.num_frames)


def feature_batches(
    tables: Mapping[str, feature_cache.FeatureTable],
    info: shards.DatasetInfo,
    video_ids: Sequence[str],
    batch_size: int,
    seed: int,
    num_frames: int | None = None,
) -> Batches:
    """The batches of a run whose frozen part was run before.

    Args:
      tables: of `train`, and of `val` if there is one.
      info: says how many clips each split has, and in which shards: their order is mixed by shards.
      video_ids: of the clips of `train`.
      batch_size: clips of a step.
      seed: of the order and of the frames that are drawn.
      num_frames: as `TrainConfig.num_frames`.
    """

    def train_batches(epoch: int, skip: int, num_workers: int, worker: int) -> tf.data.Dataset:
        steps = feature_cache.train_feature_dataset(
            tables["train"], info, video_ids, batch_size, seed, epoch, skip, num_frames
        )
        return distribution.share_of(steps, num_workers, worker)

    def eval_batches(split: str, num_clips: int) -> tf.data.Dataset:
        return feature_cache.eval_feature_dataset(tables[split], num_clips, num_frames)

    return _batches_of(info, batch_size, train_batches, eval_batches)


def _frame_batches(config: TrainConfig, info: shards.DatasetInfo, batch_size: int) -> Batches:
    if config.data_service is not None:
        _log.info("Clips come in the order of the tf.data service at %s.", config.data_service)

    def train_batches(epoch: int, skip: int, num_workers: int, worker: int) -> tf.data.Dataset:
        return input_pipeline.train_dataset(
            config.data_dir,
            info,
            batch_size // num_workers,
            config.seed,
            epoch,
            skip,
            num_frames=config.num_frames,
            augmentation=config.augment,
            mixup=config.mixup,
            num_replicas=num_workers,
            replica=worker,
            service=config.data_service,
            ram_gb=config.input_ram_gb,
        )

    def eval_batches(split: str, num_clips: int) -> tf.data.Dataset:
        return input_pipeline.eval_dataset(config.data_dir, info, num_clips, split, config.num_frames)

    return _batches_of(info, batch_size, train_batches, eval_batches)


def _batches_of(
    info: shards.DatasetInfo,
    batch_size: int,
    train_batches: Callable[[int, int, int, int], tf.data.Dataset],
    eval_batches: Callable[[str, int], tf.data.Dataset],
) -> Batches:
    """`Batches` of an epoch's, and of a split's in batches of so many clips."""

    def val_batches(num_workers: int, worker: int) -> tf.data.Dataset:
        return distribution.share_of(eval_batches("val", batch_size), num_workers, worker)

    def some() -> Iterator[dict[str, tf.Tensor]]:
        steps = -(-min(_STANDARDIZATION_CLIPS, info.num_clips("train")) // _ENCODED_CLIPS)
        for inputs, _, weight in eval_batches("train", _ENCODED_CLIPS).take(steps):
            real = weight > 0
            yield {name: tf.boolean_mask(values, real) for name, values in inputs.items()}

    return Batches(batch_size, train_batches, val_batches if info.num_clips("val") > 0 else None, some)


def _splits(info: shards.DatasetInfo) -> tuple[str, ...]:
    return ("train", "val") if info.num_clips("val") > 0 else ("train",)


def _run_settings(run_dir: Path, config: TrainConfig, info: shards.DatasetInfo) -> dict[str, Any]:
    """What config.json will hold; refuses a folder that holds a run of other settings."""
    settings = to_dict(config) | {
        "dataset": info.fingerprint[:16], "start_weights": _start_digest(config), "chosen_batch_size": None,
    }  # fmt: skip
    path = run_dir / "config.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return settings
    except (json.JSONDecodeError, OSError) as error:
        raise TrainError(f"{path} cannot be read ({error}). Choose another run_dir.") from None
    if not has_checkpoint(run_dir / "checkpoints") and not (run_dir / "metrics.json").exists():
        return settings  # it was begun and came to nothing
    settings["chosen_batch_size"] = earlier.get("chosen_batch_size")
    free = dict.fromkeys(_FREE)
    changed = differences(earlier | free, settings | free)
    if changed:
        raise TrainError(
            f"{run_dir} holds a run with other settings ({'; '.join(changed)}). "
            "Choose another run_dir, or give the settings it was begun with."
        )
    return settings


def _start_digest(config: TrainConfig) -> str | None:
    """Of the file that the weights start from: a run must not go on with a frozen part that has changed."""
    path = Path(config.init_from, "model.keras") if config.init_from else Path(config.model.backbone_weights)
    return shards.sha256_of(str(path))[:16] if path.is_file() else None


@contextmanager
def _named_failures(config: TrainConfig, strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns TensorFlow's errors that a user can mend into one line."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise TrainError(
            f"Out of memory with batches in {config.accumulate} part(s) ({shards.first_line(error)}). In a "
            f"new run_dir give --accumulate={2 * config.accumulate}, which takes the same steps with half "
            "the memory, or a smaller --batch_size."
        ) from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if distribution.num_workers(strategy) == 1:
            raise  # it is of something else, such as an object store
        raise distribution.DistributionError(
            f"A worker is gone ({shards.first_line(error)}). {distribution.START_AGAIN}"
        ) from error


@contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Keras builds layers in the global policy; this sets it for a block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
