"""Training on a dataset: which weights change, what a run writes, how it resumes, and bad input.

What the loop does by itself is tested on a tiny model in test_loop.py.
"""

import dataclasses
import json
import logging
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import FINE_TUNE, ModelConfig, OptimizerConfig, TrainConfig
from vidpipe.data import input_pipeline, shards
from vidpipe.data.dataset import Dataset
from vidpipe.model import feature_cache, heads, memory
from vidpipe.model.backbone import BackboneError
from vidpipe.model.fused import build_model
from vidpipe.model.model_file import load_model
from vidpipe.training import run_log, train
from vidpipe.training.batches import Batches
from vidpipe.training.checkpoint import save_checkpoint
from vidpipe.training.earlier_run import EarlierRun
from vidpipe.training.run_folder import HISTORY_COLUMNS, RunFolder, RunFolderError, TrainError
from vidpipe.training.trainee import Trainee

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as training; the runs of module fixtures draw."""
    monkeypatch.setattr(run_log.figures, "learning_curves", lambda *_: None)
    monkeypatch.setattr(run_log.RunLog, "_draw_validation", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, train_config: MakeConfig) -> RunFolder:
    """A run of 3 epochs of 3 steps over cached features, of which two were profiled."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train.train(train_config(run_dir, profile_steps=(2, 3), checkpoint_every=1, keep_checkpoints=9))
    return RunFolder(run_dir)


@pytest.fixture(scope="module")
def uncached(
    tmp_path_factory: pytest.TempPathFactory, train_config: MakeConfig
) -> tuple[RunFolder, list[int]]:
    """An epoch of the notebook's head without a cache, and the frames of each pass through the backbone."""
    counted: list[int] = []
    original = keras.layers.Conv2D.call

    def count(self: keras.layers.Conv2D, inputs: tf.Tensor) -> tf.Tensor:
        if self.name == "block1_conv1" and not isinstance(inputs, keras.KerasTensor):
            tf.numpy_function(lambda frames: counted.append(frames), [tf.shape(inputs)[0]], [])
        return original(self, inputs)

    run_dir = tmp_path_factory.mktemp("uncached") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keras.layers.Conv2D, "call", count)
        train.train(train_config(run_dir, head="notebook", epochs=1, cache_features="off"))
    return RunFolder(run_dir), counted


BLOCK5_STEP = {
    "fine_tune": "block5", "epochs": 1, "batch_size": 8,
    "optimizer": OptimizerConfig(learning_rate=1e-4, ema=0.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def block5_step(tmp_path_factory: pytest.TempPathFactory, train_config: MakeConfig) -> RunFolder:
    """A run of one step over cached feature maps."""
    run_dir = tmp_path_factory.mktemp("block5_step") / "run"
    train.train(train_config(run_dir, **BLOCK5_STEP))
    return RunFolder(run_dir)


def _losses(run_dir: Path) -> list[list[float]]:
    return [[row["loss"], row["val_loss"]] for row in RunFolder(run_dir).read_history()]


def _history(run_dir: Path) -> list[list[Any]]:
    """Without the measured times."""
    columns = [name for name in HISTORY_COLUMNS if name not in ("seconds", "data_wait")]
    return [[row[name] for name in columns] for row in RunFolder(run_dir).read_history()]


def _weights(run_dir: Path) -> list[np.ndarray]:
    return load_model(RunFolder(run_dir).model)[0].get_weights()


def _blocks(model: keras.Model) -> dict[str, list[np.ndarray]]:
    blocks: dict[str, list[np.ndarray]] = {}
    for layer in model.get_layer("backbone").layers:
        if layer.get_weights():
            blocks.setdefault(layer.name.split("_")[0], []).extend(layer.get_weights())
    return blocks


@pytest.fixture(scope="module")
def start(train_config: MakeConfig, dataset: Dataset) -> dict[str, list[np.ndarray]]:
    """The backbone's weights before the first step: what a random start of seed 1 gives."""
    keras.utils.set_random_seed(1)
    config = train_config(Path("unused"))
    return _blocks(build_model(config.model, spec=dataset.clip.spec(4), num_classes=2, stored_frames=4).fused)


def _changed_blocks(run_dir: Path, start: dict[str, list[np.ndarray]]) -> set[str]:
    return {
        name
        for name, weights in _blocks(load_model(RunFolder(run_dir).model)[0]).items()
        if any((before != after).any() for before, after in zip(start[name], weights, strict=True))
    }


def test_a_frozen_backbone_does_not_change(finished: RunFolder, start: dict[str, list[np.ndarray]]) -> None:
    assert _changed_blocks(finished.path, start) == set()


def test_fine_tuning_block5_changes_block5_only(
    block5_step: RunFolder, start: dict[str, list[np.ndarray]]
) -> None:
    assert _changed_blocks(block5_step.path, start) == {"block5"}


@pytest.mark.slow
@pytest.mark.parametrize("fine_tune", [name for name in FINE_TUNE if name not in ("none", "block5")])
def test_fine_tuning_changes_the_block_and_those_above_only(
    tmp_path: Path, train_config: MakeConfig, start: dict[str, list[np.ndarray]], fine_tune: str
) -> None:
    train.train(train_config(tmp_path, fine_tune=fine_tune, epochs=1, batch_size=8))
    lowest = 1 if fine_tune == "all" else int(fine_tune[-1])
    assert _changed_blocks(tmp_path, start) == {f"block{number}" for number in range(lowest, 6)}


def test_a_run_writes_its_artifacts(finished: RunFolder, dataset: Dataset) -> None:
    assert sorted(path.name for path in finished.path.iterdir()) == [
        ".lock", "checkpoints", "config.json", "history.csv", "history.png", "metrics.json", "model.keras",
        "tensorboard",
    ]  # fmt: skip
    settings = finished.read_settings()
    assert (settings["epochs"], settings["model"]["head"]) == (3, "motion")
    history = finished.read_history()
    assert [row["epoch"] for row in history] == [1, 2, 3]
    metrics = finished.read_metrics()
    losses = [row["val_loss"] for row in history]
    limit = min(losses) + history[losses.index(min(losses))]["val_loss_error"]
    selected = max(epoch for epoch, loss in enumerate(losses, 1) if loss <= limit)
    assert (metrics["selected_epoch"], metrics["epochs"]) == (selected, 3)
    assert metrics["val_loss"] == losses[selected - 1]
    # 8 clips in batches of 3, 3 epochs
    assert [path.name for path in finished.checkpoint_paths()][-1] == "step-00000009.npz"
    with zipfile.ZipFile(finished.model) as archive:
        metadata = json.loads(archive.read("vidpipe.json"))
    assert metadata["classes"] == ["long", "short"]
    assert (metadata["clip"]["num_frames"], metadata["num_frames"]) == (4, 4)
    assert (metadata["clip_sec"], metadata["background"]) == (list(dataset.clip_sec("train") or ()), None)


def test_a_frozen_run_is_cross_fitted(finished: RunFolder) -> None:
    selected = finished.read_metrics()
    assert selected["cv_loss"] == min(row["cv_loss"] for row in finished.read_history())
    model, _ = load_model(finished.model)
    shares = model.get_layer(heads.SHARES).kernel.numpy()
    np.testing.assert_allclose(1 - shares[0], selected["network_share"], atol=1e-6)
    assert {row["linear_cv_accuracy"] for row in finished.read_history()} == {selected["linear_cv_accuracy"]}


def test_a_run_without_cache_is_not_cross_fitted(block5_step: RunFolder) -> None:
    assert block5_step.read_metrics()["cv_loss"] is None
    model, _ = load_model(block5_step.model)
    assert model.get_layer(heads.SHARES).kernel.numpy().tolist() == [0.5, 0.5]


def test_tensorboard_and_the_folder_show_the_run(finished: RunFolder) -> None:
    scalars: dict[str, list[float]] = {}
    images: dict[str, np.ndarray] = {}
    for tag, tensor in _summaries(finished):
        if tensor.dtype == object:
            images[tag] = tf.io.decode_image(tensor[2]).numpy()
        else:
            scalars.setdefault(tag, []).append(float(tensor))
    history = finished.read_history()
    for name in HISTORY_COLUMNS[1:]:
        np.testing.assert_allclose(scalars[name], [row[name] for row in history], rtol=1e-6)
    # Two rows of clips; a matrix of two classes.
    assert images["validation/clips"].shape[1] == 1320
    assert images["validation/confusion"].std() > 1
    assert tf.io.decode_png(finished.learning_curves.read_bytes()).shape[2] >= 3
    assert list((finished.tensorboard / "plugins" / "profile").glob("*/*.xplane.pb"))


def _summaries(folder: RunFolder) -> Iterator[tuple[str, np.ndarray]]:
    for path in folder.tensorboard.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                yield value.tag, tf.make_ndarray(value.tensor)


def test_the_metrics_are_those_of_the_saved_model(finished: RunFolder, dataset: Dataset) -> None:
    """val_loss of the selected epoch, computed again from model.keras by plain Keras."""
    metrics = finished.read_metrics()
    loaded, _ = load_model(finished.model)
    loaded.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), weighted_metrics=["accuracy"]
    )
    batches = input_pipeline.eval_dataset(dataset, batch_size=2, split="val", num_frames=4)
    loss, accuracy = loaded.evaluate(batches, verbose=0)
    np.testing.assert_allclose([loss, accuracy], [metrics["val_loss"], metrics["val_accuracy"]], rtol=1e-4)


def test_a_finished_run_does_nothing(
    finished: RunFolder, train_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    with caplog.at_level(logging.INFO):
        result = train.train(train_config(finished.path))
    assert result == train.TrainResult(finished.path, finished.read_metrics())
    assert "is finished: it has a metrics.json. Nothing to do." in caplog.text
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


@pytest.mark.parametrize("has_checkpoints", [True, False])
def test_other_settings_in_the_folder_of_a_run_are_rejected(
    tmp_path: Path, finished: RunFolder, train_config: MakeConfig, has_checkpoints: bool
) -> None:
    ignored = shutil.ignore_patterns() if has_checkpoints else shutil.ignore_patterns("checkpoints")
    run_dir = Path(shutil.copytree(finished.path, tmp_path / "run", ignore=ignored))
    with pytest.raises(RunFolderError, match=r"other settings \(optimizer.learning_rate: 0.001 -> 0.5\)"):
        train.train(train_config(run_dir, optimizer=OptimizerConfig(learning_rate=0.5, ema=0.0)))


def test_a_finished_run_goes_on_for_more_epochs(
    tmp_path: Path, finished: RunFolder, train_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and config.json have the new number of epochs."""
    run_dir = Path(shutil.copytree(finished.path, tmp_path / "run"))
    epochs = finished.read_metrics()["epochs"]
    history = finished.read_history()
    with caplog.at_level(logging.INFO):
        result = train.train(train_config(run_dir, epochs=epochs + 1))
    assert f"The run goes on with epochs={epochs + 1} instead of {epochs}." in caplog.messages
    folder = RunFolder(run_dir)
    assert result.metrics["epochs"] == epochs + 1
    assert folder.read_history()[:-1] == history
    assert folder.read_settings()["epochs"] == epochs + 1


def test_the_consequence_of_another_length_is_said(
    train_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """2 epochs of 5 steps and then 4: of half a cosine from 1 to 0, the first half was at twice the speed."""
    optimizer = OptimizerConfig(learning_rate=1.0, schedule="cosine")
    config = train_config(tmp_path, epochs=4, optimizer=optimizer)
    earlier = EarlierRun({"epochs": 2}, num_steps=10, history=[], repairs=[], metrics=None)
    caplog.set_level(logging.INFO)
    train._log_other_length(config, earlier, steps_per_epoch=5)
    last = 0.5 * (1 + math.cos(math.pi * 9 / 10))
    first, second = caplog.messages
    assert first == "The run goes on with epochs=4 instead of 2."
    assert f"{0.5:.2g} in the next step, {last:.2g} in the last one" in second
    caplog.clear()
    for same in ({"epochs": 4}, {"epochs": 2}):
        train._log_other_length(config, EarlierRun(same, 0, [], [], None), steps_per_epoch=5)
    constant = dataclasses.replace(config, optimizer=OptimizerConfig())
    train._log_other_length(constant, earlier, steps_per_epoch=5)
    assert caplog.messages == ["The run goes on with epochs=4 instead of 2."]


def test_two_trainings_in_one_folder(tmp_path: Path, train_config: MakeConfig) -> None:
    """The second writes nothing."""
    folder = RunFolder(tmp_path / "run")
    with folder.lock(), pytest.raises(RunFolderError, match="^Another training is writing to"):
        train.train(train_config(folder.path))
    assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_a_finished_run_needs_no_lock(finished: RunFolder, train_config: MakeConfig) -> None:
    """Its folder may be read-only."""
    with finished.lock():
        assert train.train(train_config(finished.path)).metrics == finished.read_metrics()


def test_a_damaged_model_is_made_again(
    tmp_path: Path, finished: RunFolder, train_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = Path(shutil.copytree(finished.path, tmp_path / "run"))
    model = RunFolder(run_dir).model
    model.write_bytes(model.read_bytes()[:-100])
    assert train.train(train_config(run_dir)).metrics == finished.read_metrics()
    assert f"{run_dir}: missing, corrupt or edited: model.keras; writing again" in caplog.text
    for ours, theirs in zip(_weights(run_dir), _weights(finished.path), strict=True):
        assert (ours == theirs).all()


def test_settings_that_no_weight_depends_on_may_change(
    tmp_path: Path, finished: RunFolder, train_config: MakeConfig
) -> None:
    """The copy has all of its checkpoints, and lacks only the mark of its end."""
    run_dir = Path(shutil.copytree(finished.path, tmp_path / "run"))
    (run_dir / "metrics.json").unlink()
    config = train_config(run_dir, checkpoint_every=1, keep_checkpoints=5, profile_steps=(1, 1))
    assert train.train(config).metrics == finished.read_metrics()
    assert RunFolder(run_dir).read_metrics() == finished.read_metrics()


EVERY_RANDOM_CHOICE = {
    "fine_tune": "block5", "augment": "flip_crop_colour", "mixup": 0.4, "num_frames": 3, "accumulate": 3,
    "label_smoothing": 0.1, "class_weights": "balanced",
    "optimizer": OptimizerConfig(
        name="sgd", learning_rate=1e-3, schedule="cosine", warmup_epochs=0.5, backbone_lr_scale=0.1,
        layer_decay=0.9, weight_decay=0.01, clip_norm=1.0, ema=0.9,
    ),
}  # fmt: skip


def _as_killed_after(step: int, finished: Path, run_dir: Path) -> None:
    """Copies the folder of a finished run as it was after the checkpoint of a step in its second epoch."""
    RunFolder(run_dir).checkpoints.mkdir(parents=True)
    shutil.copy(RunFolder(finished).settings, run_dir)
    for path in RunFolder(finished).checkpoint_paths():
        if path <= RunFolder(finished).checkpoint(step):
            shutil.copy(path, RunFolder(run_dir).checkpoints)


def _assert_bit_identical(first: Path, second: Path) -> None:
    for our, their in zip(_weights(first), _weights(second), strict=True):
        assert (our == their).all()
    assert _history(first) == _history(second)
    newest = [RunFolder(run_dir).checkpoint_paths()[-1] for run_dir in (first, second)]
    with np.load(newest[0]) as ours, np.load(newest[1]) as theirs:
        assert ours.files == theirs.files
        assert all((ours[name] == theirs[name]).all() for name in ours.files if name != "state")


def test_a_frozen_run_that_was_killed_ends_bit_identical(
    tmp_path: Path, finished: RunFolder, train_config: MakeConfig
) -> None:
    run_dir = tmp_path / "run"
    _as_killed_after(4, finished.path, run_dir)
    train.train(train_config(run_dir, checkpoint_every=1))
    _assert_bit_identical(run_dir, finished.path)


def test_a_fine_tuned_run_with_augmentation_that_was_killed_ends_bit_identical(
    tmp_path: Path, train_config: MakeConfig
) -> None:
    straight, killed = (
        train_config(tmp_path / name, epochs=2, checkpoint_every=4, keep_checkpoints=9, **EVERY_RANDOM_CHOICE)
        for name in ("straight", "killed")
    )
    train.train(straight)
    _as_killed_after(4, tmp_path / "straight", tmp_path / "killed")
    train.train(killed)
    _assert_bit_identical(tmp_path / "killed", tmp_path / "straight")


def test_the_cache_changes_no_loss(
    tmp_path: Path, uncached: tuple[RunFolder, list[int]], train_config: MakeConfig
) -> None:
    folder, _ = uncached
    train.train(train_config(tmp_path, head="notebook", epochs=1))
    np.testing.assert_allclose(_losses(folder.path), _losses(tmp_path), rtol=1e-5)


def test_every_step_passes_the_same_number_of_frames_to_the_backbone(
    uncached: tuple[RunFolder, list[int]],
) -> None:
    """8 train clips of 4 frames with padding, for the linear part and in steps of 3 clips; 2 clips of val."""
    assert uncached[1] == [8 * 4, *[3 * 4] * 3, 3 * 4]


def test_a_cache_of_feature_maps_changes_losses_little(
    tmp_path: Path, block5_step: RunFolder, train_config: MakeConfig
) -> None:
    """They are cached in float16, which has eleven bits."""
    train.train(train_config(tmp_path, cache_features="off", **BLOCK5_STEP))
    np.testing.assert_allclose(_losses(tmp_path), _losses(block5_step.path), rtol=5e-3)
    shapes = [[weight.shape for weight in _weights(path)] for path in (tmp_path, block5_step.path)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_a_cache_of_feature_maps_changes_the_losses_of_several_epochs_little(
    tmp_path: Path, train_config: MakeConfig
) -> None:
    for cache_features in ("on", "off"):
        config = train_config(
            tmp_path / cache_features,
            "block4",
            cache_features=cache_features,
            optimizer=OptimizerConfig(learning_rate=1e-4, ema=0.0),
        )
        train.train(config)
    np.testing.assert_allclose(_losses(tmp_path / "on"), _losses(tmp_path / "off"), rtol=5e-3)


def test_frames_are_sampled_from_the_cache_of_all_frames(
    tmp_path: Path, train_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train.train(train_config(tmp_path, epochs=2, num_frames=3))
    assert caplog.text.count("Features of train: 8 clips of 4 x 512 float32") == 1
    assert load_model(tmp_path / "model.keras")[1].num_frames == 3


@pytest.mark.slow
def test_sampling_frames_from_the_cache_changes_no_loss(tmp_path: Path, train_config: MakeConfig) -> None:
    for cache_features in ("on", "off"):
        run_dir = tmp_path / cache_features
        train.train(train_config(run_dir, head="notebook", cache_features=cache_features, num_frames=3))
    np.testing.assert_allclose(_losses(tmp_path / "on"), _losses(tmp_path / "off"), rtol=1e-4)


def test_a_run_starts_from_the_weights_of_another(
    tmp_path: Path, finished: RunFolder, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(finished.path, tmp_path / "source"))
    tiny = OptimizerConfig(learning_rate=1e-12, ema=0.0)
    config = train_config(tmp_path / "run", "block5", epochs=1, init_from=str(source), optimizer=tiny)
    result = train.train(config)
    # The output of block 4 is cached in float16.
    assert result.metrics["val_loss"] == pytest.approx(finished.read_metrics()["val_loss"], rel=1e-2)

    (tmp_path / "run" / "metrics.json").unlink()
    shutil.copy(tmp_path / "run" / "model.keras", source / "model.keras")
    with pytest.raises(RunFolderError, match=r"other settings \(start_weights: \w{16} -> \w{16}\)"):
        train.train(config)


def _without_val(dataset: Dataset) -> shards.DatasetInfo:
    return dataclasses.replace(dataset.info, splits={**dataset.info.splits, "val": ()})


def test_without_validation_the_last_epoch_is_selected(
    tmp_path: Path,
    train_config: MakeConfig,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shards, "read_info", lambda _: _without_val(dataset))
    result = train.train(train_config(tmp_path / "run", head="notebook", epochs=2))
    assert (result.metrics["selected_epoch"], result.metrics["val_loss"]) == (2, None)
    assert "model.keras will be the last epoch's model" in caplog.text


def test_early_stopping_needs_a_validation_split(
    tmp_path: Path, train_config: MakeConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "read_info", lambda _: _without_val(dataset))
    with pytest.raises(TrainError, match="patience=2 needs a validation split, and .* has none"):
        train.train(train_config(tmp_path / "run", head="notebook", patience=2))


def test_a_cross_fitted_run_needs_no_validation_split(
    tmp_path: Path,
    train_config: MakeConfig,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shards, "read_info", lambda _: _without_val(dataset))
    config = train_config(tmp_path, patience=1, epochs=9, optimizer=OptimizerConfig(learning_rate=1e-12))
    result = train.train(config)
    assert result.metrics["cv_loss"] is not None and result.metrics["val_loss"] is None
    assert result.metrics["epochs"] < 9
    assert "no val split" not in caplog.text


@pytest.mark.slow
def test_a_clip_with_non_finite_features_is_named(
    tmp_path: Path, train_config: MakeConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = feature_cache.cached_features

    def poison(*arguments: Any, split: str, **options: Any) -> feature_cache.FeatureTable:
        table = original(*arguments, split=split, **options)
        features = np.array(table.features)
        if split == "train":
            features[5, 0] = np.nan
        return dataclasses.replace(table, features=features)

    monkeypatch.setattr(feature_cache, "cached_features", poison)
    name = re.escape(dataset.video_ids("train")[5])
    with pytest.raises(TrainError, match=f"features of 1 training clips are NaN or Inf; the first is {name}"):
        train.train(train_config(tmp_path / "run"))


def test_class_weights_follow_the_clips_of_each_class(
    tmp_path: Path, train_config: MakeConfig, dataset: Dataset
) -> None:
    config = train_config(tmp_path)
    assert train._class_weights(config, dataset).tolist() == [1.0, 1.0]
    rows = [{"label": name} for name in ("long", "short", "short", "short")]
    uneven = _DatasetOfRows(dataset.data_dir, dataset.read_dir, dataset.info, rows)
    balanced = dataclasses.replace(config, class_weights="balanced")
    np.testing.assert_allclose(train._class_weights(balanced, uneven), [2, 2 / 3], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class _DatasetOfRows(Dataset):
    rows: list[dict[str, str]]

    def clip_rows(self, split: str) -> list[dict[str, str]]:
        return self.rows


class _BuiltError(Exception):
    """Raised where the model would be built."""


@pytest.fixture
def stop_before_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise _BuiltError

    monkeypatch.setattr(train, "build_trainee", fail)


@pytest.mark.parametrize(
    ("gpus", "deterministic", "expected"),
    [(["a GPU"], False, False), (["a GPU"], True, True), ([], False, True)],
)
def test_a_gpu_is_deterministic_on_demand_and_a_cpu_always(
    tmp_path: Path, train_config: MakeConfig, gpus: list[str], deterministic: bool, expected: bool,
    stop_before_building: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    switched: list[bool] = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: gpus)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {})
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: switched.append(True))
    with pytest.raises(_BuiltError):
        train.train(train_config(tmp_path, precision="float32", strategy="one", deterministic=deterministic))
    assert bool(switched) == expected
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == (":4096:8" if deterministic else None)


def test_the_precision_reaches_the_model_and_its_optimizer(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """test_trainee.py and test_loop.py show what they make of it."""
    seen: list[str] = []

    def build(*_: object, precision: str, **__: object) -> None:
        seen.extend([precision, keras.config.dtype_policy().name])
        raise _BuiltError

    monkeypatch.setattr(train, "build_trainee", build)
    monkeypatch.setattr(train, "resolve_precision", lambda *_, **__: "mixed_float16")
    with pytest.raises(_BuiltError):
        train.train(train_config(tmp_path))
    assert seen == ["mixed_float16", "mixed_float16"]
    assert keras.config.dtype_policy().name == "float32"


def test_a_missing_weights_file_leaves_the_run_folder_free(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As does a start that stopped before its first checkpoint."""
    config = train_config(tmp_path)
    RunFolder(tmp_path).write_settings({"epochs": 99})
    missing = dataclasses.replace(config.model, backbone_weights="nowhere.h5")
    with pytest.raises(BackboneError, match="nowhere.h5"):
        train.train(dataclasses.replace(config, model=missing))
    assert RunFolder(tmp_path).read_settings() == {"epochs": 99}
    monkeypatch.setattr(train, "_run_loop", lambda *_, **__: {"epochs": 3})
    assert train.train(config).metrics == {"epochs": 3}
    assert RunFolder(tmp_path).read_settings()["epochs"] == 3


def test_a_folder_that_cannot_be_read_gets_one_line(tmp_path: Path, train_config: MakeConfig) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match=rf"^Cannot write to {tmp_path}/file/run: Not a directory\."):
        train.train(train_config(tmp_path / "file" / "run"))


def test_a_full_disk_gets_one_line(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "_run_loop", fail)
    with pytest.raises(TrainError, match=f"^Cannot write to {tmp_path}: No space left on device. Its"):
        train.train(train_config(tmp_path))


def test_plain_fit_takes_the_dataset_and_the_model(dataset: Dataset) -> None:
    keras.utils.set_random_seed(1)
    config = ModelConfig(backbone_weights="none", ensemble_size=1)
    fused = build_model(config, spec=dataset.clip.spec(4), num_classes=2, stored_frames=4).fused
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fused.compile("adam", loss, jit_compile=False)  # compiling takes longer than all the rest
    batches = input_pipeline.train_dataset(dataset, batch_size=3, seed=1, epoch=0, num_frames=4)
    history = fused.fit(batches, verbose=0)
    assert np.isfinite(history.history["loss"][0])


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


def _cut_after_the_first_record(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: 16 + int.from_bytes(data[:8], "little")])


def _spoil_a_frame(path: Path) -> None:
    """With correct checksums."""
    examples = [
        tf.train.SequenceExample.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))
    ]
    frame = examples[1].feature_lists.feature_list["image/encoded"].feature[0].bytes_list
    frame.value[0] = frame.value[0][:50].ljust(len(frame.value[0]), b"x")
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example.SerializeToString())


@pytest.mark.parametrize("cache_features", ["auto", "off"])
@pytest.mark.parametrize(
    ("corrupt", "position", "what"),
    [
        (_flip_a_byte, 0, "corrupted record"),
        (_cut_after_the_first_record, 1, "the shard ends after 1 of 4 clips"),
        (_spoil_a_frame, 1, "cannot be decoded .Invalid PNG"),
    ],
)
def test_a_corrupt_record_stops_the_run_and_is_named(
    tmp_path: Path,
    train_config: MakeConfig,
    cache_features: str,
    corrupt: Callable[[Path], None],
    position: int,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shard becomes corrupt after its size was checked."""
    config = train_config(tmp_path / "run", cache_features=cache_features)
    without_features = shutil.ignore_patterns("features")
    folder = str(shutil.copytree(config.data_dir, tmp_path / "copy", ignore=without_features))
    info = shards.read_info(folder)
    row = shards.clip_rows(folder, "train")[position]
    name = info.splits["train"][0].name
    assert (row["shard"], row["position"]) == (name, str(position))
    original = train.build_trainee

    def build_then_corrupt(*arguments: Any, **options: Any) -> Any:
        corrupt(Path(folder, name))
        # The size of the shard is not checked again: a read-ahead of the file system could hide the cut too.
        monkeypatch.setattr(Dataset, "shard_paths", lambda _, split: shard_paths[split])
        return original(*arguments, **options)

    shard_paths = {split: shards.shard_paths(folder, info, split) for split in ("train", "val")}
    monkeypatch.setattr(train, "build_trainee", build_then_corrupt)
    with pytest.raises(
        shards.ShardError,
        match=f"is corrupt: {name}, position {position}, {row['video_id']}: {what}.*inspect_shards.py "
        f"--data_dir={folder} --verify .*convert_videos.py command .* repairs it",
    ):
        train.train(dataclasses.replace(config, data_dir=folder))


@pytest.fixture
def failing_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[tf.errors.OpError], None]:
    """Arranges that reading the first clips fails."""

    def arrange(error: tf.errors.OpError) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(input_pipeline, "eval_dataset", fail)

    return arrange


def test_a_read_error_that_did_not_repeat_is_reported_as_one(
    tmp_path: Path, train_config: MakeConfig, failing_input: Callable[[tf.errors.OpError], None]
) -> None:
    failing_input(tf.errors.DataLossError(None, None, "corrupted record at 12"))
    with pytest.raises(
        shards.ShardError,
        match=r"could not be read \(corrupted record\), but .* every record valid. Run the same",
    ):
        train.train(train_config(tmp_path / "run", cache_features="off"))


def test_running_out_of_memory_is_answered(
    tmp_path: Path, train_config: MakeConfig, failing_input: Callable[[tf.errors.OpError], None]
) -> None:
    failing_input(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating shape[9]\n\nHint"))
    with pytest.raises(
        TrainError, match=r"Out of memory .*\(OOM when .*shape\[9\]\)\. .* --accumulate=6, .* --batch_size"
    ):
        train.train(train_config(tmp_path / "run", cache_features="off", accumulate=3))


@pytest.mark.parametrize("kind", [tf.errors.InternalError, tf.errors.UnavailableError])
def test_an_error_that_the_user_cannot_correct_passes(
    tmp_path: Path,
    train_config: MakeConfig,
    kind: type[tf.errors.OpError],
    failing_input: Callable[[tf.errors.OpError], None],
) -> None:
    """An unavailable thing is a lost worker only where there are several."""
    failing_input(kind(None, None, "a bug"))
    with pytest.raises(kind):
        train.train(train_config(tmp_path / "run", cache_features="off"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes a machine on which a step of `largest` clips fits, and none of more."""

    def estimate(model: keras.Model, *, num_clips: int, slots_per_weight: int) -> memory.MemoryEstimate:
        size = num_clips * 2**30
        return memory.MemoryEstimate(weights=0, gradients=0, slots=0, activations=size, input=0)

    def make(largest: int) -> None:
        monkeypatch.setattr(memory, "available_bytes", lambda: largest * 2**30)
        monkeypatch.setattr(memory, "estimate", estimate)

    return make


def test_a_step_that_does_not_fit_is_rejected_before_anything_is_written(
    tmp_path: Path, train_config: MakeConfig, machine: Callable[[int], None]
) -> None:
    machine(3)
    config = train_config(tmp_path / "run", batch_size=8, epochs=1)
    with pytest.raises(TrainError, match=r"on 8 clip.* needs about 8.0 GiB .*3.0 GiB.*--accumulate=4 "):
        train.train(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_batch_size_that_auto_found_holds_for_all_starts(
    tmp_path: Path,
    train_config: MakeConfig,
    machine: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, config = RunFolder(tmp_path), train_config(tmp_path, batch_size=None)
    sizes: list[int] = []

    def run_loop(
        _: TrainConfig, __: Dataset, ___: Trainee, batches: Batches, *____: object, **_____: object
    ) -> dict:
        sizes.append(batches.batch_size)
        variables = [keras.Variable(0.0)]
        state = {"step": 4, "history": [], "settings": folder.read_settings()}
        save_checkpoint(folder, step=4, variables=variables, state=state, keep=1)
        return {}

    monkeypatch.setattr(train, "_run_loop", run_loop)
    for largest in (3, 100):
        machine(largest)
        train.train(config)
        assert folder.read_settings()["resolved_batch_size"] == 2
    assert sizes == [2, 2]
