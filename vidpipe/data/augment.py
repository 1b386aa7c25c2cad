"""Which frames and which part of them are read, and random changes to a clip: crop, flip, colours, mixup.

Every random value is a stateless function of (seed, epoch, video_id), so a run can be repeated. It is sampled
once per clip and applied to all of its frames, so that no artificial motion appears.
"""

import tensorflow as tf

_CROP_AREA = (0.4, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
_COLOUR_STRENGTH = 0.2


def clip_seeds(seed: int, epoch: int, video_id: tf.Tensor) -> tf.Tensor:
    """Returns the random seeds of a clip in an epoch.

    Args:
      seed: seed of the run.
      epoch: counted from 0.
      video_id: string [].

    Returns:
      int64 [5, 2]: seeds of tf.random's stateless functions for frames, crop, flip, colours and mixup.
    """
    key = tf.strings.to_hash_bucket_fast(video_id, 2**31 - 1)
    folded = tf.random.experimental.stateless_fold_in(tf.constant([seed, epoch], tf.int64), key)
    return tf.random.experimental.stateless_split(folded, 5)


def segment_positions(count: tf.Tensor, num_frames: int, seed: tf.Tensor) -> tf.Tensor:
    """Picks one frame of each of `num_frames` equal segments at random.

    As in Temporal Segment Networks (Wang et al., ECCV 2016, arXiv:1608.00859).

    Args:
      count: int32 [], stored frames, at least 1.
      num_frames: frames wanted (T).
      seed: int64 [2].

    Returns:
      int32 [n], strictly ascending, each in [0, count); n is T, or count where that is smaller.
    """
    n = tf.minimum(num_frames, count)
    edges = tf.range(n + 1) * count // n
    offsets = tf.random.stateless_uniform([n], seed) * tf.cast(edges[1:] - edges[:-1], tf.float32)
    return edges[:-1] + tf.cast(offsets, tf.int32)


def crop_positions(count: tf.Tensor, num_frames: int, crop: tf.Tensor | int, num_crops: int) -> tf.Tensor:
    """Picks one frame of each of `num_frames` equal segments, at the same position in all of them.

    Args:
      count: int32 [], stored frames, at least 1.
      num_frames: frames wanted (T).
      crop: int32 [], index of the temporal crop, below `num_crops`. A single crop takes the middle of each
        segment, as `sampling.uniform_indices` does.
      num_crops: number of temporal crops, that is, of positions within a segment.

    Returns:
      int32 [n], ascending, each in [0, count); n is T, or count where that is smaller.
    """
    n = tf.minimum(num_frames, count)
    return (2 * (num_crops * tf.range(n) + crop) + 1) * count // (2 * num_crops * n)


def random_window(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Samples a window with 0.4 to 1 of the frame's area and an aspect ratio of 3:4 to 4:3.

    As in the training of Inception (Szegedy et al., Going Deeper with Convolutions, CVPR 2015,
    arXiv:1409.4842), except for the smallest area, which is 0.08 there: an action must stay visible.

    Args:
      height: int32 [], height of the stored frames in pixels.
      width: int32 [], their width.
      seed: int64 [2].

    Returns:
      int32 [4]: top, left, height, width.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.stack([height, width, 3]),
        tf.zeros([0, 0, 4]),
        seed,
        min_object_covered=0,
        aspect_ratio_range=_CROP_ASPECT,
        area_range=_CROP_AREA,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def side_window(
    height: tf.Tensor, width: tf.Tensor, side: int, crop: tf.Tensor | int, num_crops: int
) -> tf.Tensor:
    """Returns the square at one of `num_crops` positions along the long side; a single crop is the centre.

    Args:
      height: int32 [], height of the stored frames, at least `side` pixels.
      width: int32 [], their width.
      side: side of the square in pixels.
      crop: int32 [], index of the spatial crop, below `num_crops`.
      num_crops: number of spatial crops, at least 1.

    Returns:
      int32 [4]: top, left, side, side.
    """
    numerator, denominator = (1, 2) if num_crops == 1 else (crop, num_crops - 1)
    top, left = ((length - side) * numerator // denominator for length in (height, width))
    return tf.stack([top, left, side, side])


def flip(frames: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips all frames of a clip left to right, or none: uint8 [n, H, W, 3] to uint8 [n, H, W, 3]."""
    return tf.cond(tf.random.stateless_uniform([], seed) < 0.5, lambda: frames[:, :, ::-1], lambda: frames)


def jitter_colours(frames: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast and saturation by up to 20 %, equally in all frames.

    The colour jitter of ResNet's training (Gross and Wilber, Training and Investigating Residual Nets, 2016).

    Args:
      frames: uint8 [n, H, W, 3], RGB.
      seed: int64 [2].

    Returns:
      uint8 [n, H, W, 3].
    """
    strength = _COLOUR_STRENGTH
    brightness, contrast, saturation = tf.unstack(
        tf.random.stateless_uniform([3], seed, 1 - strength, 1 + strength)
    )
    jittered = tf.cast(frames, tf.float32) * brightness
    mean = tf.reduce_mean(jittered)  # of the clip, not of each frame: all frames change equally
    jittered = (jittered - mean) * contrast + mean
    grey = tf.reduce_sum(jittered * [0.299, 0.587, 0.114], axis=-1, keepdims=True)
    jittered = (jittered - grey) * saturation + grey
    return tf.saturate_cast(tf.round(jittered), tf.uint8)


def mixup_weight(alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Samples the weight of a clip in `mix` from Beta(alpha, alpha): float32 []."""
    own, other = tf.unstack(tf.random.stateless_gamma([2], seed, alpha))
    return own / (own + other)


def mix(
    frames: tf.Tensor, mask: tf.Tensor, label: tf.Tensor, *, weight: tf.Tensor, mixup_weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mixes each clip of a batch with the one before it, the first one with the last.

    This is mixup (Zhang et al., ICLR 2018, arXiv:1710.09412). Padding examples, and the clips that would be
    mixed with them, stay as they are.

    Args:
      frames: uint8 [B, T, H, W, 3].
      mask: bool [B, T].
      label: float32 [B, C], one-hot.
      weight: float32 [B], 0 for a padding example.
      mixup_weight: float32 [B], weight of each clip in the mixture; the clip before it has the rest.

    Returns:
      Frames, mask and labels; the frames and the labels are mixed with the same weights, and the mask is True
      where either clip has a frame.
    """

    def before(values: tf.Tensor) -> tf.Tensor:
        return tf.roll(values, 1, axis=0)

    mixup_weight = tf.where(weight * before(weight) > 0, mixup_weight, 1.0)

    def blend(pair: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        own, other, own_weight = pair
        mixed = own_weight * tf.cast(own, tf.float32) + (1 - own_weight) * tf.cast(other, tf.float32)
        return tf.saturate_cast(tf.round(mixed), tf.uint8)

    # One clip at a time: as float32, both inputs of the whole batch would take four times their memory.
    mixed = tf.map_fn(blend, (frames, before(frames), mixup_weight), fn_output_signature=tf.uint8)
    column = mixup_weight[:, tf.newaxis]
    mask |= before(mask) & (column < 1)
    return tf.ensure_shape(mixed, frames.shape), mask, column * label + (1 - column) * before(label)
