"""Reads the list of videos with their labels and splits: from UCF101 lists, CSV files or class folders.

Each of the three readers returns the same kind of rows, so the steps after them (selection of classes, files,
validation split, checks) are the same for all.
"""

import dataclasses
import io
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from vidpipe.config import SPLITS, ManifestConfig
from vidpipe.data.background import Measure, add_background
from vidpipe.data.class_folders import read_class_folders
from vidpipe.data.manifest_csv import read_csv, read_text
from vidpipe.data.validation_split import assign_validation
from vidpipe.data.video_row import ManifestError, VideoRow, group_of, same_name
from vidpipe.data.video_tree import FileId, VideoTree, list_files

_log = logging.getLogger(__name__)
# Unicode's categories of control characters, and of separators of lines and paragraphs.
_UNWRITABLE = ("Cc", "Zl", "Zp")


def read_manifest(
    config: ManifestConfig, *, left_out: Sequence[str] = (), measure: Measure | None = None
) -> list[VideoRow]:
    """Reads the list of videos, selects classes, adds background and assigns the validation split.

    Args:
      config: which videos.
      left_out: folders below `video_dir` that are not searched, such as the output folder.
      measure: gives the lengths of videos; needed for background clips.

    Returns:
      Rows in the order of the manifest, including videos that are not under `video_dir`, with an empty path.

    Raises:
      ManifestError: a folder or file is missing, a row is malformed, a video is listed twice or is in two
        classes or splits, moments contradict each other, a group is in both train and val, or fewer than two
        classes have training videos.
      FolderError: a folder cannot be listed.
    """
    video_dir = Path(config.video_dir)
    if not video_dir.is_dir():
        raise ManifestError(f"There is no folder {video_dir} (video_dir).")
    tree = list_files(video_dir, left_out=left_out)
    if config.ucf101_lists is not None:
        rows = _read_ucf101(Path(config.ucf101_lists), config.fold)
    elif config.train_manifest is not None:
        rows = read_csv(Path(config.train_manifest), "train")
        if config.test_manifest is not None:
            rows += read_csv(Path(config.test_manifest), "test")
    else:
        rows = read_class_folders(video_dir, tree)
    _check_listed_once(rows)
    _check_moments(rows)
    listed = rows
    rows = _choose_classes(rows, config)
    _check_names(rows)
    if config.ucf101_lists is not None or config.train_manifest is not None:
        rows = list(_locate(rows, tree, is_flat=config.ucf101_lists is not None))
    rows = _with_common_groups(_with_listed_splits(rows), tree.files)
    if config.background is not None:
        assert measure is not None
        rows = add_background(
            rows,
            listed,
            measure,
            name=config.background,
            ratio=config.background_ratio,
            margin_sec=config.background_margin_sec,
            seed=config.seed,
        )
    _check_classes(rows, video_dir)
    if not any(row.split == "val" for row in rows):
        rows = assign_validation(rows, val_fraction=config.val_fraction, seed=config.seed)
    _check_groups(rows)
    return rows


def class_names(rows: Iterable[VideoRow]) -> list[str]:
    """Lists the classes of the videos that exist, sorted; a label is an index into this list."""
    return sorted({row.label_name for row in rows if row.path})


def _read_ucf101(lists_dir: Path, fold: int) -> list[VideoRow]:
    """Reads trainlist0N.txt (`Class/v_Class_g08_c01.avi 1`) and testlist0N.txt (without the number)."""
    rows = []
    for split in ("train", "test"):
        path = lists_dir / f"{split}list{fold:02d}.txt"
        for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
            if not line.strip():
                continue
            # The class number is ignored: the folder names the class.
            name, *numbers = line.split()
            is_numbered = len(numbers) <= 1 and all(text.isdecimal() for text in numbers)
            if len(PurePosixPath(name).parts) != 2 or not is_numbered:
                raise ManifestError(
                    f"{path}:{number}: expected Class/video.avi, perhaps with a class number, found "
                    f"{line.strip()!r}. Other lists can be given as CSV files (train_manifest)."
                )
            label = PurePosixPath(name).parts[0]
            rows.append(VideoRow(name, name, label, split, group_of(name, label)))
    return rows


def _check_listed_once(rows: Sequence[VideoRow]) -> None:
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


def _check_moments(rows: Sequence[VideoRow]) -> None:
    """Raises if the rows of one video contradict each other."""
    of_video: dict[str, list[VideoRow]] = defaultdict(list)
    for row in rows:
        of_video[row.video].append(row)
    for name, listed in of_video.items():
        if all(row.moment is None for row in listed):
            continue
        moments = [(row.moment, row) for row in listed if row.moment is not None]
        if len(moments) < len(listed):
            (whole, *_) = (row for row in listed if row.moment is None)
            raise ManifestError(
                f"{whole.listed_at}: {name} is listed as a whole, and with moments at "
                f"{moments[0][1].listed_at}. Give all of its rows times, or none."
            )
        if len({moment.in_frames for moment, _ in moments}) > 1:
            (other, *_) = (row for moment, row in moments if moment.in_frames != moments[0][0].in_frames)
            raise ManifestError(
                f"{other.listed_at}: the times of {name} are in seconds in some rows and in frames in "
                "others. Use one of them for a video."
            )
        moments.sort(key=lambda each: each[0].start)
        latest = moments[0]  # of those that have begun, the one that ends last
        for moment, row in moments[1:]:
            if moment.overlaps(latest[0]) and row.label_name != latest[1].label_name:
                raise ManifestError(
                    f"{row.listed_at}: {row.label_name}, {moment.span}, overlaps {latest[1].label_name}, "
                    f"{latest[0].span}, of {latest[1].listed_at} in {name}. A moment has one class: correct "
                    "the times, or leave one out."
                )
            latest = max(latest, (moment, row), key=lambda each: each[0].end)


def _check_names(rows: Sequence[VideoRow]) -> None:
    """Raises if a name cannot be written to a line of text; warns of classes that look like a formula."""
    for row in rows:
        for what, name in (("class", row.label_name), ("video", row.video_id), ("group", row.group)):
            # Joiners of some scripts are not printable, but harmless.
            if not name.isprintable() and any(unicodedata.category(each) in _UNWRITABLE for each in name):
                raise ManifestError(
                    f"The name of the {what} {name!a} has a line break, a control character, or bytes "
                    "that are not UTF-8. Rename it."
                )
    formulas = sorted({row.label_name for row in rows if row.label_name.startswith(("=", "+", "-", "@"))})
    if formulas:
        _log.warning(
            "Spreadsheets take the name of the class %s for a formula; read tables of it by programs only.",
            ", ".join(formulas),
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


def _locate(rows: Iterable[VideoRow], tree: VideoTree, *, is_flat: bool) -> Iterator[VideoRow]:
    """Sets the path of each row to the file with its name, perhaps in another case or Unicode normalization.

    Args:
      rows: rows whose `path` is not known yet.
      tree: the files.
      is_flat: whether a file may also lie in the top folder, without the folder of its class.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for path in tree.files:
        alike[same_name(path)].append(path)

    def find(name: str) -> str | None:
        if name in tree.files:
            return name
        found = alike.get(same_name(name), [])
        if len(found) > 1:
            raise ManifestError(
                f"There is no {name}, but {' and '.join(found)} differ from it only in case or Unicode "
                "normalization: list the one that is meant."
            )
        return found[0] if found else None

    renamed: dict[str, str] = {}
    video_of: dict[str, str] = {}
    for row in rows:
        base = PurePosixPath(row.video).name
        found = find(row.video) or (find(base) if is_flat else None)
        if found is not None and video_of.setdefault(found, row.video) != row.video:
            raise ManifestError(f"{video_of[found]} and {row.video} are the same file {found}; list it once.")
        if found is not None and found not in (row.video, base):
            renamed[row.video] = found
        yield dataclasses.replace(row, path=found or "")
    if renamed:
        listed, path = next(iter(renamed.items()))
        _log.warning(
            "%d videos were found under a name in another case or Unicode normalization, such as %s -> %s.",
            len(renamed), listed, path,
        )  # fmt: skip


def _with_listed_splits(rows: Sequence[VideoRow]) -> list[VideoRow]:
    """Divides the group of a video whose moments the list itself has in train and in val; logs a warning."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.moment is not None and row.group == row.video:
            splits[row.video].add(row.split)
    divided = sorted(name for name, found in splits.items() if {"train", "val"} <= found)
    if divided:
        _log.warning(
            "Moments of %d videos are in train and in val, as listed, such as %s: the validation accuracy "
            "will be too high.", len(divided), divided[0],
        )  # fmt: skip
    return [
        dataclasses.replace(row, group=f"{row.group} ({row.split})")
        if row.group in divided and row.split in ("train", "val")
        else row
        for row in rows
    ]


def _with_common_groups(rows: Sequence[VideoRow], files: dict[str, FileId | None]) -> list[VideoRow]:
    """Gives names of the same file, which links make, the same group.

    Raises:
      ManifestError: a file is in two classes or splits.
    """
    first: dict[FileId, VideoRow] = {}
    result, repeated = [], []
    for row in rows:
        file_id = files.get(row.path)
        other = row if file_id is None else first.setdefault(file_id, row)
        is_whole = row.moment is None and other.moment is None
        if is_whole and (other.label_name, other.split) != (row.label_name, row.split):
            raise ManifestError(
                f"{other.path} ({other.label_name}, {other.split}) and {row.path} ({row.label_name}, "
                f"{row.split}) are the same file. A video has one class and one split: remove the link or "
                "the row."
            )
        if is_whole and other is not row:
            repeated.append((other.path, row.path))
        group = row.group if row.video == other.video else other.group
        result.append(dataclasses.replace(row, group=group))
    if repeated:
        _log.warning(
            "%d videos are links to others of their class, such as %s and %s, and count twice.",
            len(repeated), *repeated[0],
        )  # fmt: skip
    return result


def _check_classes(rows: Sequence[VideoRow], video_dir: Path) -> None:
    """Raises unless there are two classes at least, and all of them have training videos."""
    found = [row for row in rows if row.path]
    if not found:
        raise ManifestError(
            f"None of the {len(rows)} listed videos is under {video_dir}, such as {rows[0].video_id}. "
            "Correct video_dir or the names."
        )
    trained = {row.label_name for row in found if row.split == "train"}
    for row in found:
        if row.label_name not in trained:
            raise ManifestError(
                f"{row.video_id} ({row.split}) has the class {row.label_name}, which has no training video. "
                "List training videos of this class, or leave the class out."
            )
    lost = Counter(row.label_name for row in rows if row.label_name not in trained)
    for name, count in sorted(lost.items()):
        _log.warning("None of the %d videos of the class %s exists; the class is left out.", count, name)
    if len(trained) < 2:
        (only,) = trained
        inside = sorted({row.path.split("/")[1] for row in found if row.path.count("/") > 1})
        hint = (
            f" If {', '.join(inside[:3])} are the classes, choose the folder above them as video_dir."
            if len(inside) > 1
            else ""
        )
        raise ManifestError(f"There is only one class, {only}; a classifier needs two.{hint}")
    alike = defaultdict(list)
    for name in sorted(trained):
        alike[same_name(name.strip())].append(name)
    for names in alike.values():
        if len(names) > 1:
            _log.warning("The classes %s differ only in case or Unicode normalization.", " and ".join(names))
    for split in SPLITS:
        there = {row.label_name for row in found if row.split == split}
        if there and trained - there:
            _log.warning("No %s video of the class %s.", split, ", ".join(sorted(trained - there)))


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
