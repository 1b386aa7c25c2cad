"""Metrics of events: numbers that follow from ActivityNet's rules by hand, and a second implementation."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.evaluation import event_metrics
from vidpipe.evaluation.event_metrics import (
    ACTIVITYNET_TIOU,
    EventError,
    VideoEvents,
    average_f1,
    compute_event_metrics,
    match_events,
)
from vidpipe.evaluation.events import Event

_CLASSES = ["jump", "run"]


def _video(labelled: Sequence[Event], predicted: Sequence[Event], name: str = "a.mp4") -> VideoEvents:
    return VideoEvents(video=name, duration_sec=200, labelled=labelled, predicted=predicted)


# Jumps by score at tIoU 0.5, of 3 labelled: true (tIoU 1); false, since it repeats the first (0.9); true
# (0.6); true (0.8). Precision is 1, 1/2, 2/3, 3/4; made monotone, 1 at recall 1/3, and 3/4 at 2/3 and 1.
#   tIoU up to 0.6:  (1 + 3/4 + 3/4) / 3 = 5/6
#   0.65 to 0.8:     true, false, false, true: (1 + 2/4) / 3 = 1/2
#   from 0.85:       true, false, false, false: 1/3
# Runs, of 2 labelled: two of equal score. The later one is false and comes first: 1/2 at recall 1/2, so 1/4.
_VIDEOS = [
    _video(
        [Event("jump", 0, 10), Event("jump", 20, 30)],
        [Event("jump", 0, 10, 0.9), Event("jump", 1, 10, 0.8), Event("jump", 20, 28, 0.6)],
    ),
    _video([Event("jump", 0, 10)], [Event("jump", 4, 10, 0.7)], "b.mp4"),
    _video(
        [Event("run", 0, 4), Event("run", 10, 14)],
        [Event("run", 0, 4, 0.5), Event("run", 100, 104, 0.5)],
        "c",
    ),
]


def test_average_precision_by_hand() -> None:
    metrics = compute_event_metrics(_VIDEOS, _CLASSES)
    jump, run = metrics["per_class"]
    thresholds = ["0.10", "0.20", "0.30", "0.40", *(f"{each:.2f}" for each in ACTIVITYNET_TIOU)]
    expected = [5 / 6] * 7 + [1 / 2] * 4 + [1 / 3] * 3
    assert jump["ap"] == pytest.approx(dict(zip(thresholds, expected, strict=True)), abs=1e-12)
    assert run["ap"] == pytest.approx(dict.fromkeys(thresholds, 1 / 4), abs=1e-12)
    # (3 * 5/6 + 4 * 1/2 + 3 * 1/3) / 10
    assert (jump["ap_50_95"], jump["ap_10_50"]) == pytest.approx((0.55, 5 / 6), abs=1e-12)
    assert metrics["map"]["0.50"] == pytest.approx((5 / 6 + 1 / 4) / 2, abs=1e-12)
    assert metrics["map_50_95"] == pytest.approx((0.55 + 0.25) / 2, abs=1e-12)
    assert metrics["map_10_50"] == pytest.approx((5 / 6 + 1 / 4) / 2, abs=1e-12)


def test_counts_and_borders_by_hand() -> None:
    """Starts are wrong by 0, 4, 0 and 0 s, ends by 0, 0, 2 and 0 s."""
    metrics = compute_event_metrics(_VIDEOS, _CLASSES)
    names = ["num_labelled", "num_predicted", "num_matched", "precision", "recall", "f1"]
    names += ["start_error_sec", "end_error_sec"]
    for found, expected in [
        (metrics, (5, 6, 4, 4 / 6, 4 / 5, 8 / 11, 1, 0.5)),
        (metrics["per_class"][0], (3, 4, 3, 3 / 4, 1, 6 / 7, 4 / 3, 2 / 3)),
        (metrics["per_class"][1], (2, 2, 1, 1 / 2, 1 / 2, 1 / 2, 0, 0)),
    ]:
        assert [found[name] for name in names] == pytest.approx(list(expected), abs=1e-12)
    assert (metrics["num_videos"], metrics["classes"]) == (3, _CLASSES)


def test_average_f1_by_hand() -> None:
    """At 0.3 and 0.5, 6/7 for jumps and 1/2 for runs; at 0.7, jumps have 2 matches of 3 and 4: 4/7."""
    absent = _video([], [Event("absent", 0, 10)], "d.mp4")  # a class without labelled events does not count
    assert average_f1([*_VIDEOS, absent], [*_CLASSES, "absent"]) == pytest.approx(
        (2 * (6 / 7 + 1 / 2) + (4 / 7 + 1 / 2)) / 6, abs=1e-12
    )
    assert average_f1(_VIDEOS, _CLASSES, [0.7]) == pytest.approx((4 / 7 + 1 / 2) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("labelled", "predicted", "threshold", "expected"),
    [
        pytest.param(
            [(0, 10), (2, 12)],
            [(0, 10, 0.8), (0, 10, 0.9)],
            0.5,
            [(0, 1, 1), (1, 0, 8 / 12)],
            id="second best",
        ),
        pytest.param([(0, 10), (2, 12)], [(0, 10, 0.8), (0, 10, 0.9)], 0.7, [(0, 1, 1)], id="too far"),
        pytest.param(
            [(0, 10), (10, 20)],
            [(5, 15, 0.9), (10, 20, 0.8)],
            0.3,
            [(1, 0, 1 / 3)],
            id="equal tIoU: the later",
        ),
        pytest.param([(0, 10)], [(0, 10, 0.5), (0, 9, 0.5)], 0.5, [(0, 1, 0.9)], id="equal score: the later"),
        pytest.param([(0, 10)], [(10, 20, 0.5)], 0.1, [], id="side by side"),
        pytest.param([(0, 10)], [(7, 10, 0.5)], 0.3, [(0, 0, 0.3)], id="at the threshold"),
        pytest.param([(5, 5)], [(5, 5, 0.5), (0, 10, 0.5)], 0.1, [], id="no length"),
        pytest.param([], [(0, 10, 0.5)], 0.1, [], id="nothing labelled"),
        pytest.param([(0, 10)], [], 0.1, [], id="nothing predicted"),
    ],
)
def test_matches(
    labelled: list[tuple[float, float]],
    predicted: list[tuple[float, float, float]],
    threshold: float,
    expected: list[tuple[int, int, float]],
) -> None:
    found = match_events(
        [Event("a", *times) for times in labelled], [Event("a", *each) for each in predicted], threshold
    )
    assert sorted(found) == [(*rows, pytest.approx(tiou, abs=1e-12)) for *rows, tiou in expected]


def test_events_match_only_in_their_video_and_class() -> None:
    labelled = [Event("jump", 0, 10)]
    assert match_events(labelled, [Event("run", 0, 10)]) == []
    metrics = compute_event_metrics(
        [_video(labelled, []), _video([], [Event("jump", 0, 10)], "b.mp4")], _CLASSES
    )
    assert metrics["num_matched"] == 0


def test_what_is_undefined_is_none() -> None:
    """Nothing is labelled as run; one run is predicted, which is in the counts of all events."""
    videos = [_video([Event("jump", 0, 10)], [Event("run", 0, 10)]), _video([], [], "b.mp4")]
    metrics = compute_event_metrics(videos, ["jump", "run", "throw"])
    jump, run, throw = metrics["per_class"]
    assert (jump["ap"]["0.50"], jump["precision"], jump["recall"], jump["f1"]) == (0, None, 0, 0)
    assert (run["ap"]["0.50"], run["precision"], run["recall"], run["f1"]) == (None, 0, None, 0)
    for name in ("ap_50_95", "ap_50_95_ci95", "precision", "recall", "f1", "f1_ci95", "start_error_sec"):
        assert throw[name] is None
    assert (metrics["map_50_95"], metrics["precision"], metrics["start_error_sec"]) == (0, 0, None)


def test_a_split_without_labelled_events() -> None:
    videos = [_video([], [Event("jump", 0, 10)])]
    assert compute_event_metrics(videos, _CLASSES)["map_50_95"] is None
    with pytest.raises(EventError, match="There are no labelled events"):
        average_f1(videos, _CLASSES)
    with pytest.raises(EventError, match="There are no videos"):
        compute_event_metrics([], _CLASSES)
    with pytest.raises(
        EventError, match="at 0 to 10 s is of the class 'jump', which is none of the 1 classes"
    ):
        compute_event_metrics(videos, ["run"])


def _perfect(name: str, video: str) -> VideoEvents:
    return _video([Event(name, 0, 10)], [Event(name, 0, 10, 0.5)], video)


def test_intervals_are_those_of_resampled_videos() -> None:
    """Of two videos, a quarter of the resamples has twice the first and a quarter twice the second one.

    The first has only missed jumps, the second only found runs. Where one is left out, so is its class.
    """
    videos = [_video([Event("jump", 0, 10)], []), _perfect("run", "b.mp4")]
    metrics = compute_event_metrics(videos, _CLASSES)
    for name in ("map_50_95", "map_10_50", "recall"):
        assert (metrics[name], metrics[f"{name}_ci95"]) == (0.5, [0, 1])
    assert (metrics["map"]["0.75"], metrics["map_ci95"]["0.75"]) == (0.5, [0, 1])
    # Precision is undefined in resamples without predicted events.
    assert (metrics["precision"], metrics["precision_ci95"]) == (1, [1, 1])
    jump, run = metrics["per_class"]
    assert (jump["f1_ci95"], run["f1_ci95"], run["ap_ci95"]["0.50"]) == ([0, 0], [1, 1], [1, 1])


def test_videos_that_are_alike_have_intervals_of_no_width() -> None:
    metrics = compute_event_metrics([replace(_VIDEOS[0], video=str(index)) for index in range(5)], _CLASSES)
    assert metrics["recall_ci95"] == [1, 1]
    assert metrics["precision_ci95"] == pytest.approx([2 / 3, 2 / 3])


def test_intervals_are_the_same_in_each_evaluation() -> None:
    """Twelve videos with errors of their own: no two different resamples have the same mean."""
    errors = np.random.default_rng(1).random(12).tolist()
    videos = [
        _video([Event("jump", 0, 10)], [Event("jump", error, 10, 0.5)], str(index))
        for index, error in enumerate(errors)
    ]
    metrics = compute_event_metrics(videos, _CLASSES)
    low, high = metrics["start_error_sec_ci95"]
    assert low < metrics["start_error_sec"] < high
    assert metrics == compute_event_metrics(videos, _CLASSES)


def test_one_video_has_no_intervals() -> None:
    metrics = compute_event_metrics(_VIDEOS[:1], _CLASSES)
    assert metrics["precision"] == pytest.approx(2 / 3)
    assert metrics["precision_ci95"] is metrics["map_50_95_ci95"] is metrics["map_ci95"]["0.50"] is None
    assert metrics["per_class"][0]["ap_50_95_ci95"] is None


_TIMES = st.tuples(st.integers(0, 12), st.integers(1, 8)).map(lambda each: (each[0], sum(each)))


@st.composite
def _splits(draw: st.DrawFn, *, distinct_scores: bool = False) -> list[VideoEvents]:
    """Draws up to four videos; times are whole seconds, so that shifting them is exact."""
    videos = []
    scores = draw(st.permutations(range(40)))
    for index in range(draw(st.integers(1, 4))):
        labelled = draw(st.lists(st.tuples(st.sampled_from(_CLASSES), _TIMES), max_size=5))
        predicted = draw(
            st.lists(st.tuples(st.sampled_from(_CLASSES), _TIMES, st.integers(0, 4)), max_size=7)
        )
        videos.append(
            _video(
                [Event(name, *times) for name, times in labelled],
                [
                    Event(name, *times, (scores.pop() if distinct_scores else score) / 40)
                    for name, times, score in predicted
                ],
                str(index),
            )
        )
    return videos


def _point_estimates(videos: Sequence[VideoEvents], weights: Sequence[int] | None = None) -> dict:
    """Computes the estimates of a split without its intervals, which take longer."""
    comparison = event_metrics._compare(videos, _CLASSES)
    used = np.array([weights or [1] * len(videos)], float)
    return {name: value[0] for name, value in event_metrics._estimates(comparison, used).items()}


def _tiou(first: Event, second: Event) -> float:
    overlap = max(min(first.end_sec, second.end_sec) - max(first.start_sec, second.start_sec), 0)
    return overlap / (first.end_sec - first.start_sec + second.end_sec - second.start_sec - overlap)


def _reference_ap(videos: Sequence[VideoEvents], name: str, threshold: float) -> float:
    """Computes average precision in the way it is defined, one event after the other."""
    ranked = [(video, event) for video in videos for event in video.predicted if event.label == name]
    ranked = sorted(reversed(ranked), key=lambda each: -each[1].score)
    num_labelled = sum(event.label == name for video in videos for event in video.labelled)
    taken: set[tuple[str, int]] = set()
    points = []  # of recall and precision
    for rank, (video, event) in enumerate(ranked, start=1):
        candidates = [
            (_tiou(event, other), index)
            for index, other in enumerate(video.labelled)
            if other.label == name and (video.video, index) not in taken
        ]
        best = max(candidates, default=(0.0, 0))
        if best[0] >= threshold:
            taken.add((video.video, best[1]))
        points.append((len(taken) / num_labelled, len(taken) / rank))
    recalls = sorted({recall for recall, _ in points} - {0})
    return sum(
        (recall - before) * max(precision for other, precision in points if other >= recall)
        for before, recall in zip([0, *recalls], recalls, strict=False)
    )


@settings(deadline=None, max_examples=60)
@given(_splits())
def test_average_precision_equals_that_of_its_definition(videos: list[VideoEvents]) -> None:
    found = _point_estimates(videos)["class_ap"]
    for index, name in enumerate(_CLASSES):
        if any(event.label == name for video in videos for event in video.labelled):
            expected = [_reference_ap(videos, name, threshold) for threshold in event_metrics._TIOU]
            np.testing.assert_allclose(found[index], expected, atol=1e-12)
        else:
            assert np.isnan(found[index]).all()


@settings(deadline=None, max_examples=25)
@given(_splits(distinct_scores=True), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_video_that_is_drawn_twice_counts_as_two(videos: list[VideoEvents], counts: list[int]) -> None:
    """A resample is the split with copies of its videos."""
    counts = counts[: len(videos)]
    copies = [video for video, count in zip(videos, counts, strict=True) for _ in range(count)]
    if not copies:
        return
    expected = _point_estimates([replace(each, video=str(index)) for index, each in enumerate(copies)])
    for name, value in _point_estimates(videos, counts).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(_splits(), st.integers(-100, 100))
def test_shifting_all_times_changes_nothing(videos: list[VideoEvents], shift: int) -> None:
    def shifted(events: Sequence[Event]) -> list[Event]:
        return [
            replace(each, start_sec=each.start_sec + shift, end_sec=each.end_sec + shift) for each in events
        ]

    moved = [
        replace(each, labelled=shifted(each.labelled), predicted=shifted(each.predicted)) for each in videos
    ]
    found = _point_estimates(moved)
    for name, value in _point_estimates(videos).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(_splits())
def test_a_perfect_prediction(videos: list[VideoEvents]) -> None:
    """Equal labelled events are matched by as many predicted ones."""
    found = _point_estimates([replace(video, predicted=video.labelled) for video in videos])
    for name in ("class_ap", "map_50_95", "class_f1", "recall"):
        assert set(np.ravel(found[name])[~np.isnan(np.ravel(found[name]))]) <= {1}
    errors = found["class_end_error_sec"]
    assert (errors[~np.isnan(errors)] == 0).all()


@settings(deadline=None, max_examples=25)
@given(_splits(), st.sampled_from(_CLASSES), st.integers(1, 5))
def test_false_events_of_low_score_do_not_raise_average_precision(
    videos: list[VideoEvents], name: str, count: int
) -> None:
    false = [Event(name, 100 + index, 101 + index, -1) for index in range(count)]
    more = [replace(videos[0], predicted=[*videos[0].predicted, *false]), *videos[1:]]
    before, after = _point_estimates(videos), _point_estimates(more)
    np.testing.assert_allclose(after["class_ap"], before["class_ap"], atol=1e-12)
    higher = after["class_precision"] > before["class_precision"]
    assert not higher.any()
