"""Metrics by hand and by scikit-learn, and files that agree with each other."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn import metrics as sk

from vidpipe import evaluate, input_pipeline, shards
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


def test_metrics_equal_scikit_learn_s() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(8), 200)
    labels = random.integers(0, 8, 200)
    metrics = evaluate.compute_metrics(labels, probabilities, tuple("abcdefgh"))
    predicted = probabilities.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "mean_class_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "top_5_accuracy": sk.top_k_accuracy_score(labels, probabilities, k=5),
        "precision_weighted": sk.precision_score(labels, predicted, average="weighted"),
        "recall_weighted": sk.recall_score(labels, predicted, average="weighted"),
        "f1_weighted": sk.f1_score(labels, predicted, average="weighted"),
        "loss": sk.log_loss(labels, probabilities),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value), name


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


def test_a_table_that_does_not_describe_the_shards_is_refused(
    run_dir: Path, data_dir: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    table = folder / shards.VIDEOS_NAME
    table.write_text(table.read_text().replace(",test,long,", ",test,short,"))
    with pytest.raises(evaluate.EvaluateError, match="videos.csv does not describe"):
        evaluate.evaluate(str(run_dir), str(folder), "test")
