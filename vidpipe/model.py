"""The fused model: frames and mask -> preprocess -> backbone over every real frame -> masked head -> logits.

It is built of Keras's own layers and ops alone, so `model.keras` loads where vidpipe is not installed. The
file is a zip archive; vidpipe keeps its class names and clip settings in it as one more member.
"""

import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from vidpipe.backbone import BACKBONES, build_backbone, set_trainable
from vidpipe.config import ClipConfig, ModelConfig, from_dict
from vidpipe.spec import ClipSpec, VidpipeError

_CARD_NAME = "vidpipe.json"
_STANDARDIZE = "standardize"


class ModelError(VidpipeError):
    """A model file is missing, damaged or not one of ours."""


@dataclass(frozen=True)
class ModelCard:
    """What a model needs beside its weights to be used: what its outputs mean and what its inputs are.

    Attributes:
      classes: ordered; output i is the logit of classes[i].
      clip: how a video becomes a stored clip.
      num_frames: frames that the model takes of a stored clip, evenly spread; None for all.
    """

    classes: tuple[str, ...]
    clip: ClipConfig
    num_frames: int | None = None

    @property
    def spec(self) -> ClipSpec:
        """The shape of the clips that the model takes."""
        return self.clip.model_spec(self.num_frames)


@dataclass(frozen=True)
class FusedModel:
    """One model and the two halves it is made of; they share their variables.

    Attributes:
      fused: {"frames": uint8 [B, T, H, W, 3], "mask": bool [B, T]} -> logits float32 [B, classes].
      encoder: the same inputs -> features [B, T, D], zero where the mask is False.
      classifier: {"features": [B, T, D], "mask": bool [B, T]} -> logits float32 [B, classes].
    """

    fused: keras.Model
    encoder: keras.Model
    classifier: keras.Model


def notebook_head(features: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
    """The head of the notebook that vidpipe replaces: [B, T, D] and bool [B, T] -> [B, 8].

    `hard_sigmoid` is Keras 3's, x/6 + 0.5 cut at +-3; it keeps the layer off cuDNN's kernel.
    """
    steps = layers.LSTM(456, dropout=0.5, recurrent_activation="hard_sigmoid", return_sequences=True)(
        features, mask=mask
    )
    last = layers.LSTM(8)(steps, mask=mask)
    return layers.Dense(8, activation="relu")(layers.Dropout(0.4)(last))


def motion_head(features: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
    """An LSTM over what changes from frame to frame, beside the mean frame: [B, T, D], bool [B, T] -> [B, E].

    Features are standardized (`adapt_standardization` sets the constants). The LSTM sees their differences
    between successive frames, signed for the direction and absolute for the amount, and never the features
    themselves: those tell where a video was taken, and from few videos an LSTM learns just that. The mean
    over the frames, behind a strong dropout, is how appearance still gets a say. Measurements are in
    BUILD_NOTES.md.
    """
    real = ops.expand_dims(ops.cast(mask, "float32"), -1)
    num_real = ops.sum(real, axis=1)
    standardized = layers.Normalization(dtype="float32", name=_STANDARDIZE)(features) * real
    previous = ops.concatenate([standardized[:, :1], standardized[:, :-1]], axis=1)
    difference = (standardized - previous) * real
    motion = layers.Dropout(0.5)(ops.concatenate([difference, ops.abs(difference)], axis=-1))
    steps = layers.LSTM(64, return_sequences=True)(motion, mask=mask)
    mean_step = ops.sum(ops.cast(steps, "float32") * real, axis=1) / num_real
    mean_frame = ops.sum(standardized, axis=1) / num_real
    return ops.concatenate([layers.Dropout(0.5)(mean_step), layers.Dropout(0.8)(mean_frame)], axis=-1)


HEADS: dict[str, Callable[[keras.KerasTensor, keras.KerasTensor], keras.KerasTensor]] = {
    "motion": motion_head,
    "notebook": notebook_head,
}


def build_model(config: ModelConfig, spec: ClipSpec, num_classes: int) -> FusedModel:
    """Builds the fused model in the dtype policy in force; its backbone is frozen as `config` says.

    Args:
      config: backbone, weights, what is trained, head.
      spec: the clips' shape.
      num_classes: length of the logits.

    Raises:
      BackboneError: see `build_backbone`.
      ModelError: there is no such head.
    """
    if config.head not in HEADS:
        raise ModelError(f"There is no head {config.head}; there are {', '.join(HEADS)}.")
    preprocess, backbone = build_backbone(config.backbone, config.backbone_weights, spec)
    set_trainable(backbone, config.fine_tune)
    frames = keras.Input((spec.num_frames, spec.height, spec.width, 3), dtype="uint8", name="frames")
    mask = keras.Input((spec.num_frames,), dtype="bool", name="mask")
    inputs = {"frames": frames, "mask": mask}
    encoded = _apply_to_real_frames(lambda real: backbone(preprocess(real)), frames, mask)
    encoder = keras.Model(inputs, encoded, name="encoder")

    features = keras.Input((spec.num_frames, BACKBONES[config.backbone].features), name="features")
    head = keras.Model([features, mask], HEADS[config.head](features, mask), name="head")
    # float32 whatever the policy: a half-precision softmax and loss lose the small probabilities.
    logits = layers.Dense(num_classes, dtype="float32", name="logits")
    return FusedModel(
        fused=keras.Model(inputs, logits(head([encoded, mask])), name="vidpipe"),
        encoder=encoder,
        classifier=keras.Model({"features": features, "mask": mask}, logits(head([features, mask]))),
    )


def _apply_to_real_frames(
    network: Callable[[keras.KerasTensor], keras.KerasTensor],
    frames: keras.KerasTensor,
    mask: keras.KerasTensor,
) -> keras.KerasTensor:
    """Applies `network` to each time step, as TimeDistributed does, but to real frames only and all at once.

    The real frames of the whole batch are gathered into [N, H, W, 3], pass through in one call, and go back
    to their places. Keras 3's TimeDistributed would lay T copies of the network into the graph.

    Args:
      network: [N, H, W, 3] -> [N, D].
      frames: [B, T, H, W, 3].
      mask: bool [B, T].

    Returns:
      [B, T, D], zero where the mask is False.
    """
    flat_mask = ops.reshape(mask, [-1])
    (places,) = ops.nonzero(flat_mask)
    encoded = network(ops.take(ops.reshape(frames, [-1, *frames.shape[2:]]), places, axis=0))
    # Place i of the flat batch holds real frame number (real frames up to and with i) - 1; a padded place
    # repeats its neighbour and is zeroed.
    rank = ops.maximum(ops.cumsum(ops.cast(flat_mask, "int32")) - 1, 0)
    spread = ops.reshape(ops.take(encoded, rank, axis=0), [-1, frames.shape[1], encoded.shape[-1]])
    return spread * ops.expand_dims(ops.cast(mask, spread.dtype), -1)


def adapt_standardization(model: FusedModel, features: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Sets the head's standardization to the mean and variance of real frames' features, if it has one.

    Args:
      model: as built; call this before its training step is traced.
      features: batches of float [B, T, D] and mask bool [B, T].
    """
    head = model.classifier.get_layer("head")
    if _STANDARDIZE not in [layer.name for layer in head.layers]:
        return
    count, total, squares = 0, np.float64(0), np.float64(0)
    for batch, mask in features:
        real = batch[mask].astype(np.float64)
        count += len(real)
        total = total + real.sum(axis=0)
        squares = squares + np.square(real).sum(axis=0)
    mean = total / count
    variance = squares / count - np.square(mean)
    layer = head.get_layer(_STANDARDIZE)
    layer.adapt_mean.assign(mean)
    # A unit that never fires, or hardly, must not be blown up.
    layer.adapt_variance.assign(variance + 1e-3 * variance.mean())
    layer.finalize_state()


def refresh_standardization(model: FusedModel) -> None:
    """Makes the head use its standardization variables after they were assigned, as by a checkpoint."""
    head = model.classifier.get_layer("head")
    for layer in head.layers:
        if layer.name == _STANDARDIZE:
            layer.finalize_state()


def save_model(model: keras.Model, card: ModelCard, path: Path) -> None:
    """Writes a `.keras` file with the card in it, atomically."""
    temporary = path.with_name(f"{path.stem}.tmp.keras")
    model.save(temporary)
    with zipfile.ZipFile(temporary, "a") as archive:
        archive.writestr(_CARD_NAME, json.dumps(asdict(card), indent=2))
    temporary.replace(path)


def load_model(path: Path) -> tuple[keras.Model, ModelCard]:
    """Reads what `save_model` wrote.

    Raises:
      ModelError: there is no such file, or it is not one of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            values = json.loads(archive.read(_CARD_NAME))
        clip = from_dict(ClipConfig, values["clip"])
        card = ModelCard(tuple(values["classes"]), clip, values["num_frames"])
        return keras.saving.load_model(path, compile=False, safe_mode=True), card
    except FileNotFoundError:
        raise ModelError(f"There is no trained model {path}. Train one with tools/train.py.") from None
    except (KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile, VidpipeError) as error:
        raise ModelError(f"{path} is damaged or not a model of vidpipe's ({error}).") from error
