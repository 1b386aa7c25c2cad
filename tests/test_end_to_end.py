"""The demo's job in one process: order is all that tells its classes apart, and the model has learned it."""

import csv
import json
from pathlib import Path

import keras
import make_demo_videos
import numpy as np
import pytest

from vidpipe import convert, evaluate, predict, shards, train, video
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig, ModelConfig, TrainConfig
from vidpipe.input_pipeline import eval_dataset
from vidpipe.model import classifier, load_model

CLIP = ClipConfig(num_frames=10, image_size=48)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/, lists/, records/ and a trained run/."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo_videos.write_videos(folder, seed=1)
    manifest = ManifestConfig(str(folder / "videos"), ucf101_lists=str(folder / "lists"))
    convert.convert(ConversionConfig(str(folder / "records"), manifest, CLIP))
    train.train(
        TrainConfig(
            str(folder / "records"), str(folder / "run"), ModelConfig(backbone_weights="none"),
            epochs=15, batch_size=16,
        )
    )  # fmt: skip
    return folder


def _partner_accuracy(
    model: keras.Model, features: np.ndarray, mask: np.ndarray, labels: np.ndarray
) -> float:
    """How often the right class of the pair gets more than its partner."""
    names = make_demo_videos.CLASSES
    forward = {backward: name for name, backward in make_demo_videos.PARTNERS.items()}
    partners = [names.index(make_demo_videos.PARTNERS.get(name) or forward[name]) for name in names]
    logits = classifier(model)({"features": features, "mask": mask}).numpy()
    rows = np.arange(len(labels))
    return float((logits[rows, labels] > logits[rows, np.array(partners)[labels]]).mean())


def test_the_demo_learns_and_its_papers_agree(demo: Path) -> None:
    evaluation = evaluate.evaluate(str(demo / "run"), str(demo / "records"), "test")
    assert evaluation.metrics["num_clips"] == 72
    assert evaluation.metrics["accuracy"] >= 0.9
    with (demo / "run" / "eval_test" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert json.loads((demo / "run/eval_test/metrics.json").read_text())["accuracy"] == right
    text = evaluation.report.read_text()
    assert evaluation.report == demo / "run" / "eval_test" / "report.html"
    assert all(row["video_id"] in text for row in rows)
    assert text.count("data:image/jpeg;base64,") >= 12
    name = "Growing/v_Growing_g01_c01.avi"
    (prediction,) = predict.predict(str(demo / "run"), [str(demo / "videos" / name)])
    assert prediction.predicted == next(row["predicted"] for row in rows if row["video_id"] == name)


def test_shuffled_frames_fall_to_chance_within_the_pairs(demo: Path) -> None:
    """The same model and the same frames in random order: it cannot tell growing from shrinking."""
    info = shards.read_info(demo / "records")
    model, _ = load_model(demo / "run" / "model.keras")
    ((inputs, labels, _),) = eval_dataset(str(demo / "records"), info, 72, "test")
    mask, labels = inputs["mask"].numpy(), labels.numpy()
    features = np.zeros((*mask.shape, 512), np.float32)
    real = inputs["frames"].numpy()[mask]
    features[mask] = model.get_layer("backbone")(model.get_layer("preprocess")(real)).numpy()
    assert _partner_accuracy(model, features, mask, labels) >= 0.9
    random = np.random.default_rng(0)
    shuffled_accuracies = []
    for _ in range(10):
        shuffled = features.copy()
        for clip, count in enumerate(mask.sum(axis=1)):
            shuffled[clip, :count] = features[clip, random.permutation(count)]
        shuffled_accuracies.append(_partner_accuracy(model, shuffled, mask, labels))
    assert 0.4 < np.mean(shuffled_accuracies) < 0.6


def test_the_demo_s_videos_are_what_they_say(demo: Path) -> None:
    """Both containers, UCF101 names, some shorter than T; partners differ in nothing but direction."""
    rows = list(shards.read_videos(demo / "records"))
    assert {Path(row["video_id"]).suffix for row in rows} == {".avi", ".mp4"}
    lengths = [int(row["frames_decoded"]) for row in rows]
    assert min(lengths) < 10 < max(lengths)
    assert (len(rows), len({row["group"] for row in rows})) == (288, 48)
    brightness = {}
    for name in ("Brightening", "Darkening"):
        path = demo / "videos" / name / f"v_{name}_g01_c01.avi"
        brightness[name] = video.read_clip(str(path), CLIP).frames.mean(axis=(1, 2, 3))
    assert (np.diff(brightness["Brightening"]) > 0).all()
    assert (np.diff(brightness["Darkening"]) < 0).all()
