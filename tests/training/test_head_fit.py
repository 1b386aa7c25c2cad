"""Linear part and network's share of a run: folds of members, shares by stacking, and the resulting model."""

import logging
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import ModelConfig
from vidpipe.model import heads
from vidpipe.training.head_fit import (
    HeadFit,
    TrainingClips,
    choose_shares,
    cross_fitting_folds,
    held_out_logits,
    member_weights,
)
from vidpipe.training.linear_part import fit_linear_part
from vidpipe.training.run_folder import TrainError

NUM_CLIPS, NUM_FRAMES, NUM_FEATURES = 24, 4, 512
LABEL = np.arange(NUM_CLIPS, dtype=np.int32) % 2
GROUP = [f"g{index // 4}" for index in range(NUM_CLIPS)]
MakeHead = Callable[..., keras.Model]


def _confident(correct: Sequence[bool] | np.ndarray, by: float) -> np.ndarray:
    """Logits of clips of class 0 of which some are classified correctly."""
    return np.array([[by, 0.0] if each else [0.0, by] for each in correct])


def test_each_member_is_trained_on_the_clips_outside_of_a_fold() -> None:
    fold = cross_fitting_folds(LABEL, GROUP, ensemble_size=2)
    assert fold is not None and set(fold.tolist()) == set(range(5))
    weights = member_weights(fold, 2)
    assert ((weights == 0) == (fold[:, np.newaxis] == [0, 1])).all()
    # With fewer folds than members, several leave out the same one.
    assert member_weights(np.array([0, 1]), 3).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_clips_of_one_group_per_class_are_not_cross_fitted() -> None:
    assert cross_fitting_folds(LABEL, [f"group of class {index}" for index in LABEL], 5) is None


def test_the_answers_to_a_clip_are_those_of_members_that_have_not_seen_it() -> None:
    by_member = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    logits, is_held_out = held_out_logits(by_member, np.array([1, 0]))
    assert logits.tolist() == [by_member[0, 1].tolist(), by_member[1, [0, 2]].mean(axis=0).tolist()]
    _, is_held_out = held_out_logits(by_member, np.array([4, 0]))
    assert is_held_out.tolist() == [False, True]


def test_a_network_that_is_no_better_has_no_share() -> None:
    random = np.random.default_rng(0)
    linear = _confident(random.random(100) < 0.8, 1.4)
    network = _confident(random.random(100) < 0.5, 3.0)
    assert choose_shares(linear, network, np.zeros(100, int), np.ones(100)) == (1.0, 0.0)


def test_a_network_beside_a_linear_part_at_chance_answers_nearly_alone() -> None:
    random = np.random.default_rng(0)
    linear = _confident(random.random(200) < 0.5, 0.1)
    network = _confident(random.random(200) < 0.95, 2.2)
    of_linear, of_network = choose_shares(linear, network, np.zeros(200, int), np.ones(200))
    assert of_linear < 0.5 < of_network


def test_a_network_that_is_too_sure_is_scaled_down() -> None:
    """8 of 10 correct: the best logit is log(8/2) = 1.39."""
    network = _confident([True] * 80 + [False] * 20, 10.0)
    linear = np.zeros((100, 2))
    of_linear, of_network = choose_shares(linear, network, np.zeros(100, int), np.ones(100))
    assert of_network / (1 - of_linear) == pytest.approx(0.15)


def test_clips_without_weight_do_not_count() -> None:
    linear = _confident([True, True, False, False], 2.0)
    network = _confident([False, False, True, True], 2.0)
    label = np.zeros(4, int)
    assert choose_shares(linear, network, label, np.array([1.0, 1.0, 0.0, 0.0])) == (1.0, 0.0)
    of_linear, of_network = choose_shares(linear, network, label, np.array([0.0, 0.0, 1.0, 1.0]))
    assert of_network > 0 and of_linear < 1


@pytest.fixture
def make_head() -> MakeHead:
    def make(head: str = "motion", num_classes: int = 2, ensemble_size: int = 2) -> keras.Model:
        keras.utils.set_random_seed(1)
        features = keras.Input((NUM_FRAMES, NUM_FEATURES), name="features")
        mask = keras.Input((NUM_FRAMES,), dtype="bool", name="mask")
        config = ModelConfig(head=head, ensemble_size=ensemble_size)
        logits = heads.build_head(config, mask, num_classes)(features)
        return keras.Model({"features": features, "mask": mask}, logits)

    return make


def _features(moving: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Clips of class 1 change between frames; the mask of each fourth clip ends early."""
    random = np.random.default_rng(0)
    features = random.normal(5, 0.1, (NUM_CLIPS, NUM_FRAMES, NUM_FEATURES)).astype(np.float32)
    features[moving == LABEL] *= np.array([1, 1.1, 1, 1.1], np.float32)[:, np.newaxis]
    mask = np.ones((NUM_CLIPS, NUM_FRAMES), bool)
    mask[::4, 3] = False
    features[~mask] = 0
    return features, mask


def _training_clips(features: np.ndarray, mask: np.ndarray) -> TrainingClips:
    def batches() -> tf.data.Dataset:
        """Batches of 16; the last is filled up."""
        missing = -NUM_CLIPS % 16
        rows = [np.concatenate([values, values[:missing]]) for values in (features, mask, LABEL)]
        weight = np.arange(NUM_CLIPS + missing) < NUM_CLIPS
        inputs = {"features": rows[0], "mask": rows[1]}
        return tf.data.Dataset.from_tensor_slices((inputs, rows[2], weight.astype(np.float32))).batch(16)

    return TrainingClips(
        batches=batches,
        video_ids=[f"v{index}" for index in range(NUM_CLIPS)],
        group=GROUP,
        class_weights=np.ones(2, np.float32),
    )


def _started(model: keras.Model, head: str = "motion", *, cross_fitted: bool = True) -> HeadFit:
    features, mask = _features()
    fold = cross_fitting_folds(LABEL, GROUP, 2) if cross_fitted else None
    head_fit = HeadFit(model, head, _training_clips(features, mask), fold)
    head_fit.start(iter([{"features": features, "mask": mask}]))
    return head_fit


def test_the_model_s_linear_part_is_the_optimum(
    make_head: MakeHead, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_head()
    with caplog.at_level(logging.INFO):
        _started(model)
    features, mask = _features()
    inputs = {"features": features, "mask": mask}
    statistics = heads.statistics_extractor(model)(inputs)[1].numpy()
    fold = cross_fitting_folds(LABEL, GROUP, 2)
    assert fold is not None
    expected = fit_linear_part(statistics, LABEL, fold, np.ones(2))
    linear = heads.with_linear_logits(model)(inputs)[1].numpy()
    np.testing.assert_allclose(linear, statistics @ expected.kernel + expected.bias, atol=1e-4)
    assert (linear.argmax(axis=1) == LABEL).all()
    assert caplog.messages[-1].startswith("Linear part: accuracy 1.000, loss 0.")
    assert "on 24 training clips (strength " in caplog.messages[-1]


def test_without_a_share_of_the_network_the_model_answers_as_its_linear_part(make_head: MakeHead) -> None:
    model = make_head()
    head_fit = _started(model)
    features, mask = _features()
    both, linear = heads.with_linear_logits(model)({"features": features, "mask": mask})
    assert np.abs(both - linear).max() > 1e-3
    # An untrained network answers at random: it gets no share.
    found = head_fit.update()
    assert found is not None and found.network_share == 0
    assert found.accuracy == found.linear_accuracy == 1
    both, linear = heads.with_linear_logits(model)({"features": features, "mask": mask})
    assert (both.numpy() == linear.numpy()).all()


def test_the_share_of_a_network_that_knows_more_grows(make_head: MakeHead) -> None:
    """The linear part learns nothing from labels at random; a member's answer is the label itself."""
    model = make_head()
    head_fit = _started(model)
    assert head_fit._linear is not None
    head_fit._linear.held_out_logits[:] = 0

    def answer(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        is_moving = inputs["features"][:, 1, 0] > 5.25
        return tf.repeat(4 * tf.one_hot(tf.cast(is_moving, tf.int32), 2)[:, tf.newaxis], 2, axis=1)

    head_fit._answer = answer
    found = head_fit.update()
    assert found is not None
    assert found.accuracy == 1 > found.linear_accuracy
    assert found.network_share > 0.5
    np.testing.assert_allclose(model.get_layer(heads.SHARES).kernel.numpy()[0], 1 - found.network_share)


def test_masks_and_padding_change_no_statistic(make_head: MakeHead) -> None:
    model = make_head()
    features, mask = _features()
    before = heads.statistics_extractor(model)({"features": features, "mask": mask})[1].numpy()
    features[~mask] = 1e4
    after = heads.statistics_extractor(model)({"features": features, "mask": mask})[1].numpy()
    assert (before == after).all()
    real = features[0, :3]
    np.testing.assert_allclose(before[0, :512], np.abs(np.diff(real, axis=0)).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(before[0, 512:1024], real.std(axis=0), rtol=1e-3)
    np.testing.assert_allclose(before[0, 1024:], real.mean(axis=0), rtol=1e-5)


def test_a_single_frame_has_no_change_and_a_finite_gradient(make_head: MakeHead) -> None:
    features = tf.Variable(np.ones((1, NUM_FRAMES, NUM_FEATURES), np.float32))
    mask = tf.constant([[True] + [False] * (NUM_FRAMES - 1)])
    with tf.GradientTape() as tape:
        statistics = heads.statistics_of_clip(features, mask)
        total = tf.reduce_sum(statistics)
    np.testing.assert_allclose(statistics[0, :1024], 0, atol=1e-6)
    assert np.isfinite(tape.gradient(total, features).numpy()).all()


def test_the_notebook_s_head_answers_alone(make_head: MakeHead) -> None:
    model = make_head("notebook")
    head_fit = _started(model, "notebook", cross_fitted=False)
    assert model.get_layer(heads.SHARES).kernel.numpy().tolist() == [0, 1]
    assert head_fit.update() is None
    features, mask = _features()
    inputs = {"features": features, "mask": mask}
    network = heads.network_logits(model)(inputs).numpy().mean(axis=1)
    np.testing.assert_allclose(model(inputs), network, atol=1e-6)


def test_non_finite_features_are_named_by_video(make_head: MakeHead) -> None:
    features, mask = _features()
    features[7, 1, 3] = np.inf
    head_fit = HeadFit(make_head(), "motion", _training_clips(features, mask), None)
    with pytest.raises(TrainError, match=r"features of 1 training clips are NaN or Inf; the first is v7\. "):
        head_fit.start(iter([{"features": features[:4], "mask": mask[:4]}]))
