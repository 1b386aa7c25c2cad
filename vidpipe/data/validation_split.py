"""Holds out videos for validation: stratified by class, whole groups at a time."""

import dataclasses
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from vidpipe.data.video_row import VideoRow

_log = logging.getLogger(__name__)


def assign_validation(rows: Sequence[VideoRow], *, val_fraction: float, seed: int) -> list[VideoRow]:
    """Moves about `val_fraction` of the train rows to `val`, stratified by class, whole groups at a time.

    scikit-learn's stratified splitters distribute the groups over k = 1 / val_fraction folds; one fold
    becomes `val`. If a class has fewer than k groups, not every fold can hold it, so a k of the smallest
    class's number of groups is tried as well. The fold whose fraction of each class is nearest to
    `val_fraction` is chosen.

    Args:
      rows: rows of any split; only train rows can be moved.
      val_fraction: in [0, 1).
      seed: seed of the splitter. The result does not depend on the order of the rows.
    """
    train = sorted((row for row in rows if row.split == "train"), key=lambda row: row.video_id)
    if val_fraction == 0 or not train:
        return list(rows)
    labels = np.array([row.label_name for row in train])
    groups = np.array([row.group for row in train])
    fold = _validation_fold(labels, groups, val_fraction=val_fraction, seed=seed)
    held_out = {train[index].video_id for index in fold}
    missing = sorted(set(labels) - {row.label_name for row in train if row.video_id in held_out})
    if missing:
        _log.warning("No validation clip for %s: too few groups.", ", ".join(missing))
    actual = len(held_out) / len(train)
    # A fold cannot be nearer than one clip of each class.
    if abs(actual - val_fraction) > max(val_fraction / 2, len(set(labels)) / len(train)):
        _log.warning(
            "%.0f %% of the training videos are held out for validation instead of %.0f %%: the groups are "
            "too few or too unequal.", 100 * actual, 100 * val_fraction,
        )  # fmt: skip
    return [dataclasses.replace(row, split="val") if row.video_id in held_out else row for row in rows]


def _validation_fold(labels: np.ndarray, groups: np.ndarray, *, val_fraction: float, seed: int) -> np.ndarray:
    """Returns the indices of the validation rows: int64 [n]."""
    # Imported here because it takes a second, and neither decoding processes nor --help need it.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    ungrouped = len(set(groups)) == len(groups)
    groups_of: dict[str, set[str]] = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        groups_of[label].add(group)
    group_counts = [len(class_groups) for class_groups in groups_of.values()]
    wanted = max(2, round(1 / val_fraction))
    fold_counts = {min(wanted, max(group_counts)), min(wanted, min(group_counts))} - {1}
    if not fold_counts:
        return np.array([], np.int64)
    class_sizes = Counter(labels.tolist())

    def distance(fold: np.ndarray) -> float:
        num_held_out = Counter(labels[fold].tolist())
        total = 0.0
        for name, size in class_sizes.items():
            if num_held_out[name] == 0:
                total += 0.5  # worse than holding out up to half of the class
            elif num_held_out[name] == size:
                total += len(class_sizes)  # the class could not be learned: worse than everything else
            else:
                total += abs(num_held_out[name] / size - val_fraction)
        return total

    best = np.array([], np.int64)
    for count in sorted(fold_counts, reverse=True):
        # If every video is its own group, the ungrouped splitter does the same thousands of times faster.
        splitter = (StratifiedKFold if ungrouped else StratifiedGroupKFold)(
            count, shuffle=True, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about small classes; the caller reports them
            folds = list(splitter.split(labels, labels, None if ungrouped else groups))
        best = min([best, *(fold for _, fold in folds)], key=distance)
    return best
