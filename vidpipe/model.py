"""The fused model: frames and mask -> preprocess -> backbone over every real frame -> masked head -> logits.

It is built of Keras's own layers and ops alone, so `model.keras` loads where vidpipe is not installed. The
file is a zip archive; vidpipe keeps its class names and clip settings in it as one more member.
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from vidpipe.backbone import BACKBONES, build_backbone, freeze_blocks
from vidpipe.config import ClipConfig, ModelConfig, from_dict
from vidpipe.shards import commit
from vidpipe.spec import ClipSpec, VidpipeError

CARD_NAME = "vidpipe.json"
_POOLED = "pooled"
_MEMBERS = "members"
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

    def to_json(self) -> str:
        """As it lies in a model's file."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class FusedModel:
    """One model, and the two parts it is cut into where the frozen blocks end; they share their variables.

    Attributes:
      fused: {"frames": uint8 [B, T, H, W, 3], "mask": bool [B, T]} -> logits float32 [B, classes].
      frozen: the same inputs, but of all S frames that are stored -> [B, S, ...], what the frozen part of the
        backbone gives, zero where the mask is False: the features [B, S, D] where all of it is frozen, else
        feature maps. None where nothing is.
      trained: {"features": T frames of what `frozen` gives, "mask": bool [B, T]} -> logits float32
        [B, classes]. None where `frozen` is.
    """

    fused: keras.Model
    frozen: keras.Model | None
    trained: keras.Model | None


# The number of a member to what it makes of a clip, [B, E].
Member = Callable[[int], keras.KerasTensor]


def notebook_head(
    features: keras.KerasTensor, mask: keras.KerasTensor, dropout: float | None = None
) -> Member:
    """The head of the notebook that vidpipe replaces: [B, T, D] and bool [B, T] -> [B, 8].

    `hard_sigmoid` is Keras 3's, x/6 + 0.5 cut at +-3; it keeps the layer off cuDNN's kernel.
    """
    inner, outer = (0.5, 0.4) if dropout is None else (dropout, dropout)

    def member(number: int) -> keras.KerasTensor:
        first = layers.LSTM(
            456, dropout=inner, recurrent_activation="hard_sigmoid", return_sequences=True,
            name=f"first_lstm_{number}",
        )  # fmt: skip
        last = layers.LSTM(8, name=f"second_lstm_{number}")(first(features, mask=mask), mask=mask)
        kept = layers.Dropout(outer, name=f"dropout_{number}")(last)
        return layers.Dense(8, activation="relu", name=f"dense_{number}")(kept)

    return member


def motion_head(features: keras.KerasTensor, mask: keras.KerasTensor, dropout: float | None = None) -> Member:
    """An LSTM over what changes between frames, beside the mean frame: [B, T, D], bool [B, T] -> [B, E].

    Features are standardized (`adapt_standardization` sets the constants). The LSTM sees their differences
    between successive frames, signed for the direction and absolute for the amount, and never the features
    themselves: those tell where a video was taken, and from few videos an LSTM learns just that. The mean
    over the frames, behind a strong dropout, is how appearance still gets a say.

    With few videos the luck of one such member is worth 3 to 6 points of accuracy. Measurements are in
    BUILD_NOTES.md.
    """
    usual, strong = (0.5, 0.8) if dropout is None else (dropout, dropout)
    real = ops.expand_dims(ops.cast(mask, "float32"), -1)
    num_real = ops.sum(real, axis=1)
    standardized = layers.Normalization(dtype="float32", name=_STANDARDIZE)(features) * real
    previous = ops.concatenate([standardized[:, :1], standardized[:, :-1]], axis=1)
    difference = (standardized - previous) * real
    motion = ops.concatenate([difference, ops.abs(difference)], axis=-1)
    mean_frame = ops.sum(standardized, axis=1) / num_real

    def member(number: int) -> keras.KerasTensor:
        dropout_motion = layers.Dropout(usual, name=f"motion_dropout_{number}")
        dropout_step = layers.Dropout(usual, name=f"step_dropout_{number}")
        dropout_frame = layers.Dropout(strong, name=f"frame_dropout_{number}")
        lstm = layers.LSTM(64, return_sequences=True, name=f"lstm_{number}")
        steps = lstm(dropout_motion(motion), mask=mask)
        mean_step = ops.sum(ops.cast(steps, "float32") * real, axis=1) / num_real
        return ops.concatenate([dropout_step(mean_step), dropout_frame(mean_frame)], axis=-1)

    return member


@dataclass(frozen=True)
class Head:
    """A head that `build_head` knows by name.

    Attributes:
      build: features, mask and the rate of all its dropouts, None for its own, to what makes its members.
        Layers have names: Keras numbers nameless ones through a process, and TensorFlow orders sums by name.
      num_members: how many there are where a ModelConfig does not say.
    """

    build: Callable[[keras.KerasTensor, keras.KerasTensor, float | None], Member]
    num_members: int


HEADS = {"motion": Head(motion_head, num_members=5), "notebook": Head(notebook_head, num_members=1)}


def build_model(
    config: ModelConfig, spec: ClipSpec, num_classes: int, stored_frames: int | None = None
) -> FusedModel:
    """Builds the fused model in the dtype policy in force; its backbone is frozen as `config` says.

    Args:
      config: backbone, weights, what is trained, head, its members and dropout.
      spec: the clips' shape.
      num_classes: length of the logits.
      stored_frames: S, of which a clip's T are drawn; None where that is all of them.

    Raises:
      BackboneError: see `build_backbone`.
      ModelError: there is no such head.
    """
    inputs = _clip_inputs(spec)
    frames, mask = inputs["frames"], inputs["mask"]
    classify = build_head(config, mask, num_classes)
    preprocess, backbone = build_backbone(config.backbone, config.backbone_weights, spec)
    frozen, trained = freeze_blocks(config.backbone, backbone, config.fine_tune)

    encoded = _apply_to_real_frames(lambda real: backbone(preprocess(real)), frames, mask)
    fused = keras.Model(inputs, classify(encoded), name="vidpipe")
    if frozen is None:
        return FusedModel(fused, None, None)
    stored_spec = spec if stored_frames is None else replace(spec, num_frames=stored_frames)
    stored = _clip_inputs(stored_spec)
    below = _apply_to_real_frames(lambda real: frozen(preprocess(real)), stored["frames"], stored["mask"])
    features = keras.Input((spec.num_frames, *below.shape[2:]), dtype=below.dtype, name="features")
    above = features if trained is None else _apply_to_real_frames(trained, features, mask)
    return FusedModel(
        fused=fused,
        frozen=keras.Model(stored, below, name="frozen"),
        trained=keras.Model({"features": features, "mask": mask}, classify(above), name="trained"),
    )


def _clip_inputs(spec: ClipSpec) -> dict[str, keras.KerasTensor]:
    return {
        "frames": keras.Input((spec.num_frames, spec.height, spec.width, 3), dtype="uint8", name="frames"),
        "mask": keras.Input((spec.num_frames,), dtype="bool", name="mask"),
    }


def build_head(
    config: ModelConfig, mask: keras.KerasTensor, num_classes: int
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """What follows the backbone: features [B, T, D] -> logits float32 [B, classes], as often as it is called.

    A head's members differ in their start and their dropout, each is trained for itself, and their logits are
    averaged (Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles", 2017).

    Args:
      config: backbone, head, its members and dropout.
      mask: bool [B, T].
      num_classes: length of the logits.

    Raises:
      ModelError: there is no such head.
    """
    if config.head not in HEADS:
        raise ModelError(f"There is no head {config.head}; there are {', '.join(HEADS)}.")
    features = keras.Input((mask.shape[1], BACKBONES[config.backbone].features))
    known = HEADS[config.head]
    num_members = known.num_members if config.members is None else config.members
    member = known.build(features, mask, config.dropout)
    members = [member(number) for number in range(num_members)]
    head = keras.Model([features, mask], ops.stack(members, axis=1), name="head")
    # A matrix of its own for each member, begun as a Dense layer's, by Glorot's uniform rule.
    largest = math.sqrt(6 / (members[0].shape[-1] + num_classes))
    # float32 whatever the policy: a half-precision softmax and loss lose the small probabilities.
    logits = layers.EinsumDense(
        "bme,mec->bmc",
        (len(members), num_classes),
        bias_axes="mc",
        kernel_initializer=keras.initializers.RandomUniform(-largest, largest),
        dtype="float32",
        name="logits",
    )
    average = layers.GlobalAveragePooling1D(dtype="float32", name="average")

    def classify(pooled: keras.KerasTensor) -> keras.KerasTensor:
        # The names are how `feature_extractor` and `member_logits` find their tensors in either model.
        each = logits(head([layers.Identity(name=_POOLED)(pooled), mask]))
        return average(layers.Identity(dtype="float32", name=_MEMBERS)(each))

    return classify


def _apply_to_real_frames(
    network: Callable[[keras.KerasTensor], keras.KerasTensor],
    frames: keras.KerasTensor,
    mask: keras.KerasTensor,
) -> keras.KerasTensor:
    """Applies `network` to each time step, as TimeDistributed does, but to real frames only and all at once.

    The real frames of the whole batch are gathered into [N, ...], pass through in one call, and go back to
    their places. Keras 3's TimeDistributed would lay T copies of the network into the graph.

    Args:
      network: [N, ...] -> [N, ...], each of any rank.
      frames: [B, T, ...], images or what lower blocks made of them.
      mask: bool [B, T].

    Returns:
      [B, T, ...], zero where the mask is False.
    """
    flat_mask = ops.reshape(mask, [-1])
    (places,) = ops.nonzero(flat_mask)
    encoded = network(ops.take(ops.reshape(frames, [-1, *frames.shape[2:]]), places, axis=0))
    # Place i of the flat batch holds real frame number (real frames up to and with i) - 1; a padded place
    # repeats its neighbour and is zeroed.
    rank = ops.maximum(ops.cumsum(ops.cast(flat_mask, "int32")) - 1, 0)
    spread = ops.reshape(ops.take(encoded, rank, axis=0), [-1, frames.shape[1], *encoded.shape[1:]])
    real = ops.reshape(mask, [-1, frames.shape[1], *(1 for _ in encoded.shape[1:])])
    return spread * ops.cast(real, spread.dtype)


def feature_extractor(model: keras.Model) -> keras.Model:
    """The part of a model up to its head: its inputs -> features [B, T, D], zero where the mask is False.

    Args:
      model: `FusedModel.fused` or `.trained`, or of `load_model`; the two share their variables.
    """
    return keras.Model(model.input, model.get_layer(_POOLED).output)


def member_logits(model: keras.Model) -> keras.Model:
    """A model before its members are averaged: its inputs -> logits float32 [B, members, classes].

    Args:
      model: as `feature_extractor` takes it; the two share their variables.
    """
    return keras.Model(model.input, model.get_layer(_MEMBERS).output, name=_MEMBERS)


def classifier(model: keras.Model) -> keras.Model:
    """The part of a model behind its features: {"features": [B, T, D], "mask": bool [B, T]} -> logits.

    Args:
      model: as `feature_extractor` takes it; the two parts share its variables.
    """
    pooled = model.get_layer(_POOLED).output
    features = keras.Input(pooled.shape[1:], dtype=pooled.dtype, name="features")
    mask = keras.Input(pooled.shape[1:2], dtype="bool", name="mask")
    each = model.get_layer("logits")(model.get_layer("head")([features, mask]))
    return keras.Model({"features": features, "mask": mask}, model.get_layer("average")(each))


def adapt_standardization(
    model: keras.Model, batches: Iterable[Mapping[str, np.ndarray | tf.Tensor]]
) -> None:
    """Sets the head's standardization to the mean and variance of real frames' features, if it has one.

    Args:
      model: `FusedModel.fused` or `.trained`; call this before its training step is traced.
      batches: inputs of that model.
    """
    head = model.get_layer("head")
    if _STANDARDIZE not in [layer.name for layer in head.layers]:
        return
    extractor = feature_extractor(model)
    pooled = tf.function(lambda inputs: tf.cast(extractor(inputs, training=False), tf.float32))
    count, total, squares = 0, np.float64(0), np.float64(0)
    for inputs in batches:
        real = pooled(inputs).numpy()[np.asarray(inputs["mask"])].astype(np.float64)
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


def refresh_standardization(model: keras.Model) -> None:
    """Makes the head use its standardization variables after they were assigned, as by a checkpoint.

    Args:
      model: `FusedModel.fused` or `.trained`.
    """
    for layer in model.get_layer("head").layers:
        if layer.name == _STANDARDIZE:
            layer.finalize_state()


def load_weights(model: FusedModel, path: Path, classes: tuple[str, ...]) -> None:
    """Takes over all weights of another run's model, the head's standardization with them.

    Args:
      model: as built. Features of its frozen part that were computed before are another model's.
      path: what `save_model` wrote.
      classes: of the dataset, in order.

    Raises:
      ModelError: see `load_model`; or that model has other classes, another backbone, another head or other
        shapes. Nothing is taken then.
    """
    source, card = load_model(path)
    if card.classes != classes:
        raise ModelError(
            f"{path} was trained on classes {', '.join(card.classes)}; this dataset has {', '.join(classes)}."
        )
    parts = [
        (part, source.get_layer(part), model.fused.get_layer(part)) for part in ("backbone", "head", "logits")
    ]
    for part, *layers_of_both in parts:
        theirs, ours = (
            [f"{_stable_path(weight)} {tuple(weight.shape)}" for weight in layer.weights]
            for layer in layers_of_both
        )
        for their, our in zip_longest(theirs, ours, fillvalue="nothing"):
            if their != our:
                raise ModelError(
                    f"{path} has another {part}: {their} where this run has {our}. Give this run the model "
                    "settings of that one."
                )
    for _, their_layer, our_layer in parts:
        our_layer.set_weights(their_layer.get_weights())
    refresh_standardization(model.fused)


def _stable_path(weight: keras.Variable) -> str:
    """The layer and name of a weight, without what depends on how, and after what else, a model was built.

    Keras numbers layers without a name throughout a process, and a loaded Sequential leaves its own name out.
    """
    return re.sub(r"_\d+(?=/|$)", "", "/".join(weight.path.split("/")[-2:]))


def save_model(model: keras.Model, card: ModelCard, path: Path) -> None:
    """Writes a `.keras` file with the card in it; the old one is there until the new one is whole."""
    temporary = path.with_name(f"{path.stem}.tmp.keras")
    model.save(temporary)
    with zipfile.ZipFile(temporary, "a") as archive:
        archive.writestr(CARD_NAME, card.to_json())
    commit(temporary, path)


def load_model(path: Path) -> tuple[keras.Model, ModelCard]:
    """Reads what `save_model` wrote.

    Raises:
      ModelError: there is no such file, or it is not one of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            values = json.loads(archive.read(CARD_NAME))
        clip = from_dict(ClipConfig, values["clip"])
        card = ModelCard(tuple(values["classes"]), clip, values["num_frames"])
        return keras.saving.load_model(path, compile=False, safe_mode=True), card
    except FileNotFoundError:
        raise ModelError(f"There is no trained model {path}. Train one with tools/train.py.") from None
    except (KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile, VidpipeError) as error:
        raise ModelError(f"{path} is damaged or not a model of vidpipe's ({error}).") from error
