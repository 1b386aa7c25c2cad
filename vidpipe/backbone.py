"""Per-frame features: preprocessing inside, pretrained weights, and which blocks are trained."""

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
from keras import layers, ops

from vidpipe.spec import ClipSpec, VidpipeError

_log = logging.getLogger(__name__)


class BackboneError(VidpipeError):
    """The backbone's weights cannot be had or do not fit."""


@dataclass(frozen=True)
class Backbone:
    """A backbone that `build_backbone` knows by name.

    A block is what works at one resolution; each backbone has five. Between two of them one tensor passes,
    the input of the upper block's first layer, and the network can be cut there.

    Attributes:
      application: its constructor in keras.applications.
      preprocess: uint8 frames [N, H, W, 3] RGB to what its weights were trained on, float32.
      features: length of a frame's feature vector (D).
      upper_blocks: the first layers of blocks 2, 3, 4 and 5. Block 1 is all before.
      min_size: smallest frame side, pixels.
    """

    application: Callable[..., keras.Model]
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]
    features: int
    upper_blocks: tuple[str, ...]
    min_size: int = 32


def caffe_preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    """RGB 0..255 to BGR minus ImageNet's mean, not scaled, as weights ported from Caffe expect.

    keras.applications calls this mode "caffe". VGG16's weights are of this kind (Simonyan and Zisserman,
    "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015), and ResNet50's.
    """
    bgr = ops.flip(ops.cast(frames, "float32"), axis=-1)
    # float32 whatever the policy: in bfloat16 pixel values above 128 would lose their last bits before
    # the subtraction.
    mean = [103.939, 116.779, 123.68]
    minus_mean = layers.Normalization(
        mean=mean, variance=[1.0, 1.0, 1.0], dtype="float32", name="minus_imagenet_mean"
    )
    return minus_mean(bgr)


def unit_preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    """RGB 0..255 to -1..1."""
    to_unit = layers.Rescaling(1 / 127.5, offset=-1, dtype="float32", name="to_unit")
    return to_unit(ops.cast(frames, "float32"))


def no_preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    """RGB 0..255 as float32, for networks that begin with a preprocessing of their own."""
    return ops.cast(frames, "float32")


BACKBONES = {
    "vgg16": Backbone(
        keras.applications.VGG16,
        caffe_preprocess,
        features=512,
        upper_blocks=tuple(f"block{block}_conv1" for block in (2, 3, 4, 5)),
    ),
    # Blocks 2 to 5 are the paper's; the pooling at the start of its second counts to block 1 here, so that a
    # cut between them gives a quarter of the numbers.
    "resnet50": Backbone(
        keras.applications.ResNet50,
        caffe_preprocess,
        features=2048,
        upper_blocks=tuple(f"conv{block}_block1_1_conv" for block in (2, 3, 4, 5)),
    ),
    # A block begins with the inverted residual that halves the resolution.
    "mobilenet_v2": Backbone(
        keras.applications.MobileNetV2,
        unit_preprocess,
        features=1280,
        upper_blocks=tuple(f"block_{residual}_expand" for residual in (1, 3, 6, 13)),
    ),
    # Likewise. Stages 4 and 5 work at one resolution: they are block 4.
    "efficientnet_v2_b0": Backbone(
        keras.applications.EfficientNetV2B0,
        no_preprocess,
        features=1280,
        upper_blocks=tuple(f"block{stage}a_expand_conv" for stage in (2, 3, 4, 6)),
    ),
    # Block 1 is the stem, blocks 2 to 5 are the four stages. The downsampling before a stage counts to the
    # block below, so that a cut between them gives half the numbers.
    "convnext_tiny": Backbone(
        keras.applications.ConvNeXtTiny,
        no_preprocess,
        features=768,
        upper_blocks=tuple(f"convnext_tiny_stage_{stage}_block_0_depthwise_conv" for stage in (0, 1, 2, 3)),
    ),
}


def build_backbone(name: str, weights: str, spec: ClipSpec) -> tuple[keras.Model, keras.Model]:
    """Builds the preprocessing and the network of a backbone, in the dtype policy in force.

    Args:
      name: a key of BACKBONES.
      weights: `imagenet`, `none` for a random start, or a Keras weights file without the classifier.
      spec: the clips' height and width.

    Returns:
      `preprocess`: uint8 [N, H, W, 3] RGB -> float32 [N, H, W, 3]; `backbone`: that -> [N, D], the last
      feature maps averaged over the image.

    Raises:
      BackboneError: no such backbone, frames too small, or weights that cannot be had or do not fit.
    """
    if name not in BACKBONES:
        raise BackboneError(f"There is no backbone {name}; there is {', '.join(BACKBONES)}.")
    known = BACKBONES[name]
    if min(spec.height, spec.width) < known.min_size:
        raise BackboneError(
            f"{name} needs frames of at least {known.min_size} pixels; the clips have "
            f"{spec.height} x {spec.width}. Convert with a larger --image_size."
        )
    shape = (spec.height, spec.width, 3)
    frames = keras.Input(shape, dtype="uint8")
    preprocess = keras.Model(frames, known.preprocess(frames), name="preprocess")
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise BackboneError(f"There is no weights file {weights} (--backbone_weights).")
    try:
        # Keras warns of every layer that a wrong file lacks, and then raises.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = known.application(
                weights=None if weights == "none" else weights,
                include_top=False,
                input_shape=shape,
                pooling="avg",
            )
    except Exception as error:  # a bare Exception is what Keras raises when a download fails
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if weights == "imagenet":
            raise BackboneError(
                f"The ImageNet weights of {name} cannot be downloaded ({reason}). Give a file with "
                "--backbone_weights=FILE, or start at random with --backbone_weights=none."
            ) from error
        raise BackboneError(f"{weights} does not hold {name}'s weights without its top: {reason}") from error
    # Renamed by wrapping: ConvNeXt's own name is part of its layers' names and of its weights file's.
    return preprocess, keras.Model(network.input, network.output, name="backbone")


def freeze_blocks(
    name: str, network: keras.Model, fine_tune: str
) -> tuple[keras.Model | None, keras.Model | None]:
    """Freezes the backbone below the block `fine_tune`, logs what is trained, and cuts it there.

    Batch normalization uses ImageNet's statistics in training too: those of a few clips, whose frames are
    much alike, are poor ones, and a frame's features would depend on what else is in its batch. Its scale and
    offset are trained as all else is. Stochastic depth is off.

    Args:
      name: a key of BACKBONES.
      network: the `backbone` of `build_backbone`.
      fine_tune: `none`, `block5` ... `block1` for that block and all above it, or `all`.

    Returns:
      The frozen part, [N, H, W, 3] -> [N, ...], and the trained part, that -> [N, D]; they share the
      variables of `network`. A part without layers is None.

    Call it before the training step is traced: `trainable` is read then.
    """
    frozen: keras.Model | None = None
    trained: keras.Model | None = network
    if fine_tune == "none":
        frozen, trained = network, None
    elif fine_tune not in ("all", "block1"):
        block = int(fine_tune.removeprefix("block"))
        border = network.get_layer(BACKBONES[name].upper_blocks[block - 2]).input
        frozen = keras.Model(network.input, border, name="frozen_blocks")
        trained = keras.Model(border, network.output, name="trained_blocks")
        share = 100 * _multiply_adds(frozen) / _multiply_adds(network)
        _log.info("Blocks 1 to %d of %s, frozen, are %.0f %% of its multiply-adds.", block - 1, name, share)
    network.trainable = trained is not None
    # Layer by layer: a model that already has the value hands it on to none of its layers.
    for layer in network.layers:
        layer.trainable = is_trained = frozen is None or layer not in frozen.layers
        # Not by training=False in the graph: a model called with training=True hands that on to all layers.
        # A normalization that is not trainable keeps to its statistics; its variables can be trained still.
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
            layer.gamma.trainable = layer.beta.trainable = is_trained
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    trained_count, frozen_count = (
        sum(math.prod(variable.shape) for variable in variables)
        for variables in (network.trainable_variables, network.non_trainable_variables)
    )
    _log.info("Backbone: %s parameters trained, %s frozen.", f"{trained_count:,}", f"{frozen_count:,}")
    return frozen, trained


def _multiply_adds(network: keras.Model) -> int:
    """Of its convolutions and dense layers, for one frame: each kernel is applied at each output position."""
    flat = [inner for layer in network.layers for inner in getattr(layer, "layers", [layer])]
    kernels = [(layer.kernel, layer.output.shape[1:-1]) for layer in flat if hasattr(layer, "kernel")]
    return sum(math.prod(kernel.shape) * math.prod(positions) for kernel, positions in kernels)
