"""What is exported are the model's own features, in two files that say the same."""

import csv
import dataclasses
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from vidpipe import evaluate, input_pipeline, shards
from vidpipe.config import ClipConfig, ModelConfig
from vidpipe.export import ExportError
from vidpipe.export_features import export_features
from vidpipe.input_pipeline import eval_dataset
from vidpipe.model import FusedModel, ModelCard, build_model, feature_extractor, save_model

CLASSES = ("long", "short")


def _build(num_frames: int | None = None) -> tuple[FusedModel, ModelCard]:
    keras.utils.set_random_seed(1)
    card = ModelCard(CLASSES, ClipConfig(num_frames=4, image_size=32), num_frames)
    return build_model(ModelConfig(backbone_weights="none"), card.spec, 2), card


@pytest.fixture(scope="module")
def model() -> FusedModel:
    return _build()[0]


@pytest.fixture(scope="module")
def run_dir(model: FusedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights that fits the dataset."""
    folder = tmp_path_factory.mktemp("run")
    save_model(model.fused, _build()[1], folder / "model.keras")
    return str(folder)


@pytest.fixture(scope="module")
def exported(run_dir: str, data_dir: str) -> dict[str, np.ndarray]:
    """The arrays of the test split's .npz."""
    path = f"{run_dir}/test.npz"
    # Two batches, of which the second is filled up.
    assert export_features(run_dir, data_dir, "test", path, batch_size=4) == (6, 4, 512)
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_the_npz_holds_the_model_s_features(
    exported: dict[str, np.ndarray], model: FusedModel, data_dir: str, info: shards.DatasetInfo
) -> None:
    ((inputs, label, _),) = eval_dataset(data_dir, info, 6, "test")
    expected = feature_extractor(model.fused)(inputs).numpy()
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
    # The folder of a video names its class, and its place in the list is the order of the records.
    assert exported["video_id"].tolist() == [row["video_id"] for row in shards.clip_rows(data_dir, "test")]
    assert exported["classes"][exported["label"]].tolist() == [
        video_id.split("/")[1] for video_id in exported["video_id"]
    ]


def test_the_csv_holds_the_same_float32_numbers_of_real_frames(
    exported: dict[str, np.ndarray], run_dir: str, data_dir: str, tmp_path: Path
) -> None:
    path = tmp_path / "test.csv"
    export_features(run_dir, data_dir, "test", str(path), batch_size=4)
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


def test_a_model_of_fewer_frames_in_half_precision_gives_float32(
    data_dir: str, info: shards.DatasetInfo, tmp_path: Path
) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        fused, card = _build(num_frames=2)
    finally:
        keras.config.set_dtype_policy("float32")
    save_model(fused.fused, card, tmp_path / "model.keras")
    path = tmp_path / "val.npz"
    assert export_features(str(tmp_path), data_dir, "val", str(path)) == (2, 2, 512)
    ((inputs, _, _),) = eval_dataset(data_dir, info, 2, "val", num_frames=2)
    expected = feature_extractor(fused.fused)(inputs)
    assert expected.dtype == "bfloat16"
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_allclose(archive["features"], keras.ops.cast(expected, "float32"), rtol=0.02)


@pytest.mark.parametrize("output", ["test.txt", "test", "s3://bucket/test.npz"])
def test_other_endings_and_addresses_are_refused(run_dir: str, data_dir: str, output: str) -> None:
    message = f"^Features cannot go to {output}. Give a local path that ends in .npz or .csv.$"
    with pytest.raises(ExportError, match=message):
        export_features(run_dir, data_dir, "test", output)


@pytest.mark.parametrize("ending", [".npz", ".csv"])
def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    run_dir: str, data_dir: str, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_pipeline, "eval_dataset", lambda *_: pytest.fail("worked first"))
    with pytest.raises(ExportError, match=f"Cannot write {tmp_path}/no/f{ending} .No such file"):
        export_features(run_dir, data_dir, "test", f"{tmp_path}/no/f{ending}")


def test_other_classes_are_refused(model: FusedModel, data_dir: str, tmp_path: Path) -> None:
    card = dataclasses.replace(_build()[1], classes=("long", "tall"))
    save_model(model.fused, card, tmp_path / "model.keras")
    with pytest.raises(evaluate.EvaluateError, match="they differ in short, tall"):
        export_features(str(tmp_path), data_dir, "test", f"{tmp_path}/test.npz")


@pytest.mark.parametrize("ending", [".npz", ".csv"])
def test_a_split_without_clips_a_wrong_table_and_a_damaged_record_leave_the_old_file(
    run_dir: str, data_dir: str, info: shards.DatasetInfo, tmp_path: Path, ending: str
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    output = tmp_path / f"out{ending}"
    output.write_text("old")

    def assert_refused(message: str, data_dir: Path) -> None:
        with pytest.raises((shards.ShardError, evaluate.EvaluateError), match=message):
            export_features(run_dir, str(data_dir), "val", str(output), batch_size=1)
        assert output.read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", output.name]

    # The last shard's last byte: what comes before it is written by then.
    shard = folder / info.splits["val"][-1].name
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_refused(f"A shard of {folder} is damaged: {shard.name}, position", folder)
    shard.write_bytes(whole)

    table = folder / shards.VIDEOS_NAME
    text = table.read_text()
    longer = text + next(line for line in text.splitlines() if ",val,short," in line) + "\n"
    for wrong in (text.replace(",val,short,", ",val,long,"), text.replace(",val,", ",test,"), longer):
        table.write_text(wrong)
        assert_refused("videos.csv does not describe these shards", folder)
    table.write_text(text)

    shards.write_info(folder, dataclasses.replace(info, splits=info.splits | {"val": ()}))
    assert_refused(f"{folder} has no val clips", folder)
