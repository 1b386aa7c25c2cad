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

    Attributes:
      application: its constructor in keras.applications.
      preprocess: uint8 frames [N, H, W, 3] RGB to what its weights were trained on, float32.
      features: length of a frame's feature vector (D).
      min_size: smallest frame side, pixels.
    """

    application: Callable[..., keras.Model]
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]
    features: int
    min_size: int


def vgg16_preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    """RGB 0..255 to BGR minus ImageNet's mean, not scaled, as the VGG16 weights expect.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, in
    the port from Caffe that keras.applications calls mode "caffe".
    """
    bgr = ops.flip(ops.cast(frames, "float32"), axis=-1)
    # float32 whatever the policy: in bfloat16 pixel values above 128 would lose their last bits before
    # the subtraction.
    mean = [103.939, 116.779, 123.68]
    return layers.Normalization(mean=mean, variance=[1.0, 1.0, 1.0], dtype="float32")(bgr)


BACKBONES = {"vgg16": Backbone(keras.applications.VGG16, vgg16_preprocess, features=512, min_size=32)}


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
                name="backbone",
            )
    except Exception as error:  # a bare Exception is what Keras raises when a download fails
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if weights == "imagenet":
            raise BackboneError(
                f"The ImageNet weights of {name} cannot be downloaded ({reason}). Give a file with "
                "--backbone_weights=FILE, or start at random with --backbone_weights=none."
            ) from error
        raise BackboneError(f"{weights} does not hold {name}'s weights without its top: {reason}") from error
    return preprocess, network


def set_trainable(network: keras.Model, fine_tune: str) -> None:
    """Freezes the backbone below the block `fine_tune` and logs what is trained.

    Args:
      network: the `backbone` of `build_backbone`.
      fine_tune: `none`, `block5` ... `block1` for that block and all above it, or `all`.

    Call it before the training step is traced: `trainable` is read then.
    """
    network.trainable = fine_tune != "none"
    if fine_tune.startswith("block"):
        for layer in network.layers:
            # "block1_conv1" < "block5": the names sort in the order of the blocks.
            layer.trainable = layer.name[: len(fine_tune)] >= fine_tune
    trained, frozen = (
        sum(math.prod(variable.shape) for variable in variables)
        for variables in (network.trainable_variables, network.non_trainable_variables)
    )
    _log.info("Backbone: %s parameters trained, %s frozen.", f"{trained:,}", f"{frozen:,}")
