r"""How accurate each way of training is on your videos, over several seeds and with its controls.

    python tools/accuracy_table.py --data_dir=records-uniform,records-head --work_dir=table \
        --backbone_weights=vgg16_notop.weights.h5 [--cross_validate]

The datasets are of the same videos, converted with one --sampling each. The features of all their clips
are computed once, beside the records; every row is trained from them with the seeds 1 to --seeds.

notebook as listed: the method that vidpipe replaces, on its own sampling, head. Its head, Adam, ten epochs
of batches of 64, the last tenth of the training videos for validation, the weights of the lowest validation
loss. The videos are listed class by class, so that this tenth is of one class.
notebook shuffled: the same from a shuffled list.
probe: logistic regression on the mean absolute difference of successive frames' features. It has no seed.
motion: as `train.py --recipe=frozen` trains it. one member: with --members=1. notebook head: with
--head=notebook.
drawn: motion on half of the stored frames, drawn anew in each epoch (--num_frames). drawn in 2 views: the
same run, evaluated on both halves (--num_clips=2).
mean frame, frames shuffled: controls, without the order of the frames. The mean of their features alone; and
the motion head on frames in an order that means nothing (of a hash of their features).
block5, block4: fine-tuned with `--recipe=fine_tune` from the motion run of the same seed; block5 flipped and
block4 flipped with --augment=flip too. --rows must name them: they train convolutions, and the flipped ones
pass frames through all of them in every epoch, for which there should be a GPU.

Rows are trained on train, which epoch is kept is decided on val, and what is counted is test. With
--cross_validate test is left alone: train and val together are cut into five parts that share no group,
and each is predicted by a model that was trained on the others, to its last epoch; a seed cuts in its own
way. Decide by that, and look at test once.

Of the accuracy over the seeds: mean, lowest, highest, standard deviation. Then the difference to the better
row of the notebook's method (without one, to the better of motion), with a 95 % interval: a bootstrap over
clips, each clip's answers averaged over the seeds. It says how much other clips might have changed the
difference, not other training videos.
"""

import csv
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

import cli
from vidpipe.config import RECIPES, ModelConfig, OptimizerConfig, TrainConfig, fingerprint
from vidpipe.spec import VidpipeError

if TYPE_CHECKING:
    from vidpipe.feature_cache import FeatureTable
    from vidpipe.model import Member
    from vidpipe.shards import DatasetInfo

_DATA_DIR = flags.DEFINE_list("data_dir", None, "Datasets of tools/convert_videos.py.", required=True)
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Runs go here, and table.json.", required=True)
_WEIGHTS = flags.DEFINE_string("backbone_weights", ModelConfig.backbone_weights, "As train.py takes it.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many.", lower_bound=2)
_ROWS = flags.DEFINE_list("rows", None, "Only these, such as motion,probe.")
_CROSS_VALIDATE = flags.DEFINE_bool("cross_validate", False, "Within train and val; test is left alone.")

_ENCODED_CLIPS = 8
_NOTEBOOK_BATCH, _NOTEBOOK_EPOCHS, _NOTEBOOK_VAL = 64, 10, 0.1
_FOLDS = 5
_log = logging.getLogger(__name__)


class TableError(VidpipeError):
    """The datasets do not make a table."""


@dataclass(frozen=True)
class Data:
    """What a row is trained and tested on.

    Attributes:
      data_dir: where the records are.
      backbone_weights: of the features.
      info: of the dataset; its splits say how many clips each table has.
      tables: features of `train`, `test` and, if the row may choose an epoch, `val`.
      videos: `video_id` and `group` of the clips of each table.
    """

    data_dir: str
    backbone_weights: str
    info: "DatasetInfo"
    tables: Mapping[str, "FeatureTable"]
    videos: Mapping[str, np.ndarray]

    def joined(self) -> tuple["FeatureTable", np.ndarray]:
        """Train and val together, class by class, and their videos."""
        from vidpipe.feature_cache import FeatureTable

        splits = [split for split in ("train", "val") if split in self.tables]
        label = np.concatenate([self.tables[split].label for split in splits])
        order = np.argsort(label, kind="stable")
        features = np.concatenate([self.tables[split].features for split in splits])[order]
        mask = np.concatenate([self.tables[split].mask for split in splits])[order]
        videos = np.concatenate([self.videos[split] for split in splits])[order]
        return FeatureTable(features, mask, label[order]), videos


# Data, seed and a folder for the run to the probabilities of the test clips, float32 [N, C].
Fit = Callable[[Data, int, Path], np.ndarray]


def read_data(data_dir: str, backbone_weights: str) -> Data:
    """Reads a dataset's features, after computing those that are missing."""
    from vidpipe import feature_cache, shards
    from vidpipe.model import build_model

    info = shards.read_info(data_dir)
    config = ModelConfig(backbone_weights=backbone_weights)
    frozen = build_model(config, info.clip.model_spec(), len(info.classes)).frozen
    tables, videos = {}, {}
    for split in info.splits:
        if info.num_clips(split) > 0:
            tables[split] = feature_cache.cached_features(frozen, data_dir, info, split, _ENCODED_CLIPS)
            rows = [(row["video_id"], row["group"]) for row in shards.clip_rows(data_dir, split)]
            videos[split] = np.array(rows, [("video_id", object), ("group", object)])
    return Data(data_dir, backbone_weights, info, tables, videos)


def folds(data: Data, seed: int) -> list[tuple[np.ndarray, Data]]:
    """Five times: places of held-out clips in `data.joined()`, and data to predict them from the rest."""
    from sklearn.model_selection import StratifiedGroupKFold

    from vidpipe.feature_cache import FeatureTable
    from vidpipe.shards import ShardInfo

    table, videos = data.joined()
    groups = videos["group"]
    cut = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(groups, table.label, groups)
    found = []
    for places in cut:
        parts = dict(zip(("train", "test"), places, strict=True))
        tables = {
            split: FeatureTable(table.features[chosen], table.mask[chosen], table.label[chosen])
            for split, chosen in parts.items()
        }
        # One shard each: all that the order of an epoch needs to know.
        splits = {split: (ShardInfo(split, len(chosen), 0, ""),) for split, chosen in parts.items()}
        info = replace(data.info, splits=splits | {"val": ()})
        part_videos = {split: videos[chosen] for split, chosen in parts.items()}
        found.append((parts["test"], replace(data, info=info, tables=tables, videos=part_videos)))
    return found


def fit_probe(data: Data, seed: int, run_dir: Path) -> np.ndarray:
    """Logistic regression on what changes from frame to frame."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def mean_change(table: "FeatureTable") -> np.ndarray:
        change = np.abs(np.diff(table.features, axis=1)) * table.mask[:, 1:, np.newaxis]
        return change.sum(axis=1) / table.mask[:, 1:].sum(axis=1, keepdims=True).clip(1)

    train, _ = data.joined()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=3000))
    return probe.fit(mean_change(train), train.label).predict_proba(mean_change(data.tables["test"]))


def fit_notebook(shuffled: bool, data: Data, seed: int, run_dir: Path) -> np.ndarray:
    """As the keras-io CNN-RNN example fits its head to features."""
    import keras
    from keras import layers

    from vidpipe.model import notebook_head

    keras.utils.set_random_seed(seed)
    train, _ = data.joined()
    order = np.random.default_rng(seed).permutation(len(train.label)) if shuffled else slice(None)
    features = keras.Input(train.features.shape[1:])
    mask = keras.Input(train.mask.shape[1:], dtype="bool")
    probabilities = layers.Dense(len(data.info.classes), activation="softmax")
    model = keras.Model([features, mask], probabilities(notebook_head(features, mask)(0)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    run_dir.mkdir(parents=True, exist_ok=True)
    best = f"{run_dir}/best.weights.h5"
    model.fit(
        [train.features[order], train.mask[order]],
        train.label[order],
        _NOTEBOOK_BATCH,
        _NOTEBOOK_EPOCHS,
        verbose=0,
        validation_split=_NOTEBOOK_VAL,
        callbacks=[keras.callbacks.ModelCheckpoint(best, save_best_only=True, save_weights_only=True)],
    )
    model.load_weights(best)
    test = data.tables["test"]
    return model.predict([test.features, test.mask], verbose=0)


def fit_head(head: str, members: int | None, data: Data, seed: int, run_dir: Path) -> np.ndarray:
    """A frozen run that sees all stored frames."""
    train_head(run_config("frozen", data, seed, run_dir, head=head, members=members), data)
    return answer(run_dir, data)


def fit_drawn(num_views: int, data: Data, seed: int, run_dir: Path) -> np.ndarray:
    """A frozen run that draws half of the stored frames anew in each epoch; the mean of so many views."""
    run_dir = sibling(run_dir, "drawn")
    config = run_config("frozen", data, seed, run_dir)
    config = replace(config, num_frames=math.ceil(data.info.clip.num_frames / 2))
    if not (run_dir / "metrics.json").exists():
        train_head(config, data)
    return answer(run_dir, data, config.num_frames, num_views)


def train_head(config: TrainConfig, data: Data) -> None:
    """A frozen run, as `train.train` does it, from these tables."""
    import keras
    import tensorflow as tf

    from vidpipe import train
    from vidpipe.loop import Loop, StopSignal, Trained
    from vidpipe.model import build_model
    from vidpipe.optimizer import build_optimizer

    keras.utils.set_random_seed(config.seed)
    model = build_model(config.model, data.info.clip.model_spec(config.num_frames), len(data.info.classes))
    assert model.trained is not None and config.batch_size is not None
    optimizer = build_optimizer(config.optimizer, model.trained.trainable_variables, {}, "float32")
    trained = Trained(model, model.trained, optimizer, tf.distribute.get_strategy())
    video_ids = data.videos["train"]["video_id"].tolist()
    batches = train.feature_batches(
        data.tables, data.info, video_ids, config.batch_size, config.seed, config.num_frames
    )
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    Loop(config, data.info, trained, batches, StopSignal()).run()


def answer(run_dir: Path, data: Data, num_frames: int | None = None, num_views: int = 1) -> np.ndarray:
    """What a frozen run answers to the test clips, the mean over views: float32 [N, C]."""
    import tensorflow as tf

    from vidpipe import feature_cache
    from vidpipe.model import classifier, load_model

    model, _ = load_model(run_dir / "model.keras")
    answers = classifier(model)
    steps = feature_cache.eval_feature_dataset(data.tables["test"], _ENCODED_CLIPS, num_frames, num_views)
    logits = [answers(inputs, training=False)[weight > 0] for inputs, _, weight in steps]
    probabilities = tf.nn.softmax(tf.concat(logits, axis=0)).numpy()
    return probabilities.reshape(-1, num_views, probabilities.shape[-1]).mean(axis=1)


def sibling(run_dir: Path, row: str) -> Path:
    """The run of another row, for the same seed and fold."""
    return run_dir.parents[2] / row / run_dir.parent.name / run_dir.name


def fit_fine_tuned(block: str, augment: str, data: Data, seed: int, run_dir: Path) -> np.ndarray:
    """A fine-tuned run from the frozen one of the same seed, evaluated on frames."""
    from vidpipe import evaluate, train

    frozen = sibling(run_dir, "motion")
    if not (frozen / "metrics.json").exists():
        fit_head("motion", None, data, seed, frozen)
    config = run_config("fine_tune", data, seed, run_dir, fine_tune=block)
    train.train(replace(config, init_from=str(frozen), augment=augment))
    folder = evaluate.evaluate(str(run_dir), data.data_dir, "test").folder
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return np.array([[float(row[name]) for name in data.info.classes] for row in csv.DictReader(file)])


def run_config(recipe: str, data: Data, seed: int, run_dir: Path, **model: Any) -> TrainConfig:
    """The settings that `train.py --recipe` would give; `model` are those of the ModelConfig."""
    values = {name: value for name, value in RECIPES[recipe].items() if name != "fine_tune"}
    values["batch_size"] = int(values["batch_size"])
    names = {field.name for field in fields(OptimizerConfig)} & set(values)
    optimizer = OptimizerConfig(**{name: values.pop(name) for name in names})
    config = ModelConfig(backbone_weights=data.backbone_weights, **model)
    return TrainConfig(data.data_dir, str(run_dir), config, optimizer, seed=seed, **values)


def mean_frame_head(features: Any, mask: Any, dropout: float | None = None) -> "Member":
    """A control: the mean of the real frames' features, standardized, behind dropout."""
    from keras import layers, ops

    real = ops.expand_dims(ops.cast(mask, "float32"), -1)
    standardized = layers.Normalization(dtype="float32", name="standardize")(features) * real
    mean_frame = ops.sum(standardized, axis=1) / ops.sum(real, axis=1)
    return lambda number: layers.Dropout(0.5, name=f"dropout_{number}")(mean_frame)


def shuffled_head(features: Any, mask: Any, dropout: float | None = None) -> "Member":
    """A control: the motion head on frames in an order that means nothing, the same for a clip each time."""
    from keras import ops

    from vidpipe.model import motion_head

    # Far digits of a sum of features: as good as random, and they need no state.
    key = 1e4 * ops.sum(ops.cast(features, "float32"), axis=-1)
    order = ops.argsort(ops.where(mask, key - ops.floor(key), 2.0), axis=1)
    return motion_head(ops.take_along_axis(features, order[:, :, None], axis=1), mask, dropout)


def add_controls() -> None:
    """Makes the controls heads that a run can have."""
    from vidpipe.model import HEADS, Head

    HEADS["mean_frame"] = Head(mean_frame_head, num_members=1)
    HEADS["shuffled"] = Head(shuffled_head, HEADS["motion"].num_members)


# By sampling-less name; the first two and the probe have samplings of their own.
ROWS: dict[str, Fit] = {
    "notebook as listed": partial(fit_notebook, False),
    "notebook shuffled": partial(fit_notebook, True),
    "probe": fit_probe,
    "mean frame": partial(fit_head, "mean_frame", None),
    "frames shuffled": partial(fit_head, "shuffled", None),
    "notebook head": partial(fit_head, "notebook", None),
    "one member": partial(fit_head, "motion", 1),
    "motion": partial(fit_head, "motion", None),
    "drawn": partial(fit_drawn, 1),
    "drawn in 2 views": partial(fit_drawn, 2),
    "block5": partial(fit_fine_tuned, "block5", "none"),
    "block4": partial(fit_fine_tuned, "block4", "none"),
    "block5 flipped": partial(fit_fine_tuned, "block5", "flip"),
    "block4 flipped": partial(fit_fine_tuned, "block4", "flip"),
}
_ONLY_HEAD = ("notebook as listed", "notebook shuffled")
_ONLY_NAMED = ("block5", "block4", "block5 flipped", "block4 flipped")


def answers(name: str, data: Data, folder: Path, seed: int, cross_validate: bool) -> np.ndarray:
    """Whether each clip was answered rightly, bool [N]; read from the folder if it is known already."""
    known = folder / ("cross_validated.npy" if cross_validate else "tested.npy")
    if not known.exists():
        if cross_validate:
            label = data.joined()[0].label
            predicted = np.empty_like(label)
            for number, (places, fold) in enumerate(folds(data, seed)):
                predicted[places] = ROWS[name](fold, seed, folder / f"fold{number}").argmax(axis=1)
        else:
            label = data.tables["test"].label
            predicted = ROWS[name](data, seed, folder / "run").argmax(axis=1)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(known, predicted == label)
    return np.load(known)


def chosen(sampling: str, wanted: Sequence[str] | None, cross_validate: bool) -> list[str]:
    """The rows to run on a dataset of that sampling; None wants all but those that must be named."""
    left_out = (() if sampling == "head" else _ONLY_HEAD) + (_ONLY_NAMED if cross_validate else ())
    if wanted is None:
        left_out += _ONLY_NAMED
    return [name for name in ROWS if (wanted is None or name in wanted) and name not in left_out]


def check_same_videos(data_dirs: Sequence[str]) -> None:
    """Refuses datasets whose test clips cannot be compared one by one.

    Raises:
      TableError: one has other test videos than the first.
    """
    from vidpipe import shards

    videos = [[row["video_id"] for row in shards.clip_rows(each, "test")] for each in data_dirs]
    for data_dir, found in zip(data_dirs, videos, strict=True):
        if found != videos[0]:
            raise TableError(f"{data_dir} has other test videos than {data_dirs[0]}. Convert the same lists.")


def key_of(data: Data) -> str:
    """Names what answers are kept for: the clips and, by what it makes of them, the backbone."""
    digests = [hashlib.sha256(table.features.tobytes()).hexdigest() for table in data.tables.values()]
    return fingerprint([data.info.fingerprint, digests])[:16]


def main(arguments: list[str]) -> None:
    """Runs the rows, printing each as it is done, then the differences."""
    cli.no_arguments(arguments)
    unknown = sorted(set(_ROWS.value or ()) - set(ROWS))
    if unknown:
        cli.usage_error(f"there is no row {unknown[0]}; there are {'; '.join(ROWS)}")
    cli.load_tensorflow()
    add_controls()
    for module in ("backbone", "feature_cache", "train", "loop"):
        logging.getLogger(f"vidpipe.{module}").setLevel(logging.WARNING)
    found: dict[str, np.ndarray] = {}
    check_same_videos(_DATA_DIR.value)
    for data_dir in _DATA_DIR.value:
        data = read_data(data_dir, _WEIGHTS.value)
        for row in chosen(data.info.clip.sampling, _ROWS.value, _CROSS_VALIDATE.value):
            name = f"{row}, {data.info.clip.sampling}"
            for seed in range(1, _SEEDS.value + 1):
                folder = Path(_WORK_DIR.value, key_of(data), row, str(seed))
                right = answers(row, data, folder, seed, _CROSS_VALIDATE.value)
                found[name] = np.vstack([found[name], right]) if name in found else right[np.newaxis]
                _log.info("%s, seed %d: %.3f of %d clips", name, seed, right.mean(), len(right))
    if not found:
        raise TableError("None of the rows can be had of these datasets.")
    table = make_table(found)
    Path(_WORK_DIR.value, "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print_table(table)


def make_table(found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each way of training, from whether its clips were answered rightly, bool [seeds, N]."""
    from vidpipe.compare import bootstrap_interval

    peers = [name for name in found if name.startswith(_ONLY_HEAD)]
    peers = peers or [name for name in found if name.startswith("motion,")]
    best_peer = max(peers, key=lambda name: float(found[name].mean()), default=None)
    table = []
    for name, right in found.items():
        by_seed = right.mean(axis=1)
        row = {
            "row": name, "clips": right.shape[1], "seeds": len(right), "mean": float(by_seed.mean()),
            "lowest": float(by_seed.min()), "highest": float(by_seed.max()),
            "standard_deviation": float(by_seed.std(ddof=1)),
        }  # fmt: skip
        if best_peer not in (None, name):
            theirs = found[str(best_peer)].mean(axis=0)
            row["against"] = best_peer
            row["difference"] = float((right.mean(axis=0) - theirs).mean())
            row["difference_ci95"] = bootstrap_interval(right.mean(axis=0), theirs)
        table.append(row)
    return table


def print_table(table: list[dict[str, Any]]) -> None:
    """On stdout, in percent."""
    print(
        f"{'accuracy, %':30} {'mean':>6} {'lowest':>7} {'highest':>8} {'sd':>5}   difference (95 % interval)"
    )
    for row in table:
        mean, lowest, highest, deviation = (
            100 * row[name] for name in ("mean", "lowest", "highest", "standard_deviation")
        )
        line = f"{row['row']:30} {mean:6.1f} {lowest:7.1f} {highest:8.1f} {deviation:5.1f}"
        if "difference" in row:
            low, high = (100 * bound for bound in row["difference_ci95"])
            line += f"   {100 * row['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
        print(line)
    against = next((f" Differences to: {row['against']}." for row in table if "against" in row), "")
    print(f"{table[0]['seeds']} seeds, {table[0]['clips']} clips.{against}")


if __name__ == "__main__":
    cli.run(main)
