"""Predicting a file is evaluating its record; a bad file is named and the rest goes on."""

import csv
from pathlib import Path

import keras
import pytest

from vidpipe import evaluate, predict
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.model import ModelCard, build_model, save_model


def test_predicting_a_file_equals_evaluating_its_record(
    tmp_path: Path, data_dir: str, video_dir: Path
) -> None:
    keras.utils.set_random_seed(1)
    clip = ClipConfig(num_frames=4, image_size=32)
    model = build_model(ModelConfig(backbone_weights="none"), clip, 2)
    save_model(model.fused, ModelCard(("long", "short"), clip), tmp_path / "model.keras")
    evaluation = evaluate.evaluate(str(tmp_path), data_dir, "test", batch_size=1)
    with (evaluation.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    paths = [str(video_dir / row["video_id"]) for row in rows]
    paths.insert(1, str(tmp_path / "nowhere.avi"))
    predictions = list(predict.predict(str(tmp_path), paths))
    missing = predictions.pop(1)
    assert (missing.path, missing.error, missing.probabilities) == (paths[1], "no such file", {})
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction.predicted == row["predicted"]
        # PNG records hold the frames bit for bit, and so do the probabilities
        assert {name: prediction.probabilities[name] for name in ("long", "short")} == {
            name: float(row[name]) for name in ("long", "short")
        }
        assert list(prediction.probabilities.values()) == sorted(
            prediction.probabilities.values(), reverse=True
        )
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
