"""Heads: the network from features and mask to logits.

A head is an ensemble of networks that are trained side by side, and a linear part beside it, which
`vidpipe.training.linear_part` fits. Their logits are added, each with its share.

The letters of the shapes are explained in `vidpipe.model.fused`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
from keras import layers, ops

from vidpipe.config import ModelConfig
from vidpipe.model.backbone import BACKBONES

# Names of layers by which the functions below, and other modules, find tensors and variables in a model, also
# in a loaded model.keras.
STANDARDIZE = "standardize"
LINEAR, SHARES = "linear", "shares"
_FEATURES = "pooled"
_STATISTICS = "statistics"
_LINEAR_LOGITS = "linear_logits"
_NETWORK_LOGITS = "network_logits"
_ENSEMBLE = "members"
# Statistics over a clip's frames, D numbers each, in the order of `statistics_of_clip`.
NUM_STATISTICS = 3

# Builds ensemble member i of a head: i -> [B, E], what the classifier of that member sees.
MemberBuilder = Callable[[int], keras.KerasTensor]


def notebook_head(
    features: keras.KerasTensor, mask: keras.KerasTensor, dropout: float | None = None
) -> MemberBuilder:
    """Builds the head of the notebook that vidpipe replaces: [B, T, D] and bool [B, T] -> [B, 8].

    `hard_sigmoid` is that of Keras 3, x/6 + 0.5 clipped to [0, 1]; cuDNN's kernel does not support it.
    """
    inner, outer = (0.5, 0.4) if dropout is None else (dropout, dropout)

    def build_member(number: int) -> keras.KerasTensor:
        first_lstm = layers.LSTM(
            456, dropout=inner, recurrent_activation="hard_sigmoid", return_sequences=True,
            name=f"first_lstm_{number}",
        )  # fmt: skip
        second_lstm = layers.LSTM(8, name=f"second_lstm_{number}")
        last_state = second_lstm(first_lstm(features, mask=mask), mask=mask)
        dropped = layers.Dropout(outer, name=f"dropout_{number}")(last_state)
        return layers.Dense(8, activation="relu", name=f"dense_{number}")(dropped)

    return build_member


def motion_head(
    features: keras.KerasTensor, mask: keras.KerasTensor, dropout: float | None = None
) -> MemberBuilder:
    """Builds an LSTM over changes between frames: [B, T, D] and bool [B, T] -> [B, 64].

    Features are standardized (`vidpipe.model.standardization` computes the constants). The LSTM reads the
    differences between successive frames, signed for the direction and absolute for the amount, and never the
    features themselves: these show where a video was filmed, and from few videos an LSTM learns just that.
    The appearance is left to the linear part. The measurements are in BUILD_NOTES.md.
    """
    rate = 0.5 if dropout is None else dropout
    real = ops.expand_dims(ops.cast(mask, "float32"), -1)
    standardized = layers.Normalization(dtype="float32", name=STANDARDIZE)(features) * real
    difference = _differences(standardized, mask)
    motion = ops.concatenate([difference, ops.abs(difference)], axis=-1)

    def build_member(number: int) -> keras.KerasTensor:
        dropped = layers.Dropout(rate, name=f"motion_dropout_{number}")(motion)
        steps = layers.LSTM(64, return_sequences=True, name=f"lstm_{number}")(dropped, mask=mask)
        mean_step = ops.sum(ops.cast(steps, "float32") * real, axis=1) / ops.sum(real, axis=1)
        return layers.Dropout(rate, name=f"step_dropout_{number}")(mean_step)

    return build_member


def statistics_of_clip(features: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
    """Computes statistics over the real frames of a clip: [B, T, D] and bool [B, T] -> float32 [B, 3 D].

    They are the mean absolute difference of successive frames (0 for a single frame), the standard deviation
    over time, and the mean.
    """
    features = ops.cast(features, "float32")
    real = ops.expand_dims(ops.cast(mask, "float32"), -1)
    num_real = ops.sum(real, axis=1)
    mean = ops.sum(features * real, axis=1) / num_real
    change = ops.sum(ops.abs(_differences(features, mask)), axis=1) / ops.maximum(num_real - 1, 1)
    squares = ops.square((features - ops.expand_dims(mean, 1)) * real)
    # Not the root of 0: its gradient is infinite, and blocks of the backbone may be trained.
    deviation = ops.sqrt(ops.maximum(ops.sum(squares, axis=1) / num_real, 1e-12))
    return ops.concatenate([change, deviation, mean], axis=-1)


def _differences(features: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
    """Subtracts the frame before from each real frame: [B, T, D], zero for the first one and for padding."""
    previous = ops.concatenate([features[:, :1], features[:, :-1]], axis=1)
    return (features - previous) * ops.expand_dims(ops.cast(mask, "float32"), -1)


@dataclass(frozen=True)
class Head:
    """An entry of HEADS.

    Attributes:
      build: takes features [B, T, D], mask [B, T] and the rate of all dropout layers (None for the head's own
        rates), and returns what builds the ensemble members. Each layer needs a fixed name: Keras numbers
        unnamed layers per process, and TensorFlow orders some sums by name.
      ensemble_size: members (M) unless ModelConfig.ensemble_size is set.
      adds_linear_part: whether the linear part takes part in the answer; otherwise it is a baseline only.
    """

    build: Callable[[keras.KerasTensor, keras.KerasTensor, float | None], MemberBuilder]
    ensemble_size: int
    adds_linear_part: bool


HEADS = {
    "motion": Head(motion_head, ensemble_size=5, adds_linear_part=True),
    "notebook": Head(notebook_head, ensemble_size=1, adds_linear_part=False),
}


def build_head(
    config: ModelConfig, mask: keras.KerasTensor, num_classes: int
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """Builds everything after the backbone, as a function that may be applied to several tensors of features.

    Ensemble members differ in their initial weights, their dropout and perhaps their training clips, each has
    a loss of its own in training, and their logits are averaged (Lakshminarayanan et al., "Simple and
    Scalable Predictive Uncertainty Estimation using Deep Ensembles", 2017).

    Args:
      config: backbone, pixel_differences, head, ensemble_size and dropout.
      mask: bool [B, T].
      num_classes: number of classes (C).

    Returns:
      A function: features [B, T, D] -> logits float32 [B, C]. All its results share one set of variables.
    """
    num_features = BACKBONES[config.backbone].num_features * (2 if config.pixel_differences else 1)
    features = keras.Input((mask.shape[1], num_features))
    known = HEADS[config.head]
    ensemble_size = known.ensemble_size if config.ensemble_size is None else config.ensemble_size
    build_member = known.build(features, mask, config.dropout)
    members = ops.stack([build_member(number) for number in range(ensemble_size)], axis=1)
    head = keras.Model([features, mask], [members, statistics_of_clip(features, mask)], name="head")
    # One matrix per member, initialized as that of a Dense layer: Glorot's uniform distribution.
    limit = math.sqrt(6 / (members.shape[-1] + num_classes))
    # float32 under every dtype policy: softmax and loss in half precision lose the small probabilities.
    logits = layers.EinsumDense(
        "bme,mec->bmc",
        (ensemble_size, num_classes),
        bias_axes="mc",
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
        dtype="float32",
        name="logits",
    )
    # No step of an optimizer changes these two: the one is fitted to its optimum, the other cross-validated.
    linear = layers.Dense(
        num_classes, kernel_initializer="zeros", dtype="float32", trainable=False, name=LINEAR
    )
    shares = layers.EinsumDense(
        "bmcs,s->bmc",
        (ensemble_size, num_classes),
        kernel_initializer="ones",
        dtype="float32",
        trainable=False,
        name=SHARES,
    )
    average = layers.GlobalAveragePooling1D(dtype="float32", name="average")

    def classify(backbone_features: keras.KerasTensor) -> keras.KerasTensor:
        # The Identity layers only give names to these tensors.
        members, statistics = head([layers.Identity(name=_FEATURES)(backbone_features), mask])
        of_network = layers.Identity(dtype="float32", name=_NETWORK_LOGITS)(logits(members))
        of_clip = linear(layers.Identity(dtype="float32", name=_STATISTICS)(statistics))
        of_clip = layers.Identity(dtype="float32", name=_LINEAR_LOGITS)(of_clip)
        repeated = ops.repeat(ops.expand_dims(of_clip, 1), ensemble_size, axis=1)
        both = shares(ops.stack([repeated, of_network], axis=-1))
        return average(layers.Identity(dtype="float32", name=_ENSEMBLE)(both))

    return classify


def feature_extractor(model: keras.Model) -> keras.Model:
    """Returns the part of a model before its head: its inputs -> features [B, T, D], zero for padding frames.

    Args:
      model: `FusedModel.fused`, `FusedModel.trained`, or a loaded model.keras. The part shares its variables.
    """
    return keras.Model(model.input, model.get_layer(_FEATURES).output)


def statistics_extractor(model: keras.Model) -> keras.Model:
    """Returns the part of a model before its linear part: its inputs -> features, and statistics of clips.

    Args:
      model: as in `feature_extractor`.

    Returns:
      A model with the outputs features [B, T, D] and float32 [B, 3 D], see `statistics_of_clip`.
    """
    return keras.Model(model.input, [model.get_layer(name).output for name in (_FEATURES, _STATISTICS)])


def ensemble_logits(model: keras.Model) -> keras.Model:
    """Returns a model without the average over its ensemble: its inputs -> logits float32 [B, M, C].

    Args:
      model: as in `feature_extractor`.
    """
    return keras.Model(model.input, model.get_layer(_ENSEMBLE).output, name=_ENSEMBLE)


def network_logits(model: keras.Model) -> keras.Model:
    """Returns the ensemble alone, without the linear part: its inputs -> logits float32 [B, M, C].

    Args:
      model: as in `feature_extractor`.
    """
    return keras.Model(model.input, model.get_layer(_NETWORK_LOGITS).output, name=_NETWORK_LOGITS)


def with_linear_logits(model: keras.Model) -> keras.Model:
    """Returns a model that also gives the answer of its linear part: its inputs -> two logits float32 [B, C].

    For a model.keras of a version without linear part, the second output has no elements, [B, 0].

    Args:
      model: as in `feature_extractor`.
    """
    names = [layer.name for layer in model.layers]
    if _LINEAR_LOGITS in names:
        return keras.Model(model.input, [model.output, model.get_layer(_LINEAR_LOGITS).output])
    return keras.Model(model.input, [model.output, model.output[:, :0]])


def classifier(model: keras.Model) -> keras.Model:
    """Returns the part of a model after its features: {"features", "mask"} -> its output or outputs.

    Args:
      model: as in `feature_extractor`, or `with_linear_logits` of it.
    """
    pooled, mask = model.get_layer(_FEATURES).output, model.input["mask"]
    after_features = keras.Model([pooled, mask], model.output)
    inputs = {
        "features": keras.Input(pooled.shape[1:], dtype=pooled.dtype, name="features"),
        "mask": keras.Input(mask.shape[1:], dtype="bool", name="mask"),
    }
    return keras.Model(inputs, after_features([inputs["features"], inputs["mask"]]))
