"""The row of a list of videos, and how splits and groups are named."""

import re
import unicodedata
from dataclasses import dataclass, field

from vidpipe.data.moment import Moment
from vidpipe.errors import VidpipeError

_UCF101_NAME = re.compile(r"v_\w+_(g\d+)_c\d+\.\w+$")
_SPELLINGS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class ManifestError(VidpipeError):
    """The list of videos is invalid, or does not agree with the folder."""


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One source video, or a moment of it.

    Attributes:
      video_id: name in the manifest, a relative path with forward slashes, followed by the moment; unique.
      path: path relative to video_dir; empty if the file was not found.
      label_name: name of the class.
      split: train, val or test.
      group: scene, actor or source; a group is never divided between train and val.
      moment: the part of the video that is labelled; None for the whole.
      listed_at: file and line of the list; empty if there is none.
    """

    video_id: str
    path: str
    label_name: str
    split: str
    group: str
    moment: Moment | None = None
    listed_at: str = field(default="", compare=False)

    @property
    def video(self) -> str:
        """The name of the video in the manifest."""
        return self.video_id if self.moment is None else self.video_id.removesuffix(str(self.moment))


def split_of(name: str) -> str | None:
    """Returns the split that people call by this name; None if it names none.

    >>> [split_of(name) for name in ("Train", "valid", "test_set", "Training Data", "walk")]
    ['train', 'val', 'test', 'train', None]
    """
    words = re.sub(r"[\s_-]*(set|data|split|videos)$", "", name.strip().lower())
    return _SPELLINGS.get(words)


def group_of(video_id: str, label: str) -> str:
    """Returns the group of a UCF101 file name, which is specific to its class; otherwise the video itself."""
    match = _UCF101_NAME.search(video_id)
    return f"{label}/{match.group(1)}" if match else video_id


def same_name(name: str) -> str:
    """Returns a name without differences that people do not see: case, and composed or separate accents."""
    return unicodedata.normalize("NFC", name).casefold()
