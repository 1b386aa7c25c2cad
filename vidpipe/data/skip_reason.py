"""Why a video was skipped: a reason for code to act on, and a message for people to read."""

import enum
from dataclasses import dataclass

from vidpipe.errors import VidpipeError


class SkipReason(enum.Enum):
    """Why a video was skipped; the column `reason` of videos.csv holds the value."""

    NOT_FOUND = "not_found"
    UNREADABLE = "unreadable"
    CANNOT_OPEN = "cannot_open"
    NO_DECODER = "no_decoder"
    NO_FRAMES = "no_frames"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    OUTSIDE = "outside"
    CHANGED = "changed"
    TOO_LARGE = "too_large"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may succeed: the machine was busy, or the file was still growing."""
        return self in (SkipReason.CHANGED, SkipReason.TIMED_OUT, SkipReason.CRASHED)

    @property
    def is_retryable(self) -> bool:
        """Whether the video itself may be healthy, so that the next run tries it again."""
        return self.is_transient or self in (SkipReason.UNREADABLE, SkipReason.OUT_OF_MEMORY)


@dataclass(frozen=True)
class Failure:
    """A video that could not be read: the reason, and a message in a few words without the path."""

    reason: SkipReason
    message: str


OUT_OF_MEMORY = Failure(SkipReason.OUT_OF_MEMORY, "needs more memory than the limit")


class VideoReadError(VidpipeError):
    """A video cannot be read.

    Args:
      path: the video.
      reason: why, as a value that code can act on.
      message: why, in a few words without the path.
    """

    def __init__(self, path: str, reason: SkipReason, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.failure = Failure(reason, message)

    def __reduce__(self) -> tuple[type, tuple[str, SkipReason, str]]:
        return VideoReadError, (self.path, self.failure.reason, self.failure.message)
