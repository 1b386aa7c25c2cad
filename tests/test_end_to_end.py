"""The demo's job in one process: only the order of frames separates its classes, and the model learns it."""

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tools import make_demo_videos
from vidpipe.config import (
    ClipConfig,
    ConversionConfig,
    EvaluationConfig,
    ManifestConfig,
    ModelConfig,
    OptimizerConfig,
    PredictionConfig,
    TrainConfig,
)
from vidpipe.data import convert, shards, video
from vidpipe.data.dataset import open_dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.evaluation import evaluate
from vidpipe.inference import predict
from vidpipe.model.heads import classifier
from vidpipe.model.model_file import load_model
from vidpipe.training import train

pytestmark = pytest.mark.slow
CLIP = ClipConfig(num_frames=10, image_size=48)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/, lists/, records/ and a trained run/."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo_videos.write_videos(folder, seed=1)
    manifest = ManifestConfig(video_dir=str(folder / "videos"), ucf101_lists=str(folder / "lists"))
    convert.convert(ConversionConfig(output_dir=str(folder / "records"), manifest=manifest, clip=CLIP))
    train.train(
        TrainConfig(
            data_dir=str(folder / "records"), run_dir=str(folder / "run"), epochs=15, label_smoothing=0.0,
            model=ModelConfig(backbone_weights="none"), optimizer=OptimizerConfig(ema=0.0),
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


def test_the_demo_learns_and_its_artifacts_agree(demo: Path) -> None:
    evaluation = evaluate.evaluate(
        EvaluationConfig(run_dir=str(demo / "run"), data_dir=str(demo / "records"))
    )
    assert evaluation.metrics["num_clips"] == 72
    assert evaluation.metrics["accuracy"] >= 0.9
    with (demo / "run" / "eval_test" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert json.loads((demo / "run/eval_test/metrics.json").read_text())["accuracy"] == right
    text = evaluation.folder.report.read_text()
    assert evaluation.folder.report == demo / "run" / "eval_test" / "report.html"
    names = text.replace("<wbr>", "")  # where a long name may be broken
    assert all(row["video_id"] in names for row in rows)
    assert text.count("data:image/jpeg;base64,") >= 12
    name = "Growing/v_Growing_g01_c01.avi"
    config = PredictionConfig(run_dir=str(demo / "run"))
    (prediction,) = predict.predict(config, [str(demo / "videos" / name)])
    assert prediction.predicted == next(row["predicted"] for row in rows if row["video_id"] == name)


def test_shuffled_frames_fall_to_chance_within_the_pairs(demo: Path) -> None:
    """The same model and the same frames in random order: it cannot tell growing from shrinking."""
    model, _ = load_model(demo / "run" / "model.keras")
    with open_dataset(str(demo / "records")) as dataset:
        batches = eval_dataset(dataset, batch_size=72, split="test", num_frames=CLIP.num_frames)
        ((inputs, labels, _),) = batches
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


def test_the_demo_videos_are_as_documented(demo: Path) -> None:
    """Both containers, UCF101 names, some shorter than T; partners differ in nothing but direction."""
    rows = list(shards.read_videos(demo / "records"))
    assert {Path(row["video_id"]).suffix for row in rows} == {".avi", ".mp4"}
    lengths = [int(row["frames_shown"]) for row in rows]
    assert min(lengths) < 10 < max(lengths)
    assert (len(rows), len({row["group"] for row in rows})) == (288, 48)
    brightness = {}
    for name in ("Brightening", "Darkening"):
        path = demo / "videos" / name / f"v_{name}_g01_c01.avi"
        brightness[name] = video.read_clip(str(path), CLIP).frames.mean(axis=(1, 2, 3))
    assert (np.diff(brightness["Brightening"]) > 0).all()
    assert (np.diff(brightness["Darkening"]) < 0).all()
