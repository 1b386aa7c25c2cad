"""The files of an evaluation match the model, the dataset and each other; other datasets are rejected."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from sklearn import metrics as sk

from synthetic import edit_videos_csv, pixel_model
from tools import evaluate as tool
from vidpipe.config import ClipConfig, EvaluationConfig, ModelConfig, TrainConfig, to_dict
from vidpipe.data import input_pipeline, shards
from vidpipe.data.dataset import Dataset, open_dataset
from vidpipe.evaluation import evaluate
from vidpipe.evaluation.report import EvaluationReport
from vidpipe.model import feature_cache
from vidpipe.model.fused import FusedModel, build_model, feature_encoder
from vidpipe.model.model_file import ModelMetadata, load_model, save_model
from vidpipe.storage import files
from vidpipe.training.precision import dtype_policy
from vidpipe.training.run_folder import HISTORY_COLUMNS, RunFolder


def save_linear_model(folder: Path, clip: ClipConfig, num_frames: int) -> None:
    """Saves a model of two classes with random weights: linear in the mean of the real frames."""
    keras.utils.set_random_seed(1)
    model = pixel_model(clip.spec(num_frames), layers.Flatten(), layers.Dense(2))
    save_model(model, ModelMetadata(("long", "short"), clip, num_frames), folder / "model.keras")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model that fits `dataset`."""
    folder = tmp_path_factory.mktemp("run")
    save_linear_model(folder, ClipConfig(num_frames=4, image_size=32), 4)
    return folder


def _config(run_dir: Path, data_dir: str, **changes: Any) -> EvaluationConfig:
    return EvaluationConfig(run_dir=str(run_dir), data_dir=data_dir, **changes)


def test_clips_to_show() -> None:
    #                            correct      wrong        wrong        correct      correct      wrong
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    labels = np.array([0, 1, 1, 1, 0, 0])
    assert evaluate.clips_to_show(labels, probabilities, 2) == ([1, 5], [3, 2])
    assert evaluate.clips_to_show(labels, probabilities, 9) == ([1, 5, 2], [3, 4, 0])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_files_match_the_model_and_each_other(run_dir: Path, dataset: Dataset, batch_size: int) -> None:
    evaluation = evaluate.evaluate(_config(run_dir, dataset.data_dir, batch_size=batch_size))
    folder, metrics = evaluation.folder, evaluation.metrics
    assert folder.path == run_dir / "eval_test"
    assert folder.read_metrics() == metrics
    assert metrics["sha256"] == {
        path.name: files.sha256_of(path) for path in (run_dir / "model.keras", folder.predictions)
    }
    with (folder.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video_id"] for row in rows] == dataset.video_ids("test")
    assert metrics["num_clips"] == 6
    assert metrics["accuracy"] == np.mean([row["label"] == row["predicted"] for row in rows])
    model, _ = load_model(run_dir / "model.keras")
    ((inputs, _, _),) = input_pipeline.eval_dataset(dataset, batch_size=6, split="test", num_frames=4)
    expected = keras.ops.softmax(model(inputs)).numpy()
    np.testing.assert_allclose(
        [[float(r["p(long)"]), float(r["p(short)"])] for r in rows], expected, atol=1e-6
    )
    for row in rows:
        assert row["predicted"] == max(("long", "short"), key=lambda name: float(row[f"p({name})"]))
        assert row["label"] == row["video_id"].split("/")[1]
    labels, predicted = ([row[name] for row in rows] for name in ("label", "predicted"))
    text = sk.classification_report(labels, predicted, digits=4, zero_division=0)
    assert folder.classification_report.read_text() == evaluation.classification_report == text
    assert metrics["dataset_fingerprint"] == dataset.info.fingerprint
    assert (metrics["split"], metrics["temporal_crops"], metrics["spatial_crops"]) == ("test", 1, 1)
    assert {path.name for path in folder.path.iterdir()} == {
        "metrics.json", "predictions.csv", "report.html", "classification_report.txt",
    }  # fmt: skip


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[EvaluationReport]:
    """The content of the pages of evaluations."""
    reports: list[EvaluationReport] = []

    def keep(report: EvaluationReport) -> str:
        reports.append(report)
        return "page"

    monkeypatch.setattr(evaluate, "evaluation_page", keep)
    return reports


@pytest.mark.parametrize(("num_frames", "temporal_crops"), [(4, 1), (2, 2)])
def test_the_report_shows_the_frames_that_the_model_received(
    reports: list[EvaluationReport], dataset: Dataset, tmp_path: Path, num_frames: int, temporal_crops: int
) -> None:
    """The clips are in several shards; a model of two frames has its central crop shown."""
    save_linear_model(tmp_path, dataset.clip, num_frames)
    evaluate.evaluate(_config(tmp_path, dataset.data_dir, temporal_crops=temporal_crops))
    (report,) = reports
    assert (report.history, report.settings) == ([], {})
    ((inputs, labels, _),) = input_pipeline.eval_dataset(
        dataset, batch_size=6, split="test", num_frames=num_frames
    )
    assert sorted([*report.mistakes, *report.uncertain]) == list(range(6)) == sorted(report.frames)
    for index, frames in report.frames.items():
        np.testing.assert_array_equal(frames, inputs["frames"][index].numpy()[inputs["mask"][index].numpy()])
    np.testing.assert_array_equal(report.labels, labels)
    assert report.video_ids == dataset.video_ids("test")
    assert report.provenance["Crops per video"] == f"{temporal_crops} temporal x 1 spatial"


def test_only_the_wanted_clips_are_read_again(dataset: Dataset) -> None:
    ((inputs, _, _),) = input_pipeline.eval_dataset(dataset, batch_size=8, split="train", num_frames=4)
    frames = evaluate._read_frames(dataset, "train", [6, 1], dataset.clip.spec(4))
    assert sorted(frames) == [1, 6]
    for index, found in frames.items():
        np.testing.assert_array_equal(found, inputs["frames"][index].numpy()[inputs["mask"][index].numpy()])


def test_the_report_has_the_run_s_history_and_settings_unless_they_are_corrupt(
    reports: list[EvaluationReport],
    run_dir: Path,
    data_dir: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copy(run_dir / "model.keras", tmp_path)
    (tmp_path / "config.json").write_text('{"epochs": 2, "model": {"head": "motion"}}')
    columns = "epoch,loss,accuracy,val_loss,val_loss_error,val_accuracy,learning_rate,seconds,data_wait\n"
    (tmp_path / "history.csv").write_text(columns + "1,2.5,0.25,,,,0.001,9,0\n")
    evaluate.evaluate(_config(tmp_path, data_dir, cache_dir="my copies"))
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "history.csv").write_text("epoch,loss\n1,2.5\n")
    evaluate.evaluate(_config(tmp_path, data_dir))
    complete, without = reports
    assert (without.history, without.settings) == ([], {})
    warnings = [line for line in caplog.messages if line.endswith(" The report leaves it out.")]
    assert [line.split(" (")[0] for line in warnings] == [
        f"{tmp_path}/config.json cannot be read",
        f"{tmp_path}/history.csv has no column 'accuracy'. The report leaves it out.",
    ]
    assert "run_dir" not in warnings[0]
    assert complete.settings == {"epochs": 2, "model": {"head": "motion"}}
    assert complete.history == [
        dict.fromkeys(HISTORY_COLUMNS)
        | {
            "epoch": 1, "loss": 2.5, "accuracy": 0.25, "val_loss": None, "val_loss_error": None,
            "val_accuracy": None, "learning_rate": 0.001, "seconds": 9, "data_wait": 0,
        }
    ]  # fmt: skip
    assert complete.name == tmp_path.name
    command = f"python tools/evaluate.py --run_dir={tmp_path} --data_dir={data_dir} --split=test"
    assert without.provenance["Command"] == command
    assert complete.provenance["Command"] == f"{command} '--cache_dir=my copies'"
    assert without.provenance["SHA-256 of model.keras"] == files.sha256_of(tmp_path / "model.keras")


def test_metrics_json_is_written_last(
    run_dir: Path, data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: EvaluationReport) -> str:
        raise OSError("disk full")

    shutil.copy(run_dir / "model.keras", tmp_path)
    monkeypatch.setattr(evaluate, "evaluation_page", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate.evaluate(_config(tmp_path, data_dir))
    written = {path.name for path in (tmp_path / "eval_test").iterdir()}
    assert written == {"predictions.csv", "classification_report.txt"}


def test_the_probabilities_of_crops_are_averaged(dataset: Dataset, tmp_path: Path) -> None:
    """A model of two frames classifies the four stored ones in two crops; by hand and by `evaluate`."""
    save_linear_model(tmp_path, dataset.clip, 2)
    model, _ = load_model(tmp_path / "model.keras")
    evaluation = evaluate.evaluate(_config(tmp_path, dataset.data_dir, batch_size=5, temporal_crops=2))
    ((inputs, _, _),) = input_pipeline.eval_dataset(
        dataset, batch_size=12, split="test", num_frames=2, temporal_crops=2
    )
    by_hand = keras.ops.softmax(model(inputs)).numpy().reshape(6, 2, 2).mean(axis=1)
    with evaluation.folder.predictions.open() as file:
        rows = [[float(row["p(long)"]), float(row["p(short)"])] for row in csv.DictReader(file)]
    np.testing.assert_allclose(rows, by_hand, atol=1e-6)
    metrics = evaluation.metrics
    assert (metrics["num_clips"], metrics["temporal_crops"], metrics["spatial_crops"]) == (6, 2, 1)


@pytest.fixture(scope="module", params=["float32", "mixed_bfloat16"])
def fused_run(
    request: pytest.FixtureRequest, data_dir: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, FusedModel]:
    """A run with a frozen backbone, a copy of its dataset, and its model as it was trained."""
    folder = tmp_path_factory.mktemp(request.param)
    copied = shutil.copytree(data_dir, folder / "records")
    keras.utils.set_random_seed(1)
    config = ModelConfig(backbone_weights="none", ensemble_size=1)
    with dtype_policy(request.param), open_dataset(data_dir) as dataset:
        spec = dataset.clip.spec(4)
        model = build_model(config, spec=spec, num_classes=2, stored_frames=4)
        save_model(model.fused, ModelMetadata(dataset.classes, dataset.clip, 4), folder / "model.keras")
    settings = TrainConfig(data_dir=data_dir, run_dir=str(folder), model=config)
    RunFolder(folder).write_settings(to_dict(settings))
    return folder, str(copied), model


def _probabilities(folder: Path) -> np.ndarray:
    rows = RunFolder(folder).evaluation("test").read_predictions()
    return np.array([[float(row["p(long)"]), float(row["p(short)"])] for row in rows])


def test_the_features_of_a_frozen_run_are_computed_once(
    fused_run: tuple[Path, str, FusedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data_dir, _ = fused_run
    evaluate.evaluate(_config(folder, data_dir, cache_features="off"))
    without = _probabilities(folder)
    assert not Path(data_dir, "features").exists()
    first = evaluate.evaluate(_config(folder, data_dir, batch_size=3)).metrics
    computed = _probabilities(folder)
    np.testing.assert_allclose(computed, without, atol=1e-5)
    assert len(np.unique(computed)) > 6
    assert Path(data_dir, "features").exists()
    monkeypatch.setattr(feature_cache, "_compute", None)
    assert evaluate.evaluate(_config(folder, data_dir)).metrics == first
    assert (_probabilities(folder) == computed).all()


def test_training_and_evaluation_share_their_features(
    fused_run: tuple[Path, str, FusedModel], dataset: Dataset
) -> None:
    folder, _, model = fused_run
    loaded = feature_encoder(load_model(folder / "model.keras")[0])
    assert model.frozen is not None
    assert feature_cache._key(loaded, dataset) == feature_cache._key(model.frozen, dataset)


def test_each_precision_has_its_own_features(dataset: Dataset) -> None:
    keys = set()
    for precision in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(1)
        with dtype_policy(precision):
            model = build_model(
                ModelConfig(backbone_weights="none", ensemble_size=1),
                spec=dataset.clip.spec(4), num_classes=2, stored_frames=4,
            )  # fmt: skip
        keys.add(feature_cache._key(feature_encoder(model.fused), dataset))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("settings", "crops", "num_frames", "expected"),
    [
        ({"model": {"fine_tune": "none"}}, {}, 4, True),
        ({"model": {"fine_tune": "block5"}}, {}, 4, False),
        ({"model": {"fine_tune": "none"}}, {"temporal_crops": 2}, 2, False),
        ({"model": {"fine_tune": "none"}}, {"spatial_crops": 3}, 4, False),
        ({"model": {"fine_tune": "none"}}, {"cache_features": "off"}, 4, False),
        ({"model": []}, {}, 4, False),
        ({}, {}, 4, False),
    ],
)
def test_only_features_that_other_runs_share_are_kept(
    dataset: Dataset, settings: dict[str, Any], crops: dict[str, Any], num_frames: int, expected: bool
) -> None:
    metadata = ModelMetadata(dataset.classes, dataset.clip, num_frames)
    config = _config(Path("run"), dataset.data_dir, **crops)
    assert evaluate._caches_features(config, metadata, dataset, settings) is expected


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        ({"spatial_crops": 3}, "spatial_crops=3 needs whole frames, .* square ones.*--resize=short_side"),
        ({"temporal_crops": 2}, "temporal_crops=2 needs .* takes all 4.*--num_frames"),
    ],
)
def test_identical_crops_are_rejected(
    run_dir: Path, data_dir: str, crops: dict[str, int], message: str
) -> None:
    with pytest.raises(evaluate.EvaluateError, match=message):
        evaluate.evaluate(_config(run_dir, data_dir, **crops))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("long", "tall")}, "they differ in short, tall"),
        ({"classes": ("short", "long")}, "they differ in their order only"),
        (
            {"clip": ClipConfig(num_frames=5, image_size=32), "num_frames": 5},
            "takes clips of 5 frames of 32 x",
        ),
        (
            {"clip": ClipConfig(num_frames=3, image_size=32), "num_frames": 3},
            "takes clips of 3 frames of 32 x",
        ),
        (
            {"clip": ClipConfig(num_frames=6, image_size=32), "num_frames": 5},
            "takes clips of 5 frames of 32 x",
        ),
        ({"clip": ClipConfig(num_frames=4, image_size=48)}, "takes clips of 4 frames of 48 x 48 pixels; "),
    ],
)
def test_other_classes_and_other_clips_are_rejected(
    dataset: Dataset, changes: dict[str, Any], message: str
) -> None:
    metadata = ModelMetadata(dataset.classes, dataset.clip, 4)
    with pytest.raises(evaluate.EvaluateError, match=message):
        evaluate.check_dataset(dataclasses.replace(metadata, **changes), dataset)


def test_a_model_of_other_classes_is_not_evaluated(run_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    model, metadata = load_model(run_dir / "model.keras")
    save_model(model, dataclasses.replace(metadata, classes=("long", "tall")), tmp_path / "model.keras")
    with pytest.raises(evaluate.EvaluateError, match="they differ in short, tall"):
        evaluate.evaluate(_config(tmp_path, dataset.data_dir))


def test_a_model_of_some_frames_fits_any_dataset_that_stores_as_many(dataset: Dataset) -> None:
    stored = dataclasses.replace(dataset.clip, num_frames=9)
    evaluate.check_dataset(ModelMetadata(dataset.classes, stored, num_frames=3), dataset)


def test_an_error_names_only_some_of_many_classes(dataset: Dataset) -> None:
    metadata = ModelMetadata(tuple(f"c{index:03d}" for index in range(101)), dataset.clip, 4)
    message = (
        "has 101 classes and .* has 2; they differ in c000, c001, c002, c003, c004, c005 and 97 more. Use"
    )
    with pytest.raises(evaluate.EvaluateError, match=message):
        evaluate.check_dataset(metadata, dataset)


def test_a_table_that_does_not_describe_the_shards_is_rejected(
    run_dir: Path, data_dir: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    edit_videos_csv(folder, ",test,long,", ",test,short,")
    with pytest.raises(evaluate.EvaluateError, match="the labels in videos.csv are not those of the shards"):
        evaluate.evaluate(_config(run_dir, str(folder)))


def test_a_split_without_clips_is_rejected(run_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset.data_dir, tmp_path / "copy"))
    info = json.loads((folder / shards.INFO_NAME).read_text())
    info["splits"]["val"] = []
    (folder / shards.INFO_NAME).write_text(json.dumps(info))
    with pytest.raises(shards.ShardError, match="val"):
        evaluate.evaluate(_config(run_dir, str(folder), split="val"))


def test_the_tool_prints_the_metrics_and_the_report_s_path(
    run_dir: Path, data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.run(["evaluate.py", f"--run_dir={run_dir}", f"--data_dir={data_dir}", "--split=val"]) == 0
    metrics = json.loads((run_dir / "eval_val" / "metrics.json").read_text())
    *_, accuracy, means, report = capsys.readouterr().out.splitlines()
    low, high = metrics["accuracy_ci95"]
    assert accuracy == (
        f"val accuracy {metrics['accuracy']:.4f} on 2 clips (95 % interval {low:.4f} to {high:.4f}); "
        "always predicting long gives 0.5000"
    )
    assert means.startswith(f"mean class accuracy {metrics['mean_class_accuracy']:.4f} (95 % interval ")
    assert means.endswith(f"calibration error {metrics['calibration_error']:.4f}")
    assert report == f"Report: {run_dir}/eval_val/report.html"


def test_the_tool_reports_a_missing_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.run(["evaluate.py", f"--run_dir={tmp_path}", "--data_dir=d"]) == 1
    assert capsys.readouterr().err.startswith(
        f"evaluate.py: There is no trained model {tmp_path}/model.keras"
    )
