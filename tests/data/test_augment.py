"""Random changes depend on (seed, epoch, video) only, are equal in all frames of a clip, and bounded."""

import numpy as np
import pytest
import tensorflow as tf

from vidpipe.data import augment
from vidpipe.data.sampling import uniform_indices


def _seed(number: int) -> tf.Tensor:
    return tf.constant([number, 0], tf.int64)


def test_the_seeds_of_a_clip_depend_on_seed_epoch_and_video_only() -> None:
    cases = [(seed, epoch, name) for seed in (1, 2) for epoch in (0, 1) for name in ("a.avi", "b.avi")]
    seeds, again = (
        np.array([augment.clip_seeds(seed, epoch, tf.constant(name)) for seed, epoch, name in cases])
        for _ in range(2)
    )
    assert (seeds == again).all()
    assert len({tuple(pair) for pair in seeds.reshape(-1, 2)}) == 8 * 5


@pytest.mark.parametrize(("count", "num_frames"), [(20, 8), (8, 8), (5, 8), (1, 8), (64, 7)])
def test_segment_positions_are_one_in_each_segment(count: int, num_frames: int) -> None:
    n = min(count, num_frames)
    edges = [i * count // n for i in range(n + 1)]
    sample = tf.function(lambda seed: augment.segment_positions(tf.constant(count), num_frames, seed))
    samples = [sample(_seed(i)).numpy() for i in range(200)]
    for positions in samples:
        assert len(positions) == n
        assert all(low <= p < high for low, high, p in zip(edges, edges[1:], positions, strict=False))
    # every position of every segment is sampled
    assert {int(p) for positions in samples for p in positions} == set(range(count))


@pytest.mark.parametrize(("count", "num_frames"), [(20, 8), (20, 5), (5, 8), (1, 3), (64, 16)])
def test_one_crop_is_the_middle_of_each_segment(count: int, num_frames: int) -> None:
    positions = augment.crop_positions(tf.constant(count), num_frames, 0, 1)
    assert positions.numpy().tolist() == uniform_indices(count, num_frames).tolist()


def test_temporal_crops_divide_the_stored_frames() -> None:
    crops = [augment.crop_positions(tf.constant(12), 4, crop, 3).numpy().tolist() for crop in range(3)]
    assert crops == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize(("height", "width"), [(32, 43), (43, 32), (32, 32)])
def test_a_random_window_is_inside_the_frame_and_within_the_limits(height: int, width: int) -> None:
    sample = tf.function(lambda seed: augment.random_window(height, width, seed))
    windows = np.array([sample(_seed(i)).numpy() for i in range(300)])
    top, left, window_height, window_width = windows.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + window_height <= height).all() and (left + window_width <= width).all()
    area = window_height * window_width / (height * width)
    assert 0.33 < area.min() < 0.5 and area.max() > 0.85  # rounded to whole pixels
    aspect = window_width / window_height
    assert aspect.min() > 0.6 and aspect.max() < 1.6
    assert len({tuple(window) for window in windows}) > 200


@pytest.mark.parametrize(
    ("height", "width", "num_crops", "expected"),
    [
        (4, 4, 1, [(0, 0)]),
        (4, 7, 1, [(0, 1)]),
        (9, 4, 1, [(2, 0)]),
        (4, 10, 3, [(0, 0), (0, 3), (0, 6)]),
        (10, 4, 3, [(0, 0), (3, 0), (6, 0)]),
    ],
)
def test_side_windows(height: int, width: int, num_crops: int, expected: list[tuple[int, int]]) -> None:
    windows = [augment.side_window(height, width, 4, crop, num_crops).numpy() for crop in range(num_crops)]
    assert [tuple(window) for window in windows] == [(top, left, 4, 4) for top, left in expected]


def test_flip_flips_all_frames_or_none() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    num_flipped = 0
    for number in range(100):
        flipped = augment.flip(tf.constant(frames), _seed(number)).numpy()
        assert (flipped == frames).all() or (flipped == frames[:, :, ::-1]).all()
        num_flipped += (flipped == frames[:, :, ::-1]).all()
    assert 30 <= num_flipped <= 70


def test_colours_change_equally_in_all_frames_and_within_bounds() -> None:
    frame = np.random.default_rng(0).integers(60, 160, (6, 6, 3), np.uint8)
    factors = []
    for number in range(50):
        jittered = augment.jitter_colours(tf.constant(np.stack([frame] * 3)), _seed(number)).numpy()
        assert (jittered == jittered[0]).all()
        factors.append(jittered.mean() / frame.mean())
    assert 0.79 < min(factors) < 0.9 and 1.1 < max(factors) < 1.21


def test_a_grey_clip_stays_grey_and_equal_frames_stay_equal() -> None:
    """A change that differs between frames would look like motion."""
    levels = np.array([40, 40, 200], np.uint8)
    clip = np.broadcast_to(levels[:, None, None, None], (3, 4, 4, 3))
    jittered = augment.jitter_colours(tf.constant(clip), _seed(3)).numpy()
    assert (jittered == jittered[..., :1]).all()
    assert (jittered[0] == jittered[1]).all()
    assert (jittered[2] > jittered[0]).all()


def test_contrast_changes_the_distance_of_frames_relative_to_their_mean() -> None:
    """Two uniform frames: brightness scales their mean, contrast additionally scales their distance."""
    clip = np.broadcast_to(np.array([80, 120], np.uint8)[:, None, None, None], (2, 4, 4, 3))
    contrasts = []
    for number in range(50):
        dark, light = augment.jitter_colours(tf.constant(clip), _seed(number)).numpy().mean(axis=(1, 2, 3))
        contrasts.append((light - dark) / 40 * 200 / (light + dark))
    assert 0.77 < min(contrasts) < 0.87 and 1.13 < max(contrasts) < 1.23


def test_mixup_weights_follow_the_beta_distribution() -> None:
    """Beta(alpha, alpha) has mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    sample = tf.function(lambda seed: augment.mixup_weight(0.5, seed))
    weights = np.array([sample(_seed(number)).numpy() for number in range(2000)])
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / 8, abs=0.01)
