"""The linear part equals scikit-learn's optimum, on statistics and folds whose answer is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vidpipe.training import linear_part
from vidpipe.training.linear_part import fit_linear_part, folds_of, log_losses
from vidpipe.training.run_folder import TrainError

NUM_STATISTICS = 3 * 5


def _clips(num_clips: int, num_classes: int, shift: float = 3.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Statistics whose first number tells the class, with noise; four clips a group."""
    random = np.random.default_rng(num_classes)
    label = np.arange(num_clips) % num_classes
    statistics = random.normal(3, 2, (num_clips, NUM_STATISTICS)).astype(np.float32)
    statistics[:, 0] += shift * label
    statistics[:, 7] = 0.25
    return statistics, label, [f"g{index // (4 * num_classes)}" for index in range(num_clips)]


@pytest.mark.parametrize(
    ("num_clips", "num_classes", "weights"),
    [(40, 2, (1, 1)), (60, 3, (1, 1, 1)), (60, 3, (2, 0.5, 1)), (12, 3, (1, 1, 1))],
    ids=["two classes", "three classes", "class weights", "fewer clips than statistics"],
)
def test_it_equals_scikit_learn(num_clips: int, num_classes: int, weights: tuple[float, ...]) -> None:
    statistics, label, group = _clips(num_clips, num_classes)
    found = fit_linear_part(statistics, label, folds_of(label, group), np.array(weights))
    num_used = NUM_STATISTICS if found.uses_mean_frame else NUM_STATISTICS * 2 // 3
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=found.strength, tol=1e-8, max_iter=9999))
    weight = np.array(weights)[label]
    expected.fit(statistics[:, :num_used].astype(np.float64), label, logisticregression__sample_weight=weight)
    logits = statistics @ found.kernel + found.bias
    probabilities = np.exp(-log_losses(np.repeat(logits[:, None], num_classes, 1), np.arange(num_classes)))
    theirs = expected.predict_proba(statistics[:, :num_used].astype(np.float64))
    np.testing.assert_allclose(probabilities, theirs, atol=2e-4)


def test_held_out_answers_are_those_of_fits_to_the_other_folds() -> None:
    statistics, label, group = _clips(60, 3)
    fold = folds_of(label, group)
    found = fit_linear_part(statistics, label, fold, np.ones(3))
    assert (found.held_out_logits.argmax(axis=1) == label).mean() > 0.5
    changed = label.copy()
    changed[fold == 2] = (label[fold == 2] + 1) % 3
    again = fit_linear_part(statistics, changed, fold, np.ones(3))
    if again.strength == found.strength and again.uses_mean_frame == found.uses_mean_frame:
        # The labels of a fold do not change the answers to it.
        np.testing.assert_allclose(again.held_out_logits[fold == 2], found.held_out_logits[fold == 2])
    assert np.abs(again.held_out_logits - found.held_out_logits)[fold != 2].max() > 1e-3


def test_noise_gets_the_strongest_regularization_and_a_clear_difference_a_weak_one() -> None:
    strengths = []
    for shift in (0.0, 20.0):
        statistics, label, group = _clips(200, 2, shift)
        strengths.append(fit_linear_part(statistics, label, folds_of(label, group), np.ones(2)).strength)
    assert strengths[0] <= 3e-3 < 1e-1 <= strengths[1]


@pytest.mark.parametrize("column", [0, NUM_STATISTICS - 1])
def test_the_mean_frame_is_used_only_where_it_helps(column: int) -> None:
    """The last third of the statistics is the mean frame's."""
    statistics, label, group = _clips(80, 2, 0.0)
    statistics[:, column] += 5 * label
    found = fit_linear_part(statistics, label, folds_of(label, group), np.ones(2))
    assert found.uses_mean_frame == (column > 0)
    assert (found.kernel[-5:] != 0).any() == (column > 0)


def test_a_fold_is_chosen_on_alone_where_there_are_many_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, label, group = _clips(60, 3)
    fold = folds_of(label, group)
    all_folds = fit_linear_part(statistics, label, fold, np.ones(3))
    monkeypatch.setattr(linear_part, "_MANY_CLIPS", 10)
    one_fold = fit_linear_part(statistics, label, fold, np.ones(3))
    assert (one_fold.held_out_logits != 0).all()
    assert (all_folds.held_out_logits != 0).all()


def test_groups_stay_together_and_every_clip_is_held_out_once() -> None:
    _, label, group = _clips(60, 3)
    fold = folds_of(label, group)
    assert set(fold.tolist()) == set(range(5))
    assert len({(name, number) for name, number in zip(group, fold.tolist(), strict=True)}) == len(set(group))


def test_a_class_of_one_group_is_never_held_out() -> None:
    label = np.array([0, 0, 0, 1, 1, 1, 2])
    fold = folds_of(label, ["a", "b", "c", "a", "b", "c", "d"])
    assert fold[6] == -1
    assert sorted(fold[:6].tolist()) == [0, 0, 1, 1, 2, 2]


def test_folds_are_numbered_without_gaps() -> None:
    """Only the fold without the second class can be held out."""
    for names in (["a", "b", "c"], ["c", "b", "a"]):
        fold = folds_of(np.array([0, 0, 1]), names)
        assert sorted(fold.tolist()) == [-1, -1, 0]


def test_without_folds_there_is_a_default_strength_and_no_mean_frame() -> None:
    statistics, label, _ = _clips(12, 3)
    fold = folds_of(label, [f"one group of class {index}" for index in label])
    assert (fold == -1).all()
    found = fit_linear_part(statistics, label, fold, np.ones(3))
    assert (found.strength, found.uses_mean_frame) == (0.01, False)
    assert (found.held_out_logits == 0).all()


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        (np.zeros(8, int), None, "All training clips have the same class; a classifier needs at least two"),
        (np.arange(8) % 2, 0.5, "All training clips have the same features, so nothing can be learned"),
    ],
)
def test_clips_that_teach_nothing_are_rejected(label: np.ndarray, value: float | None, message: str) -> None:
    statistics = np.random.default_rng(0).normal(size=(8, 6)) if value is None else np.full((8, 6), value)
    with pytest.raises(TrainError, match=message):
        fit_linear_part(statistics, label, np.arange(8) % 4, np.ones(2))


def test_log_losses_by_hand() -> None:
    logits = np.log([[[0.5, 0.5], [0.25, 0.75]], [[0.1, 0.9], [1.0, 1e-300]]])
    np.testing.assert_allclose(
        log_losses(logits, np.array([0, 1])), [[np.log(2), -np.log(0.75)], [-np.log(0.1), 300 * np.log(10)]]
    )


def test_a_gain_is_more_than_two_standard_errors() -> None:
    """The first is of exactly two: the mean is 0.5, the standard deviation 0.5, of four clips."""
    assert not linear_part._is_gain(np.array([0.0, 1.0, 0.0, 1.0]))
    assert linear_part._is_gain(np.array([1.0, 1.0, 0.0, 1.0]))
    assert not linear_part._is_gain(np.zeros(4))
