"""Predicting a file is evaluating its record; a bad file is named and the rest goes on."""

import csv
from collections.abc import Callable
from pathlib import Path

import keras
import pytest

from vidpipe import evaluate, predict
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.model import ModelCard, build_model, save_model


@pytest.mark.parametrize(
    ("resize", "encoding"), [("crop", "png"), ("short_side", "png"), ("short_side", "raw")]
)
def test_predicting_a_file_equals_evaluating_its_record(
    tmp_path: Path,
    wide_and_tall: Path,
    convert_wide_and_tall: Callable[..., ClipConfig],
    resize: str,
    encoding: str,
) -> None:
    keras.utils.set_random_seed(1)
    clip = convert_wide_and_tall(tmp_path / "data", encoding, resize)
    model = build_model(ModelConfig(backbone_weights="none"), clip.model_spec(), 2)
    save_model(model.fused, ModelCard(("tall", "wide"), clip), tmp_path / "model.keras")
    evaluation = evaluate.evaluate(str(tmp_path), str(tmp_path / "data"), "test", batch_size=1)
    with (evaluation.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    paths = [str(wide_and_tall / row["video_id"]) for row in rows]
    paths.insert(1, str(tmp_path / "nowhere.avi"))
    predictions = list(predict.predict(str(tmp_path), paths))
    missing = predictions.pop(1)
    assert (missing.path, missing.error, missing.probabilities) == (paths[1], "no such file", {})
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction.predicted == row["predicted"]
        # these records hold the frames bit for bit, and so do the probabilities
        assert {name: prediction.probabilities[name] for name in ("tall", "wide")} == {
            name: float(row[name]) for name in ("tall", "wide")
        }
        assert list(prediction.probabilities.values()) == sorted(
            prediction.probabilities.values(), reverse=True
        )
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
