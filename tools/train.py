"""Trains the fused clip classifier on a converted dataset.

    python tools/train.py --data_dir=/data/ucf101-records --run_dir=/runs/1

A run whose --run_dir exists goes on where it stopped, if its settings agree.
"""

from absl import flags

import cli
from vidpipe.config import AUGMENT, CACHE_FEATURES, FINE_TUNE, PRECISIONS, ModelConfig, TrainConfig

_DATA_DIR = flags.DEFINE_string("data_dir", None, "A dataset of tools/convert_videos.py.", required=True)
_RUN_DIR = flags.DEFINE_string("run_dir", None, "The model and its papers go here.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", TrainConfig.epochs, "Passes over train.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", TrainConfig.batch_size, "Clips per step.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", TrainConfig.learning_rate, "Of Adam.")
_FINE_TUNE = flags.DEFINE_enum(
    "fine_tune", ModelConfig.fine_tune, FINE_TUNE, "The lowest backbone block to train; none freezes it."
)
_BACKBONE = flags.DEFINE_string("backbone", ModelConfig.backbone, "The network over every frame: vgg16.")
_BACKBONE_WEIGHTS = flags.DEFINE_string(
    "backbone_weights",
    ModelConfig.backbone_weights,
    "imagenet, none for a random start, or a Keras .h5 or .weights.h5 file without the classifier.",
)
_HEAD = flags.DEFINE_string("head", ModelConfig.head, "What follows the backbone: motion or notebook.")
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", None, "Frames of each clip, drawn anew in each epoch; left out, all that are stored."
)
_AUGMENT = flags.DEFINE_enum("augment", TrainConfig.augment, AUGMENT, "What else is drawn anew.")
_MIXUP = flags.DEFINE_float("mixup", TrainConfig.mixup, "Mix clips in pairs, by Beta(mixup, mixup).")
_PRECISION = flags.DEFINE_enum(
    "precision", TrainConfig.precision, PRECISIONS, "auto takes the best that the device has."
)
_CACHE_FEATURES = flags.DEFINE_enum(
    "cache_features", TrainConfig.cache_features, CACHE_FEATURES, "Run a frozen backbone once per clip."
)
_DATA_SERVICE = flags.DEFINE_string(
    "data_service", None, "host:port of a tf.data service that decodes and augments the training clips."
)
_INPUT_RAM_GB = flags.DEFINE_float("input_ram_gb", None, "What the input's buffers may take, in GiB.")
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", None, "Steps between checkpoints; left out, one at the end of each epoch."
)
_SEED = flags.DEFINE_integer("seed", TrainConfig.seed, "Of weights, order and dropout.")
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Copy a remote --data_dir here once; left out, every epoch reads it where it lies."
)


def main(arguments: list[str]) -> None:
    """Flags -> TrainConfig -> train."""
    cli.no_arguments(arguments)
    config = TrainConfig(
        data_dir=_DATA_DIR.value,
        run_dir=_RUN_DIR.value,
        model=ModelConfig(
            backbone=_BACKBONE.value,
            backbone_weights=_BACKBONE_WEIGHTS.value,
            fine_tune=_FINE_TUNE.value,
            head=_HEAD.value,
        ),
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        num_frames=_NUM_FRAMES.value,
        augment=_AUGMENT.value,
        mixup=_MIXUP.value,
        precision=_PRECISION.value,
        cache_features=_CACHE_FEATURES.value,
        data_service=_DATA_SERVICE.value,
        input_ram_gb=_INPUT_RAM_GB.value,
        checkpoint_every=_CHECKPOINT_EVERY.value,
        seed=_SEED.value,
        cache_dir=_CACHE_DIR.value,
    )
    cli.load_tensorflow()
    from vidpipe import train

    result = train.train(config)
    best = result.metrics
    validation = "" if best["val_accuracy"] is None else f", validation accuracy {best['val_accuracy']:.3f}"
    print(f"{result.run_dir}/model.keras: epoch {best['best_epoch']} of {best['epochs']}{validation}.")


if __name__ == "__main__":
    cli.run(main)
