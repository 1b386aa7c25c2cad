"""The settings of every job: name, default, choices, bounds and help text of each are written here, once.

Settings are frozen, keyword-only dataclasses. A field made by `setting` carries its help text, its bounds and
its choices: `check` tests a value against them, and `vidpipe.command_line` turns the same field into a flag.
"""

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vidpipe.errors import VidpipeError

SPLITS = ("train", "val", "test")
ENCODINGS = ("jpeg", "png", "raw")
SAMPLERS = ("uniform", "interval", "head")
RESIZE = ("crop", "short_side")
BACKBONES = ("vgg16", "resnet50", "mobilenet_v2", "efficientnet_v2_b0", "convnext_tiny")
HEADS = ("motion", "notebook")
FINE_TUNE = ("none", "block5", "block4", "block3", "block2", "block1", "all")
AUGMENT = ("none", "flip", "flip_crop", "flip_crop_colour")
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
CACHE_FEATURES = ("auto", "on", "off")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine")
CLASS_WEIGHTS = ("none", "balanced")
STRATEGIES = ("auto", "one", "mirrored", "multi_worker")
RUNNERS = ("local", "dask", "beam")
EXPORT_FORMATS = ("saved_model", "tflite", "features")
QUANTIZATIONS = ("none", "dynamic_range")
LABEL_FORMATS = ("activitynet", "boris", "cvat", "elan", "kinetics", "label_studio", "via")

_MAIN = "Input and output"
_WORKERS = "Decoding processes"
_TASKS = "One task of many"

_Config = TypeVar("_Config")


class ConfigError(VidpipeError):
    """A setting is out of range, not among its choices, or contradicts another: wrong usage."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a setting beside its name, type and default.

    Attributes:
      help: one sentence for `--help`, without the default, the choices and the bounds.
      group: the heading of `--help` under which the flag stands.
      flag: the flag's name where it is not the field's.
      choices: allowed values; empty for any.
      at_least, above, at_most, below: bounds of a number, or of each item of a tuple.
      none: the word by which the command line asks for None, such as `auto`; None where only leaving the flag
        out does.
    """

    help: str
    group: str = "Other settings"
    flag: str | None = None
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    none: str | None = None

    @property
    def range(self) -> str:
        """The bounds as text, such as "in [0, 1)" or "at least 1"; empty without bounds."""
        low = self.at_least if self.at_least is not None else self.above
        high = self.at_most if self.at_most is not None else self.below
        if low is not None and high is not None:
            opening, closing = "(["[self.at_least is not None], ")]"[self.at_most is not None]
            return f"in {opening}{low}, {high}{closing}"
        if low is not None:
            return f"at least {low}" if self.at_least is not None else f"above {low}"
        if high is not None:
            return f"at most {high}" if self.at_most is not None else f"below {high}"
        return ""

    def allows(self, value: float) -> bool:
        """Whether a number is finite and lies within the bounds."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any = dataclasses.MISSING, **properties: Any) -> Any:
    """Makes a dataclass field with a `Setting`; a field without a default is required."""
    return field(default=default, metadata={"setting": Setting(**properties)})


def settings_of(cls: Any) -> dict[str, Setting]:
    """The settings of a config class by field name, those of nested configs left out."""
    return {f.name: f.metadata["setting"] for f in dataclasses.fields(cls) if "setting" in f.metadata}


def check(config: Any) -> None:
    """Tests each setting of a config against its choices and bounds.

    Raises:
      ConfigError: names the setting, what is allowed, and the value.
    """
    for name, known in settings_of(config).items():
        value, shown = getattr(config, name), known.flag or name
        if value is None:
            continue
        if known.choices and value not in known.choices:
            raise ConfigError(f"{shown} must be one of {', '.join(known.choices)}; got {value}.")
        for number in value if isinstance(value, tuple) else (value,):
            if known.range and not known.allows(number):
                raise ConfigError(f"{shown} must be {known.range}; got {value}.")


def _seed(help: str) -> Any:
    # What scikit-learn, NumPy and Keras all take.
    return setting(1, help=help, at_least=0, below=2**32)


def _data_dir() -> Any:
    return setting(help="The dataset: a folder or remote address made by convert_videos.", group=_MAIN)


def _run_dir() -> Any:
    return setting(help="The run folder written by train.", group=_MAIN)


def _cache_gb() -> Any:
    return setting(
        50.0, help="Disk space for cached features in GiB.", group="Feature cache and input", at_least=0
    )


def _cache_dir() -> Any:
    return setting(
        None,
        help="Copy the shards of a remote --data_dir into this local folder once; left out, they are read "
        "over the network in every pass.",
        group="Remote data",
    )


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The shape of a clip: frames uint8 [num_frames, height, width, 3], RGB, and mask bool [num_frames].

    Raises:
      ConfigError: a number is below 1.
    """

    num_frames: int = setting(help="Frames per clip (T).", at_least=1)
    height: int = setting(help="Height of a frame in pixels.", at_least=1)
    width: int = setting(help="Width of a frame in pixels.", at_least=1)

    def __post_init__(self) -> None:
        check(self)

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.height} x {self.width} pixels"


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How a video becomes a clip. Stored with the dataset and the model, so prediction does the same."""

    num_frames: int = setting(
        20, help="Frames per clip (T); a shorter video gives fewer.", group="Clips", at_least=1
    )
    sampling: str = setting(
        "uniform",
        help="Which frames of a video: the middle frames of T equal segments (uniform), every "
        "--frame_stride-th "
        "frame (interval), or the first T frames (head).",
        group="Clips",
        choices=SAMPLERS,
    )
    frame_stride: int | None = setting(
        None,
        help="Source frames between neighbouring frames of a clip, with --sampling=interval; left out, T "
        "frames "
        "are spread over the whole video.",
        group="Clips",
        at_least=1,
    )
    image_size: int = setting(
        224, help="Side of the square frames the model takes, in pixels.", group="Clips", at_least=1
    )
    resize: str = setting(
        "crop",
        help="crop stores the centre square of each frame; short_side stores whole frames, their short side "
        "resized to --image_size, and leaves the choice of the square to training and evaluation.",
        group="Clips",
        choices=RESIZE,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.frame_stride is not None and self.sampling != "interval":
            raise ConfigError(f"frame_stride needs sampling=interval; got sampling={self.sampling}.")

    def resolve_num_frames(self, num_frames: int | None) -> int:
        """Returns the frames that a model takes of each stored clip; None asks for all of them.

        Raises:
          ConfigError: fewer are stored.
        """
        if num_frames is not None and num_frames > self.num_frames:
            raise ConfigError(
                f"num_frames={num_frames}, but the dataset stores {self.num_frames} frames per clip."
            )
        return self.num_frames if num_frames is None else num_frames

    def spec(self, num_frames: int) -> ClipSpec:
        """The shape of clips of `num_frames` square frames."""
        return ClipSpec(num_frames=num_frames, height=self.image_size, width=self.image_size)

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the stored frames' (height, width) in pixels, for a video of `height` x `width` pixels.

        >>> ClipConfig(image_size=224, resize="short_side").frame_size(240, 320)
        (224, 299)
        """
        if self.resize == "crop":
            return self.image_size, self.image_size
        short = min(height, width)
        return round(height * self.image_size / short), round(width * self.image_size / short)


@dataclass(frozen=True, kw_only=True)
class ManifestConfig:
    """Which videos, labels and splits. Without manifests and lists, class folders in `video_dir` are read."""

    video_dir: str = setting(
        help="Folder of the source videos; paths in lists are relative to it.", group=_MAIN
    )
    train_manifest: str | None = setting(
        None,
        help="CSV file with the columns video_name, tag and optional group, split; for moments of long "
        "videos also start, end (seconds or h:mm:ss.mmm) or start_frame, end_frame.",
        group="List of videos",
    )
    test_manifest: str | None = setting(
        None, help="CSV file like --train_manifest for the test videos.", group="List of videos"
    )
    ucf101_lists: str | None = setting(
        None, help="Folder of UCF101's trainlist01.txt, testlist01.txt and so on.", group="List of videos"
    )
    fold: int = setting(
        1, help="Fold of the UCF101 lists: 1, 2 or 3.", group="List of videos", at_least=1, at_most=3
    )
    classes: tuple[str, ...] | None = setting(
        None, help="Keep only these classes, separated by commas.", group="List of videos"
    )
    top_classes: int | None = setting(
        None,
        help="Keep only the N classes with the most training videos.",
        group="List of videos",
        at_least=1,
    )
    val_fraction: float = setting(
        0.1,
        help="Fraction of the training videos held out for validation, stratified by class; groups are "
        "never split.",
        group="List of videos",
        at_least=0,
        below=1,
    )
    background: str | None = setting(
        None,
        help="Add clips of a class of this name from the time of listed videos in which no moment is listed.",
        group="Moments",
    )
    background_ratio: float = setting(
        1, help="Background clips per moment, in each video.", group="Moments", above=0
    )
    background_margin_sec: float = setting(
        1, help="Background keeps this distance from moments, in seconds.", group="Moments", at_least=0
    )
    seed: int = _seed("Seed of the validation split and of the times of background clips.")

    def __post_init__(self) -> None:
        check(self)
        if self.background is not None and self.train_manifest is None:
            raise ConfigError("background needs a train_manifest with moments (columns start and end).")
        if self.ucf101_lists is not None and (self.train_manifest or self.test_manifest):
            raise ConfigError("Give either ucf101_lists or CSV manifests, not both.")
        if self.test_manifest is not None and self.train_manifest is None:
            raise ConfigError("test_manifest needs train_manifest as well.")
        if self.classes is not None and self.top_classes is not None:
            raise ConfigError("Give either classes or top_classes, not both.")
        if self.classes is not None and not self.classes:
            raise ConfigError("classes is an empty list; name at least one class.")


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """A conversion of videos to shards in `output_dir`."""

    output_dir: str = setting(help="The dataset is written here: a folder or remote address.", group=_MAIN)
    manifest: ManifestConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    encoding: str = setting("jpeg", help="Encoding of the stored frames.", group="Storage", choices=ENCODINGS)
    jpeg_quality: int = setting(95, help="Quality of JPEG frames.", group="Storage", at_least=1, at_most=100)
    shard_size_mb: float = setting(
        128,
        help="Approximate size of a shard in MiB; the number of shards follows from it before the first "
        "video is read.",
        group="Storage",
        above=0,
    )
    runner: str = setting(
        "local",
        help="Run on this machine, on the workers of a Dask cluster, or on Apache Beam, whose own options "
        "follow after --.",
        choices=RUNNERS,
    )
    dask_scheduler: str | None = setting(
        None, help="Address of the scheduler for --runner=dask, such as tcp://host:8786."
    )
    task_index: int | None = setting(
        None,
        help="Make only this share of the shards, counted from 0; the last task completes the dataset. Array "
        "jobs of Slurm and indexed jobs of Kubernetes set it.",
        group=_TASKS,
        at_least=0,
    )
    task_count: int | None = setting(
        None, help="Number of shares. Array jobs of Slurm set it.", group=_TASKS, at_least=1
    )
    num_workers: int | None = setting(
        None, help="Number of decoding processes; left out, one per core.", group=_WORKERS, at_least=1
    )
    max_skipped: float = setting(
        0.01,
        help="Fail when a larger fraction of the videos had to be skipped.",
        group=_WORKERS,
        at_least=0,
        at_most=1,
    )
    timeout_sec: float = setting(
        60,
        help="Skip a video that takes longer than this in two attempts, in seconds.",
        group=_WORKERS,
        above=0,
    )
    worker_memory_mb: int = setting(
        4096, help="Skip a video that needs more memory to decode, in MiB.", group=_WORKERS, at_least=256
    )

    def __post_init__(self) -> None:
        check(self)
        if self.runner != "local" and not (self.task_index is None and self.task_count is None):
            raise ConfigError(f"--task_index and --task_count do not go with --runner={self.runner}.")
        if (self.runner == "dask") != (self.dask_scheduler is not None):
            raise ConfigError("--runner=dask and --dask_scheduler=ADDRESS go together.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fused model."""

    backbone: str = setting("vgg16", help="Network applied to every frame.", group="Model", choices=BACKBONES)
    backbone_weights: str = setting(
        "imagenet",
        help="Initial weights of the backbone: imagenet (downloaded), none (random), or a Keras .h5 or "
        ".weights.h5 "
        "file without the classifier.",
        group="Model",
    )
    fine_tune: str = setting(
        "none",
        help="Lowest backbone block to train; none freezes the backbone.",
        group="Model",
        choices=FINE_TUNE,
    )
    pixel_differences: bool = setting(
        False,
        help="Apply the backbone also to the differences of successive frames, in pixels; the head sees the "
        "features of both.",
        group="Model",
    )
    head: str = setting("motion", help="Network after the backbone.", group="Model", choices=HEADS)
    ensemble_size: int | None = setting(
        None,
        help="Ensemble members in the head, whose logits are averaged; left out, 5 for motion and 1 for "
        "notebook.",
        group="Model",
        at_least=1,
    )
    dropout: float | None = setting(
        None,
        help="Rate of all dropout layers in the head; left out, the head's own rates.",
        group="Model",
        at_least=0,
        below=1,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights are updated."""

    name: str = setting(
        "adamw",
        help="Optimizer; sgd has Nesterov momentum 0.9.",
        group="Optimization",
        flag="optimizer",
        choices=OPTIMIZERS,
    )
    learning_rate: float = setting(
        1e-3, help="Learning rate of the head after the warm-up.", group="Optimization", above=0
    )
    schedule: str = setting(
        "constant",
        help="Learning rate schedule; cosine decays to 0 at the last step.",
        group="Optimization",
        choices=SCHEDULES,
    )
    warmup_epochs: float = setting(
        0.0,
        help="Epochs of linear warm-up of the learning rate; may be a fraction.",
        group="Optimization",
        at_least=0,
    )
    backbone_lr_scale: float = setting(
        0.01,
        help="Learning rate of the topmost trained backbone layer relative to the head's.",
        group="Optimization",
        above=0,
    )
    layer_decay: float = setting(
        1.0,
        help="Learning rate of each lower backbone layer relative to the layer above.",
        group="Optimization",
        above=0,
    )
    weight_decay: float = setting(
        0.0, help="Decoupled weight decay of matrices.", group="Optimization", at_least=0
    )
    clip_norm: float | None = setting(
        None,
        help="Clip the global gradient norm to this value; left out, no clipping.",
        group="Optimization",
        above=0,
    )
    ema: float = setting(
        0.99,
        help="Decay of the exponential moving average of the weights, which is what gets evaluated and "
        "saved; 0 "
        "disables averaging.",
        group="Optimization",
        at_least=0,
        below=1,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    data_dir: str = _data_dir()
    run_dir: str = setting(
        help="The run's artifacts are written here; an existing run with equal settings is resumed.",
        group=_MAIN,
    )
    init_from: str | None = setting(
        None, help="Initialize all weights from the selected model of this other run_dir.", group=_MAIN
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    epochs: int = setting(30, help="Maximum number of epochs.", group="Training", at_least=1)
    batch_size: int | None = setting(
        16,
        help="Clips per optimizer step; auto takes the largest power of two up to 64 that fits the memory.",
        group="Training",
        at_least=1,
        none="auto",
    )
    accumulate: int = setting(
        1,
        help="Process each batch in this many microbatches and sum their gradients: less memory, the same "
        "step.",
        group="Training",
        at_least=1,
    )
    patience: int | None = setting(
        None,
        help="Stop early when the loss that selects the epoch has not improved for this many epochs; left "
        "out, run all epochs.",
        group="Training",
        at_least=1,
    )
    label_smoothing: float = setting(
        0.1,
        help="Fraction of each label that is spread over all classes.",
        group="Training",
        at_least=0,
        below=1,
    )
    class_weights: str = setting(
        "none",
        help="balanced weights each clip inversely to the frequency of its class.",
        group="Training",
        choices=CLASS_WEIGHTS,
    )
    seed: int = _seed("Seed of the initial weights, the order of clips, augmentation and dropout.")
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    num_frames: int | None = setting(
        None,
        help="Frames the model takes of each stored clip, sampled randomly in each epoch; left out, all of "
        "them.",
        group="Augmentation",
        at_least=1,
    )
    augment: str = setting(
        "none",
        help="Random changes to the frames of a clip in each epoch.",
        group="Augmentation",
        choices=AUGMENT,
    )
    mixup: float = setting(
        0.0,
        help="Mix pairs of clips with weights from Beta(mixup, mixup); 0 disables it.",
        group="Augmentation",
        at_least=0,
    )
    precision: str = setting(
        "auto",
        help="Dtype policy; auto takes the fastest that the device supports.",
        group="Device",
        choices=PRECISIONS,
    )
    strategy: str = setting(
        "auto",
        help="Devices to train on; auto takes all machines of TF_CONFIG, else all GPUs.",
        group="Device",
        choices=STRATEGIES,
    )
    deterministic: bool = setting(
        False,
        help="Bit-identical results from run to run on a GPU, at lower speed; a CPU is always deterministic.",
        group="Device",
    )
    checkpoint_every: int | None = setting(
        None,
        help="Optimizer steps between checkpoints; left out, one at the end of each epoch.",
        group="Checkpoints and profile",
        at_least=1,
    )
    keep_checkpoints: int = setting(
        2, help="Number of newest checkpoints to keep.", group="Checkpoints and profile", at_least=1
    )
    profile_steps: tuple[int, int] | None = setting(
        None,
        help="Profile steps FIRST:LAST for TensorBoard, counted from 1.",
        group="Checkpoints and profile",
        at_least=1,
    )
    cache_features: str = setting(
        "auto",
        help="Run the frozen blocks once per clip and cache their features on disk; auto does so where "
        "frames are "
        "the same in every epoch and the features fit --cache_gb.",
        group="Feature cache and input",
        choices=CACHE_FEATURES,
    )
    cache_gb: float = _cache_gb()
    data_service: str | None = setting(
        None,
        help="host:port of a tf.data service that decodes and augments the training clips.",
        group="Feature cache and input",
    )
    input_ram_gb: float | None = setting(
        None,
        help="Memory for tf.data's buffers in GiB; left out, tf.data decides.",
        group="Feature cache and input",
        above=0,
    )
    cache_dir: str | None = _cache_dir()

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate must divide batch_size; got {self.accumulate} and {self.batch_size}."
            )
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            raise ConfigError(
                f"profile_steps must be FIRST:LAST in ascending order; got {self.profile_steps}."
            )
        if self.data_service is not None and self.checkpoint_every is not None:
            raise ConfigError(
                "checkpoint_every cannot be combined with data_service: the service decides the order of "
                "clips, so "
                "a run resumes at the end of an epoch only."
            )
        if self.data_service is not None and self.can_cache_features and self.cache_features != "off":
            raise ConfigError(
                "data_service is not used when the features of frozen blocks are cached: set "
                "cache_features=off, "
                "augment frames (augment), or train the whole backbone (fine_tune=all)."
            )
        if self.cache_features == "on" and not self.can_cache_features:
            raise ConfigError(
                "cache_features=on needs frozen blocks and frames that are the same in every epoch; got "
                f"fine_tune={self.model.fine_tune}, augment={self.augment}, mixup={self.mixup:g}."
            )

    @property
    def can_cache_features(self) -> bool:
        """Whether the backbone has frozen blocks whose input is the same in every epoch."""
        same_frames = self.augment == "none" and self.mixup == 0
        return self.model.fine_tune not in ("block1", "all") and same_frames


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """An evaluation of a run's model on a split."""

    run_dir: str = _run_dir()
    data_dir: str = _data_dir()
    split: str = setting("test", help="Which split to evaluate.", group=_MAIN, choices=SPLITS)
    batch_size: int = setting(8, help="Clips per forward pass.", at_least=1)
    temporal_crops: int = setting(
        1,
        help="Test-time augmentation: subsets of the stored frames per video, for a model that takes fewer "
        "frames "
        "than are stored.",
        group="Test-time augmentation",
        at_least=1,
    )
    spatial_crops: int = setting(
        1,
        help="Test-time augmentation: squares along the long side of each frame; 1 is the centre.",
        group="Test-time augmentation",
        at_least=1,
    )
    cache_features: str = setting(
        "auto",
        help="Run a frozen backbone once per clip and cache its features on disk, for all runs; auto does so "
        "without test-time augmentation, where the model takes all stored frames.",
        group="Feature cache and input",
        choices=("auto", "off"),
    )
    cache_gb: float = _cache_gb()
    cache_dir: str | None = _cache_dir()

    def __post_init__(self) -> None:
        check(self)


def _window_sec() -> Any:
    return setting(
        None,
        help="Length of a window in seconds; auto is that of the run's event rule, otherwise the median "
        "duration of the clips that the model was trained on.",
        group="Windows of long videos",
        at_least=0.01,
        none="auto",
    )


def _hop_sec() -> Any:
    return setting(
        None,
        help="Seconds from the start of one window to the next; auto is that of the run's event rule, "
        "otherwise half of a window.",
        group="Windows of long videos",
        at_least=0.01,
        none="auto",
    )


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """Classification of video files."""

    run_dir: str = _run_dir()
    batch_size: int = setting(
        EvaluationConfig.batch_size, help="Clips per forward pass, as in evaluate.", at_least=1
    )
    timeout_sec: float = setting(
        ConversionConfig.timeout_sec,
        help="Report a video, or a window of a timeline, that takes longer to decode as unreadable, in "
        "seconds.",
        above=0,
    )
    gif: str | None = setting(
        None, help="Write the frames that the model saw as NAME.gif into this folder.", group="Output"
    )
    timeline: str | None = setting(
        None,
        help="Classify windows over the time of each video and write NAME.csv and NAME.png into this folder.",
        group="Output",
    )
    live: str | None = setting(
        None,
        help="Classify a live stream and print its events as they end: the number of a camera, or an "
        "address such as rtsp://camera/1.",
        group="Live streams",
    )
    window_sec: float | None = _window_sec()
    hop_sec: float | None = _hop_sec()

    def __post_init__(self) -> None:
        check(self)
        if self.gif is not None and self.timeline is not None:
            raise ConfigError("Give either gif or timeline: gif shows whole clips, timeline windows.")
        if self.live is not None and (self.gif is not None or self.timeline is not None):
            raise ConfigError("live cannot be combined with gif or timeline: a stream has no end.")


@dataclass(frozen=True, kw_only=True)
class EventEvaluationConfig:
    """A comparison of the events that a run's model finds in long videos with labelled moments."""

    run_dir: str = _run_dir()
    data_dir: str = _data_dir()
    video_dir: str = setting(help="Folder of the videos, as for the conversion.", group=_MAIN)
    split: str = setting("test", help="Which split to compare.", group=_MAIN, choices=SPLITS)
    batch_size: int = setting(
        EvaluationConfig.batch_size, help="Windows per forward pass, as in predict.", at_least=1
    )
    timeout_sec: float = setting(
        ConversionConfig.timeout_sec,
        help="Fail at a window that takes longer to decode, in seconds.",
        above=0,
    )
    window_sec: float | None = _window_sec()
    hop_sec: float | None = _hop_sec()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The page and the HTTP endpoint for trying a model."""

    run_dir: str = _run_dir()
    host: str = setting("127.0.0.1", help="Address to listen on.", group="Server")
    port: int = setting(
        8000, help="Port to listen on; 0 takes a free one.", group="Server", at_least=0, at_most=65535
    )
    max_upload_mb: float = setting(200, help="Reject larger videos, in MiB.", group="Limits", at_least=0.001)
    timeout_sec: float = setting(
        ConversionConfig.timeout_sec,
        help="Reject a video that takes longer to decode, in seconds.",
        group="Limits",
        above=0,
    )
    threads: int = setting(4, help="Requests processed at a time.", group="Limits", at_least=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """An export of a run's model, or of a dataset's features."""

    run_dir: str = _run_dir()
    data_dir: str = _data_dir()
    split: str = setting(
        "test",
        help="The split whose features are written, or whose first clips the export is checked on.",
        group=_MAIN,
        choices=SPLITS,
    )
    format: str = setting(help="What to write.", group=_MAIN, choices=EXPORT_FORMATS)
    output: str = setting(
        help="A folder for saved_model, a file for tflite, a .npz or .csv file for features.", group=_MAIN
    )
    quantization: str = setting(
        "none", help="dynamic_range stores the weights of a TFLite model in 8 bits.", choices=QUANTIZATIONS
    )
    cache_dir: str | None = _cache_dir()

    def __post_init__(self) -> None:
        check(self)
        if self.quantization != "none" and self.format != "tflite":
            raise ConfigError(f"quantization needs format=tflite; got format={self.format}.")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """An import of the label files of annotation tools."""

    video_dir: str = setting(help="Folder of the videos that the label files name.", group=_MAIN)
    output: str = setting(
        help="Write the labelled moments into this CSV manifest; only a manifest is replaced.", group=_MAIN
    )
    unused: str | None = setting(
        None, help="List all labels that cannot be used in this CSV file.", group=_MAIN
    )
    allow_missing: bool = setting(
        False, help="Write the manifest also if labelled videos are missing.", group=_MAIN
    )
    format: str | None = setting(
        None,
        help="Format of the label files; left out, it is recognised by their content.",
        group="Labels",
        choices=LABEL_FORMATS,
    )
    classes: tuple[str, ...] | None = setting(
        None, help="Import only these classes, separated by commas.", group="Labels"
    )
    annotator: str | None = setting(
        None, help="Import the labels of this annotator, where a video has several.", group="Labels"
    )
    tier: tuple[str, ...] | None = setting(
        None,
        help="Tiers of ELAN or attributes of VIA that contain the classes, where several have labels.",
        group="Labels",
    )
    frame_rate: float | None = setting(
        None,
        help="Convert frame numbers to seconds at this many frames per second: the frameRate of a Label "
        "Studio project, if the videos have another rate. Left out, numbers of frames are written.",
        group="Labels",
        above=0,
    )

    def __post_init__(self) -> None:
        check(self)


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a config to plain JSON values, nested as its dataclasses are."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
    """Inverts `to_dict`.

    Raises:
      ConfigError: `values` has a key that `cls` lacks, as when a newer version wrote it, or a value of
        another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} is {values!r} instead of an object.")
    field_types = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(field_types))
    if unknown:
        raise ConfigError(f"{cls.__name__} has no {', '.join(unknown)}; another version of vidpipe wrote it.")
    built: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(field_types[name]):
            value = from_dict(field_types[name], value)
        elif not _has_type(value, field_types[name]):
            raise ConfigError(f"{name} has a value of another type: {value!r}.")
        built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def _has_type(value: Any, expected: Any) -> bool:
    """Whether a JSON value has the type of a setting."""
    if typing.get_origin(expected) is tuple:
        kinds = [kind for kind in typing.get_args(expected) if kind is not ...]
        return isinstance(value, list) and all(_has_type(each, kinds[0]) for each in value)
    if typing.get_args(expected):
        return any(_has_type(value, kind) for kind in typing.get_args(expected))
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Sequence[str] = (), prefix: str = ""
) -> list[str]:
    """Names every setting in which two `to_dict` values differ, as `name: old -> new`."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if key in ignored:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, prefix=f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Names nested settings by their path.

    >>> flatten({"model": {"head": "motion"}, "epochs": 3})
    {'model.head': 'motion', 'epochs': 3}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat


def fingerprint(values: Any) -> str:
    """Returns the sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
