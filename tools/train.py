"""Trains the fused clip classifier on a converted dataset.

    python tools/train.py --data_dir=/data/records --run_dir=/runs/1
    python tools/train.py --data_dir=/data/records --run_dir=/runs/2 --init_from=/runs/1 --recipe=fine_tune

A run whose --run_dir exists goes on where it stopped, if its settings agree.
"""

from typing import Any

from absl import flags

import cli
from vidpipe.config import (
    AUGMENT,
    CACHE_FEATURES,
    CLASS_WEIGHTS,
    FINE_TUNE,
    OPTIMIZERS,
    PRECISIONS,
    RECIPES,
    SCHEDULES,
    STRATEGIES,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

_DATA_DIR = flags.DEFINE_string("data_dir", None, "A dataset of tools/convert_videos.py.", required=True)
_RUN_DIR = flags.DEFINE_string("run_dir", None, "The model and its papers go here.", required=True)
_RECIPE = flags.DEFINE_enum(
    "recipe", None, list(RECIPES), "A tested set of other defaults; flags still override."
)
_INIT_FROM = flags.DEFINE_string("init_from", None, "Start from the weights of this other run_dir.")

_BACKBONE = flags.DEFINE_string(
    "backbone",
    ModelConfig.backbone,
    "The network over every frame: vgg16, resnet50, mobilenet_v2, efficientnet_v2_b0 or convnext_tiny.",
)
_BACKBONE_WEIGHTS = flags.DEFINE_string(
    "backbone_weights",
    ModelConfig.backbone_weights,
    "imagenet, none for a random start, or a Keras .h5 or .weights.h5 file without the classifier.",
)
_FINE_TUNE = flags.DEFINE_enum(
    "fine_tune", ModelConfig.fine_tune, FINE_TUNE, "The lowest backbone block to train; none freezes it."
)
_HEAD = flags.DEFINE_string("head", ModelConfig.head, "What follows the backbone: motion or notebook.")
_MEMBERS = flags.DEFINE_integer(
    "members",
    None,
    "Heads whose logits are averaged; left out, 5 of motion, 1 of notebook.",
    lower_bound=1,
)
_DROPOUT = flags.DEFINE_float("dropout", None, "Of the whole head; left out, the head's own rates.")

_EPOCHS = flags.DEFINE_integer("epochs", TrainConfig.epochs, "Passes over train.")
_PATIENCE = flags.DEFINE_integer(
    "patience", None, "End after so many epochs without a lower validation loss; left out, run all."
)
_BATCH_SIZE = flags.DEFINE_string(
    "batch_size", str(TrainConfig.batch_size), "Clips per step; auto takes what fits the memory, up to 64."
)
_ACCUMULATE = flags.DEFINE_integer(
    "accumulate", TrainConfig.accumulate, "Pass a step's clips in so many parts: less memory, same step."
)
_OPTIMIZER = flags.DEFINE_enum("optimizer", OptimizerConfig.name, OPTIMIZERS, "sgd has Nesterov's momentum.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", OptimizerConfig.learning_rate, "Of the head.")
_BACKBONE_LR_SCALE = flags.DEFINE_float(
    "backbone_lr_scale", OptimizerConfig.backbone_lr_scale, "The backbone's learning rate, as a share of it."
)
_LAYER_DECAY = flags.DEFINE_float(
    "layer_decay", OptimizerConfig.layer_decay, "Learning rate of a backbone layer, as a share of the next's."
)
_SCHEDULE = flags.DEFINE_enum("schedule", OptimizerConfig.schedule, SCHEDULES, "Of the learning rate.")
_WARMUP_EPOCHS = flags.DEFINE_float(
    "warmup_epochs", OptimizerConfig.warmup_epochs, "The learning rate rises over these."
)
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", OptimizerConfig.weight_decay, "Decoupled, of matrices.")
_CLIP_NORM = flags.DEFINE_float("clip_norm", None, "Longest gradient; left out, any.")
_EMA = flags.DEFINE_float(
    "ema", OptimizerConfig.ema, "Evaluate and save averaged weights, such as 0.99; 0 does not."
)
_LABEL_SMOOTHING = flags.DEFINE_float(
    "label_smoothing", TrainConfig.label_smoothing, "This share of a label is spread over all classes."
)
_CLASS_WEIGHTS = flags.DEFINE_enum(
    "class_weights", TrainConfig.class_weights, CLASS_WEIGHTS, "balanced: small classes weigh more."
)

_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", None, "Frames of each clip, drawn anew in each epoch; left out, all that are stored."
)
_AUGMENT = flags.DEFINE_enum("augment", TrainConfig.augment, AUGMENT, "What else is drawn anew.")
_MIXUP = flags.DEFINE_float("mixup", TrainConfig.mixup, "Mix clips in pairs, by Beta(mixup, mixup).")
_CACHE_FEATURES = flags.DEFINE_enum(
    "cache_features", TrainConfig.cache_features, CACHE_FEATURES, "Run what is frozen once per clip."
)
_CACHE_GB = flags.DEFINE_float("cache_gb", TrainConfig.cache_gb, "Disk that its features may take, in GiB.")
_DATA_SERVICE = flags.DEFINE_string(
    "data_service", None, "host:port of a tf.data service that decodes and augments the training clips."
)
_INPUT_RAM_GB = flags.DEFINE_float("input_ram_gb", None, "What the input's buffers may take, in GiB.")
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Copy a remote --data_dir here once; left out, every epoch reads it where it lies."
)

_PRECISION = flags.DEFINE_enum(
    "precision", TrainConfig.precision, PRECISIONS, "auto takes the best that the device has."
)
_STRATEGY = flags.DEFINE_enum(
    "strategy", TrainConfig.strategy, STRATEGIES, "auto takes all machines of TF_CONFIG, else all GPUs."
)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", TrainConfig.deterministic, "On a GPU: equal to the bit, and slower. A CPU always is."
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", None, "Steps between checkpoints; left out, one at the end of each epoch."
)
_KEEP_CHECKPOINTS = flags.DEFINE_integer(
    "keep_checkpoints", TrainConfig.keep_checkpoints, "How many of the newest stay."
)
_PROFILE_STEPS = flags.DEFINE_string("profile_steps", None, "FIRST:LAST step of a profile for TensorBoard.")
_SEED = flags.DEFINE_integer("seed", TrainConfig.seed, "Of weights, order and dropout.")


def _read_config() -> TrainConfig:
    recipe = RECIPES.get(_RECIPE.value, {})

    def value(flag: flags.FlagHolder) -> Any:
        return flag.value if flag.present else recipe.get(flag.name, flag.value)

    return TrainConfig(
        data_dir=_DATA_DIR.value,
        run_dir=_RUN_DIR.value,
        model=ModelConfig(
            backbone=value(_BACKBONE),
            backbone_weights=value(_BACKBONE_WEIGHTS),
            fine_tune=value(_FINE_TUNE),
            head=value(_HEAD),
            members=value(_MEMBERS),
            dropout=value(_DROPOUT),
        ),
        optimizer=OptimizerConfig(
            name=value(_OPTIMIZER),
            learning_rate=value(_LEARNING_RATE),
            schedule=value(_SCHEDULE),
            warmup_epochs=value(_WARMUP_EPOCHS),
            backbone_lr_scale=value(_BACKBONE_LR_SCALE),
            layer_decay=value(_LAYER_DECAY),
            weight_decay=value(_WEIGHT_DECAY),
            clip_norm=value(_CLIP_NORM),
            ema=value(_EMA),
        ),
        init_from=_INIT_FROM.value,
        epochs=value(_EPOCHS),
        batch_size=_batch_size(value(_BATCH_SIZE)),
        accumulate=value(_ACCUMULATE),
        label_smoothing=value(_LABEL_SMOOTHING),
        class_weights=value(_CLASS_WEIGHTS),
        patience=value(_PATIENCE),
        num_frames=value(_NUM_FRAMES),
        augment=value(_AUGMENT),
        mixup=value(_MIXUP),
        precision=value(_PRECISION),
        cache_features=value(_CACHE_FEATURES),
        cache_gb=value(_CACHE_GB),
        data_service=value(_DATA_SERVICE),
        input_ram_gb=value(_INPUT_RAM_GB),
        checkpoint_every=value(_CHECKPOINT_EVERY),
        keep_checkpoints=value(_KEEP_CHECKPOINTS),
        strategy=value(_STRATEGY),
        deterministic=value(_DETERMINISTIC),
        profile_steps=_steps(_PROFILE_STEPS.value),
        seed=value(_SEED),
        cache_dir=value(_CACHE_DIR),
    )


def _batch_size(text: str) -> int | None:
    if text != "auto" and not text.isdecimal():
        cli.usage_error(f"--batch_size must be a number or auto; got {text}")
    return None if text == "auto" else int(text)


def _steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        cli.usage_error(f"--profile_steps must be FIRST:LAST, such as 10:15; got {text}")
    return int(first), int(last)


def main(arguments: list[str]) -> None:
    """Flags -> TrainConfig -> train."""
    cli.no_arguments(arguments)
    config = _read_config()
    cli.load_tensorflow()
    from vidpipe import train

    result = train.train(config)
    kept = result.metrics
    validation = "" if kept["val_accuracy"] is None else f", validation accuracy {kept['val_accuracy']:.3f}"
    print(f"{result.run_dir}/model.keras: epoch {kept['kept_epoch']} of {kept['epochs']}{validation}.")


if __name__ == "__main__":
    cli.run(main)
