"""The accuracy table: its rows are runs of the trainer, controls ignore the order, folds split no group."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

import accuracy_data
import accuracy_methods
import accuracy_table
from accuracy_table import TableConfig
from vidpipe.config import EvaluationConfig, ModelConfig
from vidpipe.data.dataset import Dataset
from vidpipe.evaluation import evaluate
from vidpipe.model import heads
from vidpipe.model.feature_cache import FeatureTable
from vidpipe.model.model_file import load_model
from vidpipe.training import train
from vidpipe.training.recipes import RECIPES
from vidpipe.training.run_folder import RunFolder


@pytest.fixture(autouse=True, scope="module")
def quick_recipe() -> Iterator[None]:
    """The recipe has 2 epochs, and the motion head 2 ensemble members."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "frozen", replace(RECIPES["frozen"], epochs=2))
        patch.setitem(heads.HEADS, "motion", replace(heads.HEADS["motion"], ensemble_size=2))
        yield


@pytest.fixture(scope="module")
def data(data_dir: str, quick_recipe: None) -> accuracy_data.Data:
    return accuracy_data.read_data(data_dir, "none")


def _config(**changes: object) -> TableConfig:
    return TableConfig(**{"data_dir": ("d",), "work_dir": "w"} | changes)  # type: ignore[arg-type]


@pytest.mark.benchmark
def test_a_row_is_a_run_of_the_trainer(data: accuracy_data.Data, tmp_path: Path) -> None:
    config = accuracy_methods.run_config("frozen", data, 1, tmp_path / "run")
    assert (config.batch_size, config.epochs, config.seed) == (16, 2, 1)
    probabilities = accuracy_methods.METHODS["motion"].fit(data, 1, tmp_path / "row")
    train.train(config)
    # The evaluation runs the complete model on frames, in batches of another size.
    np.testing.assert_allclose(probabilities, _evaluated(tmp_path / "run", data), atol=1e-5)


@pytest.mark.benchmark
def test_random_frames_are_a_run_with_half_of_the_frames_and_its_temporal_crops(
    data: accuracy_data.Data, tmp_path: Path
) -> None:
    methods = accuracy_methods.METHODS
    one = methods["random_frames"].fit(data, 1, tmp_path / "random_frames/1/run")
    two = methods["temporal_crops"].fit(data, 1, tmp_path / "temporal_crops/1/run")
    config = accuracy_methods.run_config("frozen", data, 1, tmp_path / "run")
    train.train(replace(config, num_frames=2))
    np.testing.assert_allclose(one, _evaluated(tmp_path / "run", data), atol=1e-5)
    np.testing.assert_allclose(two, _evaluated(tmp_path / "run", data, temporal_crops=2), atol=1e-5)
    assert np.abs(one - two).max() > 1e-4
    assert not (tmp_path / "temporal_crops").exists()


def _evaluated(run_dir: Path, data: accuracy_data.Data, temporal_crops: int = 1) -> np.ndarray:
    """The probabilities that `evaluate` writes, float64 [N, C]."""
    config = EvaluationConfig(
        run_dir=str(run_dir), data_dir=data.dataset.data_dir, temporal_crops=temporal_crops
    )
    rows = evaluate.evaluate(config).folder.read_predictions()
    return np.array([[float(row[f"p({name})"]) for name in data.dataset.classes] for row in rows])


def test_a_row_with_pixel_differences_has_features_of_them(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depths = {}
    for name in ("motion", "pixel_differences"):

        def fit(data: accuracy_data.Data, seed: int, run_dir: Path, name: str = name) -> np.ndarray:
            depths[name] = data.tables["train"].features.shape[-1]
            return np.full((len(data.tables["test"].label), 2), 0.5)

        method = replace(accuracy_methods.METHODS[name], fit=fit)
        monkeypatch.setitem(accuracy_methods.METHODS, name, method)
    config = _config(
        data_dir=(data_dir,),
        work_dir=str(tmp_path),
        backbone_weights="none",
        rows=("motion", "pixel_differences"),
    )
    accuracy_table.train_rows(config)
    assert depths == {"motion": 512, "pixel_differences": 1024}


def test_a_fine_tuned_row_starts_from_the_motion_run_of_its_seed(
    data: accuracy_data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[Path] = []
    trained: list[train.TrainConfig] = []
    monkeypatch.setattr(accuracy_methods, "fit_frozen", lambda data, seed, run_dir: frozen.append(run_dir))
    monkeypatch.setattr(train, "train", trained.append)

    def fake_evaluate(config: EvaluationConfig) -> None:
        folder = RunFolder(Path(config.run_dir)).evaluation("test")
        folder.path.mkdir(parents=True)
        folder.write_predictions(["a"], ["long"], [{"long": 0.25, "short": 0.75}])

    monkeypatch.setattr(evaluate, "evaluate", fake_evaluate)
    run_dir = tmp_path / "block5_flip" / "3" / "run"
    probabilities = accuracy_methods.METHODS["block5_flip"].fit(data, 3, run_dir)
    assert probabilities.tolist() == [[0.25, 0.75]]
    assert frozen == [tmp_path / "motion" / "3" / "run"]
    (config,) = trained
    assert (config.init_from, config.run_dir, config.seed) == (str(frozen[0]), str(run_dir), 3)
    assert (config.model.fine_tune, config.augment) == ("block5", "flip")
    assert config.optimizer == RECIPES["fine_tune"].optimizer


def test_the_control_ignores_the_order_of_frames() -> None:
    random = np.random.default_rng(1)
    features, mask = random.normal(size=(2, 5, 8)).astype(np.float32), np.arange(5) < [[5], [3]]
    inputs = [keras.Input((5, 8)), keras.Input((5,), dtype="bool")]
    control = keras.Model(inputs, accuracy_methods.shuffled_frames_head(*inputs)(0))
    backwards = features.copy()
    backwards[0], backwards[1, :3] = features[0, ::-1], features[1, 2::-1]
    np.testing.assert_allclose(control([features, mask]), control([backwards, mask]), atol=1e-5)
    motion = keras.Model(inputs, heads.motion_head(*inputs)(0))
    assert np.abs(motion([features, mask]) - motion([backwards, mask])).max() > 0.01


def test_the_control_is_trained_in_place_of_the_motion_head(
    data: accuracy_data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr(accuracy_methods, "train_head", lambda *_: built.append(heads.HEADS["motion"].build))
    monkeypatch.setattr(accuracy_methods, "predict_test", lambda *_: np.zeros(0))
    accuracy_methods.METHODS["shuffled_frames"].fit(data, 1, tmp_path)
    assert built == [accuracy_methods.shuffled_frames_head]
    assert heads.HEADS["motion"].build is heads.motion_head


def test_parts_of_the_motion_run(data: accuracy_data.Data, tmp_path: Path) -> None:
    """The parts alone need no training of their own, and their shares of the logits make the whole."""
    found = {
        method: accuracy_methods.METHODS[method].fit(data, 1, tmp_path / method / "1" / "run")
        for method in ("linear", "network", "motion")
    }
    model, _ = load_model(RunFolder(tmp_path / "motion" / "1" / "run").model)
    shares = model.get_layer(heads.SHARES).kernel.numpy()
    mixed = shares[0] * np.log(found["linear"]) + shares[1] * np.log(found["network"])
    expected = np.exp(mixed) / np.exp(mixed).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["motion"], expected, rtol=1e-4)
    assert not (tmp_path / "linear").exists()


def test_folds_hold_out_each_clip_once_and_split_no_group(data: accuracy_data.Data) -> None:
    table, videos = data.train_and_val()
    assert table.label.tolist() == sorted(table.label.tolist())
    assert len(table.label) == data.dataset.num_clips("train") + data.dataset.num_clips("val")
    held_out = []
    for indices, fold in accuracy_data.folds(data, seed=3):
        held_out += indices.tolist()
        assert not set(fold.videos["train"]["group"]) & set(fold.videos["test"]["group"])
        assert set(fold.tables) == {"train", "test"}
        assert fold.dataset.num_clips("train") == len(fold.tables["train"].label)
        assert fold.dataset.num_clips("val") == 0
        np.testing.assert_array_equal(fold.tables["test"].features, table.features[indices])
        assert fold.videos["test"].tolist() == videos[indices].tolist()
    assert sorted(held_out) == list(range(len(table.label)))


def test_one_group_is_held_out_at_a_time(data: accuracy_data.Data) -> None:
    held_out = [fold.videos["test"]["group"] for _, fold in accuracy_data.folds(data, 1, by_group=True)]
    assert all(len(set(group)) == 1 for group in held_out)
    assert sorted(group[0] for group in held_out) == sorted(set(data.train_and_val()[1]["group"]))


def test_a_fold_is_trained_to_its_last_epoch(data: accuracy_data.Data, tmp_path: Path) -> None:
    _, fold = next(accuracy_data.folds(data, seed=1))
    probabilities = accuracy_methods.fit_frozen(fold, 1, tmp_path, ensemble_size=1)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert len(probabilities) == len(fold.tables["test"].label)
    assert RunFolder(tmp_path).read_metrics()["epochs"] == 2


def test_the_probe_sees_only_change(data: accuracy_data.Data, tmp_path: Path) -> None:
    """The classes: constant features, and features that change. Their values carry no information."""
    random = np.random.default_rng(1)

    def table(num_clips: int) -> FeatureTable:
        label = np.arange(num_clips) % 2
        steps = np.zeros((num_clips, 4, 3))
        steps[:, 1:] = random.choice([-1, 1], (num_clips, 3, 3)) * label[:, np.newaxis, np.newaxis]
        steps[:, 0] = random.normal(0, 100, (num_clips, 3))
        return FeatureTable(steps.cumsum(axis=1), np.ones((num_clips, 4), bool), label)

    tables, videos = {"train": table(20), "test": table(10)}, {"train": np.arange(20)}
    made = accuracy_data.Data(data.dataset, "none", tables, videos)
    predicted = accuracy_methods.fit_probe(made, 1, tmp_path, deviation=False).argmax(axis=1)
    assert predicted.tolist() == made.tables["test"].label.tolist()


def _replace_fit(monkeypatch: pytest.MonkeyPatch, fit: accuracy_methods.Fit) -> None:
    motion = accuracy_methods.METHODS["motion"]
    monkeypatch.setitem(accuracy_methods.METHODS, "motion", replace(motion, fit=fit))


def test_results_are_computed_once(
    data: accuracy_data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_hot = np.eye(2)[data.tables["test"].label]
    calls = []

    def fit(_: accuracy_data.Data, seed: int, run_dir: Path) -> np.ndarray:
        calls.append((seed, run_dir))
        return one_hot if seed == 1 else 1 - one_hot

    _replace_fit(monkeypatch, fit)

    def correct(seed: int) -> np.ndarray:
        folder = tmp_path / str(seed)
        is_correct, _ = accuracy_table.clip_scores("motion", data, folder, seed=seed, tested_on="test")
        return is_correct

    for _ in range(2):
        assert correct(1).all()
        assert not correct(2).any()
    assert calls == [(1, tmp_path / "1/run"), (2, tmp_path / "2/run")]


@pytest.mark.parametrize(("tested_on", "num_parts"), [("fold", 5), ("group", 10)])
def test_cross_validation_predicts_each_clip_of_train_and_val_once(
    data: accuracy_data.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tested_on: str,
    num_parts: int,
) -> None:
    folders = []

    def fit(fold: accuracy_data.Data, seed: int, run_dir: Path) -> np.ndarray:
        folders.append(run_dir.name)
        return np.eye(2)[fold.tables["test"].label]

    _replace_fit(monkeypatch, fit)
    correct, losses = accuracy_table.clip_scores("motion", data, tmp_path, seed=1, tested_on=tested_on)
    assert (losses == 0).all()
    assert correct.all() and len(correct) == len(data.train_and_val()[0].label)
    assert folders == [f"{tested_on}{number}" for number in range(num_parts)]


def test_results_belong_to_one_backbone(data: accuracy_data.Data) -> None:
    other = {split: replace(table, features=table.features + 1) for split, table in data.tables.items()}
    assert len({each.key() for each in (data, replace(data, tables=other), data)}) == 2


def test_random_weights_are_the_same_in_every_call(data: accuracy_data.Data, data_dir: str) -> None:
    assert accuracy_data.read_data(data_dir, "none").key() == data.key()


def test_datasets_must_have_the_same_test_videos(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy_data.check_datasets([data_dir])
    with pytest.raises(accuracy_data.TableError, match="have the same sampling, uniform"):
        accuracy_data.check_datasets([data_dir, data_dir])
    videos = iter([["1", "2"], ["1"]])
    monkeypatch.setattr(Dataset, "video_ids", lambda *_: next(videos))
    with pytest.raises(accuracy_data.TableError, match="has other test videos than"):
        accuracy_data.check_datasets([data_dir, data_dir])


def test_the_sampling_decides_which_rows_are_trained() -> None:
    two = _config(rows=("notebook_shuffled", "motion"))
    assert accuracy_table.methods_for("head", two) == ["notebook_shuffled", "motion"]
    assert accuracy_table.methods_for("uniform", two) == ["motion"]
    assert "block5" not in accuracy_table.methods_for("uniform", _config())
    assert "motion" in accuracy_table.methods_for("uniform", _config())
    assert accuracy_table.methods_for("uniform", _config(rows=("block5",))) == ["block5"]
    for crossed in ("cross_validate", "leave_one_group_out"):
        assert accuracy_table.methods_for("uniform", _config(rows=("block5",), **{crossed: True})) == []
    named = [_config(), _config(cross_validate=True), _config(leave_one_group_out=True)]
    assert [config.tested_on for config in named] == ["test", "fold", "group"]


def test_the_table_compares_with_the_better_row_of_the_notebook(capsys: pytest.CaptureFixture) -> None:
    correct = {
        ("notebook", "head"): [[0, 0, 0, 1], [0, 0, 0, 1]],
        ("notebook_shuffled", "head"): [[1, 1, 0, 0], [1, 1, 0, 1]],
        ("motion", "uniform"): [[1, 1, 1, 1], [1, 1, 1, 0]],
    }
    losses = dict(zip(correct, (0.5, 0.75, 0.25), strict=True))
    scores = {
        key: np.stack([rows, np.full_like(rows, losses[key], np.float64)], axis=1)
        for key, rows in correct.items()
    }
    table = accuracy_table.make_table(scores)
    assert [row.loss for row in table] == [0.5, 0.75, 0.25]
    assert [row.mean for row in table] == [0.25, 0.625, 0.875]
    motion = table[2]
    assert (motion.lowest, motion.highest) == (0.75, 1)
    assert motion.standard_deviation == pytest.approx(np.sqrt(2) / 8)
    reference = "notebook shuffled, head"
    assert [row.difference and row.difference.reference for row in table] == [reference, None, reference]
    assert motion.difference is not None and motion.difference.mean == 0.25
    low, high = motion.difference.ci95
    assert -0.3 < low < 0.1 and 0.4 < high <= 0.75
    assert (motion.difference.loss, motion.difference.loss_ci95) == (-0.5, (-0.5, -0.5))
    accuracy_table.print_table(table)
    printed = capsys.readouterr().out.splitlines()
    assert printed[3].split()[:7] == ["motion,", "uniform", "87.5", "75.0", "100.0", "17.7", "0.250"]
    assert printed[3].endswith(", -0.500 (-0.500 to -0.500)")
    assert printed[-1] == "2 seeds, 4 clips. Differences are to: notebook shuffled, head."


def test_without_the_notebook_the_table_compares_with_motion() -> None:
    correct = np.ones((2, 2, 4))
    of_rows = {"motion": correct, "ensemble_of_1": correct, "block5": 0 * correct}
    scores = {(method, "uniform"): found for method, found in of_rows.items()}
    table = accuracy_table.make_table(scores)
    reference = "motion, uniform"
    assert [row.difference and row.difference.reference for row in table] == [None, reference, reference]
    assert table[2].difference is not None and table[2].difference.mean == -1
    named = accuracy_table.make_table(scores, "block5")
    assert [row.difference and row.difference.mean for row in named] == [1, 1, None]
    (alone,) = accuracy_table.make_table({("probe", "uniform"): correct})
    assert alone.difference is None


def test_the_command_trains_rows_with_all_seeds(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _replace_fit(monkeypatch, lambda data, seed, _: np.eye(2)[(data.tables["test"].label + seed) % 2])
    argv = [
        "accuracy_table.py", f"--data_dir={data_dir}", f"--work_dir={tmp_path}", "--backbone_weights=none",
        "--rows=motion,probe", "--seeds=2",
    ]  # fmt: skip
    assert accuracy_table.run(argv) == 0
    captured = capsys.readouterr()
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in rows] == ["logistic regression, change, uniform", "motion, uniform"]
    assert (rows[1]["mean"], rows[1]["lowest"], rows[1]["highest"], rows[1]["clips"]) == (0.5, 0, 1, 6)
    assert "motion, uniform, seed 1: 0 of 6 clips correct\n" in captured.err
    assert captured.out.splitlines()[-1] == "2 seeds, 6 clips. Differences are to: motion, uniform."


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--rows=motion,best",), 2, "There is no row best; there are notebook, notebook_shuffled, probe"),
        (("--seeds=1",), 2, "seeds must be at least 2; got 1"),
        (("--rows=notebook",), 1, "None of the rows can be trained"),
        (("--rows=block5", "--cross_validate"), 1, "None of the rows can be trained"),
    ],
)
def test_wrong_flags_get_one_line(
    flags: tuple[str, ...],
    code: int,
    message: str,
    data: accuracy_data.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(accuracy_table, "read_data", lambda *_, **__: data)
    argv = ["accuracy_table.py", f"--data_dir={data.dataset.data_dir}", f"--work_dir={tmp_path}", *flags]
    assert accuracy_table.run(argv) == code
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


@pytest.mark.benchmark
def test_the_notebook_validates_on_the_end_of_its_list(
    data: accuracy_data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fit = keras.Model.fit

    def recorded(
        self: keras.Model, inputs: list, labels: np.ndarray, *arguments: object, **named: object
    ) -> object:
        seen.append((labels.tolist(), named["validation_split"]))
        return fit(self, inputs, labels, *arguments, **named)

    monkeypatch.setattr(keras.Model, "fit", recorded)
    methods = accuracy_methods.METHODS
    listed = methods["notebook"].fit(data, 1, tmp_path / "listed")
    methods["notebook_shuffled"].fit(data, 1, tmp_path / "shuffled")
    assert listed.shape == (6, 2)
    np.testing.assert_allclose(listed.sum(axis=1), 1, atol=1e-5)
    ((listed_labels, fraction), (shuffled_labels, _)) = seen
    assert fraction == 0.1
    assert listed_labels == sorted(listed_labels) == sorted(shuffled_labels) != shuffled_labels


def test_rows_differ_from_motion_in_one_setting(data: accuracy_data.Data, tmp_path: Path) -> None:
    def model(**changes: object) -> ModelConfig:
        return accuracy_methods.run_config("frozen", data, 1, tmp_path, **changes).model

    assert model() == replace(RECIPES["frozen"].model, backbone_weights="none")
    assert model(ensemble_size=1) == replace(model(), ensemble_size=1)
    assert model(head="notebook") == replace(model(), head="notebook")
