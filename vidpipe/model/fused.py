"""The fused model: frames and mask -> preprocess -> backbone on every frame -> head -> logits.

Shapes in this package are written with these letters:

    B  clips of a batch           H, W  height and width of a frame, pixels
    T  frames per clip            D     length of a frame's feature vector
    S  stored frames per clip,    C     classes
       T of them are used         M     ensemble members of the head
    N  frames of a batch, B T

The model consists of Keras's own layers and ops only, so `model.keras` loads where vidpipe is not installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
from keras import ops

from vidpipe.config import ClipSpec, ConfigError, ModelConfig
from vidpipe.model.backbone import build_backbone, freeze_blocks
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.model.heads import build_head, feature_extractor


@dataclass(frozen=True)
class FusedModel:
    """The whole model, and the same model split above its frozen blocks; all share their variables.

    Attributes:
      fused: {"frames": uint8 [B, T, H, W, 3], "mask": bool [B, T]} -> logits float32 [B, C].
      frozen: frames uint8 [B, S, H, W, 3] and mask bool [B, S] -> the output of the frozen blocks: features
        [B, S, D] if the whole backbone is frozen, else feature maps [B, S, h, w, c]. None if no block is
        frozen.
      trained: {"features": T frames of the output of `frozen`, "mask": bool [B, T]} -> logits float32 [B, C].
        None if no block is frozen.
    """

    fused: keras.Model
    frozen: FrameEncoder | None
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
      ConfigError: `pixel_differences` with fewer frames than are stored.
    """
    if config.pixel_differences and spec.num_frames != stored_frames:
        raise ConfigError(
            f"pixel_differences needs all {stored_frames} stored frames; got num_frames={spec.num_frames}: "
            "differences over longer times are others."
        )
    inputs = _clip_inputs(spec)
    mask = inputs["mask"]
    classify = build_head(config, mask, num_classes)
    preprocess, backbone = build_backbone(config.backbone, config.backbone_weights, spec)
    frozen, trained = freeze_blocks(config.backbone, backbone, config.fine_tune)

    images = preprocess(_time_in_batch(inputs["frames"]))
    if config.pixel_differences:
        streams = [images, images - _time_in_batch(_frames_before(_time_apart(images, spec)))]
    else:
        streams = [images]
    features = _time_apart(_on_streams(backbone, streams), spec, mask)
    fused = keras.Model(inputs, classify(features), name="vidpipe")
    if frozen is None:
        return FusedModel(fused, None, None)
    encoder = _frame_encoder(preprocess, frozen, len(streams), replace(spec, num_frames=stored_frames))
    cached = keras.Input(
        (spec.num_frames, *encoder.clip_shape[1:]), dtype=encoder.network.output.dtype, name="features"
    )
    above = cached
    if trained is not None:
        maps = ops.split(_time_in_batch(cached), len(streams), axis=-1)
        above = _time_apart(_on_streams(trained, maps), spec, mask)
    return FusedModel(
        fused=fused,
        frozen=encoder,
        trained=keras.Model({"features": cached, "mask": mask}, classify(above), name="trained"),
    )


def feature_encoder(model: keras.Model) -> FrameEncoder:
    """Returns the part of a model before its head, to be run on any number of frames.

    Args:
      model: `FusedModel.fused` or a loaded model.keras. The part shares its variables.
    """
    backbone = model.get_layer("backbone")
    depth = feature_extractor(model).output.shape[-1]
    num_frames, height, width, _ = model.input["frames"].shape[1:]
    return _frame_encoder(
        model.get_layer("preprocess"),
        backbone,
        depth // backbone.output.shape[-1],
        ClipSpec(num_frames=num_frames, height=height, width=width),
    )


def _clip_inputs(spec: ClipSpec) -> dict[str, keras.KerasTensor]:
    return {
        "frames": keras.Input((spec.num_frames, spec.height, spec.width, 3), dtype="uint8", name="frames"),
        "mask": keras.Input((spec.num_frames,), dtype="bool", name="mask"),
    }


def _frame_encoder(
    preprocess: keras.Model, network: keras.Model, num_streams: int, spec: ClipSpec
) -> FrameEncoder:
    frames = [keras.Input(preprocess.input.shape[1:], dtype="uint8") for _ in range(num_streams)]
    images, *before = [preprocess(each) for each in frames]
    streams = [images, *(images - each for each in before)]
    return FrameEncoder(keras.Model(frames, _on_streams(network, streams)), spec)


def _on_streams(network: keras.Model, streams: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
    """Applies one network to each stream [N, ...], and concatenates the results along their last axis."""
    encoded = [network(stream) for stream in streams]
    return encoded[0] if len(encoded) == 1 else ops.concatenate(encoded, axis=-1)


def _frames_before(frames: keras.KerasTensor) -> keras.KerasTensor:
    """Returns for each time step the one before, for the first one itself: [B, T, ...]."""
    return ops.concatenate([frames[:, :1], frames[:, :-1]], axis=1)


def _time_in_batch(frames: keras.KerasTensor) -> keras.KerasTensor:
    """Merges the first two axes: [B, T, ...] -> [N, ...], so that a network is called once for all frames.

    Keras 3's TimeDistributed would put T copies of the network into the graph. Padding frames pass through
    the network too: every call has the same shape then, for which cuDNN chooses its kernels once.
    """
    return ops.reshape(frames, [-1, *frames.shape[2:]])


def _time_apart(
    frames: keras.KerasTensor, spec: ClipSpec, mask: keras.KerasTensor | None = None
) -> keras.KerasTensor:
    """Splits the first axis, [N, ...] -> [B, T, ...]; zero where the mask, bool [B, T], is False."""
    apart = ops.reshape(frames, [-1, spec.num_frames, *frames.shape[1:]])
    if mask is None:
        return apart
    real = ops.reshape(mask, [-1, spec.num_frames, *(1 for _ in frames.shape[1:])])
    return ops.where(real, apart, ops.zeros_like(apart))
