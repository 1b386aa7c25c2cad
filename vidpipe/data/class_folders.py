"""Reads the list of videos from folders that are named like the classes, perhaps inside folders of splits."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vidpipe.data.video_row import ManifestError, VideoRow, group_of, split_of
from vidpipe.data.video_tree import VideoTree, is_video_name

_log = logging.getLogger(__name__)
_OTHER_WAY = "or list the videos in a CSV file (train_manifest)"


def read_class_folders(video_dir: Path, tree: VideoTree) -> list[VideoRow]:
    """Reads `CLASS/video`, all of it train, or `train/CLASS/video`, `val/...` and `test/...`.

    A folder without videos is not a class.

    Raises:
      ManifestError: there is no class, a folder is named like a split among others that are not, or a link
        puts the videos of one class into another.
    """
    videos = [path for path in tree.files if is_video_name(path)]
    tops = sorted({PurePosixPath(path).parts[0] for path in videos if "/" in path})
    splits = _splits_of(video_dir, tops)
    rows, outside = [], []
    for path in videos:
        place = _place(path, splits)
        if place is None:
            outside.append(path)
            continue
        # File names need not be UTF-8, but the dataset's files are.
        name = path.encode(errors="backslashreplace").decode()
        split, label = (part.encode(errors="backslashreplace").decode() for part in place)
        rows.append(VideoRow(name, path, label, split, group_of(name, label)))
    if not rows:
        raise ManifestError(
            f"{video_dir} has no class folders with videos. Put the videos of each class into a folder, "
            f"{_OTHER_WAY}."
        )
    _check_no_splits_inside(video_dir, (row.path for row in rows))
    _check_links(tree, splits)
    if outside:
        _log.warning(
            "%d videos under %s are in no class folder and are left out, such as %s.",
            len(outside), video_dir, outside[0],
        )  # fmt: skip
    _report_other_files(video_dir, tree, splits)
    return rows


def _splits_of(video_dir: Path, tops: Iterable[str]) -> dict[str, str] | None:
    """Returns the split of each folder; None if the folders are classes."""
    splits = {name: split for name in tops if (split := split_of(name)) is not None}
    if not splits:
        return None
    others = sorted(set(tops) - set(splits))
    if others:
        raise ManifestError(
            f"{video_dir} has folders of splits ({', '.join(splits)}) beside other folders with videos "
            f"({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}). Put all classes into folders of "
            f"splits, move the others away, {_OTHER_WAY}."
        )
    for split, count in Counter(splits.values()).items():
        if count > 1:
            same = " and ".join(name for name in splits if splits[name] == split)
            raise ManifestError(
                f"{video_dir}: {same} are both named like the split {split}; keep one of them."
            )
    return splits


def _place(path: str, splits: dict[str, str] | None) -> tuple[str, str] | None:
    """Returns split and class of a file; None if it is in no class folder."""
    folders = PurePosixPath(path).parts[:-1]
    if splits is None:
        return ("train", folders[0]) if folders else None
    return (splits[folders[0]], folders[1]) if len(folders) > 1 and folders[0] in splits else None


def _check_no_splits_inside(video_dir: Path, videos: Iterable[str]) -> None:
    """Raises if a folder inside a class or a split is named like a split, as after unpacking twice."""
    for path in videos:
        outer, inner, *rest = PurePosixPath(path).parts
        if rest and split_of(inner) is not None:
            raise ManifestError(
                f"{video_dir}: {outer}/{inner} is named like a split but is inside {outer}. Splits come "
                f"before classes, as in {inner}/CLASS. Move the folders, choose video_dir="
                f"{video_dir / outer} if these are the splits, {_OTHER_WAY}."
            )


def _check_links(tree: VideoTree, splits: dict[str, str] | None) -> None:
    """Raises if a link leads from one class to the folder of another, or of another split."""
    for link, listed in tree.linked.items():
        place, other = (_place(f"{path}/video".lstrip("/"), splits) for path in (link, listed))
        if place is not None and other is not None and place != other:
            raise ManifestError(
                f"{link} is a link to {listed}: the same videos would be in {'/'.join(place)} and in "
                f"{'/'.join(other)}. Remove the link, {_OTHER_WAY}."
            )


def _report_other_files(video_dir: Path, tree: VideoTree, splits: dict[str, str] | None) -> None:
    """Logs folders that look like classes but contain no videos, and other files."""
    classes = {_place(path, splits) for path in tree.files if is_video_name(path)}
    files_of: dict[str, list[str]] = defaultdict(list)
    ignored = []
    for path in tree.files:
        if is_video_name(path):
            continue
        place = _place(path, splits)
        if place is None or place in classes:
            ignored.append(path)
        else:
            files_of["/".join(path.split("/")[: 1 if splits is None else 2])].append(path)
    for folder, paths in files_of.items():
        _log.warning(
            "%s contains no videos, so it is not a class; it has %d other files, such as %s.",
            folder, len(paths), paths[0],
        )  # fmt: skip
    if ignored:
        _log.warning(
            "%d files under %s are not videos and are ignored, such as %s.",
            len(ignored), video_dir, ignored[0],
        )  # fmt: skip
