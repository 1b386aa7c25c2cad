"""Backbones: networks from a frame to its features, with their preprocessing, weights and frozen blocks."""

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
from keras import layers, ops

from vidpipe.config import ClipSpec
from vidpipe.errors import VidpipeError, first_line

_log = logging.getLogger(__name__)


class BackboneError(VidpipeError):
    """The backbone's weights cannot be loaded, or the frames are too small for it."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An entry of BACKBONES.

    A block consists of the layers that work at one resolution; each backbone has five. Exactly one tensor
    connects a block to the next, the input of the upper block's first layer, so the network can be split
    there.

    Attributes:
      application: constructor in keras.applications.
      preprocess: converts frames, uint8 [N, H, W, 3] RGB, to the float32 images that the weights expect.
      num_features: length of a frame's feature vector (D).
      upper_blocks: names of the first layers of blocks 2, 3, 4 and 5. Block 1 is everything before them.
      min_size: smallest height and width of a frame, pixels.
    """

    application: Callable[..., keras.Model]
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]
    num_features: int
    upper_blocks: tuple[str, ...]
    min_size: int = 32


def caffe_preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    """Converts RGB 0..255 to BGR and subtracts ImageNet's mean, without scaling.

    keras.applications calls this mode "caffe": the weights of VGG16 (Simonyan and Zisserman, "Very Deep
    Convolutional Networks for Large-Scale Image Recognition", 2015) and of ResNet50 come from there.
    """
    bgr = ops.flip(ops.cast(frames, "float32"), axis=-1)
    # float32 under every dtype policy: bfloat16 would round the mean and the differences to 8 bits.
    mean = [103.939, 116.779, 123.68]
    minus_mean = layers.Normalization(
        mean=mean, variance=[1.0, 1.0, 1.0], dtype="float32", name="minus_imagenet_mean"
    )
    return minus_mean(bgr)


def unit_preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    """Scales RGB 0..255 to -1..1."""
    to_unit = layers.Rescaling(1 / 127.5, offset=-1, dtype="float32", name="to_unit")
    return to_unit(ops.cast(frames, "float32"))


def no_preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    """Casts RGB 0..255 to float32, for networks whose first layers do the preprocessing."""
    return ops.cast(frames, "float32")


BACKBONES = {
    "vgg16": Backbone(
        application=keras.applications.VGG16,
        preprocess=caffe_preprocess,
        num_features=512,
        upper_blocks=tuple(f"block{block}_conv1" for block in (2, 3, 4, 5)),
    ),
    # Blocks 2 to 5 are the paper's, except that the pooling at the start of block 2 belongs to block 1 here:
    # the feature maps between them are a quarter as large.
    "resnet50": Backbone(
        application=keras.applications.ResNet50,
        preprocess=caffe_preprocess,
        num_features=2048,
        upper_blocks=tuple(f"conv{block}_block1_1_conv" for block in (2, 3, 4, 5)),
    ),
    # A block begins with the inverted residual that halves the resolution.
    "mobilenet_v2": Backbone(
        application=keras.applications.MobileNetV2,
        preprocess=unit_preprocess,
        num_features=1280,
        upper_blocks=tuple(f"block_{residual}_expand" for residual in (1, 3, 6, 13)),
    ),
    # As MobileNetV2. Stages 4 and 5 work at the same resolution and form block 4.
    "efficientnet_v2_b0": Backbone(
        application=keras.applications.EfficientNetV2B0,
        preprocess=no_preprocess,
        num_features=1280,
        upper_blocks=tuple(f"block{stage}a_expand_conv" for stage in (2, 3, 4, 6)),
    ),
    # Block 1 is the stem, blocks 2 to 5 are the four stages. The downsampling before a stage belongs to the
    # block below: the feature maps between them are half as large.
    "convnext_tiny": Backbone(
        application=keras.applications.ConvNeXtTiny,
        preprocess=no_preprocess,
        num_features=768,
        upper_blocks=tuple(f"convnext_tiny_stage_{stage}_block_0_depthwise_conv" for stage in (0, 1, 2, 3)),
    ),
}


def build_backbone(name: str, weights: str, spec: ClipSpec) -> tuple[keras.Model, keras.Model]:
    """Builds the preprocessing and the network of a backbone under the current dtype policy.

    Args:
      name: a key of BACKBONES.
      weights: `imagenet`, `none` for random weights, or the path of a Keras weights file without the
        classifier.
      spec: gives the height and width of a frame.

    Returns:
      preprocess: uint8 [N, H, W, 3] RGB -> float32 [N, H, W, 3].
      backbone: the output of `preprocess` -> [N, D], the last feature maps averaged over the image.

    Raises:
      BackboneError: the frames are too small, or the weights cannot be loaded or do not fit the network.
    """
    known = BACKBONES[name]
    if min(spec.height, spec.width) < known.min_size:
        raise BackboneError(
            f"{name} needs frames of at least {known.min_size} x {known.min_size} pixels; the dataset has "
            f"{spec.height} x {spec.width}. Convert the videos again with a larger --image_size."
        )
    shape = (spec.height, spec.width, 3)
    frames = keras.Input(shape, dtype="uint8")
    preprocess = keras.Model(frames, known.preprocess(frames), name="preprocess")
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise BackboneError(
            f"--backbone_weights must be imagenet, none or an existing file; there is no file {weights}."
        )
    try:
        # Keras warns about each layer that a wrong file lacks before it raises.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = known.application(
                weights=None if weights == "none" else weights,
                include_top=False,
                input_shape=shape,
                pooling="avg",
            )
    except Exception as error:  # Keras raises a bare Exception when a download fails
        reason = first_line(error)
        if weights == "imagenet":
            raise BackboneError(
                f"The ImageNet weights of {name} cannot be downloaded ({reason}). Use a local file "
                "(--backbone_weights=FILE) or random weights (--backbone_weights=none)."
            ) from error
        raise BackboneError(
            f"{weights} does not contain the weights of {name} without its classifier ({reason}). "
            "Save them in Keras with include_top=False."
        ) from error
    # Wrapped to rename it: ConvNeXt's own name is part of the names of its layers and of its weights file.
    return preprocess, keras.Model(network.input, network.output, name="backbone")


def freeze_blocks(
    name: str, network: keras.Model, fine_tune: str
) -> tuple[keras.Model | None, keras.Model | None]:
    """Freezes the blocks below `fine_tune` and splits the backbone there; logs the numbers of parameters.

    Call it before the training step is traced, because `trainable` is read then.

    Batch normalization keeps ImageNet's statistics in training: statistics of a few clips, whose frames are
    similar, are poor estimates, and would make a frame's features depend on the other frames of its batch.
    Its scale and offset are trained like other weights. Stochastic depth is switched off.

    Args:
      name: a key of BACKBONES.
      network: the `backbone` of `build_backbone`.
      fine_tune: `none`; `block5` to `block1`, the lowest block to train; or `all`.

    Returns:
      frozen: [N, H, W, 3] -> [N, ...], None if everything is trained.
      trained: the output of `frozen` -> [N, D], None if everything is frozen. Both share the variables of
        `network`.
    """
    frozen: keras.Model | None = None
    trained: keras.Model | None = network
    if fine_tune == "none":
        frozen, trained = network, None
    elif fine_tune not in ("all", "block1"):
        block = int(fine_tune.removeprefix("block"))
        boundary = network.get_layer(BACKBONES[name].upper_blocks[block - 2]).input
        frozen = keras.Model(network.input, boundary, name="frozen_blocks")
        trained = keras.Model(boundary, network.output, name="trained_blocks")
        percentage = 100 * _multiply_adds(frozen) / _multiply_adds(network)
        _log.info(
            "Blocks 1 to %d of %s are frozen: %.0f %% of its multiply-adds.", block - 1, name, percentage
        )
    network.trainable = trained is not None
    # Layer by layer, because a model that already has the value does not pass it on to its layers.
    for layer in network.layers:
        layer.trainable = is_trained = frozen is None or layer not in frozen.layers
        # A normalization that is not trainable uses its stored statistics; its variables can be trained.
        # Rejected: training=False in the graph; a model called with training=True overrides it.
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
            layer.gamma.trainable = layer.beta.trainable = is_trained
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    trained_count, frozen_count = (
        sum(math.prod(variable.shape) for variable in variables)
        for variables in (network.trainable_variables, network.non_trainable_variables)
    )
    _log.info("Backbone: %s trainable and %s frozen parameters.", f"{trained_count:,}", f"{frozen_count:,}")
    return frozen, trained


def _multiply_adds(network: keras.Model) -> int:
    """Counts the multiply-adds of convolutions and dense layers per frame: kernel size x output positions."""
    flat = [inner for layer in network.layers for inner in getattr(layer, "layers", [layer])]
    kernels = [(layer.kernel, layer.output.shape[1:-1]) for layer in flat if hasattr(layer, "kernel")]
    return sum(math.prod(kernel.shape) * math.prod(positions) for kernel, positions in kernels)
