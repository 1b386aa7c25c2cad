"""Frozen settings of conversion and training, to and from JSON. Every default is written here, once."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vidpipe.sampling import SAMPLERS
from vidpipe.spec import ClipSpec, VidpipeError

ENCODINGS = ("jpeg", "png", "raw")
RESIZE = ("crop", "short_side")
FINE_TUNE = ("none", "block5", "block4", "block3", "block2", "block1", "all")
AUGMENT = ("none", "flip", "flip_crop", "flip_crop_colour")
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
CACHE_FEATURES = ("auto", "on", "off")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine")
CLASS_WEIGHTS = ("none", "balanced")
STRATEGIES = ("auto", "one", "mirrored", "multi_worker")

# What --recipe of tools/train.py sets where the command line does not. Measured in BUILD_NOTES.md.
RECIPES: dict[str, dict[str, Any]] = {
    "frozen": {
        "fine_tune": "none",
        "batch_size": "16",
        "epochs": 30,
        "label_smoothing": 0.1,
        "ema": 0.99,
    },
    "fine_tune": {
        "fine_tune": "block5",
        "batch_size": "16",
        "epochs": 20,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "label_smoothing": 0.1,
        "ema": 0.99,
    },
}

_Config = TypeVar("_Config")


class ConfigError(VidpipeError):
    """A setting has a value that cannot work, or two settings contradict each other."""


@dataclass(frozen=True)
class ClipConfig:
    """How a video becomes a clip. Stored with the dataset and the model, so prediction does the same.

    Attributes:
      num_frames: frames per clip (T); shorter videos give fewer.
      sampling: which frames, a key of `sampling.SAMPLERS`.
      frame_stride: source frames between neighbours, only with `interval`; None spreads T over the video.
      image_size: side of the square frames that the model takes, pixels.
      resize: `crop` stores the centre square of each frame, resized. `short_side` stores the whole frame, its
        short side resized to image_size, and leaves the choice of the square to the reader.
    """

    num_frames: int = 20
    sampling: str = "uniform"
    frame_stride: int | None = None
    image_size: int = 224
    resize: str = "crop"

    def __post_init__(self) -> None:
        _check_at_least(self, num_frames=1, image_size=1, frame_stride=1)
        _check_choice("sampling", self.sampling, SAMPLERS)
        _check_choice("resize", self.resize, RESIZE)
        if self.frame_stride is not None and self.sampling != "interval":
            raise ConfigError(f"frame_stride goes with sampling=interval; got sampling={self.sampling}.")

    def model_spec(self, num_frames: int | None = None) -> ClipSpec:
        """The shape of the clips that a model takes: all stored frames, or `num_frames` of them.

        Raises:
          ConfigError: fewer are stored.
        """
        if num_frames is not None and num_frames > self.num_frames:
            raise ConfigError(
                f"num_frames={num_frames}, but the records hold {self.num_frames} frames a clip."
            )
        return ClipSpec(num_frames or self.num_frames, self.image_size, self.image_size)

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the stored frames of a video whose own are `height` and `width`, pixels.

        >>> ClipConfig(image_size=224, resize="short_side").frame_size(240, 320)
        (224, 299)
        """
        if self.resize == "crop":
            return self.image_size, self.image_size
        short = min(height, width)
        return round(height * self.image_size / short), round(width * self.image_size / short)


@dataclass(frozen=True)
class ManifestConfig:
    """Which videos, labels and splits.

    Attributes:
      video_dir: every video's path is relative to it.
      train_manifest, test_manifest: CSV files with columns video_name, tag and optional group, split.
      ucf101_lists, fold: folder of trainlist0N.txt and testlist0N.txt, and N.
      classes: only these classes. None keeps all.
      top_classes: only the classes with the most training videos. None keeps all.
      val_fraction: share of the training videos held out as `val`; 0 for none.
      seed: of the validation split.

    Without manifests and lists the class folders in `video_dir` are read.
    """

    video_dir: str
    train_manifest: str | None = None
    test_manifest: str | None = None
    ucf101_lists: str | None = None
    fold: int = 1
    classes: tuple[str, ...] | None = None
    top_classes: int | None = None
    val_fraction: float = 0.1
    seed: int = 1

    def __post_init__(self) -> None:
        _check_at_least(self, fold=1, top_classes=1)
        _check_seed(self.seed)
        if self.fold > 3:
            raise ConfigError(f"UCF101 has folds 1, 2 and 3; got fold={self.fold}.")
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"val_fraction must be in [0, 1); got {self.val_fraction}.")
        if self.ucf101_lists is not None and (self.train_manifest or self.test_manifest):
            raise ConfigError("Give either ucf101_lists or CSV manifests, not both.")
        if self.test_manifest is not None and self.train_manifest is None:
            raise ConfigError("test_manifest needs a train_manifest beside it.")
        if self.classes is not None and self.top_classes is not None:
            raise ConfigError("Give either classes or top_classes, not both.")
        if self.classes is not None and not self.classes:
            raise ConfigError("classes names no class.")


@dataclass(frozen=True)
class ConversionConfig:
    """A conversion of videos to shards in `output_dir`.

    Attributes:
      encoding, jpeg_quality: of each frame in the records; quality 1 to 100, used by jpeg alone.
      shard_size_mb: a shard's intended size, in 2**20 bytes; the number of shards follows from it and an
        estimate of a clip's size, so that it is known before the first video is read.
      num_workers: decoding processes; None starts one per core.
      max_skipped: the conversion fails when a larger fraction of the videos had to be skipped.
      timeout_sec: a video that takes longer, twice, is skipped.
      worker_memory_mb: a video that needs more memory to decode is skipped; in 2**20 bytes.
    """

    output_dir: str
    manifest: ManifestConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    encoding: str = "jpeg"
    jpeg_quality: int = 95
    shard_size_mb: float = 128
    num_workers: int | None = None
    max_skipped: float = 0.01
    timeout_sec: float = 60
    worker_memory_mb: int = 4096

    def __post_init__(self) -> None:
        _check_choice("encoding", self.encoding, ENCODINGS)
        _check_at_least(self, num_workers=1, worker_memory_mb=256)
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality must be from 1 to 100; got {self.jpeg_quality}.")
        if not 0 <= self.max_skipped <= 1:
            raise ConfigError(f"max_skipped is a fraction from 0 to 1; got {self.max_skipped}.")
        for name in ("shard_size_mb", "timeout_sec"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0; got {getattr(self, name)}.")


@dataclass(frozen=True)
class ModelConfig:
    """The fused model.

    Attributes:
      backbone: a key of `backbone.BACKBONES`.
      backbone_weights: `imagenet`, `none` for a random start, or a Keras weights file of the backbone
        without its classifier.
      fine_tune: the lowest backbone block that is trained; `none` freezes all of it.
      head: a key of `model.HEADS`.
      members: how many of the head differ in their start and have their logits averaged; None leaves the
        head its own number.
      dropout: the rate of all the head's dropouts, 0 for none; None leaves each its own.
    """

    backbone: str = "vgg16"
    backbone_weights: str = "imagenet"
    fine_tune: str = "none"
    head: str = "motion"
    members: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        _check_choice("fine_tune", self.fine_tune, FINE_TUNE)
        if self.members is not None and self.members < 1:
            raise ConfigError(f"members must be at least 1; got {self.members}.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1); got {self.dropout}.")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights are updated.

    Attributes:
      name: `adamw`, or `sgd` with Nesterov's momentum of 0.9.
      learning_rate: of the head, after the warm-up.
      schedule: `constant`, or `cosine` down to 0 at the end of the last epoch.
      warmup_epochs: the learning rate rises over these; may be a fraction.
      backbone_lr_scale: the learning rate of the backbone's topmost trained layer, as a share of the head's.
      layer_decay: that of each layer below, as a share of the one above it.
      weight_decay: decoupled: a step takes learning rate x weight_decay off every matrix.
      clip_norm: longest gradient, all variables together; None leaves it.
      ema: above 0, what is evaluated and saved are averages of the weights that keep this share at each step.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    backbone_lr_scale: float = 0.01
    layer_decay: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.name, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("learning_rate", "backbone_lr_scale", "layer_decay", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0; got {value}.")
        for name in ("warmup_epochs", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more; got {getattr(self, name)}.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must be in [0, 1); got {self.ema}.")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      data_dir: a committed dataset.
      run_dir: everything the run leaves behind goes here.
      init_from: the run_dir of another run, whose weights this one starts from.
      epochs: at most; `patience` may end it before.
      batch_size: clips per optimiser step; None takes the largest power of two up to 64 that fits the memory.
      accumulate: a step's clips pass in so many parts, whose gradients are added up: less memory, same step.
      label_smoothing: this share of each label is spread over all classes.
      class_weights: `balanced` weighs each clip by (clips / classes / clips of its class).
      patience: epochs without a lower validation loss after which the run ends; None runs all.
      num_frames: frames that the model takes of a stored clip, drawn anew in each epoch; None for all.
      augment: what else is drawn anew: `flip`, `flip_crop` or `flip_crop_colour`.
      mixup: above 0, clips are mixed in pairs with shares of Beta(mixup, mixup).
      precision: `auto` takes the best that the device has.
      cache_features: `auto` and `on` run what is frozen once per stored frame; `off` runs it in every epoch,
        as does `auto` where frames are changed (augment, mixup) or their features would take more than
        `cache_gb`.
      cache_gb: disk that stored features may take, in 2**30 bytes.
      data_service: `host:port` of a tf.data service that decodes and augments the training clips; None does
        so here.
      input_ram_gb: what the input's buffers may take, in 2**30 bytes; None leaves it to tf.data.
      checkpoint_every: optimiser steps between checkpoints inside an epoch; None saves at its end only.
      keep_checkpoints: how many of the newest are kept.
      strategy: `auto` takes all machines of TF_CONFIG, else all GPUs.
      deterministic: on a GPU, equal to the bit from run to run, and slower; a CPU always is.
      profile_steps: first and last step of a profile for TensorBoard, counted from 1; None makes none.
      seed: of weights, order and dropout.
      cache_dir: a remote data_dir is copied here once; None reads it from where it lies.
    """

    data_dir: str
    run_dir: str
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    init_from: str | None = None
    epochs: int = 10
    batch_size: int | None = 64
    accumulate: int = 1
    label_smoothing: float = 0.0
    class_weights: str = "none"
    patience: int | None = None
    num_frames: int | None = None
    augment: str = "none"
    mixup: float = 0.0
    precision: str = "auto"
    cache_features: str = "auto"
    cache_gb: float = 50.0
    data_service: str | None = None
    input_ram_gb: float | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    strategy: str = "auto"
    deterministic: bool = False
    profile_steps: tuple[int, int] | None = None
    seed: int = 1
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        _check_at_least(
            self, epochs=1, batch_size=1, accumulate=1, checkpoint_every=1, keep_checkpoints=1, num_frames=1,
            patience=1,
        )  # fmt: skip
        _check_seed(self.seed)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("cache_features", self.cache_features, CACHE_FEATURES)
        _check_choice("augment", self.augment, AUGMENT)
        _check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        _check_choice("strategy", self.strategy, STRATEGIES)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1); got {self.label_smoothing}.")
        if not self.cache_gb >= 0:
            raise ConfigError(f"cache_gb must be 0 or more; got {self.cache_gb}.")
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate must divide batch_size; got {self.accumulate} and {self.batch_size}."
            )
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ConfigError(f"profile_steps are FIRST:LAST, from 1; got {self.profile_steps}.")
        if not self.mixup >= 0:
            raise ConfigError(f"mixup must be 0 or more; got {self.mixup}.")
        if self.data_service is not None and self.checkpoint_every is not None:
            raise ConfigError(
                "checkpoint_every does not go with data_service: the order of its clips is its own, so a run "
                "goes on from the end of an epoch only."
            )
        if self.data_service is not None and self.can_cache_features and self.cache_features != "off":
            raise ConfigError(
                "data_service has nothing to do where what is frozen of the backbone is run once: change "
                "frames (augment), train all of it (fine_tune=all), or set cache_features=off."
            )
        if self.input_ram_gb is not None and not self.input_ram_gb > 0:
            raise ConfigError(f"input_ram_gb must be above 0; got {self.input_ram_gb}.")
        if self.cache_features == "on" and not self.can_cache_features:
            raise ConfigError(
                "cache_features=on needs frozen blocks, and frames that are the same in every epoch; got "
                f"fine_tune={self.model.fine_tune}, augment={self.augment}, mixup={self.mixup:g}."
            )

    @property
    def can_cache_features(self) -> bool:
        """Whether the backbone has frozen blocks, and a frame gives the same in every epoch."""
        same_frames = self.augment == "none" and self.mixup == 0
        return self.model.fine_tune not in ("block1", "all") and same_frames


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values, nested as its dataclasses are."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[_Config], values: dict[str, Any]) -> _Config:
    """The inverse of `to_dict`.

    Raises:
      ConfigError: `values` has a key that `cls` lacks, as when a newer version wrote it.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{cls.__name__} has no {', '.join(unknown)}; another version of vidpipe wrote it.")
    built: dict[str, Any] = {}
    for name, value in values.items():
        field_type = fields[name].type
        if isinstance(field_type, type) and dataclasses.is_dataclass(field_type):
            value = from_dict(field_type, value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Names every setting in which two `to_dict` values differ, as `name: old -> new`."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def fingerprint(values: Any) -> str:
    """The sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value}.")


def _check_at_least(config: Any, **bounds: int) -> None:
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise ConfigError(f"{name} must be at least {bound}; got {value}.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:  # what scikit-learn, numpy and Keras all take
        raise ConfigError(f"seed must be in [0, 2**32); got {seed}.")
