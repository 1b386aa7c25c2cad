"""Reads the list of videos with their labels and splits: from UCF101 lists, CSV files or class folders.

Each of the three readers returns the same kind of rows, so the steps after them (checks, selection of
classes, validation split) are the same for all.
"""

import csv
import dataclasses
import logging
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vidpipe.config import SPLITS, ManifestConfig
from vidpipe.errors import VidpipeError

_log = logging.getLogger(__name__)
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".ts", ".webm", ".wmv",
))  # fmt: skip
_UCF101_NAME = re.compile(r"v_\w+_(g\d+)_c\d+\.\w+$")


class ManifestError(VidpipeError):
    """The list of videos is invalid, or does not agree with the folder."""


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One source video.

    Attributes:
      video_id: name in the manifest, a relative path with forward slashes; unique.
      path: path relative to video_dir; empty if the file was not found.
      label_name: name of the class.
      split: train, val or test.
      group: scene, actor or source; a group is never divided between train and val.
    """

    video_id: str
    path: str
    label_name: str
    split: str
    group: str


def read_manifest(config: ManifestConfig) -> list[VideoRow]:
    """Reads the list of videos, selects classes and assigns the validation split.

    Returns:
      Rows in the order of the manifest, including videos that are not under `video_dir`, with an empty path.

    Raises:
      ManifestError: a folder or file is missing, a row is malformed, a video is listed twice, a group is in
        both train and val, or a class has no training video.
    """
    video_dir = Path(config.video_dir)
    if not video_dir.is_dir():
        raise ManifestError(f"There is no folder {video_dir} (video_dir).")
    if config.ucf101_lists is not None:
        rows = _read_ucf101(Path(config.ucf101_lists), config.fold)
    elif config.train_manifest is not None:
        rows = _read_csv(Path(config.train_manifest), "train")
        if config.test_manifest is not None:
            rows += _read_csv(Path(config.test_manifest), "test")
    else:
        rows = _read_class_folders(video_dir)
    _check_rows(rows)
    rows = _choose_classes(rows, config)
    if config.ucf101_lists is not None or config.train_manifest is not None:
        rows = list(_locate(rows, video_dir))
    if not any(row.split == "val" for row in rows):
        rows = assign_validation(rows, val_fraction=config.val_fraction, seed=config.seed)
    _check_groups(rows)
    return rows


def class_names(rows: Iterable[VideoRow]) -> list[str]:
    """Lists the classes in alphabetical order; a label is an index into this list."""
    return sorted({row.label_name for row in rows})


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


def _read_ucf101(lists_dir: Path, fold: int) -> list[VideoRow]:
    """Reads trainlist0N.txt (`Class/v_Class_g08_c01.avi 1`) and testlist0N.txt (without the number)."""
    rows = []
    for split in ("train", "test"):
        path = lists_dir / f"{split}list{fold:02d}.txt"
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            # The class number is ignored: the folder names the class.
            name = line.split()[0] if line.split() else None
            if name is None:
                continue
            if len(PurePosixPath(name).parts) != 2:
                raise ManifestError(f"{path}:{number}: expected Class/video.avi, found {name!r}.")
            label = PurePosixPath(name).parts[0]
            rows.append(VideoRow(name, name, label, split, _group(name, label)))
    return rows


def _read_csv(path: Path, split: str) -> list[VideoRow]:
    """Reads a CSV file with the columns video_name, tag and optional group, split.

    Args:
      path: the file.
      split: split of the rows that name none.
    """
    reader = csv.DictReader(_read_text(path).splitlines())
    missing = {"video_name", "tag"} - set(reader.fieldnames or ())
    if missing:
        raise ManifestError(
            f"{path} needs the columns video_name and tag; found {', '.join(reader.fieldnames or ['none'])}."
        )
    rows = []
    for values in reader:
        where = f"{path}:{reader.line_num}"
        name, tag = (values["video_name"] or "").strip(), (values["tag"] or "").strip()
        if not name or not tag:
            raise ManifestError(f"{where}: video_name and tag must not be empty.")
        name = name.replace("\\", "/")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ManifestError(f"{where}: {name} is outside video_dir; give a path relative to it.")
        name = str(PurePosixPath(name))
        row_split = (values.get("split") or split).strip()
        if row_split not in SPLITS:
            raise ManifestError(f"{where}: split must be train, val or test; found {row_split!r}.")
        group = (values.get("group") or "").strip() or _group(name, tag)
        rows.append(VideoRow(name, name, tag, row_split, group))
    return rows


def _read_class_folders(video_dir: Path) -> list[VideoRow]:
    """Reads `Class/video`, all of it train, or `train/Class/video`, `val/...` and `test/...`."""
    folders = sorted(p.name for p in video_dir.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ManifestError(
            f"{video_dir} has no class folders. Create them, or list the videos with train_manifest=CSV."
        )
    has_splits = set(folders) <= set(SPLITS)
    rows, ignored = [], []
    for path in _files_under(video_dir):
        # File names need not be UTF-8, but the dataset's files are.
        name = path.encode(errors="backslashreplace").decode()
        parts = PurePosixPath(name).parts
        depth = 3 if has_splits else 2
        if len(parts) < depth or PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES:
            ignored.append(name)
            continue
        split, label = (parts[0], parts[1]) if has_splits else ("train", parts[0])
        rows.append(VideoRow(name, path, label, split, _group(name, label)))
    if ignored:
        _log.warning(
            "%d files under %s are not videos in a class folder and are ignored, such as %s.",
            len(ignored), video_dir, ignored[0],
        )  # fmt: skip
    return rows


def _check_rows(rows: list[VideoRow]) -> None:
    if not rows:
        raise ManifestError("The manifest lists no video.")
    seen: dict[str, VideoRow] = {}
    for row in rows:
        first = seen.setdefault(row.video_id, row)
        if first is not row:
            twice = (
                f"twice in {row.split}" if first.split == row.split else f"in {first.split} and {row.split}"
            )
            raise ManifestError(f"{row.video_id} is listed {twice}; list each video once.")
    trained = {row.label_name for row in rows if row.split == "train"}
    for row in rows:
        if row.label_name not in trained:
            raise ManifestError(
                f"{row.video_id} ({row.split}) has the class {row.label_name}, which has no training video. "
                "List training videos of this class, or leave the class out."
            )


def _check_groups(rows: Iterable[VideoRow]) -> None:
    """Raises if a group is in both train and val; logs a warning if a group is also in test."""
    first: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        first[row.group].setdefault(row.split, row.video_id)
    for group, videos in first.items():
        if {"train", "val"} <= set(videos):
            raise ManifestError(
                f"Group {group} is in train ({videos['train']}) and in val ({videos['val']}). Move all its "
                "videos to one split, or list no val videos: then whole groups are held out. The column "
                "group of a CSV file overrides the groups."
            )
    tested = [group for group, videos in first.items() if "test" in videos and len(videos) > 1]
    if tested:
        _log.warning(
            "%d groups are in test and also in train or val, such as %s: the test accuracy will be too high.",
            len(tested), tested[0],
        )  # fmt: skip


def _choose_classes(rows: list[VideoRow], config: ManifestConfig) -> list[VideoRow]:
    counts = Counter(row.label_name for row in rows if row.split == "train")
    if config.classes is not None:
        unknown = sorted(set(config.classes) - set(counts))
        if unknown:
            raise ManifestError(
                f"There is no class {', '.join(unknown)}; the classes are {', '.join(sorted(counts))}."
            )
        chosen = set(config.classes)
    elif config.top_classes is not None:
        if config.top_classes > len(counts):
            raise ManifestError(f"top_classes={config.top_classes}, but there are {len(counts)} classes.")
        # Among classes of equal size the later name wins, as in the keras-io subset of UCF101: of two classes
        # with 117 videos it has TennisSwing, not PlayingGuitar. So results are comparable.
        ranked = sorted(counts, key=lambda name: (counts[name], name), reverse=True)
        chosen = set(ranked[: config.top_classes])
    else:
        return rows
    return [row for row in rows if row.label_name in chosen]


def _locate(rows: list[VideoRow], video_dir: Path) -> Iterator[VideoRow]:
    """Sets the path of each row to a file with its name, perhaps in another case, or without its folder."""
    files = list(_files_under(video_dir))
    exact = set(files)
    # setdefault over sorted names: among files that differ only in case, the choice is always the same.
    lowercase: dict[str, str] = {}
    for path in files:
        lowercase.setdefault(path.lower(), path)
    differing_in_case: list[tuple[str, str]] = []
    video_of: dict[str, str] = {}
    for row in rows:
        flat = PurePosixPath(row.video_id).name
        found = row.video_id if row.video_id in exact else flat if flat in exact else None
        if found is None:
            found = lowercase.get(row.video_id.lower()) or lowercase.get(flat.lower()) or ""
            if found:
                differing_in_case.append((row.video_id, found))
        if found and video_of.setdefault(found, row.video_id) != row.video_id:
            raise ManifestError(
                f"{video_of[found]} and {row.video_id} are the same file {found}; list it once."
            )
        yield dataclasses.replace(row, path=found)
    if differing_in_case:
        listed, found = differing_in_case[0]
        _log.warning(
            "%d videos were found under a name in another case, such as %s -> %s.",
            len(differing_in_case), listed, found,
        )  # fmt: skip


def _files_under(folder: Path) -> Iterator[str]:
    """Lists relative paths with forward slashes, sorted, without hidden files.

    Links to folders are followed, except those that lead to a folder above themselves: they would never end.
    """
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        above = {real, *real.parents}
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(parent, name).resolve() not in above
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _group(video_id: str, label: str) -> str:
    """Returns the group of a UCF101 file name, which is specific to its class; otherwise the video itself."""
    match = _UCF101_NAME.search(video_id)
    return f"{label}/{match.group(1)}" if match else video_id


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}.") from None
