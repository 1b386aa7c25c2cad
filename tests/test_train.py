"""Training by what it leaves: weights that move or do not, a run that resumes to the bit, its papers."""

import csv
import dataclasses
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from vidpipe import checkpoint, feature_cache, input_pipeline, loop, memory, model, shards, train
from vidpipe.config import FINE_TUNE, OptimizerConfig, TrainConfig
from vidpipe.spec import VidpipeError

MakeConfig = Callable[..., TrainConfig]


def _blocks(run_dir: Path) -> dict[str, list[np.ndarray]]:
    loaded, _ = model.load_model(run_dir / "model.keras")
    blocks: dict[str, list[np.ndarray]] = {}
    for layer in loaded.get_layer("backbone").layers:
        if layer.get_weights():
            blocks.setdefault(layer.name.split("_")[0], []).extend(layer.get_weights())
    return blocks


@pytest.fixture(scope="module")
def start(train_config: MakeConfig) -> dict[str, list[np.ndarray]]:
    """The backbone's weights before the first step: what a random start of seed 1 gives."""
    keras.utils.set_random_seed(1)
    config = train_config(Path("unused"))
    fused = model.build_model(config.model, shards.read_info(config.data_dir).clip.model_spec(), 2).fused
    blocks: dict[str, list[np.ndarray]] = {}
    for layer in fused.get_layer("backbone").layers:
        if layer.get_weights():
            blocks.setdefault(layer.name.split("_")[0], []).extend(layer.get_weights())
    return blocks


@pytest.mark.parametrize("fine_tune", FINE_TUNE)
def test_after_one_step_the_fine_tuned_blocks_have_changed_and_no_others(
    tmp_path: Path, train_config: MakeConfig, start: dict[str, list[np.ndarray]], fine_tune: str
) -> None:
    train.train(train_config(tmp_path / "run", fine_tune=fine_tune, epochs=1, batch_size=8))
    changed = {
        name
        for name, weights in _blocks(tmp_path / "run").items()
        if any((before != after).any() for before, after in zip(start[name], weights, strict=True))
    }
    lowest = {"none": 6, "all": 1}.get(fine_tune) or int(fine_tune[-1])
    assert changed == {f"block{number}" for number in range(lowest, 6)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, train_config: MakeConfig) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train.train(train_config(run_dir))
    return run_dir


def test_a_run_leaves_its_papers(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert (config["epochs"], config["model"]["head"]) == (3, "motion")
    with (finished / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert tuple(history[0]) == loop.HISTORY_COLUMNS
    metrics = json.loads((finished / "metrics.json").read_text())
    losses = [float(row["val_loss"]) for row in history]
    limit = min(losses) + float(history[losses.index(min(losses))]["val_loss_error"])
    assert metrics["kept_epoch"] == max(place for place, loss in enumerate(losses, 1) if loss <= limit)
    assert metrics["val_loss"] == losses[metrics["kept_epoch"] - 1]
    assert list((finished / "tensorboard").glob("events*"))
    # 8 clips in batches of 3, 3 epochs
    assert sorted(path.name for path in (finished / "checkpoints").iterdir())[-1] == "step-00000009.npz"
    with zipfile.ZipFile(finished / "model.keras") as archive:
        card = json.loads(archive.read("vidpipe.json"))
    assert card["classes"] == ["long", "short"]
    assert card["clip"]["num_frames"] == 4


def test_the_history_s_numbers_are_those_of_the_model(
    finished: Path, data_dir: str, info: shards.DatasetInfo
) -> None:
    """val_loss of the kept epoch, computed again from model.keras by plain Keras."""
    best = json.loads((finished / "metrics.json").read_text())
    loaded, _ = model.load_model(finished / "model.keras")
    loaded.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), weighted_metrics=["accuracy"]
    )
    loss, accuracy = loaded.evaluate(input_pipeline.eval_dataset(data_dir, info, 2, "val"), verbose=0)
    np.testing.assert_allclose([loss, accuracy], [best["val_loss"], best["val_accuracy"]], rtol=1e-4)


def test_a_finished_run_does_nothing(finished: Path, train_config: MakeConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = train.train(train_config(finished))
    assert result.metrics == json.loads((finished / "metrics.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_other_settings_on_an_existing_run_are_refused(finished: Path, train_config: MakeConfig) -> None:
    with pytest.raises(train.TrainError, match=r"other settings \(optimizer.learning_rate: 0.001 -> 0.5\)"):
        train.train(train_config(finished, optimizer=OptimizerConfig(learning_rate=0.5)))


def test_the_cache_changes_no_loss(tmp_path: Path, finished: Path, train_config: MakeConfig) -> None:
    train.train(train_config(tmp_path / "run", cache_features="off"))
    for column in ("loss", "val_loss"):
        uncached, cached = (
            [float(row[column]) for row in csv.DictReader((folder / "history.csv").open())]
            for folder in (tmp_path / "run", finished)
        )
        np.testing.assert_allclose(uncached, cached, rtol=1e-5)


DRAWN = {
    "fine_tune": "block5", "augment": "flip_crop_colour", "mixup": 0.4, "num_frames": 3, "accumulate": 3,
    "label_smoothing": 0.1, "class_weights": "balanced",
    "optimizer": OptimizerConfig("sgd", 1e-3, "cosine", 0.5, 0.1, 0.9, 0.01, clip_norm=1.0, ema=0.9),
}  # fmt: skip


@pytest.fixture(scope="module", params=[{}, DRAWN], ids=["frozen", "block5 and augmentation"])
def straight(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, train_config: MakeConfig
) -> TrainConfig:
    """A run of two epochs that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    config = train_config(folder, epochs=2, checkpoint_every=1, **request.param)
    train.train(config)
    return config


@pytest.mark.parametrize(
    ("kill_at", "saved"),
    [
        pytest.param(1, False, id="at the first step"),
        pytest.param(3, False, id="at the end of an epoch"),
        pytest.param(5, False, id="in the second epoch"),
        pytest.param(6, True, id="behind the last checkpoint"),
    ],
)
def test_a_run_killed_at_any_step_ends_as_if_it_never_had_been(
    tmp_path: Path, straight: TrainConfig, kill_at: int, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a step, before its checkpoint or right behind it: weights, history, checkpoint agree."""
    interrupted = dataclasses.replace(straight, run_dir=str(tmp_path))
    runs = [Path(straight.run_dir), tmp_path]
    original = checkpoint.save_checkpoint

    def killed(folder: Path, step: int, *rest: object) -> None:
        if step != kill_at or saved:
            original(folder, step, *rest)  # type: ignore[arg-type]
        if step == kill_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(interrupted)
    monkeypatch.undo()
    train.train(interrupted)
    ours, theirs = (model.load_model(run / "model.keras")[0].get_weights() for run in runs)
    for our, their in zip(ours, theirs, strict=True):
        assert (our == their).all()
    exact = [name for name in loop.HISTORY_COLUMNS if name not in ("seconds", "data_wait")]
    histories = [
        [[row[name] for name in exact] for row in csv.DictReader((run / "history.csv").open())]
        for run in runs
    ]
    assert histories[0] == histories[1]
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in runs]
    with np.load(newest[0]) as first, np.load(newest[1]) as second:
        assert first.files == second.files
        assert all((first[name] == second[name]).all() for name in first.files if name != "state")


def test_sigkill_in_the_middle_of_a_run_loses_nothing_before_the_last_checkpoint(
    tmp_path: Path, train_config: MakeConfig
) -> None:
    config = train_config(tmp_path / "run", epochs=2, checkpoint_every=1)
    script = f"""
import os, signal
from vidpipe import loop, train
from vidpipe.config import ModelConfig, OptimizerConfig, TrainConfig
save = loop.save_checkpoint
def save_then_die(folder, step, *rest):
    save(folder, step, *rest)
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
loop.save_checkpoint = save_then_die
train.train({config!r})
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()
    result = train.train(config)
    straight = train.train(train_config(tmp_path / "straight", epochs=2, checkpoint_every=1))
    assert result.metrics["loss"] == straight.metrics["loss"]
    assert result.metrics["val_loss"] == straight.metrics["val_loss"]


def test_without_validation_the_last_epoch_s_model_is_kept(
    tmp_path: Path, train_config: MakeConfig, info: shards.DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {**info.splits, "val": ()}
    monkeypatch.setattr(
        shards, "read_info", lambda _: shards.DatasetInfo(**{**info.__dict__, "splits": without})
    )
    result = train.train(train_config(tmp_path / "run", epochs=2))
    assert (result.metrics["kept_epoch"], result.metrics["val_loss"]) == (2, None)


@pytest.mark.parametrize("poisoned", [0, 5, 7])
def test_a_loss_that_is_no_number_names_its_step_and_clips(
    tmp_path: Path, train_config: MakeConfig, poisoned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(tmp_path / "run", head="notebook", checkpoint_every=1)
    original = feature_cache.cached_features

    def poison(*arguments: object) -> feature_cache.FeatureTable:
        table = original(*arguments)  # type: ignore[arg-type]
        features = np.array(table.features)
        features[poisoned % len(features), 0, 0] = np.nan
        return dataclasses.replace(table, features=features if len(features) == 8 else table.features)

    monkeypatch.setattr(feature_cache, "cached_features", poison)
    with pytest.raises(train.TrainError, match="No number .* in epoch 1, step .*smaller --lear") as raised:
        train.train(config)
    found = re.search(r"step (\d), on (.*?)\. The last good checkpoint is kept", str(raised.value))
    assert found is not None
    step, names = int(found[1]), found[2].split(", ")
    assert shards.clip_rows(config.data_dir, "train")[poisoned]["video_id"] in names
    assert len(names) == (2 if step == 3 else 3)
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("*")]
    assert sorted(saved)[-1:] == ([f"step-{step - 1:08d}.npz"] if step > 1 else [])


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, train_config: MakeConfig) -> None:
    """The loss of the only step is right, and its update is not."""
    config = train_config(
        tmp_path / "run", batch_size=8, epochs=1, optimizer=OptimizerConfig(learning_rate=1e38, name="sgd")
    )
    with pytest.raises(VidpipeError, match="The validation loss of epoch 1 is nan.*smaller --learning_rate"):
        train.train(config)
    assert not (tmp_path / "run" / "model.keras").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU")
def test_precision_without_a_gpu() -> None:
    assert train.resolve_precision("auto") == "float32"
    with pytest.raises(train.TrainError, match="--precision=mixed_float16 needs a GPU.*--precision=float32"):
        train.resolve_precision("mixed_float16")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "mixed_bfloat16"), ((8, 0), "mixed_bfloat16"), ((7, 5), "mixed_float16"), ((6, 1), "float32")],
)
def test_precision_goes_by_what_the_gpu_can(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["a GPU"])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda _: {"compute_capability": capability}
    )
    assert train.resolve_precision("auto") == precision
    assert train.resolve_precision("mixed_float16") == "mixed_float16"


@pytest.mark.parametrize(
    ("gpus", "asked", "expected"), [(["a GPU"], False, False), (["a GPU"], True, True), ([], False, True)]
)
def test_a_gpu_is_deterministic_on_demand_and_a_cpu_always(
    tmp_path: Path, train_config: MakeConfig, gpus: list[str], asked: bool, expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Up to where the model would be built."""
    switched: list[bool] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: gpus)
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: switched.append(True))
    monkeypatch.setattr(train, "_build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.train(train_config(tmp_path, precision="float32", deterministic=asked))
    assert bool(switched) == expected


def test_a_missing_weights_file_leaves_the_run_folder_free(tmp_path: Path, train_config: MakeConfig) -> None:
    config = train_config(tmp_path / "run")
    wrong = TrainConfig(
        config.data_dir, config.run_dir, model=type(config.model)(backbone_weights="nowhere.h5")
    )
    with pytest.raises(Exception, match="no weights file nowhere.h5"):
        train.train(wrong)
    train.train(train_config(tmp_path / "run", epochs=1))


def test_plain_fit_takes_the_dataset_and_the_model(data_dir: str, info: shards.DatasetInfo) -> None:
    keras.utils.set_random_seed(1)
    config = model.ModelConfig(backbone_weights="none")
    fused = model.build_model(config, info.clip.model_spec(), len(info.classes)).fused
    fused.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = fused.fit(input_pipeline.train_dataset(data_dir, info, 3, seed=1, epoch=0), verbose=0)
    assert np.isfinite(history.history["loss"][0])


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


def _cut_behind_the_first_record(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: 16 + int.from_bytes(data[:8], "little")])


def _spoil_a_frame(path: Path) -> None:
    """With checksums that are right."""
    examples = [
        tf.train.SequenceExample.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))
    ]
    frame = examples[1].feature_lists.feature_list["image/encoded"].feature[0].bytes_list
    frame.value[0] = frame.value[0][:50].ljust(len(frame.value[0]), b"x")
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example.SerializeToString())


@pytest.fixture
def damage_after_the_check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Damages the first shard of a dataset once its presence and size were found right."""

    def arrange(damage: Callable[[Path], None]) -> None:
        def checked_then_damaged(data_dir: str, info: shards.DatasetInfo, split: str) -> list[str]:
            paths = shards.shard_paths(data_dir, info, split)
            if split == "train":
                damage(Path(paths[0]))
            return paths

        monkeypatch.setattr(input_pipeline, "shard_paths", checked_then_damaged)

    return arrange


@pytest.mark.parametrize("cache_features", ["auto", "off"])
@pytest.mark.parametrize(
    ("damage", "position", "what"),
    [
        (_flip_a_byte, 0, "corrupted record; what follows is lost"),
        (_cut_behind_the_first_record, 1, "the shard ends after 1 of 4 clips"),
        (_spoil_a_frame, 1, "cannot be decoded .Invalid PNG"),
    ],
)
def test_a_damaged_record_stops_the_run_and_is_named(
    tmp_path: Path,
    train_config: MakeConfig,
    info: shards.DatasetInfo,
    cache_features: str,
    damage: Callable[[Path], None],
    position: int,
    what: str,
    damage_after_the_check: Callable[[Callable[[Path], None]], None],
) -> None:
    config = train_config(tmp_path / "run", cache_features=cache_features)
    without_features = shutil.ignore_patterns("features")
    folder = str(shutil.copytree(config.data_dir, tmp_path / "copy", ignore=without_features))
    row = shards.clip_rows(folder, "train")[position]
    name = info.splits["train"][0].name
    assert (row["shard"], row["position"]) == (name, str(position))
    damage_after_the_check(damage)
    with pytest.raises(
        shards.ShardError,
        match=f"is damaged: {name}, position {position}, {row['video_id']}: {what}.*inspect_shards.py "
        f"--data_dir={folder} --verify names every .*convert_videos.py command .* repairs it",
    ):
        train.train(dataclasses.replace(config, data_dir=folder))


def test_a_read_error_that_passed_is_told_as_one(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise tf.errors.DataLossError(None, None, "corrupted record at 12")

    monkeypatch.setattr(input_pipeline, "eval_dataset", fail)
    config = train_config(tmp_path / "run", cache_features="off")
    with pytest.raises(
        shards.ShardError, match=r"could not be read \(corrupted record\), but .* whole. Run the same command"
    ):
        train.train(config)


def test_running_out_of_memory_is_answered(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]\n\nHint")

    monkeypatch.setattr(input_pipeline, "eval_dataset", fail)
    with pytest.raises(
        train.TrainError,
        match=r"Out of memory .*\(OOM when .*shape\[9\]\)\. .* --accumulate=6, .* --batch_size",
    ):
        train.train(train_config(tmp_path / "run", cache_features="off", accumulate=3))


@pytest.mark.parametrize("kind", [tf.errors.InternalError, tf.errors.UnavailableError])
def test_an_error_that_nobody_can_mend_passes(
    tmp_path: Path,
    train_config: MakeConfig,
    kind: type[tf.errors.OpError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thing that is unavailable is a lost worker only where there are several."""

    def fail(*_: object) -> None:
        raise kind(None, None, "a bug")

    monkeypatch.setattr(input_pipeline, "eval_dataset", fail)
    with pytest.raises(kind):
        train.train(train_config(tmp_path / "run", cache_features="off"))


def _with_memory(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """A machine on which a step of `largest` clips fits, and of more does not."""
    monkeypatch.setattr(memory, "available_bytes", lambda: largest * 2**30)
    monkeypatch.setattr(
        memory,
        "estimate",
        lambda _model, num_clips, _slots: memory.MemoryEstimate(0, 0, 0, num_clips * 2**30, 0),
    )


def test_a_step_that_will_not_fit_is_refused_with_what_would(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_memory(monkeypatch, largest=3)
    config = train_config(tmp_path / "run", batch_size=8, epochs=1)
    with pytest.raises(train.TrainError, match=r"on 8 clip.* needs about 8.0 GiB .*3.0 GiB.*--accumulate=4 "):
        train.train(config)
    assert not (tmp_path / "run").exists()
    train.train(dataclasses.replace(config, accumulate=4))
    _with_memory(monkeypatch, largest=0)
    with pytest.raises(train.TrainError, match="Train fewer blocks"):
        train.train(dataclasses.replace(config, run_dir=str(tmp_path / "other")))


def test_auto_takes_the_largest_batch_that_fits_and_keeps_to_it(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_memory(monkeypatch, largest=3)
    config = train_config(tmp_path, batch_size=None, epochs=1)
    train.train(config)
    assert json.loads((tmp_path / "config.json").read_text())["chosen_batch_size"] == 2
    assert (tmp_path / "checkpoints" / "step-00000004.npz").exists()  # 8 clips in steps of 2
    (tmp_path / "metrics.json").unlink()
    _with_memory(monkeypatch, largest=100)
    train.train(config)
    assert json.loads((tmp_path / "config.json").read_text())["chosen_batch_size"] == 2


def test_a_run_starts_from_the_weights_of_another(
    tmp_path: Path, finished: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "adapt_standardization", lambda *_: pytest.fail("it came with the weights"))
    tiny = OptimizerConfig(learning_rate=1e-12)
    config = train_config(tmp_path / "run", "block5", epochs=1, init_from=str(finished), optimizer=tiny)
    result = train.train(config)
    best = json.loads((finished / "metrics.json").read_text())
    # Block 4's output is kept in float16 for this run.
    assert result.metrics["val_loss"] == pytest.approx(best["val_loss"], rel=1e-2)

    theirs = tmp_path / "theirs"
    shutil.copytree(finished, theirs)
    other = dataclasses.replace(config, run_dir=str(tmp_path / "other"), init_from=str(theirs))
    train.train(other)
    (tmp_path / "other" / "metrics.json").unlink()
    shutil.copy(tmp_path / "run" / "model.keras", theirs / "model.keras")
    with pytest.raises(train.TrainError, match=r"other settings \(start_weights: \w{16} -> \w{16}\)"):
        train.train(other)


def test_a_finished_run_without_its_checkpoints_is_still_that_run(
    tmp_path: Path, finished: Path, train_config: MakeConfig
) -> None:
    kept = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(train.TrainError, match=r"other settings \(epochs: 3 -> 4\)"):
        train.train(train_config(Path(kept), epochs=4))


def test_a_run_that_came_to_nothing_may_begin_anew(tmp_path: Path, train_config: MakeConfig) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 99}))
    assert train.train(train_config(tmp_path, epochs=1)).metrics["epochs"] == 1


def test_features_beyond_their_disk_are_not_kept(
    tmp_path: Path, train_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_config(tmp_path / "run", "block5", epochs=1, cache_gb=1e-6)
    with pytest.raises(
        train.TrainError, match=r"features would take 0.0 GiB, and cache_gb is 1e-06. .* --cache_gb"
    ):
        train.train(dataclasses.replace(config, cache_features="on"))
    with caplog.at_level(logging.INFO):
        train.train(config)
    assert "the whole backbone runs in every step" in caplog.text


@pytest.mark.parametrize("fine_tune", ["block5", "block4"])
def test_frozen_blocks_run_once_and_change_little(
    tmp_path: Path, train_config: MakeConfig, fine_tune: str
) -> None:
    """Their output is kept in float16, which has eleven bits."""
    losses = []
    for cache_features in ("on", "off"):
        config = train_config(
            tmp_path / cache_features,
            fine_tune,
            cache_features=cache_features,
            optimizer=OptimizerConfig(learning_rate=1e-4),
        )
        train.train(config)
        rows = csv.DictReader((tmp_path / cache_features / "history.csv").open())
        losses.append([[float(row["loss"]), float(row["val_loss"])] for row in rows])
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)
    saved = [model.load_model(tmp_path / name / "model.keras")[0].get_weights() for name in ("on", "off")]
    assert len(saved[0]) == len(saved[1])


def test_frames_drawn_anew_are_encoded_once(
    tmp_path: Path, train_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    histories = []
    for cache_features in ("on", "off"):
        with caplog.at_level(logging.INFO):
            train.train(train_config(tmp_path / cache_features, cache_features=cache_features, num_frames=3))
        rows = csv.DictReader((tmp_path / cache_features / "history.csv").open())
        histories.append([[float(row["loss"]), float(row["val_loss"])] for row in rows])
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-4)
    assert caplog.text.count("Features of train: 8 clips of 4 x 512 float32") == 1
    assert model.load_model(tmp_path / "on/model.keras")[1].num_frames == 3


def test_only_real_frames_pass_the_backbone_in_a_step(
    tmp_path: Path, train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 train clips: 4 frames of each long video, and 1, 2, 3, 4 of the short ones that are in train."""
    counted: list[int] = []
    original = keras.layers.Conv2D.call

    def count(self: keras.layers.Conv2D, inputs: tf.Tensor) -> tf.Tensor:
        if self.name == "block1_conv1" and not isinstance(inputs, keras.KerasTensor):
            tf.numpy_function(lambda frames: counted.append(frames), [tf.shape(inputs)[0]], [])
        return original(self, inputs)

    monkeypatch.setattr(keras.layers.Conv2D, "call", count)
    config = train_config(tmp_path, "all", epochs=1, head="notebook")
    train.train(config)
    frames = sum(int(row["frames_kept"]) for row in shards.clip_rows(config.data_dir, "train"))
    fillers = 1
    assert sum(counted[:3]) == frames + fillers
