"""The words every stage shares: what a clip is, the split names, and the base of our errors."""

from dataclasses import dataclass

SPLITS = ("train", "val", "test")


class VidpipeError(Exception):
    """Something the user can mend. Tools print its one line and leave with the exit code."""

    exit_code = 1


@dataclass(frozen=True)
class ClipSpec:
    """The shape of a clip: frames uint8 [num_frames, height, width, 3], RGB, and mask bool [num_frames].

    Raises:
      VidpipeError: a number is below 1.
    """

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width"):
            if getattr(self, name) < 1:
                raise VidpipeError(f"A clip's {name} must be at least 1; got {getattr(self, name)}.")
