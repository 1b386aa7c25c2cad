"""Several runs on the same clips: how far apart they are, and whether so many clips can tell them apart."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from vidpipe import page, shards
from vidpipe.spec import VidpipeError

# What no answer depends on, where things lie, and the seed, which is all that runs of one method differ in.
_FREE = (
    "run_dir", "data_dir", "cache_dir", "init_from", "input_ram_gb", "checkpoint_every", "keep_checkpoints",
    "profile_steps", "cache_features", "cache_gb", "seed",
)  # fmt: skip
# Settings that are digests, and by what a reader knows them.
_KNOWN_BY = {"dataset": "data_dir", "start_weights": "init_from"}
_NAMED_CLIPS = 3

_Interval = tuple[float, float]


class CompareError(VidpipeError):
    """Runs cannot be compared: one is not evaluated, or not on the clips of the others."""


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and its answers on a split.

    Attributes:
      name: its folder, as it was given.
      settings: of its config.json, by names such as `model.head`, with `views` of the evaluation.
      metrics: of the evaluation.
      labels: class of each clip by its video_id, in the order of the records.
      answers: likewise the predicted class.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    labels: dict[str, str]
    answers: dict[str, str]

    @property
    def right(self) -> np.ndarray:
        """Which clips it names right, sorted by video_id: bool [N]."""
        return np.array([self.answers[clip] == self.labels[clip] for clip in sorted(self.labels)])


@dataclass(frozen=True)
class Pair:
    """A run against the baseline, clip by clip.

    Attributes:
      run: its name.
      difference: of the accuracies; above 0 where the run is better.
      interval: of the difference, as `paired_interval` gives it.
      only_run: clips that the run alone names right.
      only_baseline: clips that the baseline alone names right.
      p_value: of `mcnemar`.
      p_holm: the same, corrected for the number of pairs.
    """

    run: str
    difference: float
    interval: _Interval
    only_run: int
    only_baseline: int
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but the seed.

    Attributes:
      name: the settings in which it differs from other methods.
      runs: their names.
      accuracies: one each.
      difference: of the mean accuracy to that of the baseline's method; None for that one itself.
      interval: of the difference, as `bootstrap_interval` gives it.
    """

    name: str
    runs: tuple[str, ...]
    accuracies: tuple[float, ...]
    difference: float | None
    interval: _Interval | None

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation; None of one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """What several runs say of the same clips.

    Attributes:
      split: which clips.
      runs: at least two; the first is the baseline.
      differs_in: of each run, the settings in which not all are alike.
      pairs: each other run against the baseline.
      methods: empty where no two runs differ only in the seed; the first is the baseline's.
      differing: the clips to which not all runs give the same answer, in the order of the records.
    """

    split: str
    runs: tuple[EvaluatedRun, ...]
    differs_in: tuple[str, ...]
    pairs: tuple[Pair, ...]
    methods: tuple[Method, ...]
    differing: tuple[str, ...]


def compare(run_dirs: Sequence[str], split: str, baseline: str | None = None) -> Comparison:
    """Compares runs by the evaluations that `evaluate.evaluate` left in them.

    Args:
      run_dirs: two or more.
      split: of the evaluations.
      baseline: one of them; None takes the first.

    Raises:
      CompareError: a run is named twice, not evaluated, or evaluated on other clips or with other labels; or
        the baseline is none of them.
    """
    names = [name.rstrip("/") for name in run_dirs]
    first = names[0] if baseline is None else baseline.rstrip("/")
    if len(set(names)) < max(2, len(names)):
        raise CompareError(f"Name at least two runs, each once; got {' '.join(names)}.")
    if first not in names:
        raise CompareError(f"The baseline {first} is none of the runs {' '.join(names)}.")
    runs = tuple(read_run(name, split) for name in sorted(names, key=lambda name: name != first))
    for run in runs[1:]:
        _check_same_clips(runs[0], run)
    return Comparison(
        split=split,
        runs=runs,
        differs_in=_differences([run.settings for run in runs]),
        pairs=_pairs(runs),
        methods=_methods(runs),
        differing=tuple(clip for clip in runs[0].labels if len({run.answers[clip] for run in runs}) > 1),
    )


def read_run(run_dir: str, split: str) -> EvaluatedRun:
    """Reads a run's settings and its evaluation.

    Raises:
      CompareError: it is no run, has no such evaluation, or their files are damaged or do not agree.
    """
    config_path, folder = Path(run_dir) / "config.json", Path(run_dir) / f"eval_{split}"
    try:
        settings = _flat(json.loads(config_path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CompareError(f"{run_dir} is no run: there is no {config_path}.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise CompareError(f"{config_path} cannot be read ({error}).") from None
    command = f"tools/evaluate.py --run_dir={run_dir} --data_dir={settings.get('data_dir')} --split={split}"
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        labels = {row["video_id"]: row["label"] for row in rows}
        answers = {row["video_id"]: row["predicted"] for row in rows}
        settings["views"] = metrics["views"]
        run = EvaluatedRun(run_dir, settings, metrics, labels, answers)
        belong = len(rows) == len(labels) == metrics["num_clips"]
        if not belong or abs(run.right.mean() - metrics["accuracy"]) > 1e-9:
            raise ValueError("metrics.json and predictions.csv do not agree")
    except FileNotFoundError as error:
        raise CompareError(f"There is no {error.filename}. Evaluate the run first: {command}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        raise CompareError(f"{folder} is damaged ({reason}). Evaluate the run again: {command}") from None
    return run


def text(comparison: Comparison) -> str:
    """The comparison as tables for a terminal."""
    first = comparison.runs[0]
    lines = [f"Runs on {comparison.split}, {len(first.labels)} clips:", ""]
    rows: list[Sequence[str]] = [("run", "accuracy", "95 % interval", "loss", "differs in")]
    for run, differs_in in zip(comparison.runs, comparison.differs_in, strict=True):
        metrics = run.metrics
        interval = _percents(metrics["accuracy_ci95"])
        rows.append((run.name, f"{metrics['accuracy']:.1%}", interval, f"{metrics['loss']:.3f}", differs_in))
    lines += _aligned(rows)
    lines += ["", f"Against {first.name}, clip by clip, in percentage points:", ""]
    rows = [
        ("run", "difference", "95 % interval", "only it right", "only the other", "p (McNemar)", "p (Holm)")
    ]
    for pair in comparison.pairs:
        interval, p_values = _points(*pair.interval), (f"{pair.p_value:.3g}", f"{pair.p_holm:.3g}")
        counts = (str(pair.only_run), str(pair.only_baseline))
        rows.append((pair.run, _points(pair.difference), interval, *counts, *p_values))
    lines += _aligned(rows if len(comparison.pairs) > 1 else [row[:-1] for row in rows])
    if comparison.methods:
        baseline = comparison.methods[0].name
        lines += ["", f"Methods, runs that differ only in the seed taken together; against {baseline}:", ""]
        rows = [("method", "runs", "mean", "lowest", "highest", "deviation", "difference", "95 % interval")]
        for method in comparison.methods:
            accuracies = (method.mean, min(method.accuracies), max(method.accuracies), method.deviation)
            rows.append(
                (
                    method.name,
                    str(len(method.runs)),
                    *("" if share is None else f"{share:.1%}" for share in accuracies),
                    "" if method.difference is None else _points(method.difference),
                    "" if method.interval is None else _points(*method.interval),
                )
            )
        lines += _aligned(rows)
    lines += ["", *notes(comparison)]
    answers = f"{len(comparison.differing)} of {len(first.labels)} clips get different answers."
    return "\n".join([*lines, answers])


def notes(comparison: Comparison) -> list[str]:
    """What the numbers cover and what they do not, a sentence or two each."""
    found = [
        "Intervals cover that other clips might have been in the split. They take clips as drawn "
        "independently; clips of one scene are not quite that, and the true intervals are wider.",
        "p-values and intervals of runs are about the models as they are, not about what other seeds would "
        "give.",
    ]
    if len(comparison.pairs) > 1:
        found.append("p (Holm) is corrected for the number of runs that are compared with the first.")
    if comparison.methods:
        found.append(
            "Intervals of methods are of the mean over their seeds, by 9,999 draws of the clips. The seeds "
            "stay as they are: that others would give other models is not covered; the deviation tells of it."
        )
    return found


def write(comparison: Comparison, output_dir: str) -> Path:
    """Writes `comparison.html`, and `differences.csv` with the clips of which runs say different things.

    Returns:
      The page.

    Raises:
      CompareError: the folder cannot be written.
    """
    folder, names = Path(output_dir), [run.name for run in comparison.runs]
    labels = comparison.runs[0].labels
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with shards.committed_csv(str(folder / "differences.csv"), ["video_id", "label", *names]) as writer:
            for clip in comparison.differing:
                answers = {run.name: run.answers[clip] for run in comparison.runs}
                writer.writerow({"video_id": clip, "label": labels[clip]} | answers)
        path = folder / "comparison.html"
        shards.write_text(
            str(path), page.render("compare.html.j2", comparison=comparison, notes=notes(comparison))
        )
    except OSError as error:
        raise CompareError(f"Cannot write {folder} ({error.strerror}). Give another --output_dir.") from error
    return path


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, by the binomial distribution.

    Were both equally good, each clip that one alone names right would be the one's or the other's with equal
    chance. Of the tests that Dietterich compares ("Approximate Statistical Tests for Comparing Supervised
    Classification Learning Algorithms", Neural Computation 1998) it is the one for models that are trained
    once. It speaks of the trained models, not of what another seed would have given.

    Args:
      only_first: clips that the first alone names right.
      only_second: clips that the second alone names right.
    """
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number: below 0.05 for all, one in twenty such families has a false one.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(scaled).clip(max=1)
    return corrected.tolist()


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> _Interval:
    """The 95 % interval of the difference of two accuracies on the same clips, first minus second.

    Newcombe, "Improved Confidence Intervals for the Difference between Binomial Proportions Based on Paired
    Data", Statistics in Medicine 1998, method 10: Wilson's intervals of the two, joined by their correlation.

    Args:
      both: clips that both name right.
      only_first: that the first alone does.
      only_second: that the second alone does.
      neither: that none does.
    """
    num_clips = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    below_first, above_first = _wilson_reach(first, num_clips)
    below_second, above_second = _wilson_reach(second, num_clips)
    spread = first * (num_clips - first) * second * (num_clips - second)
    product = both * neither - only_first * only_second
    # A positive correlation is corrected for continuity.
    corrected = max(product - num_clips / 2, 0) if product > 0 else product
    phi = corrected / sqrt(spread) if spread else 0.0
    difference = (only_first - only_second) / num_clips
    below = below_first**2 - 2 * phi * below_first * above_second + above_second**2
    above = above_first**2 - 2 * phi * above_first * below_second + below_second**2
    return difference - sqrt(max(below, 0)), difference + sqrt(max(above, 0))


def bootstrap_interval(first: np.ndarray, second: np.ndarray) -> _Interval:
    """The 95 % interval of the mean of `first - second`, by drawing clips with replacement (percentiles).

    It covers that other clips might have been in the split. It does not cover that other seeds might have
    been drawn: the runs stay as they are. Nor does it know that clips of one scene are alike.

    Args:
      first: float [N], the share of a method's runs that name each clip right.
      second: likewise of another method, on the same clips.
    """
    found = bootstrap(
        (first, second),
        lambda one, other, axis: (one - other).mean(axis=axis),
        paired=True,
        method="percentile",
        batch=100,
        random_state=0,
    ).confidence_interval
    return float(found.low), float(found.high)


def _percents(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:.1%} to {high:.1%}"


def _points(*differences: float) -> str:
    return " to ".join(f"{100 * difference:+.1f}" for difference in differences)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, the first its heading; words to the left and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_words = [name in ("run", "method", "differs in") for name in rows[0]]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_words, strict=True)
        ).rstrip()
        for row in rows
    ]


def _wilson_reach(num_right: int, num_clips: int) -> _Interval:
    """How far Wilson's interval reaches below and above the accuracy."""
    interval = binomtest(num_right, num_clips).proportion_ci(0.95, method="wilson")
    return num_right / num_clips - interval.low, interval.high - num_right / num_clips


def _check_same_clips(first: EvaluatedRun, second: EvaluatedRun) -> None:
    apart = sorted(first.labels.keys() ^ second.labels.keys())
    if apart:
        raise CompareError(
            f"{first.name} and {second.name} were evaluated on different videos: {len(apart)} are in one of "
            f"them only, such as {', '.join(apart[:_NAMED_CLIPS])}. Evaluate both on one dataset."
        )
    relabelled = [
        f"{clip} ({label} and {second.labels[clip]})"
        for clip, label in first.labels.items()
        if label != second.labels[clip]
    ]
    if relabelled:
        raise CompareError(
            f"{first.name} and {second.name} were evaluated with different labels for {len(relabelled)} "
            f"videos, such as {', '.join(relabelled[:_NAMED_CLIPS])}. Evaluate both on one dataset."
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _differences(runs: Sequence[Mapping[str, Any]], with_seed: bool = True) -> tuple[str, ...]:
    """Of each run the settings that are not alike in all of them, the seed last."""
    names = [name for settings in runs for name in settings if name not in _FREE]
    names = [*dict.fromkeys(names), *(["seed"] if with_seed else [])]
    unlike = [name for name in names if any(run.get(name) != runs[0].get(name) for run in runs)]
    known_by = {name: known for name, known in _KNOWN_BY.items() if len({run.get(known) for run in runs}) > 1}
    shown = [known_by.get(name, name) for name in unlike]
    return tuple(", ".join(f"{name}={run.get(name)}" for name in shown) for run in runs)


def _pairs(runs: Sequence[EvaluatedRun]) -> tuple[Pair, ...]:
    baseline = runs[0].right
    found = []
    for run in runs[1:]:
        right = run.right
        only_run, only_baseline = int((right & ~baseline).sum()), int((baseline & ~right).sum())
        both, neither = int((right & baseline).sum()), int((~right & ~baseline).sum())
        found.append((run.name, only_run, only_baseline, both, neither))
    p_values = [mcnemar(only_run, only_baseline) for _, only_run, only_baseline, _, _ in found]
    return tuple(
        Pair(
            run=name,
            difference=(only_run - only_baseline) / len(baseline),
            interval=paired_interval(both, only_run, only_baseline, neither),
            only_run=only_run,
            only_baseline=only_baseline,
            p_value=p_value,
            p_holm=p_holm,
        )
        for (name, only_run, only_baseline, both, neither), p_value, p_holm in zip(
            found, p_values, holm(p_values), strict=True
        )
    )


def _methods(runs: Sequence[EvaluatedRun]) -> tuple[Method, ...]:
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name not in _FREE}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    if len(groups) == len(runs):
        return ()
    names = _differences([group[0].settings for group in groups.values()], with_seed=False)
    shares = [np.mean([run.right for run in group], axis=0) for group in groups.values()]
    methods = []
    for name, group, share in zip(names, groups.values(), shares, strict=True):
        is_baseline = share is shares[0]
        methods.append(
            Method(
                name=name or "all runs",
                runs=tuple(run.name for run in group),
                accuracies=tuple(float(run.right.mean()) for run in group),
                difference=None if is_baseline else float((share - shares[0]).mean()),
                interval=None if is_baseline else bootstrap_interval(share, shares[0]),
            )
        )
    return tuple(methods)
