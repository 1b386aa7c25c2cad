"""Heads: the network from features and mask to logits, an ensemble whose members are trained side by side.

The letters of the shapes are explained in `vidpipe.model.fused`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
from keras import layers, ops

from vidpipe.config import ModelConfig
from vidpipe.model.backbone import BACKBONES

# Names of layers by which the functions below, and `vidpipe.model.standardization`, find tensors in a model,
# also in a loaded model.keras.
STANDARDIZE = "standardize"
_FEATURES = "pooled"
_ENSEMBLE = "members"

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
    """Builds an LSTM over changes between frames, plus the mean frame: [B, T, D] and bool [B, T] -> [B, E].

    Features are standardized (`vidpipe.model.standardization` computes the constants). The LSTM reads the
    differences between successive frames, signed for the direction and absolute for the amount, and never the
    features themselves: these show where a video was filmed, and from few videos an LSTM learns just that.
    The mean over the frames, behind a strong dropout, adds the appearance.

    With few videos the random start of a single member changes the accuracy by 3 to 6 points, hence the
    ensemble. The measurements are in BUILD_NOTES.md.
    """
    moderate, strong = (0.5, 0.8) if dropout is None else (dropout, dropout)
    real = ops.expand_dims(ops.cast(mask, "float32"), -1)
    num_real = ops.sum(real, axis=1)
    standardized = layers.Normalization(dtype="float32", name=STANDARDIZE)(features) * real
    previous = ops.concatenate([standardized[:, :1], standardized[:, :-1]], axis=1)
    difference = (standardized - previous) * real
    motion = ops.concatenate([difference, ops.abs(difference)], axis=-1)
    mean_frame = ops.sum(standardized, axis=1) / num_real

    def build_member(number: int) -> keras.KerasTensor:
        motion_dropout = layers.Dropout(moderate, name=f"motion_dropout_{number}")
        step_dropout = layers.Dropout(moderate, name=f"step_dropout_{number}")
        frame_dropout = layers.Dropout(strong, name=f"frame_dropout_{number}")
        lstm = layers.LSTM(64, return_sequences=True, name=f"lstm_{number}")
        steps = lstm(motion_dropout(motion), mask=mask)
        mean_step = ops.sum(ops.cast(steps, "float32") * real, axis=1) / num_real
        return ops.concatenate([step_dropout(mean_step), frame_dropout(mean_frame)], axis=-1)

    return build_member


@dataclass(frozen=True)
class Head:
    """An entry of HEADS.

    Attributes:
      build: takes features [B, T, D], mask [B, T] and the rate of all dropout layers (None for the head's own
        rates), and returns what builds the ensemble members. Each layer needs a fixed name: Keras numbers
        unnamed layers per process, and TensorFlow orders some sums by name.
      ensemble_size: members (M) unless ModelConfig.ensemble_size is set.
    """

    build: Callable[[keras.KerasTensor, keras.KerasTensor, float | None], MemberBuilder]
    ensemble_size: int


HEADS = {"motion": Head(motion_head, ensemble_size=5), "notebook": Head(notebook_head, ensemble_size=1)}


def build_head(
    config: ModelConfig, mask: keras.KerasTensor, num_classes: int
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """Builds everything after the backbone, as a function that may be applied to several tensors of features.

    Ensemble members differ in their initial weights and their dropout, each has a loss of its own in
    training, and their logits are averaged (Lakshminarayanan et al., "Simple and Scalable Predictive
    Uncertainty Estimation using Deep Ensembles", 2017).

    Args:
      config: backbone, head, ensemble_size and dropout.
      mask: bool [B, T].
      num_classes: number of classes (C).

    Returns:
      A function: features [B, T, D] -> logits float32 [B, C]. All its results share one set of variables.
    """
    features = keras.Input((mask.shape[1], BACKBONES[config.backbone].num_features))
    known = HEADS[config.head]
    ensemble_size = known.ensemble_size if config.ensemble_size is None else config.ensemble_size
    build_member = known.build(features, mask, config.dropout)
    members = [build_member(number) for number in range(ensemble_size)]
    head = keras.Model([features, mask], ops.stack(members, axis=1), name="head")
    # One matrix per member, initialized as that of a Dense layer: Glorot's uniform distribution.
    limit = math.sqrt(6 / (members[0].shape[-1] + num_classes))
    # float32 under every dtype policy: softmax and loss in half precision lose the small probabilities.
    logits = layers.EinsumDense(
        "bme,mec->bmc",
        (ensemble_size, num_classes),
        bias_axes="mc",
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
        dtype="float32",
        name="logits",
    )
    average = layers.GlobalAveragePooling1D(dtype="float32", name="average")

    def classify(backbone_features: keras.KerasTensor) -> keras.KerasTensor:
        # The Identity layers only give names to these tensors.
        member_logits = logits(head([layers.Identity(name=_FEATURES)(backbone_features), mask]))
        return average(layers.Identity(dtype="float32", name=_ENSEMBLE)(member_logits))

    return classify


def feature_extractor(model: keras.Model) -> keras.Model:
    """Returns the part of a model before its head: its inputs -> features [B, T, D], zero for padding frames.

    Args:
      model: `FusedModel.fused`, `FusedModel.trained`, or a loaded model.keras. The part shares its variables.
    """
    return keras.Model(model.input, model.get_layer(_FEATURES).output)


def ensemble_logits(model: keras.Model) -> keras.Model:
    """Returns a model without the average over its ensemble: its inputs -> logits float32 [B, M, C].

    Args:
      model: as in `feature_extractor`.
    """
    return keras.Model(model.input, model.get_layer(_ENSEMBLE).output, name=_ENSEMBLE)


def classifier(model: keras.Model) -> keras.Model:
    """Returns the part of a model after its features: {"features", "mask"} -> logits float32 [B, C].

    Args:
      model: as in `feature_extractor`.
    """
    pooled = model.get_layer(_FEATURES).output
    features = keras.Input(pooled.shape[1:], dtype=pooled.dtype, name="features")
    mask = keras.Input(pooled.shape[1:2], dtype="bool", name="mask")
    member_logits = model.get_layer("logits")(model.get_layer("head")([features, mask]))
    return keras.Model({"features": features, "mask": mask}, model.get_layer("average")(member_logits))
