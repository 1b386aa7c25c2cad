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

    A folder without videos is no class.

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
    if splits is None:
        _check_no_splits_inside(video_dir, videos)
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
    for path in videos:
        parts = PurePosixPath(path).parts
        if len(parts) > 2 and split_of(parts[1]) is not None:
            raise ManifestError(
                f"{video_dir}: {parts[0]}/{parts[1]} is named like a split, but {parts[0]} would be a class. "
                f"Splits come before classes, as in {parts[1]}/{parts[0]}. Move the folders, choose "
                f"video_dir={video_dir / parts[0]} if these are the splits, {_OTHER_WAY}."
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
    """Logs folders that look like classes but have no video, and other files."""
    classes = {_place(path, splits) for path in tree.files if is_video_name(path)}
    others = [path for path in tree.files if not is_video_name(path)]
    without: dict[str, list[str]] = defaultdict(list)
    for path in others:
        place = _place(path, splits)
        if place is not None and place not in classes:
            without[str(PurePosixPath(*PurePosixPath(path).parts[: 1 if splits is None else 2]))].append(path)
    for folder, paths in without.items():
        _log.warning(
            "%s has no video and is no class; it has %d other files, such as %s.",
            folder,
            len(paths),
            paths[0],
        )
    num_ignored = len(others) - sum(map(len, without.values()))
    if num_ignored:
        listed = {path for paths in without.values() for path in paths}
        first = next(path for path in others if path not in listed)
        _log.warning(
            "%d files under %s are not videos and are ignored, such as %s.", num_ignored, video_dir, first
        )
