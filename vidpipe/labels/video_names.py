"""Finds the video below a folder that a label file names by a path, a URL, or a name without suffix."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from vidpipe.data.video_row import same_name
from vidpipe.data.video_tree import is_video_name, list_files

# Label Studio puts this before the names of uploaded files, and a folder before those of its local storage.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
_LOCAL_STORAGE = "/data/local-files/"


def name_parts(name: str) -> tuple[str, ...]:
    r"""Returns the folders and the file name of a path or URL.

    >>> name_parts("C:\\videos\\a.mp4"), name_parts("https://host/x/my%20clip.mp4?token=1")
    (('C:', 'videos', 'a.mp4'), ('x', 'my clip.mp4'))
    >>> name_parts("/data/local-files/?d=videos/a.mp4")
    ('videos', 'a.mp4')
    """
    if name.startswith(_LOCAL_STORAGE):
        name = parse_qs(urlsplit(name).query).get("d", [""])[0]
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) or name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    parts = PurePosixPath(name.strip().replace("\\", "/")).parts
    return tuple(part for part in parts if part not in ("/", "//", ".", ".."))


def is_video(name: str) -> bool:
    """Whether a path or URL ends like a video's."""
    return any(is_video_name(part) for part in name_parts(name)[-1:])


class VideoNames:
    """The videos below a folder.

    Args:
      video_dir: the folder.

    Raises:
      FolderError: it cannot be listed.
    """

    def __init__(self, video_dir: str | os.PathLike[str]) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in list_files(video_dir).files:
            if is_video_name(path):
                file = PurePosixPath(path)
                for name in {same_name(file.name), same_name(_as_uploaded(file.name)), same_name(file.stem)}:
                    self._by_name[name].append(path)

    def find(self, name: str) -> list[str]:
        """Returns the videos that a name may mean, relative to the folder with forward slashes.

        Case and Unicode normalization are ignored. Of several videos with this file name, those are returned
        that share the most folders with the name, and of these the one that is spelled like it.
        """
        parts = name_parts(name)
        if not parts:
            return []
        found = self._by_name.get(same_name(parts[-1]), [])
        if not found:
            parts = (*parts[:-1], _UPLOAD_PREFIX.sub("", parts[-1]))
            found = self._by_name.get(same_name(parts[-1]), [])
        found = _most(found, lambda path: _num_shared(path, parts, same_name))
        return _most(found, lambda path: _num_shared(path, parts, str))


def _as_uploaded(name: str) -> str:
    """Returns the name that Label Studio gives an uploaded file: `get_valid_filename` of Django."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _most(paths: Iterable[str], count: Callable[[str], int]) -> list[str]:
    """Returns the paths with the highest count."""
    counts = {path: count(path) for path in paths}
    return [path for path, each in counts.items() if each == max(counts.values())]


def _num_shared(path: str, parts: tuple[str, ...], spelled: Callable[[str], str]) -> int:
    """Counts the parts at the end of a path that equal those of a name."""
    shared = 0
    for one, other in zip(reversed(path.split("/")), reversed(parts), strict=False):
        if spelled(one) != spelled(other):
            break
        shared += 1
    return shared
