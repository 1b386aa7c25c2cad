"""Why a video was skipped: a reason for code to act on, and a message for people to read."""

import enum
from dataclasses import dataclass


class SkipReason(enum.Enum):
    """Why a video was skipped; the column `reason` of videos.csv holds the value."""

    NOT_FOUND = "not_found"
    CANNOT_OPEN = "cannot_open"
    NO_FRAMES = "no_frames"
    TRUNCATED = "truncated"
    CORRUPT_FRAME = "corrupt_frame"
    TOO_LARGE = "too_large"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may succeed: the cause may have been a busy machine or a lack of memory."""
        return self in (SkipReason.TIMED_OUT, SkipReason.CRASHED)


@dataclass(frozen=True)
class Failure:
    """A video that could not be read: the reason, and a message in a few words without the path."""

    reason: SkipReason
    message: str
