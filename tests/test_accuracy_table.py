"""The table of accuracies: rows are the runs they say, controls know no order, folds part no group."""

from dataclasses import replace
from pathlib import Path

import accuracy_table
import keras
import numpy as np
import pytest

from vidpipe import evaluate, model, shards, train
from vidpipe.config import RECIPES, ModelConfig
from vidpipe.feature_cache import FeatureTable


@pytest.fixture(scope="module")
def data(data_dir: str) -> accuracy_table.Data:
    return accuracy_table.read_data(data_dir, "none")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of 2 epochs, and a motion head of 2 members."""
    monkeypatch.setitem(RECIPES["frozen"], "epochs", 2)
    monkeypatch.setitem(model.HEADS, "motion", replace(model.HEADS["motion"], num_members=2))


@pytest.mark.usefixtures("quick")
def test_a_row_is_the_run_of_the_trainer(data_dir: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(2)  # of the backbone, as the run begins with it
    data = accuracy_table.read_data(data_dir, "none")
    config = accuracy_table.run_config("frozen", data, 2, tmp_path / "run")
    assert (config.batch_size, config.epochs, config.seed) == (16, 2, 2)
    probabilities = accuracy_table.fit_head("motion", None, data, 2, tmp_path / "row")
    train.train(config)
    # The evaluation passes frames, in batches of another size.
    np.testing.assert_allclose(probabilities, _evaluated(tmp_path / "run", data.data_dir), atol=1e-5)


@pytest.mark.usefixtures("quick")
def test_drawn_is_a_run_on_half_of_the_frames_and_its_views_those_of_an_evaluation(
    data_dir: str, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(2)
    data = accuracy_table.read_data(data_dir, "none")
    one = accuracy_table.ROWS["drawn"](data, 2, tmp_path / "drawn/2/run")
    two = accuracy_table.ROWS["drawn in 2 views"](data, 2, tmp_path / "drawn in 2 views/2/run")
    config = accuracy_table.run_config("frozen", data, 2, tmp_path / "run")
    train.train(replace(config, num_frames=2))
    np.testing.assert_allclose(one, _evaluated(tmp_path / "run", data_dir), atol=1e-5)
    np.testing.assert_allclose(two, _evaluated(tmp_path / "run", data_dir, num_clips=2), atol=1e-5)
    assert np.abs(one - two).max() > 1e-4
    assert not (tmp_path / "drawn in 2 views").exists()


def _evaluated(run_dir: Path, data_dir: str, num_clips: int = 1) -> np.ndarray:
    """The probabilities that `evaluate` writes, float64 [N, C]."""
    folder = evaluate.evaluate(str(run_dir), data_dir, "test", num_clips=num_clips).folder
    return np.genfromtxt(folder / "predictions.csv", delimiter=",", skip_header=1)[:, 3:]


@pytest.mark.parametrize("head", ["mean_frame_head", "shuffled_head"])
def test_controls_do_not_know_the_order(head: str) -> None:
    random = np.random.default_rng(1)
    features, mask = random.normal(size=(2, 5, 8)).astype(np.float32), np.arange(5) < [[5], [3]]
    inputs = [keras.Input((5, 8)), keras.Input((5,), dtype="bool")]
    control = keras.Model(inputs, getattr(accuracy_table, head)(*inputs)(0))
    backwards = features.copy()
    backwards[0], backwards[1, :3] = features[0, ::-1], features[1, 2::-1]
    np.testing.assert_allclose(control([features, mask]), control([backwards, mask]), atol=1e-5)
    motion = keras.Model(inputs, model.motion_head(*inputs)(0))
    assert np.abs(motion([features, mask]) - motion([backwards, mask])).max() > 0.01


def test_controls_are_heads_with_members_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "HEADS", dict(model.HEADS))
    accuracy_table.add_controls()
    mask = keras.Input((4,), dtype="bool")
    for head, num_members in (("mean_frame", 1), ("shuffled", 5)):
        features = keras.Input((4, 512))
        logits = model.build_head(ModelConfig(head=head), mask, 3)(features)
        each = model.member_logits(keras.Model([features, mask], logits))
        assert each.output.shape == (None, num_members, 3)


def test_folds_hold_each_clip_out_once_and_part_no_group(data: accuracy_table.Data) -> None:
    table, videos = data.joined()
    assert table.label.tolist() == sorted(table.label.tolist())
    assert len(table.label) == data.info.num_clips("train") + data.info.num_clips("val")
    held_out = []
    for places, fold in accuracy_table.folds(data, seed=3):
        held_out += places.tolist()
        assert not set(fold.videos["train"]["group"]) & set(fold.videos["test"]["group"])
        assert set(fold.tables) == {"train", "test"}
        assert fold.info.num_clips("train") == len(fold.tables["train"].label)
        np.testing.assert_array_equal(fold.tables["test"].features, table.features[places])
        assert fold.videos["test"].tolist() == videos[places].tolist()
    assert sorted(held_out) == list(range(len(table.label)))


def test_the_probe_sees_change_alone(data: accuracy_table.Data, tmp_path: Path) -> None:
    """Two classes: features that stand still, and features that move. Where they stand says nothing."""
    random = np.random.default_rng(1)

    def table(num_clips: int) -> FeatureTable:
        label = np.arange(num_clips) % 2
        steps = np.zeros((num_clips, 4, 3))
        steps[:, 1:] = random.choice([-1, 1], (num_clips, 3, 3)) * label[:, np.newaxis, np.newaxis]
        steps[:, 0] = random.normal(0, 100, (num_clips, 3))
        return FeatureTable(steps.cumsum(axis=1), np.ones((num_clips, 4), bool), label)

    tables, videos = {"train": table(20), "test": table(10)}, {"train": np.arange(20)}
    made = accuracy_table.Data("", "none", data.info, tables, videos)
    predicted = accuracy_table.fit_probe(made, 1, tmp_path).argmax(axis=1)
    assert predicted.tolist() == made.tables["test"].label.tolist()


def test_answers_are_kept(data: accuracy_table.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_hot = np.eye(2)[data.tables["test"].label]
    asked = []

    def fit(_: accuracy_table.Data, seed: int, run_dir: Path) -> np.ndarray:
        asked.append((seed, run_dir))
        return one_hot if seed == 1 else 1 - one_hot

    monkeypatch.setitem(accuracy_table.ROWS, "motion", fit)
    for _ in range(2):
        assert accuracy_table.answers("motion", data, tmp_path / "1", 1, False).all()
        assert not accuracy_table.answers("motion", data, tmp_path / "2", 2, False).any()
    assert asked == [(1, tmp_path / "1/run"), (2, tmp_path / "2/run")]


def test_answers_are_of_one_backbone(data: accuracy_table.Data) -> None:
    other = {split: replace(table, features=table.features + 1) for split, table in data.tables.items()}
    keys = {accuracy_table.key_of(each) for each in (data, replace(data, tables=other), data)}
    assert len(keys) == 2


def test_other_test_videos_are_refused(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy_table.check_same_videos([data_dir, data_dir])
    videos = {"a": [{"video_id": "1"}, {"video_id": "2"}], "b": [{"video_id": "1"}]}
    monkeypatch.setattr(shards, "clip_rows", lambda folder, split: videos[folder])
    with pytest.raises(accuracy_table.TableError, match="b has other test videos than a"):
        accuracy_table.check_same_videos(["a", "b"])


def test_which_rows_a_dataset_has() -> None:
    assert accuracy_table.chosen("head", ["notebook shuffled", "motion"], False) == [
        "notebook shuffled",
        "motion",
    ]
    assert accuracy_table.chosen("uniform", ["notebook shuffled", "motion"], False) == ["motion"]
    assert "block5" not in accuracy_table.chosen("uniform", None, False)
    assert accuracy_table.chosen("uniform", ["block5"], False) == ["block5"]
    assert accuracy_table.chosen("uniform", ["block5"], True) == []


def test_the_table_compares_with_the_better_row_of_the_notebook(capsys: pytest.CaptureFixture) -> None:
    found = {
        "notebook as listed, head": np.array([[0, 0, 0, 1], [0, 0, 0, 1]], bool),
        "notebook shuffled, head": np.array([[1, 1, 0, 0], [1, 1, 0, 1]], bool),
        "motion, uniform": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool),
    }
    table = accuracy_table.make_table(found)
    assert [row["mean"] for row in table] == [0.25, 0.625, 0.875]
    assert (table[2]["lowest"], table[2]["highest"]) == (0.75, 1)
    assert table[2]["standard_deviation"] == pytest.approx(np.sqrt(2) / 8)
    assert [row.get("against") for row in table] == [
        "notebook shuffled, head",
        None,
        "notebook shuffled, head",
    ]
    assert table[2]["difference"] == 0.25
    low, high = table[2]["difference_ci95"]
    assert -0.3 < low < 0.1 and 0.4 < high <= 0.75
    accuracy_table.print_table(table)
    printed = capsys.readouterr().out.splitlines()
    assert printed[3].split()[:6] == ["motion,", "uniform", "87.5", "75.0", "100.0", "17.7"]
    assert printed[-1] == "2 seeds, 4 clips. Differences to: notebook shuffled, head."


def test_without_the_notebook_the_table_compares_with_motion() -> None:
    right = np.ones((2, 4), bool)
    table = accuracy_table.make_table({"motion, uniform": right, "block5, uniform": ~right})
    assert [row.get("against") for row in table] == [None, "motion, uniform"]
    assert table[1]["difference"] == -1
    assert "against" not in accuracy_table.make_table({"probe, uniform": right})[0]


def test_the_notebook_validates_on_the_end_of_its_list(
    data: accuracy_table.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fit = keras.Model.fit

    def noting(
        self: keras.Model, inputs: list, labels: np.ndarray, *arguments: object, **named: object
    ) -> object:
        seen.append((labels.tolist(), named["validation_split"]))
        return fit(self, inputs, labels, *arguments, **named)

    monkeypatch.setattr(keras.Model, "fit", noting)
    listed = accuracy_table.fit_notebook(False, data, 1, tmp_path / "listed")
    accuracy_table.fit_notebook(True, data, 1, tmp_path / "shuffled")
    assert listed.shape == (6, 2)
    np.testing.assert_allclose(listed.sum(axis=1), 1, atol=1e-5)
    ((listed_labels, share), (shuffled_labels, _)) = seen
    assert share == 0.1
    assert listed_labels == sorted(listed_labels) == sorted(shuffled_labels) != shuffled_labels
