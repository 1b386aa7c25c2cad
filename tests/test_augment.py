"""Draws are functions of (seed, epoch, video), the same for all frames of a clip, and keep their bounds."""

import numpy as np
import pytest
import tensorflow as tf

from vidpipe import augment
from vidpipe.sampling import uniform_indices


def _seed(number: int) -> tf.Tensor:
    return tf.constant([number, 0], tf.int64)


def test_a_clip_s_seeds_change_with_seed_epoch_video_and_draw_and_nothing_else() -> None:
    cases = [(seed, epoch, name) for seed in (1, 2) for epoch in (0, 1) for name in ("a.avi", "b.avi")]
    seeds, again = (
        np.array([augment.clip_seeds(seed, epoch, tf.constant(name)) for seed, epoch, name in cases])
        for _ in range(2)
    )
    assert (seeds == again).all()
    assert len({tuple(draw) for draw in seeds.reshape(-1, 2)}) == 8 * 5


@pytest.mark.parametrize(("count", "num_frames"), [(20, 8), (8, 8), (5, 8), (1, 8), (64, 7)])
def test_segment_positions_lie_one_in_each_segment(count: int, num_frames: int) -> None:
    n = min(count, num_frames)
    edges = [i * count // n for i in range(n + 1)]
    drawn = [augment.segment_positions(tf.constant(count), num_frames, _seed(i)).numpy() for i in range(200)]
    for positions in drawn:
        assert len(positions) == n
        assert all(low <= p < high for low, high, p in zip(edges, edges[1:], positions, strict=False))
    # every place of every segment comes up
    assert {int(p) for positions in drawn for p in positions} == set(range(count))


@pytest.mark.parametrize(("count", "num_frames"), [(20, 8), (20, 5), (5, 8), (1, 3), (64, 16)])
def test_one_view_is_the_middle_of_each_segment(count: int, num_frames: int) -> None:
    positions = augment.view_positions(tf.constant(count), num_frames, 0, 1)
    assert positions.numpy().tolist() == uniform_indices(count, num_frames).tolist()


def test_views_in_time_share_the_stored_frames_out() -> None:
    views = [augment.view_positions(tf.constant(12), 4, view, 3).numpy().tolist() for view in range(3)]
    assert views == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize(("height", "width"), [(32, 43), (43, 32), (32, 32)])
def test_a_random_window_is_inside_and_as_large_as_it_says(height: int, width: int) -> None:
    windows = np.array([augment.random_window(height, width, _seed(i)).numpy() for i in range(300)])
    top, left, part_height, part_width = windows.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + part_height <= height).all() and (left + part_width <= width).all()
    area = part_height * part_width / (height * width)
    assert 0.33 < area.min() < 0.5 and area.max() > 0.85  # rounded to whole pixels
    assert (part_width / part_height).min() > 0.6 and (part_width / part_height).max() < 1.6
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


def test_a_flip_turns_all_frames_or_none() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    turned = 0
    for number in range(100):
        flipped = augment.flip(tf.constant(frames), _seed(number)).numpy()
        assert (flipped == frames).all() or (flipped == frames[:, :, ::-1]).all()
        turned += (flipped == frames[:, :, ::-1]).all()
    assert 30 <= turned <= 70


def test_colours_change_alike_in_all_frames_and_within_bounds() -> None:
    frame = np.random.default_rng(0).integers(60, 160, (6, 6, 3), np.uint8)
    factors = []
    for number in range(50):
        jittered = augment.jitter_colours(tf.constant(np.stack([frame] * 3)), _seed(number)).numpy()
        assert (jittered == jittered[0]).all()
        factors.append(jittered.mean() / frame.mean())
    assert 0.79 < min(factors) < 0.9 and 1.1 < max(factors) < 1.21


def test_a_grey_clip_stays_grey_and_still_frames_stay_still() -> None:
    """What moves is the subject: a jitter that differed from frame to frame would look like motion."""
    levels = np.array([40, 40, 200], np.uint8)
    clip = np.broadcast_to(levels[:, None, None, None], (3, 4, 4, 3))
    jittered = augment.jitter_colours(tf.constant(clip), _seed(3)).numpy()
    assert (jittered == jittered[..., :1]).all()
    assert (jittered[0] == jittered[1]).all()
    assert (jittered[2] > jittered[0]).all()


def test_contrast_spreads_the_clip_about_its_mean() -> None:
    """Of two flat frames: brightness scales their mean, contrast their distance beyond that."""
    clip = np.broadcast_to(np.array([80, 120], np.uint8)[:, None, None, None], (2, 4, 4, 3))
    contrasts = []
    for number in range(50):
        dark, light = augment.jitter_colours(tf.constant(clip), _seed(number)).numpy().mean(axis=(1, 2, 3))
        contrasts.append((light - dark) / 40 * 200 / (light + dark))
    assert 0.77 < min(contrasts) < 0.87 and 1.13 < max(contrasts) < 1.23


def test_shares_follow_beta_of_alpha_and_alpha() -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    shares = np.array([augment.mixup_share(0.5, _seed(number)).numpy() for number in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / 8, abs=0.01)
