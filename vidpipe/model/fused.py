"""The fused model: frames and mask -> preprocess -> backbone on every real frame -> head -> logits.

Shapes in this package are written with these letters:

    B  clips of a batch           H, W  height and width of a frame, pixels
    T  frames per clip            D     length of a frame's feature vector
    S  stored frames per clip,    C     classes
       T of them are used         M     ensemble members of the head
    N  real frames of a batch

The model consists of Keras's own layers and ops only, so `model.keras` loads where vidpipe is not installed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import keras
from keras import ops

from vidpipe.config import ClipSpec, ModelConfig
from vidpipe.model.backbone import build_backbone, freeze_blocks
from vidpipe.model.heads import build_head


@dataclass(frozen=True)
class FusedModel:
    """The whole model, and the same model split above its frozen blocks; all share their variables.

    Attributes:
      fused: {"frames": uint8 [B, T, H, W, 3], "mask": bool [B, T]} -> logits float32 [B, C].
      frozen: {"frames": uint8 [B, S, H, W, 3], "mask": bool [B, S]} -> the output of the frozen blocks:
        features [B, S, D] if the whole backbone is frozen, else feature maps [B, S, h, w, c]; zero for
        padding frames. None if no block is frozen.
      trained: {"features": T frames of the output of `frozen`, "mask": bool [B, T]} -> logits float32 [B, C].
        None if no block is frozen.
    """

    fused: keras.Model
    frozen: keras.Model | None
    trained: keras.Model | None


def build_model(config: ModelConfig, *, spec: ClipSpec, num_classes: int, stored_frames: int) -> FusedModel:
    """Builds the fused model under the current dtype policy, with blocks frozen according to `config`.

    Args:
      config: the backbone, its weights, the blocks to train, and the head.
      spec: T, H and W.
      num_classes: C.
      stored_frames: S.

    Raises:
      BackboneError: see `build_backbone`.
    """
    inputs = _clip_inputs(spec)
    frames, mask = inputs["frames"], inputs["mask"]
    classify = build_head(config, mask, num_classes)
    preprocess, backbone = build_backbone(config.backbone, config.backbone_weights, spec)
    frozen, trained = freeze_blocks(config.backbone, backbone, config.fine_tune)

    features = _apply_to_real_frames(lambda real: backbone(preprocess(real)), frames, mask)
    fused = keras.Model(inputs, classify(features), name="vidpipe")
    if frozen is None:
        return FusedModel(fused, None, None)
    stored = _clip_inputs(replace(spec, num_frames=stored_frames))
    below = _apply_to_real_frames(lambda real: frozen(preprocess(real)), stored["frames"], stored["mask"])
    cached = keras.Input((spec.num_frames, *below.shape[2:]), dtype=below.dtype, name="features")
    above = cached if trained is None else _apply_to_real_frames(trained, cached, mask)
    return FusedModel(
        fused=fused,
        frozen=keras.Model(stored, below, name="frozen"),
        trained=keras.Model({"features": cached, "mask": mask}, classify(above), name="trained"),
    )


def _clip_inputs(spec: ClipSpec) -> dict[str, keras.KerasTensor]:
    return {
        "frames": keras.Input((spec.num_frames, spec.height, spec.width, 3), dtype="uint8", name="frames"),
        "mask": keras.Input((spec.num_frames,), dtype="bool", name="mask"),
    }


def _apply_to_real_frames(
    network: Callable[[keras.KerasTensor], keras.KerasTensor],
    frames: keras.KerasTensor,
    mask: keras.KerasTensor,
) -> keras.KerasTensor:
    """Applies `network` to each time step like TimeDistributed, but in one call and without padding frames.

    The real frames of the batch are gathered into [N, ...], pass through the network, and are scattered back
    to their positions. Keras 3's TimeDistributed would put T copies of the network into the graph.

    Args:
      network: [N, ...] -> [N, ...], each of any rank.
      frames: [B, T, ...], images or feature maps.
      mask: bool [B, T].

    Returns:
      [B, T, ...], zero where the mask is False.
    """
    flat_mask = ops.reshape(mask, [-1])
    (indices,) = ops.nonzero(flat_mask)
    encoded = network(ops.take(ops.reshape(frames, [-1, *frames.shape[2:]]), indices, axis=0))
    # Position i of the flat batch holds real frame number (real frames at positions 0 to i) - 1. A padding
    # position repeats its neighbour and is set to zero below.
    rank = ops.maximum(ops.cumsum(ops.cast(flat_mask, "int32")) - 1, 0)
    spread = ops.reshape(ops.take(encoded, rank, axis=0), [-1, frames.shape[1], *encoded.shape[1:]])
    real = ops.reshape(mask, [-1, frames.shape[1], *(1 for _ in encoded.shape[1:])])
    return spread * ops.cast(real, spread.dtype)
