"""What is drawn anew for a clip each time it is read: frames, crop, mirror image, colours, mixture.

Every draw is a stateless function of (seed, epoch, video_id), made once per clip and applied to all of its
frames, so that motion stays motion and a run can be repeated.
"""

import tensorflow as tf

_CROP_AREA = (0.4, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
_COLOUR_STRENGTH = 0.2


def clip_seeds(seed: int, epoch: int, video_id: tf.Tensor) -> tf.Tensor:
    """The seeds of the draws for a clip in an epoch.

    Args:
      seed: of the run.
      epoch: counted from 0.
      video_id: string [].

    Returns:
      int64 [5, 2], for tf.random's stateless functions: of frames, crop, mirror image, colours and mixture.
    """
    key = tf.strings.to_hash_bucket_fast(video_id, 2**31 - 1)
    folded = tf.random.experimental.stateless_fold_in(tf.constant([seed, epoch], tf.int64), key)
    return tf.random.experimental.stateless_split(folded, 5)


def segment_positions(count: tf.Tensor, num_frames: int, seed: tf.Tensor) -> tf.Tensor:
    """Picks one frame of each of `num_frames` equal segments at random.

    As Temporal Segment Networks do (Wang et al., ECCV 2016, arXiv:1608.00859).

    Args:
      count: int32 [], frames stored, at least 1.
      num_frames: frames wanted (T).
      seed: int64 [2].

    Returns:
      int32 [n], strictly ascending, each in [0, count); n is T, or count where that is smaller.
    """
    n = tf.minimum(num_frames, count)
    edges = tf.range(n + 1) * count // n
    drawn = tf.random.stateless_uniform([n], seed)
    return edges[:-1] + tf.cast(drawn * tf.cast(edges[1:] - edges[:-1], tf.float32), tf.int32)


def view_positions(count: tf.Tensor, num_frames: int, view: tf.Tensor | int, num_views: int) -> tf.Tensor:
    """Picks one frame of each of `num_frames` equal segments, the same place in all of them.

    Args:
      count: int32 [], frames stored, at least 1.
      num_frames: frames wanted (T).
      view: int32 [], below `num_views`; of one view that is the middle, as `sampling.uniform_indices` has it.
      num_views: the places that a segment is divided into.

    Returns:
      int32 [n], ascending, each in [0, count); n is T, or count where that is smaller.
    """
    n = tf.minimum(num_frames, count)
    return (2 * (num_views * tf.range(n) + view) + 1) * count // (2 * num_views * n)


def random_window(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws a part of the frame, of 0.4 to 1 of its area, 3:4 to 4:3 in shape.

    As Inception was trained (Szegedy et al., Going Deeper with Convolutions, CVPR 2015, arXiv:1409.4842), but
    for the smallest area, there 0.08: an action must stay in sight.

    Args:
      height: int32 [], of the stored frames, pixels.
      width: likewise.
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
    """The square at one of `num_crops` places along the long side: of one the centre, of three both ends too.

    Args:
      height: int32 [], of the stored frames, at least `side` pixels.
      width: likewise.
      side: of the square, pixels.
      crop: int32 [], below `num_crops`.
      num_crops: 1 or more.

    Returns:
      int32 [4]: top, left, side, side.
    """
    numerator, denominator = (1, 2) if num_crops == 1 else (crop, num_crops - 1)
    top, left = ((length - side) * numerator // denominator for length in (height, width))
    return tf.stack([top, left, side, side])


def flip(frames: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors all frames left to right, or none: uint8 [n, H, W, 3] to the same."""
    return tf.cond(tf.random.stateless_uniform([], seed) < 0.5, lambda: frames[:, :, ::-1], lambda: frames)


def jitter_colours(frames: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast and saturation by up to a fifth, the same for all frames.

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
    mean = tf.reduce_mean(jittered)  # of the clip, not of each frame: a constant change
    jittered = (jittered - mean) * contrast + mean
    grey = tf.reduce_sum(jittered * [0.299, 0.587, 0.114], axis=-1, keepdims=True)
    jittered = (jittered - grey) * saturation + grey
    return tf.saturate_cast(tf.round(jittered), tf.uint8)


def mixup_share(alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draws how much of a clip is its own in `mix`: float32 [], of the distribution Beta(alpha, alpha)."""
    own, other = tf.unstack(tf.random.stateless_gamma([2], seed, alpha))
    return own / (own + other)


def mix(
    frames: tf.Tensor, mask: tf.Tensor, label: tf.Tensor, weight: tf.Tensor, share: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mixes each clip of a batch with the one before it, the first with the last.

    As mixup does (Zhang et al., ICLR 2018, arXiv:1710.09412); a pair with a filler is left as it is.

    Args:
      frames: uint8 [B, T, H, W, 3].
      mask: bool [B, T].
      label: float32 [B, C], a one for the class of each clip.
      weight: float32 [B], 0 for a filler.
      share: float32 [B], what is each clip's own.

    Returns:
      Frames and labels mixed alike, and a mask that is True where either clip has a frame.
    """

    def before(values: tf.Tensor) -> tf.Tensor:
        return tf.roll(values, 1, axis=0)

    share = tf.where(weight * before(weight) > 0, share, 1.0)

    def blend(pair: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        own, other, own_share = pair
        mixed = own_share * tf.cast(own, tf.float32) + (1 - own_share) * tf.cast(other, tf.float32)
        return tf.saturate_cast(tf.round(mixed), tf.uint8)

    # Clip by clip: as floats the whole batch would take four times its memory, twice.
    mixed = tf.map_fn(blend, (frames, before(frames), share), fn_output_signature=tf.uint8)
    column = share[:, tf.newaxis]
    mask |= before(mask) & (column < 1)
    return tf.ensure_shape(mixed, frames.shape), mask, column * label + (1 - column) * before(label)
