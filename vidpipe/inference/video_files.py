"""Finds the videos that files, folders and patterns of a command line name."""

import glob
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from vidpipe.data.video_tree import FolderError, is_video_name, list_files


def find_videos(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Finds the videos that files, folders and patterns name.

    A file is taken whatever its suffix. A folder, or a pattern such as `clips/**/cam1*`, gives its files with
    the suffix of a video, sorted. Hidden files are left out. Each video comes once, also where links give it
    several names.

    Returns:
      The paths, in the order of the arguments; and for each argument without a video, why.
    """
    found: dict[str, None] = {}
    unmatched: dict[str, str] = {}
    for argument in arguments:
        if Path(argument).is_file():
            found[argument] = None
            continue
        is_folder = Path(argument).is_dir()
        try:
            videos = _in_folder(argument) if is_folder else _matching(argument)
        except FolderError as error:
            unmatched[argument] = str(error)
            continue
        if videos:
            found |= dict.fromkeys(videos)
        elif is_folder:
            unmatched[argument] = "no video in this folder"
        else:
            unmatched[argument] = "matches no video" if glob.has_magic(argument) else "no such file"
    return list(found), unmatched


def _in_folder(folder: str) -> list[str]:
    first: dict[object, str] = {}
    for path, file_id in list_files(folder).files.items():
        if is_video_name(path):
            first.setdefault(file_id or path, path)
    return [os.path.join(folder, path) for path in first.values()]  # noqa: PTH118


def _matching(pattern: str) -> list[str]:
    first: dict[str, str] = {}
    for path in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        if is_video_name(path) and Path(path).is_file():
            first.setdefault(os.path.realpath(path), path)
    return list(first.values())


def unique_names(paths: Iterable[str], *, taken: Iterable[str] = ()) -> list[str]:
    """Returns a unique file name without suffix for each video, none of those that are `taken`.

    It is the video's own name; if that is taken, with the name of its folder before it or a number after it.

    >>> unique_names(["a/x.avi", "b/x.avi", "b/x.mp4", "y.avi"])
    ['x', 'b_x', 'x_2', 'y']
    """
    names, reserved = dict[str, None](), set(taken)
    for path in map(Path, paths):
        with_folder = [f"{path.parent.name}_{path.stem}"] if path.parent.name else []
        numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
        choices = itertools.chain([path.stem], with_folder, numbered)
        names[next(name for name in choices if name not in names and name not in reserved)] = None
    return list(names)
