"""Metrics by hand and by scikit-learn, and files that agree with each other."""

import csv
import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from vidpipe import evaluate, input_pipeline, page, shards
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.model import ModelCard, build_model, load_model, save_model

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that fits the dataset."""
    folder = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(1)
    clip = ClipConfig(num_frames=4, image_size=32)
    model = build_model(ModelConfig(backbone_weights="none"), clip.model_spec(), 2)
    save_model(model.fused, ModelCard(("long", "short"), clip), folder / "model.keras")
    return folder


def test_metrics_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.7, 0.2]])
    metrics = evaluate.compute_metrics(labels, probabilities, CLASSES)
    assert (metrics["num_clips"], metrics["accuracy"], metrics["top_5_accuracy"]) == (4, 0.75, 1.0)
    # Wilson for 3 of 4
    np.testing.assert_allclose(metrics["accuracy_ci95"], [0.30064, 0.95441], atol=1e-4)
    assert metrics["mean_class_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["loss"] == pytest.approx(-np.log([0.8, 0.6, 0.2, 0.7]).mean())
    assert metrics["majority_accuracy"] == 0.75
    assert metrics["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics["classes"] == ["a", "b", "c"]


def _random_scores(seed: int, num_classes: int, num_clips: int, occurring: int, levels: int | None) -> tuple:
    """Labels of the first `occurring` classes, and probabilities; with few `levels` many are equal."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, occurring, num_clips)
    scores = random.gamma(0.5, size=(num_clips, num_classes))
    if levels is not None:
        scores = random.integers(1, levels + 1, size=(num_clips, num_classes)).astype(float)
    scores[np.arange(num_clips), labels] += random.integers(0, 2, num_clips)
    return labels, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize(
    ("num_classes", "num_clips", "occurring", "levels"),
    [
        (2, 30, 2, None), (5, 50, 5, None), (8, 200, 8, None), (101, 700, 101, None),
        (8, 90, 5, None), (8, 60, 2, None), (2, 9, 1, None), (3, 1, 1, None),
        (2, 40, 2, 2), (7, 200, 7, 3), (30, 100, 11, 2),
    ],
)  # fmt: skip
def test_metrics_are_scikit_learn_s(num_classes: int, num_clips: int, occurring: int, levels: int) -> None:
    labels, probabilities = _random_scores(num_clips, num_classes, num_clips, occurring, levels)
    classes = tuple(f"class {index}" for index in range(num_classes))
    metrics = evaluate.compute_metrics(labels, probabilities, classes)
    indices, predicted = np.arange(num_classes), probabilities.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "mean_class_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "loss": sk.log_loss(labels, probabilities, labels=indices),
    }
    weighted = sk.precision_recall_fscore_support(
        labels, predicted, labels=indices, average="weighted", zero_division=0
    )
    expected |= dict(zip(("precision_weighted", "recall_weighted", "f1_weighted"), weighted, strict=False))
    if num_classes > 5:
        expected["top_5_accuracy"] = sk.top_k_accuracy_score(labels, probabilities, k=5, labels=indices)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-12), name
    assert metrics["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=indices).tolist()
    columns = sk.precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    for index, *row in zip(indices, *columns, strict=True):
        found = metrics["per_class"][index]
        assert [found[name] for name in ("precision", "recall", "f1", "num_clips")] == row
        mine = labels == index
        if mine.any():
            area = sk.average_precision_score(mine, probabilities[:, index])
            assert found["average_precision"] == pytest.approx(area)
            low, high = found["recall_ci95"]
            assert low <= found["recall"] <= high
        else:
            assert (found["average_precision"], found["recall_ci95"]) == (None, None)
    if occurring == num_classes > 2:
        area = sk.average_precision_score(np.eye(num_classes)[labels], probabilities, average="macro")
        assert metrics["mean_average_precision"] == pytest.approx(area)
    right, confidence = predicted == labels, probabilities.max(axis=1)
    filled = [row for row in metrics["calibration_bins"] if row["num_clips"] > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class only: right
        accuracies, confidences = calibration_curve(right, confidence, n_bins=15, pos_label=True)
    np.testing.assert_allclose([row["accuracy"] for row in filled], accuracies)
    np.testing.assert_allclose([row["confidence"] for row in filled], confidences)
    clips = [row["num_clips"] for row in filled]
    error = np.average(np.abs(accuracies - confidences), weights=clips)
    assert (sum(clips), metrics["calibration_error"]) == (num_clips, pytest.approx(error))


def test_calibration_by_hand() -> None:
    """Two clips of confidence 0.9, one right; one of 0.6, right; 0.6 is 9/15 and belongs to the bin below."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    error, bins = evaluate.calibration(np.array([0, 1, 1]), probabilities)
    assert error == pytest.approx((2 * 0.4 + 1 * 0.4) / 3)
    assert [row["num_clips"] for row in bins] == [0] * 8 + [1] + [0] * 4 + [2, 0]
    assert bins[8] == {
        "low": pytest.approx(8 / 15), "high": pytest.approx(0.6), "num_clips": 1, "accuracy": 1.0,
        "accuracy_ci95": evaluate._interval(1, 1), "confidence": 0.6,
    }  # fmt: skip
    assert [bins[0][name] for name in ("accuracy", "accuracy_ci95", "confidence")] == [None] * 3


def test_a_model_that_is_as_often_right_as_it_is_sure_has_no_calibration_error() -> None:
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert evaluate.calibration(np.array([0, 0, 0, 1]), probabilities)[0] == 0
    assert evaluate.calibration(np.array([0, 0, 0, 0]), probabilities)[0] == 0.25


def test_the_interval_of_the_mean_class_accuracy() -> None:
    def rows(*counts: tuple[int, int]) -> list[dict[str, Any]]:
        return [{"recall": k / n, "recall_ci95": evaluate._interval(k, n)} for k, n in counts]

    assert evaluate._mean_interval(rows((7, 9))) == pytest.approx(evaluate._interval(7, 9))
    low, high = evaluate._mean_interval(rows((12, 12), (12, 12)))
    assert (low, high) == (pytest.approx(1 - (1 - evaluate._interval(12, 12)[0]) / 2**0.5), 1)
    # Of 3000 samples of classes of known accuracy it holds the true mean in 95 of 100.
    shares, clips = np.array([0.95, 0.8, 0.5, 0.99]), np.array([12, 7, 30, 15])
    table = [[evaluate._interval(k, n) for k in range(n + 1)] for n in clips]
    samples = binom.rvs(clips, shares, size=(3000, 4), random_state=1)
    held = 0
    for sample in samples:
        found = [
            {"recall": k / n, "recall_ci95": of[k]} for k, n, of in zip(sample, clips, table, strict=True)
        ]
        low, high = evaluate._mean_interval(found)
        held += low <= shares.mean() <= high
    assert 0.94 < held / len(samples) < 0.97


def test_curves_are_those_whose_area_is_the_average_precision() -> None:
    labels, probabilities = _random_scores(3, 6, 300, 5, 9)
    curves = evaluate.precision_recall_curves(labels, probabilities)
    assert list(curves) == [0, 1, 2, 3, 4]
    for index, (recall, precision) in curves.items():
        area = sk.average_precision_score(labels == index, probabilities[:, index])
        assert -(np.diff(recall) * precision[:-1]).sum() == pytest.approx(area)
        assert (recall == 1).sum() == 1
        assert (recall[0], recall[-1], precision[-1]) == (1, 0, 1)
        assert len(recall) <= 2 * (labels == index).sum() + 1


def test_clips_to_look_at() -> None:
    #                            right        wrong        wrong        right        right        wrong
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    labels = np.array([0, 1, 1, 1, 0, 0])
    assert evaluate.clips_to_look_at(labels, probabilities, 2) == ([1, 5], [3, 2])
    assert evaluate.clips_to_look_at(labels, probabilities, 9) == ([1, 5, 2], [3, 4, 0])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_files_agree_with_the_model_and_each_other(
    run_dir: Path, data_dir: str, info: shards.DatasetInfo, batch_size: int
) -> None:
    evaluation = evaluate.evaluate(str(run_dir), data_dir, "test", batch_size)
    assert evaluation.folder == run_dir / "eval_test"
    assert json.loads((evaluation.folder / "metrics.json").read_text()) == evaluation.metrics
    with (evaluation.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video_id"] for row in rows] == [r["video_id"] for r in shards.clip_rows(data_dir, "test")]
    right = [row["label"] == row["predicted"] for row in rows]
    assert evaluation.metrics["num_clips"] == 6
    assert evaluation.metrics["accuracy"] == np.mean(right)
    for row in rows:
        assert float(row["long"]) + float(row["short"]) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(("long", "short"), key=lambda name: float(row[name]))
        assert row["label"] == row["video_id"].split("/")[1]
    labels, predicted = ([row[name] for row in rows] for name in ("label", "predicted"))
    text = sk.classification_report(labels, predicted, digits=4, zero_division=0)
    assert (evaluation.folder / "classification_report.txt").read_text() == evaluation.text == text
    assert evaluation.metrics["dataset_fingerprint"] == info.fingerprint
    assert evaluation.report == evaluation.folder / "report.html"
    assert {path.name for path in evaluation.folder.iterdir()} == {
        "metrics.json", "predictions.csv", "report.html", "classification_report.txt",
    }  # fmt: skip


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[page.EvaluationReport]:
    """What the pages of evaluations are made of."""
    reports: list[page.EvaluationReport] = []

    def keep(evaluated: page.EvaluationReport) -> str:
        reports.append(evaluated)
        return "page"

    monkeypatch.setattr(page, "evaluation_page", keep)
    return reports


@pytest.mark.parametrize(("num_frames", "num_clips"), [(None, 1), (2, 2)])
def test_the_frames_shown_are_those_the_model_saw(
    reported: list[page.EvaluationReport],
    data_dir: str,
    info: shards.DatasetInfo,
    tmp_path: Path,
    num_frames: int | None,
    num_clips: int,
) -> None:
    """The clips lie in several shards; a model of two frames has its one central view shown."""
    card = ModelCard(("long", "short"), info.clip, num_frames)
    save_model(
        build_model(ModelConfig(backbone_weights="none"), card.spec, 2).fused, card, tmp_path / "model.keras"
    )
    evaluate.evaluate(str(tmp_path), data_dir, "test", num_clips=num_clips)
    (evaluated,) = reported
    assert (evaluated.history, evaluated.settings) == ([], {})
    ((inputs, labels, _),) = input_pipeline.eval_dataset(data_dir, info, 6, "test", num_frames)
    assert sorted([*evaluated.mistakes, *evaluated.uncertain]) == list(range(6)) == sorted(evaluated.frames)
    for place, frames in evaluated.frames.items():
        np.testing.assert_array_equal(frames, inputs["frames"][place].numpy()[inputs["mask"][place].numpy()])
    np.testing.assert_array_equal(evaluated.labels, labels)
    assert evaluated.video_ids == [row["video_id"] for row in shards.clip_rows(data_dir, "test")]
    assert f"{num_clips} in time x 1 in space" in evaluated.made["Views of each clip"]


def test_only_some_clips_are_read_again(data_dir: str, info: shards.DatasetInfo) -> None:
    ((inputs, _, _),) = input_pipeline.eval_dataset(data_dir, info, 8, "train")
    frames = evaluate._read_frames(data_dir, info, "train", [6, 1], info.clip.model_spec())
    assert sorted(frames) == [1, 6]
    for place, found in frames.items():
        np.testing.assert_array_equal(found, inputs["frames"][place].numpy()[inputs["mask"][place].numpy()])


def test_what_a_run_left_is_in_the_report_and_what_is_damaged_is_not(
    reported: list[page.EvaluationReport],
    run_dir: Path,
    data_dir: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copy(run_dir / "model.keras", tmp_path)
    (tmp_path / "config.json").write_text('{"epochs": 2, "model": {"head": "motion"}}')
    columns = "epoch,loss,accuracy,val_loss,val_loss_error,val_accuracy,learning_rate,seconds,data_wait\n"
    (tmp_path / "history.csv").write_text(columns + "1,2.5,0.25,,,,0.001,9,0\n")
    evaluate.evaluate(str(tmp_path), data_dir, "test", cache_dir="my copies")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "history.csv").write_text("epoch,loss\n1,2.5\n")
    evaluate.evaluate(str(tmp_path), data_dir, "test")
    whole, damaged = reported
    assert (damaged.history, damaged.settings) == ([], {})
    told = [line for line in caplog.messages if line.endswith("the report is without it.")]
    assert [line.split(" (")[0] for line in told] == [
        f"{tmp_path}/history.csv cannot be read",
        f"{tmp_path}/config.json cannot be read",
    ]
    assert whole.settings == {"epochs": 2, "model": {"head": "motion"}}
    assert whole.history == [
        {
            "epoch": 1,
            "loss": 2.5,
            "accuracy": 0.25,
            "val_loss": None,
            "val_loss_error": None,
            "val_accuracy": None,
            "learning_rate": 0.001,
        }
    ]
    assert whole.name == tmp_path.name
    command = f"python tools/evaluate.py --run_dir={tmp_path} --data_dir={data_dir} --split=test"
    assert damaged.made["Command"] == command
    assert whole.made["Command"] == f"{command} '--cache_dir=my copies'"
    assert damaged.made["Model file, sha256"] == shards.sha256_of(str(tmp_path / "model.keras"))


def test_metrics_json_is_written_last(
    run_dir: Path, data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: page.EvaluationReport) -> str:
        raise OSError("disk full")

    shutil.copy(run_dir / "model.keras", tmp_path)
    monkeypatch.setattr(page, "evaluation_page", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate.evaluate(str(tmp_path), data_dir, "test")
    written = {path.name for path in (tmp_path / "eval_test").iterdir()}
    assert written == {"predictions.csv", "classification_report.txt"}


def test_the_views_of_a_video_are_averaged(data_dir: str, info: shards.DatasetInfo, tmp_path: Path) -> None:
    """A model of two frames sees the four that are stored in two views; by hand and by `evaluate`."""
    card = ModelCard(("long", "short"), info.clip, num_frames=2)
    fused = build_model(ModelConfig(backbone_weights="none"), card.spec, 2).fused
    save_model(fused, card, tmp_path / "model.keras")
    evaluation = evaluate.evaluate(str(tmp_path), data_dir, "test", batch_size=5, num_clips=2)
    ((inputs, _, _),) = input_pipeline.eval_dataset(data_dir, info, 12, "test", num_frames=2, num_clips=2)
    by_hand = keras.ops.softmax(fused(inputs)).numpy().reshape(6, 2, 2).mean(axis=1)
    with (evaluation.folder / "predictions.csv").open() as file:
        rows = [[float(row["long"]), float(row["short"])] for row in csv.DictReader(file)]
    np.testing.assert_allclose(rows, by_hand, atol=1e-6)
    assert (evaluation.metrics["num_clips"], evaluation.metrics["views"]) == (6, 2)


@pytest.mark.parametrize(
    ("num_clips", "num_crops", "message"),
    [
        (1, 3, "square frames, so num_crops=3 .*--resize=short_side"),
        (2, 1, "takes all 4 stored frames, so num_clips=2 .*--num_frames"),
    ],
)
def test_views_that_would_not_differ_are_refused(
    run_dir: Path, data_dir: str, num_clips: int, num_crops: int, message: str
) -> None:
    with pytest.raises(evaluate.EvaluateError, match=message):
        evaluate.evaluate(str(run_dir), data_dir, "test", 8, num_clips, num_crops)


def test_other_classes_and_other_clips_are_refused(run_dir: Path, data_dir: str, tmp_path: Path) -> None:
    model, card = load_model(run_dir / "model.keras")
    for wrong, message in [
        (dataclasses.replace(card, classes=("long", "tall")), "they differ in short, tall"),
        (dataclasses.replace(card, classes=("short", "long")), "the same ones in another order"),
        (dataclasses.replace(card, clip=ClipConfig(num_frames=5, image_size=32)), "num_frames=5"),
    ]:
        save_model(model, wrong, tmp_path / "model.keras")
        with pytest.raises(evaluate.EvaluateError, match=message):
            evaluate.evaluate(str(tmp_path), data_dir, "test")


def test_of_many_odd_classes_some_are_named(info: shards.DatasetInfo) -> None:
    card = ModelCard(tuple(f"c{index:03d}" for index in range(101)), info.clip)
    message = "they differ in c000, c001, c002, c003, c004, c005 and 97 more. Take"
    with pytest.raises(evaluate.EvaluateError, match=f"knows 101 classes and data has 2; {message}"):
        evaluate.check_dataset(card, info, "data")


def test_a_table_that_does_not_describe_the_shards_is_refused(
    run_dir: Path, data_dir: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    table = folder / shards.VIDEOS_NAME
    table.write_text(table.read_text().replace(",test,long,", ",test,short,"))
    with pytest.raises(evaluate.EvaluateError, match="videos.csv does not describe"):
        evaluate.evaluate(str(run_dir), str(folder), "test")
