"""Exported features are those of the model, the same in both file formats."""

import csv
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from synthetic import edit_videos_csv
from tools import export as export_tool
from vidpipe.config import ExportConfig
from vidpipe.data import shards
from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.evaluation.evaluate import EvaluateError
from vidpipe.inference import export_features as export_features_module
from vidpipe.inference.export_features import export_features
from vidpipe.inference.export_files import ExportError
from vidpipe.model.frame_encoder import FrameEncoder
from vidpipe.model.heads import feature_extractor
from vidpipe.model.model_file import ModelMetadata, in_float32

CLASSES = ("long", "short")

Config = Callable[..., ExportConfig]


@pytest.fixture(scope="module")
def exported(run_dir: Path, model: keras.Model, export_config: Config) -> dict[str, np.ndarray]:
    """The arrays of the test split's .npz file, written in two batches, the second of them filled up."""
    config = export_config(run_dir, run_dir / "test.npz", "features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameEncoder, "clips_per_call", 4)
        assert export_features(config) == (6, 4, 512)
    with np.load(run_dir / "test.npz", allow_pickle=False) as archive:
        return dict(archive)


def test_the_npz_file_holds_the_features_of_the_model(
    exported: dict[str, np.ndarray], model: keras.Model, dataset: Dataset
) -> None:
    ((inputs, label, _),) = eval_dataset(dataset, batch_size=6, split="test", num_frames=4)
    expected = feature_extractor(model)(inputs).numpy()
    assert {name: (values.dtype.kind, values.shape) for name, values in exported.items()} == {
        "features": ("f", (6, 4, 512)), "mask": ("b", (6, 4)), "label": ("i", (6,)),
        "video_id": ("U", (6,)), "classes": ("U", (2,)),
    }  # fmt: skip
    assert (exported["features"].dtype, exported["label"].dtype) == (np.float32, np.int32)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(exported["features"], expected, atol=1e-5)
    assert (exported["mask"] == inputs["mask"].numpy()).all()
    assert (exported["label"] == label.numpy()).all()
    assert tuple(exported["classes"]) == CLASSES
    # The folder of a video is its class, and the videos are in the order of the records.
    assert exported["video_id"].tolist() == dataset.video_ids("test")
    assert exported["classes"][exported["label"]].tolist() == [
        video_id.split("/")[1] for video_id in exported["video_id"]
    ]


def test_the_csv_file_holds_the_same_float32_values_of_real_frames(
    exported: dict[str, np.ndarray], run_dir: Path, export_config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "test.csv"
    export_features(export_config(run_dir, path, "features"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video_id", "label", "frame", *(f"f{index}" for index in range(512))]
    clips, frames = np.nonzero(exported["mask"])
    assert 6 < len(clips) < 24
    for row, clip, frame in zip(rows, clips, frames, strict=True):
        assert row["video_id"] == exported["video_id"][clip]
        assert row["label"] == CLASSES[exported["label"][clip]]
        assert row["frame"] == str(frame)
        values = np.array([row[f"f{index}"] for index in range(512)], np.float32)
        assert (values == exported["features"][clip, frame]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["test.csv"]


def test_a_model_of_half_precision_and_fewer_frames_gives_float32(
    dataset: Dataset, export_config: Config, save_run: Callable[..., keras.Model], tmp_path: Path
) -> None:
    model = save_run(tmp_path, num_frames=2, dtype_policy="mixed_bfloat16")
    path = tmp_path / "val.npz"
    assert export_features(export_config(tmp_path, path, "features", split="val")) == (2, 2, 512)
    ((inputs, _, _),) = eval_dataset(dataset, batch_size=2, split="val", num_frames=2)
    expected = feature_extractor(model)(inputs)
    assert expected.dtype == "bfloat16"
    with np.load(path, allow_pickle=False) as archive:
        assert archive["features"].dtype == np.float32
        single = feature_extractor(in_float32(model))(inputs)
        np.testing.assert_allclose(archive["features"], single, atol=1e-4)


@pytest.mark.parametrize("output", ["test.txt", "test", "s3://bucket/test.npz"])
def test_other_suffixes_and_remote_addresses_are_rejected(
    run_dir: Path, export_config: Config, output: str
) -> None:
    message = f"Features cannot be written to {output}. Choose a local path with the suffix .npz or .csv."
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_features(export_config(run_dir, output, "features"))


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_folder_that_cannot_be_written_is_reported_before_the_work(
    run_dir: Path, export_config: Config, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_features_module, "eval_dataset", lambda *_: pytest.fail("work was done"))
    (tmp_path / "no").touch()
    with pytest.raises(ExportError, match=rf"Cannot write {tmp_path}/no/f{suffix} \(File exists"):
        export_features(export_config(run_dir, tmp_path / "no" / f"f{suffix}", "features"))


def test_a_dataset_with_other_classes_is_rejected(
    export_config: Config, other_classes_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(EvaluateError, match="they differ in short, tall"):
        export_features(export_config(other_classes_run, tmp_path / "test.npz", "features"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_an_older_file_is_kept_if_the_dataset_is_corrupt_or_empty(
    run_dir: Path,
    model: keras.Model,
    dataset: Dataset,
    export_config: Config,
    tmp_path: Path,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metadata = ModelMetadata(dataset.classes, dataset.clip, 4)
    monkeypatch.setattr(export_features_module, "load_model_for", lambda *_: (model, metadata))
    monkeypatch.setattr(FrameEncoder, "clips_per_call", 1)
    folder = Path(shutil.copytree(dataset.data_dir, tmp_path / "copy"))
    output = tmp_path / f"out{suffix}"
    output.write_text("old")

    def assert_fails(message: str) -> None:
        config = export_config(run_dir, output, "features", data_dir=str(folder), split="val")
        with pytest.raises((shards.ShardError, EvaluateError), match=message):
            export_features(config)
        assert output.read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", output.name]

    # The last byte of the last shard: everything before it is written by then.
    shard = folder / dataset.info.splits["val"][-1].name
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert_fails(f"A shard of {folder} is corrupt: {shard.name}, position")
    shard.write_bytes(intact)

    table, info = folder / shards.VIDEOS_NAME, folder / shards.INFO_NAME
    text, info_text = table.read_text(), info.read_text()
    line = next(line for line in text.splitlines() if ",val,short," in line)
    for old, new in ((",val,short,", ",val,long,"), (",val,", ",test,"), (line, f"{line}\n{line}")):
        edit_videos_csv(folder, old, new)
        assert_fails("videos.csv are not those of the shards")
        table.write_text(text)
        info.write_text(info_text)

    shards.write_info(folder, dataclasses.replace(dataset.info, splits=dataset.info.splits | {"val": ()}))
    assert_fails(f"{folder} has no val clips")


@pytest.mark.usefixtures("model")
def test_the_tool_writes_features(
    run_dir: Path, data_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "val.csv"
    flags = (f"--run_dir={run_dir}", f"--data_dir={data_dir}", "--split=val", f"--output={output}")
    assert export_tool.run(["export.py", "--format=features", *flags]) == 0
    assert capsys.readouterr().out == (f"{output}: 2 val clips of up to 4 frames, 512 features per frame.\n")
    assert output.is_file()
