"""Compares several runs on the same clips: the differences of their accuracies, with intervals and tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from vidpipe.config import flatten
from vidpipe.errors import VidpipeError, first_line
from vidpipe.evaluation.significance import Interval, bootstrap_interval, holm, mcnemar, paired_interval
from vidpipe.storage import files
from vidpipe.training.run_folder import NOT_COMPARED, RunFolder, RunFolderError

# Settings that are digests, and the setting that is shown for each.
_SHOWN_AS = {"dataset": "data_dir", "start_weights": "init_from"}
_EVALUATION_SETTINGS = ("temporal_crops", "spatial_crops")
_NAMED_CLIPS = 3


class CompareError(VidpipeError):
    """Runs cannot be compared: one is not evaluated, or not on the same clips as the others."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """A run and its predictions for a split.

    Attributes:
      name: its folder, as it was given.
      settings: of the run, by names such as `model.head`, and of the evaluation.
      metrics: of the evaluation.
      labels: the true class of each clip by its video_id, in the order of the records.
      predictions: the predicted class of each clip by its video_id.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    labels: dict[str, str]
    predictions: dict[str, str]

    @property
    def is_correct(self) -> np.ndarray:
        """Which clips are classified correctly, sorted by video_id: bool [N]."""
        return np.array([self.predictions[clip] == self.labels[clip] for clip in sorted(self.labels)])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A run compared with the baseline, clip by clip.

    Attributes:
      run: its name.
      difference: of the accuracies; above 0 where the run is better than the baseline.
      interval: of the difference, from `paired_interval`.
      only_run: clips that only the run classifies correctly.
      only_baseline: clips that only the baseline classifies correctly.
      p_value: of `mcnemar`.
      p_holm: the same, corrected for the number of pairs.
    """

    run: str
    difference: float
    interval: Interval
    only_run: int
    only_baseline: int
    p_value: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Method:
    """Runs that differ only in their seed.

    Attributes:
      name: the settings in which it differs from other methods.
      runs: the names of its runs.
      accuracies: one per run.
      difference: of the mean accuracy to that of the baseline's method; None for the latter.
      interval: of the difference, from `bootstrap_interval`.
    """

    name: str
    runs: tuple[str, ...]
    accuracies: tuple[float, ...]
    difference: float | None
    interval: Interval | None

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation of the accuracies; None for a single run."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of several runs.

    Attributes:
      split: of the clips.
      runs: at least two; the first is the baseline.
      differs_in: for each run, the settings that are not equal in all runs.
      pairs: each other run compared with the baseline.
      methods: empty where no two runs differ only in the seed; the first is the baseline's.
      disagreements: the clips for which the predictions of the runs differ, in the order of the records.
    """

    split: str
    runs: tuple[EvaluatedRun, ...]
    differs_in: tuple[str, ...]
    pairs: tuple[Pair, ...]
    methods: tuple[Method, ...]
    disagreements: tuple[str, ...]


def compare(run_dirs: Sequence[str], *, split: str, baseline: str | None = None) -> Comparison:
    """Compares runs by the files that `evaluate.evaluate` wrote into them.

    Args:
      run_dirs: two or more.
      split: of the evaluations.
      baseline: one of the runs; None takes the first.

    Raises:
      CompareError: a run is given twice, not evaluated, or evaluated on other clips or with other labels; or
        the baseline is not one of the runs.
    """
    names = [name.rstrip("/") for name in run_dirs]
    first = names[0] if baseline is None else baseline.rstrip("/")
    if len(set(names)) < max(2, len(names)):
        raise CompareError(f"Give at least two runs, each once; got {' '.join(names)}.")
    if first not in names:
        raise CompareError(f"The baseline {first} is not one of the runs {' '.join(names)}.")
    runs = tuple(read_run(name, split) for name in sorted(names, key=lambda name: name != first))
    for run in runs[1:]:
        _check_same_clips(runs[0], run)
    return Comparison(
        split=split,
        runs=runs,
        differs_in=_differences([run.settings for run in runs]),
        pairs=_pairs(runs),
        methods=_methods(runs),
        disagreements=tuple(
            clip for clip in runs[0].labels if len({run.predictions[clip] for run in runs}) > 1
        ),
    )


def read_run(run_dir: str, split: str) -> EvaluatedRun:
    """Reads the settings of a run and its evaluation on a split.

    Raises:
      CompareError: it is not a run, has no such evaluation, or its files are corrupt or do not match.
    """
    run = RunFolder(Path(run_dir))
    try:
        settings = flatten(run.read_settings())
    except FileNotFoundError:
        raise CompareError(f"{run_dir} is not a run: there is no {run.settings}.") from None
    except RunFolderError as error:
        raise CompareError(str(error)) from None
    command = f"tools/evaluate.py --run_dir={run_dir} --data_dir={settings.get('data_dir')} --split={split}"
    folder = run.evaluation(split)
    try:
        metrics, rows = folder.read_metrics(), folder.read_predictions()
        evaluated = EvaluatedRun(
            name=run_dir,
            settings=settings | {name: metrics[name] for name in _EVALUATION_SETTINGS},
            metrics=metrics,
            labels={row["video_id"]: row["label"] for row in rows},
            predictions={row["video_id"]: row["predicted"] for row in rows},
        )
        changed = [
            path.name
            for path in (run.model, run.settings, folder.predictions)
            if path.exists() and files.sha256_of(path) != metrics["sha256"].get(path.name)
        ]
    except FileNotFoundError as error:
        raise CompareError(f"There is no {error.filename}. Evaluate the run first: {command}") from None
    except KeyError as error:
        raise CompareError(f"{folder.path} has no {error}. Evaluate the run again: {command}") from None
    except (OSError, ValueError, TypeError) as error:
        raise CompareError(
            f"{folder.path} is corrupt ({first_line(error)}). Evaluate the run again: {command}"
        ) from None
    if changed:
        raise CompareError(
            f"{run_dir}: {', '.join(changed)} changed after the evaluation. Evaluate the run again: {command}"
        )
    return evaluated


def _check_same_clips(first: EvaluatedRun, second: EvaluatedRun) -> None:
    in_one = sorted(first.labels.keys() ^ second.labels.keys())
    if in_one:
        raise CompareError(
            f"{first.name} and {second.name} were evaluated on different videos: {len(in_one)} are in only "
            f"one of them, such as {', '.join(in_one[:_NAMED_CLIPS])}. Evaluate both on the same dataset."
        )
    relabelled = [
        f"{clip} ({label} and {second.labels[clip]})"
        for clip, label in first.labels.items()
        if label != second.labels[clip]
    ]
    if relabelled:
        raise CompareError(
            f"{first.name} and {second.name} were evaluated with different labels for {len(relabelled)} "
            f"videos, such as {', '.join(relabelled[:_NAMED_CLIPS])}. Evaluate both on the same dataset."
        )


def _differences(runs: Sequence[Mapping[str, Any]], with_seed: bool = True) -> tuple[str, ...]:
    """Lists for each run the settings that are not equal in all of them, the seed last."""
    names = [name for settings in runs for name in settings if name not in NOT_COMPARED]
    names = [*dict.fromkeys(names), *(["seed"] if with_seed else [])]
    unequal = [name for name in names if any(run.get(name) != runs[0].get(name) for run in runs)]
    # Digests may differ where both settings are equal: the content of the folder has changed.
    shown_as = {name: shown for name, shown in _SHOWN_AS.items() if len({run.get(shown) for run in runs}) > 1}
    shown = [shown_as.get(name, name) for name in unequal]
    return tuple(", ".join(f"{name}={run.get(name)}" for name in shown) for run in runs)


def _pairs(runs: Sequence[EvaluatedRun]) -> tuple[Pair, ...]:
    baseline = runs[0].is_correct
    counts = []
    for run in runs[1:]:
        is_correct = run.is_correct
        both, only_run = int((is_correct & baseline).sum()), int((is_correct & ~baseline).sum())
        only_baseline, neither = int((baseline & ~is_correct).sum()), int((~is_correct & ~baseline).sum())
        counts.append((run.name, both, only_run, only_baseline, neither))
    p_values = [mcnemar(only_run, only_baseline) for _, _, only_run, only_baseline, _ in counts]
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
        for (name, both, only_run, only_baseline, neither), p_value, p_holm in zip(
            counts, p_values, holm(p_values), strict=True
        )
    )


def _methods(runs: Sequence[EvaluatedRun]) -> tuple[Method, ...]:
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name not in NOT_COMPARED}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    if len(groups) == len(runs):
        return ()
    names = _differences([group[0].settings for group in groups.values()], with_seed=False)
    # For each clip the fraction of a method's runs that classify it correctly.
    fractions = [np.mean([run.is_correct for run in group], axis=0) for group in groups.values()]
    baseline = fractions[0]
    methods = []
    for name, group, fraction in zip(names, groups.values(), fractions, strict=True):
        is_baseline = fraction is baseline
        methods.append(
            Method(
                name=name or "all runs",
                runs=tuple(run.name for run in group),
                accuracies=tuple(float(run.is_correct.mean()) for run in group),
                difference=None if is_baseline else float((fraction - baseline).mean()),
                interval=None if is_baseline else bootstrap_interval(fraction, baseline),
            )
        )
    return tuple(methods)
