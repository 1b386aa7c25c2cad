"""What a run trains, as the loop sees it: without the names of its layers."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from vidpipe.config import TrainConfig
from vidpipe.data.dataset import Dataset
from vidpipe.model import feature_cache, heads, memory, standardization
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.model.fused import FusedModel, build_model
from vidpipe.model.model_file import load_weights
from vidpipe.training.optimizer import averaged, build_optimizer, layer_scales
from vidpipe.training.run_folder import RunFolder, TrainError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model and its optimizer.

    Attributes:
      model: what runs in each step: the inputs of a batch -> logits float32 [B, C].
      ensemble: the same inputs -> logits float32 [B, M, C] of its M members, each with its own loss.
      answers: the same inputs -> its logits and those of its linear part alone, both float32 [B, C].
      is_cross_fitted: whether members are trained on the clips outside of one fold each. Their losses are
        those of the network alone then, without the linear part.
      clips_per_call: clips that `model` may take at once, see `memory.clips_per_call`.
      saved: the model that is written to model.keras; it shares the variables of `model`.
      optimizer: built for the trainable variables of `model`.
      strategy: in whose scope they were made.
      checkpointed: the variables in a checkpoint, in an order that every process of the run repeats.
      refresh: called after variables were assigned, as by a checkpoint.
    """

    model: keras.Model
    ensemble: keras.Model
    answers: keras.Model
    is_cross_fitted: bool
    clips_per_call: int
    saved: keras.Model
    optimizer: keras.Optimizer
    strategy: tf.distribute.Strategy
    checkpointed: Sequence[keras.Variable]
    refresh: Callable[[], None]

    @property
    def ensemble_size(self) -> int:
        """The number of ensemble members (M)."""
        size: int = self.ensemble.output.shape[1]
        return size

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Puts the averaged weights in force inside a block, if the optimizer averages them."""
        return averaged(self.optimizer, self.model.trainable_variables)


def build_trainee(
    config: TrainConfig,
    dataset: Dataset,
    *,
    num_frames: int,
    strategy: tf.distribute.Strategy,
    precision: str,
    was_cached: bool | None = None,
) -> tuple[Trainee, FusedModel]:
    """Builds the fused model and its optimizer, in the scope and dtype policy in force.

    Each step runs the whole model, or only the blocks above the frozen ones where their features are cached.

    Args:
      config: of the run.
      dataset: an open dataset.
      num_frames: frames of a clip (T).
      strategy: whose scope is in force.
      precision: the dtype policy in force.
      was_cached: whether an earlier start of the run cached features; None for a new run.

    Returns:
      The trainee, and the fused model. If `trainee.model` is its `trained` part, the features of its `frozen`
      part must be cached.

    Raises:
      BackboneError, ModelError: the weights are missing or do not fit.
      TrainError: the features must be cached and would take more disk space than allowed, or a clip has too
        many frames.
    """
    fused = build_model(
        config.model,
        spec=dataset.clip.spec(num_frames),
        num_classes=len(dataset.classes),
        stored_frames=dataset.clip.num_frames,
    )
    if config.init_from is not None:
        load_weights(fused, RunFolder(Path(config.init_from)).model, dataset.classes)
    model = fused.fused
    if fused.frozen is not None and _caches_features(config, dataset, fused.frozen, was_cached):
        model = fused.trained
    clips_per_call = memory.clips_per_call(model)
    if clips_per_call == 0:
        raise TrainError(
            f"A step on a clip of {dataset.clip.spec(num_frames)} has a tensor of more than 2^31 elements, "
            "too many for TensorFlow. Take fewer frames (--num_frames)."
        )
    scales = layer_scales(
        fused.fused.get_layer("backbone"),
        backbone_lr_scale=config.optimizer.backbone_lr_scale,
        layer_decay=config.optimizer.layer_decay,
    )
    optimizer = build_optimizer(
        config.optimizer, model.trainable_variables, scales=scales, precision=precision
    )
    checkpointed = [*model.variables, *optimizer.variables]
    if model is fused.fused and fused.frozen is not None:
        # The frozen blocks come from the weights file or the seed again; they need no place in a checkpoint.
        frozen = {id(variable) for variable in fused.frozen.network.variables}
        checkpointed = [variable for variable in checkpointed if id(variable) not in frozen]
    is_cross_fitted = (
        model is fused.trained
        and config.model.fine_tune == "none"
        and config.init_from is None
        and heads.HEADS[config.model.head].adds_linear_part
    )
    trainee = Trainee(
        model=model,
        ensemble=heads.network_logits(model) if is_cross_fitted else heads.ensemble_logits(model),
        answers=heads.with_linear_logits(model),
        is_cross_fitted=is_cross_fitted,
        clips_per_call=clips_per_call,
        saved=fused.fused,
        optimizer=optimizer,
        strategy=strategy,
        checkpointed=checkpointed,
        refresh=lambda: standardization.refresh_standardization(model),
    )
    return trainee, fused


def _caches_features(
    config: TrainConfig, dataset: Dataset, frozen: FrameEncoder, was_cached: bool | None
) -> bool:
    """Whether the frozen blocks run once per clip, and their features are cached.

    Raises:
      TrainError: they must be, and would take more disk space than allowed.
    """
    if not config.can_cache_features or config.cache_features == "off" or was_cached is False:
        return False
    needed = feature_cache.size_bytes(frozen, dataset, dataset.train_splits) / 2**30
    if needed <= config.cache_gb:
        return True
    too_large = (
        f"The features of the frozen blocks would take {needed:.1f} GiB; cache_gb is {config.cache_gb:g}"
    )
    if config.cache_features == "on" or was_cached:
        raise TrainError(f"{too_large}. Give a larger --cache_gb, or --cache_features=off.")
    _log.info("%s: the whole backbone runs in every step.", too_large)
    return False
