"""Which videos, with which label, in which split: UCF101 lists, CSV files or class folders.

Three readers give the same rows; what follows (choosing classes, holding out a validation split) does
not know where they came from.
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

from vidpipe.config import ManifestConfig
from vidpipe.spec import SPLITS, VidpipeError

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
    ]
)
_UCF101_NAME = re.compile(r"v_\w+_(g\d+)_c\d+\.\w+$")
_log = logging.getLogger(__name__)


class ManifestError(VidpipeError):
    """The list of videos contradicts itself or the folder."""


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One source video.

    Attributes:
      video_id: its name in the manifest, a relative path with forward slashes; unique.
      path: where it lies, relative to video_dir. Empty when it was not found.
      label_name: its class.
      split: train, val or test.
      group: videos of one group (scene, actor, source) never part between train and val.
    """

    video_id: str
    path: str
    label_name: str
    split: str
    group: str


def read_manifest(config: ManifestConfig) -> list[VideoRow]:
    """Reads, filters and splits the list of videos.

    Returns:
      Rows in the manifest's order. Videos that are not under `video_dir` are among them, with an empty path.

    Raises:
      ManifestError: a folder or file is missing, a row is malformed, a video is listed twice, a group is put
        into both train and val, or the test side has a class that the train side lacks.
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
        rows = assign_validation(rows, config.val_fraction, config.seed)
    _check_groups(rows)
    return rows


def class_names(rows: Iterable[VideoRow]) -> list[str]:
    """The ordered class list: a label's index is its place here."""
    return sorted({row.label_name for row in rows})


def assign_validation(rows: Sequence[VideoRow], val_fraction: float, seed: int) -> list[VideoRow]:
    """Moves about `val_fraction` of the train rows to `val`, stratified by class, whole groups at a time.

    scikit-learn's stratified splitters deal the groups into k folds; one fold becomes `val`. Where a class
    has fewer than 1/val_fraction groups, k folds of that size cannot all hold it, so the coarsest useful k
    is tried too, and the fold whose share of each class is nearest to `val_fraction` wins.

    Args:
      rows: any splits; only train rows can move.
      val_fraction: in [0, 1).
      seed: the split depends on it and on the rows, not on their order.
    """
    train = sorted((row for row in rows if row.split == "train"), key=lambda row: row.video_id)
    if val_fraction == 0 or not train:
        return list(rows)
    labels = np.array([row.label_name for row in train])
    groups = np.array([row.group for row in train])
    held_out = {train[i].video_id for i in _validation_fold(labels, groups, val_fraction, seed)}
    missing = sorted(set(labels) - {row.label_name for row in train if row.video_id in held_out})
    if missing:
        _log.warning("No validation clip for %s: too few groups to share.", ", ".join(missing))
    return [dataclasses.replace(row, split="val") if row.video_id in held_out else row for row in rows]


def _validation_fold(labels: np.ndarray, groups: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    # Imported here: it takes a second, and decoding workers and --help have no use for it.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    ungrouped = len(set(groups)) == len(groups)
    groups_of: dict[str, set[str]] = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        groups_of[label].add(group)
    group_counts = [len(members) for members in groups_of.values()]
    wanted = max(2, round(1 / val_fraction))
    fold_counts = {min(wanted, max(group_counts)), min(wanted, min(group_counts))} - {1}
    if not fold_counts:
        return np.array([], np.int64)
    class_sizes = Counter(labels.tolist())

    def distance(fold: np.ndarray) -> float:
        taken = Counter(labels[fold].tolist())
        total = 0.0
        for name, size in class_sizes.items():
            if taken[name] == 0:
                total += 0.5  # no clip of a class is worse than any share that leaves half of it
            elif taken[name] == size:
                total += len(class_sizes)  # what is wholly held out could not be learned: worse than all
            else:
                total += abs(taken[name] / size - val_fraction)
        return total

    best = np.array([], np.int64)
    for count in sorted(fold_counts, reverse=True):
        # The ungrouped splitter does the same thousands of times faster where every video is its own group.
        splitter = (StratifiedKFold if ungrouped else StratifiedGroupKFold)(
            count, shuffle=True, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of small classes, which our caller names
            folds = list(splitter.split(labels, labels, None if ungrouped else groups))
        best = min([best, *(fold for _, fold in folds)], key=distance)
    return best


def _read_ucf101(lists_dir: Path, fold: int) -> list[VideoRow]:
    """Reads trainlist0N.txt (`Class/v_Class_g08_c01.avi 1`) and testlist0N.txt (the same, without number)."""
    rows = []
    for split in ("train", "test"):
        path = lists_dir / f"{split}list{fold:02d}.txt"
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            # The class number is left alone: it starts at 1, and the folder says the class.
            name = line.split()[0] if line.split() else None
            if name is None:
                continue
            if len(PurePosixPath(name).parts) != 2:
                raise ManifestError(f"{path}:{number}: expected Class/video.avi, found {name!r}.")
            label = PurePosixPath(name).parts[0]
            rows.append(VideoRow(name, name, label, split, _group(name, label)))
    return rows


def _read_csv(path: Path, split: str) -> list[VideoRow]:
    """Reads a CSV with columns video_name, tag and optional group, split (which overrides `split`)."""
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
            raise ManifestError(f"{where}: {name} leaves video_dir; paths are relative to it.")
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
        raise ManifestError(f"{video_dir} has no class folders. Name the classes with train_manifest=CSV.")
    has_splits = set(folders) <= set(SPLITS)
    rows, ignored = [], []
    for path in _files_under(video_dir):
        # A file's name need not be UTF-8; what is written down must be.
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
            "%d files under %s are not videos in a class folder and are left out, as %s.",
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
            sides = (
                f"in {row.split} twice" if first.split == row.split else f"in {first.split} and {row.split}"
            )
            raise ManifestError(f"{row.video_id} is listed {sides}; a video can be in one place only.")
    trained = {row.label_name for row in rows if row.split == "train"}
    for row in rows:
        if row.label_name not in trained:
            raise ManifestError(
                f"{row.video_id} ({row.split}) has the class {row.label_name}, which has no training video."
            )


def _check_groups(rows: Iterable[VideoRow]) -> None:
    """Refuses a group in both train and val; one in test too is the list's maker's business, but is told."""
    first: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        first[row.group].setdefault(row.split, row.video_id)
    for group, videos in first.items():
        if {"train", "val"} <= set(videos):
            raise ManifestError(
                f"Group {group} is in train ({videos['train']}) and in val ({videos['val']}). Put it into "
                "one, or list no val videos: then whole groups are chosen. A CSV may say other groups."
            )
    tested = [group for group, videos in first.items() if "test" in videos and len(videos) > 1]
    if tested:
        _log.warning(
            "%d groups are in test and in train or val, as %s: expect too high a test accuracy.",
            len(tested), tested[0],
        )  # fmt: skip


def _choose_classes(rows: list[VideoRow], config: ManifestConfig) -> list[VideoRow]:
    counts = Counter(row.label_name for row in rows if row.split == "train")
    if config.classes is not None:
        unknown = sorted(set(config.classes) - set(counts))
        if unknown:
            raise ManifestError(
                f"There is no class {', '.join(unknown)}; there are {', '.join(sorted(counts))}."
            )
        chosen = set(config.classes)
    elif config.top_classes is not None:
        if config.top_classes > len(counts):
            raise ManifestError(f"top_classes={config.top_classes}, but there are {len(counts)} classes.")
        # Of equals the later name goes first, as in the keras-io subset of UCF101: at 117 videos each it
        # took TennisSwing and left PlayingGuitar. Any fixed rule would do; this one keeps results comparable.
        ranked = sorted(counts, key=lambda name: (counts[name], name), reverse=True)
        chosen = set(ranked[: config.top_classes])
    else:
        return rows
    return [row for row in rows if row.label_name in chosen]


def _locate(rows: list[VideoRow], video_dir: Path) -> Iterator[VideoRow]:
    """Finds each row's file: under its own name, in other case, or flat in video_dir without its folder."""
    files = list(_files_under(video_dir))
    exact = set(files)
    # setdefault over sorted names: the choice among files that differ in case alone never varies.
    folded: dict[str, str] = {}
    for path in files:
        folded.setdefault(path.lower(), path)
    recased: list[tuple[str, str]] = []
    taken: dict[str, str] = {}
    for row in rows:
        flat = PurePosixPath(row.video_id).name
        found = row.video_id if row.video_id in exact else flat if flat in exact else None
        if found is None:
            found = folded.get(row.video_id.lower()) or folded.get(flat.lower()) or ""
            if found:
                recased.append((row.video_id, found))
        if found and taken.setdefault(found, row.video_id) != row.video_id:
            raise ManifestError(f"{taken[found]} and {row.video_id} are both the file {found}.")
        yield dataclasses.replace(row, path=found)
    if recased:
        _log.warning("%d videos matched by ignoring case, as %s -> %s.", len(recased), *recased[0])


def _files_under(folder: Path) -> Iterator[str]:
    """Relative paths with forward slashes, sorted, without hidden files. Links are followed, not back up."""
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
    """UCF101's group, by its file name (group 8 of two classes is two groups); else the video by itself."""
    match = _UCF101_NAME.search(video_id)
    return f"{label}/{match.group(1)}" if match else video_id


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}.") from None
