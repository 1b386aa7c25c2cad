"""Lists the files below a folder of videos: every file, and each folder once."""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vidpipe.errors import VidpipeError

VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".ogm", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv",
))  # fmt: skip
# Folders that NAS devices, Windows, macOS and ext4 put among the videos: thumbnails, deleted files, remains.
_SYSTEM_FOLDERS = frozenset((
    "$recycle.bin", "@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "lost+found",
    "system volume information",
))  # fmt: skip

# Device and inode: what a file is, whatever it is called.
FileId = tuple[int, int]


class FolderError(VidpipeError):
    """A folder cannot be listed."""


@dataclass(frozen=True)
class VideoTree:
    """The files below a folder, without hidden ones and those in folders of the system.

    Attributes:
      files: for each relative path, with forward slashes and in sorted order, what file it is; None for a
        link that leads nowhere.
      linked: for each link to a folder that is listed anyway, the path under which it is listed. "" is the
        folder itself, or one above it.
    """

    files: dict[str, FileId | None]
    linked: dict[str, str]


def is_video_name(name: str) -> bool:
    """Whether a file name ends like a video's."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def list_files(folder: str | os.PathLike[str], *, left_out: Iterable[str] = ()) -> VideoTree:
    """Lists the files below a folder.

    Links to folders are followed, but each folder is listed once: under its own name if it is below
    `folder`, otherwise under the first of its links.

    Args:
      folder: the folder.
      left_out: folders below it that are not listed.

    Raises:
      FolderError: it, or a folder below it, cannot be listed.
    """
    ignored = {os.path.realpath(each) for each in left_out}
    root = Path(folder).resolve()
    files: dict[str, FileId | None] = {}
    linked: dict[str, str] = {}
    listed: dict[FileId, str] = {}
    links, pending = deque([""]), list[str]()
    while links or pending:
        # Folders under their own names come first, so that these are the names that are kept.
        path = pending.pop() if pending else links.popleft()
        here = Path(folder, path)
        if root.is_relative_to(here.resolve()) and path:
            linked[path] = ""
            continue
        try:
            first = listed.setdefault(_file_id(here.stat()), path)
            if first != path:
                linked[path] = first
                continue
            with os.scandir(here) as entries:
                for entry in entries:
                    name = f"{path}/{entry.name}" if path else entry.name
                    if entry.name.startswith("."):
                        continue
                    try:
                        state = entry.stat()
                    except OSError as error:
                        if error.errno not in (errno.ENOENT, errno.ELOOP):
                            raise
                        files[name] = None
                        continue
                    if stat.S_ISREG(state.st_mode):
                        files[name] = _file_id(state)
                    elif not stat.S_ISDIR(state.st_mode):
                        continue  # a pipe, socket or device
                    elif entry.name.lower() not in _SYSTEM_FOLDERS and os.path.realpath(entry) not in ignored:
                        (links if entry.is_symlink() else pending).append(name)
        except OSError as error:
            raise FolderError(
                f"{here} cannot be listed: {error.strerror}. Change its permissions, or move it elsewhere."
            ) from error
    return VideoTree(dict(sorted(files.items())), dict(sorted(linked.items())))


def _file_id(state: os.stat_result) -> FileId:
    return state.st_dev, state.st_ino
