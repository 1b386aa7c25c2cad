r"""Compares the accuracy of several methods on your videos, over several seeds and with controls.

    python tools/accuracy/accuracy_table.py --data_dir=records-uniform,records-head --work_dir=table \
        --backbone_weights=vgg16_notop.weights.h5

The datasets hold the same videos, each converted with another --sampling. The features of all clips are
computed once and cached beside the records; all rows are trained from them, with the seeds 1 to --seeds.
These are the rows, by the names that --rows takes:

notebook           the method that vidpipe replaces, on datasets with its own --sampling=head: its head, Adam,
                   ten epochs with batches of 64, the last tenth of the training videos for validation, the
                   weights with the lowest validation loss. The videos are listed class by class, so this
                   tenth belongs to one class
notebook_shuffled  the same from a shuffled list
probe              logistic regression on the mean absolute difference of successive frames' features; it has
                   no seed
probe_deviation    the same on that and the standard deviation over time
motion             train.py --recipe=frozen
linear, network    the linear part, or the network, of these runs alone
pixel_differences  motion with --pixel_differences
ensemble_of_1      motion with --ensemble_size=1
notebook_head      the recipe with --head=notebook
random_frames      motion with half of the stored frames, sampled randomly in each epoch (--num_frames)
temporal_crops     the same runs, evaluated with --temporal_crops=2
shuffled_frames    control: motion whose network sees frames in a meaningless order (by a hash of their
                   features)
block5, block4     train.py --recipe=fine_tune, initialized from the motion run of the same seed
block5_flip,       the same with --augment=flip
block4_flip

The block rows are trained only if --rows names them. They train convolutions, and those with random flips run
the whole backbone in every epoch: use a GPU.

All rows are trained on train, and the accuracy is that on test; val selects the epoch of rows that are not
cross-fitted. With --cross_validate the test split is not used: train and val together are split into five
parts that share no group, and each part is predicted by a model that was trained on the other parts. Each
seed splits in its own way. With --leave_one_group_out each group, such as a source video, is a part. Make
your decisions with --cross_validate, and use the test split once.

The table has the mean, lowest and highest accuracy over the seeds, the standard deviation (sd), the mean log
loss, and differences to the row --reference (left out: the better notebook row; without one, the best
motion row). Their 95 % intervals are a bootstrap over clips, of each clip's mean over the seeds: they cover
the choice of the clips, not that of the training videos.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from accuracy_data import Data, TableError, check_datasets, folds, read_data
from accuracy_methods import METHODS
from vidpipe import command_line
from vidpipe.config import ConfigError, ModelConfig, check, setting

_MAIN = "Input and output"
_COMMAND = command_line.Command(__doc__)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Which rows are trained, and on what."""

    data_dir: tuple[str, ...] = setting(
        help="Datasets made by convert_videos, separated by commas.", group=_MAIN
    )
    work_dir: str = setting(
        help="The runs and table.json are written here. The same command resumes an interrupted table.",
        group=_MAIN,
    )
    backbone_weights: str = setting(
        ModelConfig.backbone_weights, help="As in train.py: imagenet, none or a file.", group=_MAIN
    )
    rows: tuple[str, ...] | None = setting(
        None, help="Train only these rows, separated by commas, such as motion,probe.", group=_MAIN
    )
    seeds: int = setting(5, help="Number of seeds.", group=_MAIN, at_least=2)
    reference: str | None = setting(
        None, help="The row that the others are compared with, such as probe.", group=_MAIN
    )
    cross_validate: bool = setting(
        False, help="Cross-validate within train and val; the test split is not used.", group=_MAIN
    )
    leave_one_group_out: bool = setting(
        False, help="Cross-validate with one part per group instead of five parts.", group=_MAIN
    )

    def __post_init__(self) -> None:
        check(self)
        named = {*(self.rows or ()), *([self.reference] if self.reference else [])}
        unknown = sorted(named - set(METHODS))
        if unknown:
            raise ConfigError(f"There is no row {unknown[0]}; there are {', '.join(METHODS)}.")

    @property
    def tested_on(self) -> str:
        """What the rows are tested on, see `clip_scores`."""
        if self.leave_one_group_out:
            return "group"
        return "fold" if self.cross_validate else "test"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean accuracy of a row minus that of another row, the reference; likewise the log loss.

    Each has its 95 % interval.
    """

    reference: str
    mean: float
    ci95: tuple[float, float]
    loss: float
    loss_ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table. Accuracies are fractions.

    Attributes:
      name: the method and the sampling.
      clips, seeds: how many.
      mean, lowest, highest, standard_deviation: of the accuracy, over the seeds.
      loss: the mean log loss.
      difference: to the row that all others are compared with; None for that row itself.
    """

    name: str
    clips: int
    seeds: int
    mean: float
    lowest: float
    highest: float
    standard_deviation: float
    loss: float
    difference: Difference | None = None


_read_config = _COMMAND.settings(TableConfig)
# By (method, sampling): whether each clip was classified correctly, 0 or 1, and its log loss, [seeds, 2, N].
Scores = Mapping[tuple[str, str], np.ndarray]


def main(arguments: list[str]) -> None:
    """Flags -> table; logs each run as it is done, then prints the table."""
    del arguments
    config = _read_config()
    command_line.load_tensorflow()
    with _only_warnings("vidpipe.model", "vidpipe.training", "vidpipe.progress"):
        table = make_table(train_rows(config), config.reference)
    path = Path(config.work_dir, "table.json")
    path.write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n", encoding="utf-8")
    print_table(table)


@contextmanager
def _only_warnings(*loggers: str) -> Iterator[None]:
    """Silences what each run would log, such as its epochs, inside the block."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def train_rows(config: TableConfig) -> Scores:
    """Trains and evaluates all rows on all datasets, with all seeds.

    Raises:
      TableError: the datasets cannot be compared, or none of the rows can be trained on them.
    """
    check_datasets(config.data_dir)
    scores = {}
    for data_dir in config.data_dir:
        read = cache(partial(read_data, data_dir, config.backbone_weights))
        sampling = read(pixel_differences=False).dataset.clip.sampling
        for method in methods_for(sampling, config):
            data = read(pixel_differences=METHODS[method].pixel_differences)
            folder = Path(config.work_dir, data.key())
            by_seed = []
            for seed in range(1, config.seeds + 1):
                found = clip_scores(
                    method, data, folder / method / str(seed), seed=seed, tested_on=config.tested_on
                )
                name = row_name(method, sampling)
                num_correct, num_clips = int(found[0].sum()), found.shape[1]
                _log.info("%s, seed %d: %d of %d clips correct", name, seed, num_correct, num_clips)
                by_seed.append(found)
            scores[method, sampling] = np.stack(by_seed)
    if not scores:
        raise TableError(
            "None of the rows can be trained: those of the notebook need a dataset with --sampling=head, and "
            "fine-tuned rows cannot be cross-validated."
        )
    return scores


def methods_for(sampling: str, config: TableConfig) -> list[str]:
    """Returns the names of the methods to train on a dataset with this sampling."""
    return [
        name
        for name, method in METHODS.items()
        if (name in config.rows if config.rows is not None else not method.trains_backbone)
        and (sampling == "head" or not method.is_notebook)
        and not (config.tested_on != "test" and method.trains_backbone)
    ]


def clip_scores(method: str, data: Data, folder: Path, *, seed: int, tested_on: str) -> np.ndarray:
    """Returns whether each clip is classified correctly, 0 or 1, and its log loss, float [2, N].

    The result is written to the folder, and read from there in later calls.

    Args:
      method: a key of METHODS.
      data: the clips.
      folder: of the method and the seed.
      seed: of the training.
      tested_on: `test`, the test split; `fold`, five parts of train and val in turns; `group`, each group of
        them in turns.
    """
    path = folder / f"{tested_on}.npy"
    if not path.exists():
        fit = METHODS[method].fit
        if tested_on == "test":
            label = data.tables["test"].label
            probabilities = fit(data, seed, folder / "run")
        else:
            label = data.train_and_val()[0].label
            probabilities = np.empty((len(label), len(data.dataset.classes)))
            for number, (indices, fold) in enumerate(folds(data, seed, by_group=tested_on == "group")):
                probabilities[indices] = fit(fold, seed, folder / f"{tested_on}{number}")
        folder.mkdir(parents=True, exist_ok=True)
        of_label = probabilities[np.arange(len(label)), label].clip(np.finfo(np.float64).eps)
        np.save(path, np.stack([probabilities.argmax(axis=1) == label, -np.log(of_label)]))
    return np.load(path)


def row_name(method: str, sampling: str) -> str:
    """Returns the name of a row, as the table shows it."""
    return f"{METHODS[method].label}, {sampling}"


def make_table(scores: Scores, reference_method: str | None = None) -> list[Row]:
    """Makes the rows of the table.

    Args:
      scores: of the rows.
      reference_method: the others are compared with its best row; None for the notebook's, or motion.
    """
    from vidpipe.evaluation.significance import bootstrap_interval

    references = [key for key in scores if METHODS[key[0]].is_notebook]
    if reference_method is not None or not references:
        references = [key for key in scores if key[0] == (reference_method or "motion")]
    reference = max(references, key=lambda key: float(scores[key][:, 0].mean()), default=None)
    table = []
    for key, of_seeds in scores.items():
        by_seed, losses = of_seeds[:, 0].mean(axis=1), of_seeds[:, 1]
        difference = None
        if reference is not None and key != reference:
            own, other = of_seeds.mean(axis=0), scores[reference].mean(axis=0)
            difference = Difference(
                reference=row_name(*reference),
                mean=float((own - other)[0].mean()),
                ci95=bootstrap_interval(own[0], other[0]),
                loss=float((own - other)[1].mean()),
                loss_ci95=bootstrap_interval(own[1], other[1]),
            )
        row = Row(
            name=row_name(*key),
            clips=of_seeds.shape[2],
            seeds=len(of_seeds),
            mean=float(by_seed.mean()),
            lowest=float(by_seed.min()),
            highest=float(by_seed.max()),
            standard_deviation=float(by_seed.std(ddof=1)),
            loss=float(losses.mean()),
            difference=difference,
        )
        table.append(row)
    return table


def print_table(table: list[Row]) -> None:
    """Prints the table, in percent."""
    width = max(30, *(len(row.name) for row in table))
    differences = [row.difference for row in table if row.difference is not None]
    columns = f"{'mean':>6} {'lowest':>7} {'highest':>8} {'sd':>5} {'loss':>6}"
    heading = "   differences (95 % intervals) of accuracy, loss" if differences else ""
    print(f"{'accuracy in percent':{width}} {columns}{heading}")
    for row in table:
        numbers = f"{100 * row.mean:6.1f} {100 * row.lowest:7.1f} {100 * row.highest:8.1f}"
        line = f"{row.name:{width}} {numbers} {100 * row.standard_deviation:5.1f} {row.loss:6.3f}"
        if row.difference is not None:
            low, high = (100 * bound for bound in row.difference.ci95)
            line += f"   {100 * row.difference.mean:+.1f} ({low:+.1f} to {high:+.1f})"
            low, high = row.difference.loss_ci95
            line += f", {row.difference.loss:+.3f} ({low:+.3f} to {high:+.3f})"
        print(line)
    compared = f" Differences are to: {differences[0].reference}." if differences else ""
    print(f"{table[0].seeds} seeds, {table[0].clips} clips.{compared}")


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
