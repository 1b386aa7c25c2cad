"""What the packets of a video tell without decoding: its frames, their times, and what is missing."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# For files that give neither a rate nor times.
ASSUMED_FPS = 25
# Where times may jump, because recordings were joined, a longer step is a jump and not a pause (the default
# of ffmpeg's -dts_delta_threshold).
_JUMP_SEC = 10
_VOP_START_CODE = b"\0\0\1\xb6"
# The headers before a frame of MPEG-4 fit into this many bytes.
VOP_HEADER_BYTES = 1024
# A smaller packet of MPEG-4, bytes, may say no more than that its frame is not coded.
_SMALLEST_VOP = 16
# A step between two frames that is longer than this many usual steps may be a gap.
_GAP_STEPS = 1.5


@dataclass(frozen=True)
class Packets:
    """The p packets of a video stream, in the order of the file.

    Attributes:
      pts: float64 [p], when the frame is shown, in seconds; NaN where the file does not say.
      dts: float64 [p], when it is decoded, in seconds; NaN where the file does not say.
      is_keyframe: bool [p].
      is_shown: bool [p], False for packets that an edit list hides and frames that are only referred to.
      position: int64 [p], offset in the file, bytes.
      is_suspect: bool [p], True where the container's reader reported damage before or in this packet.
    """

    pts: np.ndarray
    dts: np.ndarray
    is_keyframe: np.ndarray
    is_shown: np.ndarray
    position: np.ndarray
    is_suspect: np.ndarray

    def presentation_order(self) -> np.ndarray | None:
        """Returns the numbers of the shown packets in the order of presentation, int64 [num_frames].

        None if the times do not tell: one is missing or used twice, or the file begins without a keyframe.
        """
        shown = np.flatnonzero(self.is_shown)
        order = shown[np.argsort(self.pts[shown], kind="stable")]
        times = self.pts[order]
        if not self.is_keyframe[0] or not len(order) or np.isnan(times).any() or (np.diff(times) <= 0).any():
            return None
        if times[0] < self.pts[0] or np.isnan(self.pts).any():
            return None
        return order

    def frame_times(
        self, packet_numbers: np.ndarray, step_sec: float, *, may_jump: bool
    ) -> tuple[np.ndarray, bool]:
        """Returns when each frame is shown.

        Args:
          packet_numbers: int64 [n], the packet of each frame, in the order of presentation; n >= 1.
          step_sec: the time between two frames where it is unknown, seconds.
          may_jump: whether a long step is a jump between joined recordings.

        Returns:
          float64 [n], seconds from the first frame, ascending; and whether every time was known.
        """
        times = self.pts[packet_numbers]
        if not may_jump:
            times = np.sort(times)  # AVI numbers its frames in the order in which they are stored
        steps = np.diff(times)
        is_known = (steps > 0) & ~((steps > _JUMP_SEC) & may_jump)
        return np.concatenate([[0.0], np.cumsum(np.where(is_known, steps, step_sec))]), bool(is_known.all())


def is_b_vop(data: bytes) -> bool | None:
    """Whether an MPEG-4 packet holds a B-frame (ISO/IEC 14496-2, 6.2.5).

    Args:
      data: the begin of a packet, at least `VOP_HEADER_BYTES` of it if it is as long.

    Returns:
      None if it holds no coded frame. Such packets also show that others hold two frames.
    """
    start = data.find(_VOP_START_CODE)
    if len(data) < _SMALLEST_VOP or not 0 <= start < len(data) - 4:
        return None
    return data[start + 4] >> 6 == 2


def order_of_vops(is_b_frame: np.ndarray) -> np.ndarray | None:
    """Returns the order of presentation of MPEG-4 frames that are stored without times.

    A B-frame is shown as it is stored; another frame is shown when the next one of its kind is stored.

    Args:
      is_b_frame: bool [p], in the order of the file.

    Returns:
      int64 [p], the numbers of the packets; None if the video begins with B-frames that cannot be decoded.
    """
    references = np.flatnonzero(~is_b_frame)
    if len(references) == 0 or is_b_frame[: references[1] if len(references) > 1 else None].any():
        return None
    shown_at = np.arange(len(is_b_frame))
    shown_at[references[:-1]] = references[1:]
    shown_at[references[-1]] = len(is_b_frame)
    # Where a frame is shown when another one is stored, it comes before it.
    return np.lexsort((is_b_frame, shown_at))


@dataclass(frozen=True)
class Loss:
    """Packets that a container names and the file does not have.

    Attributes:
      num_missing: how many.
      is_at_end: whether the file just ends early.
      before: numbers of the packets before which some are missing, ascending.
    """

    num_missing: int = 0
    is_at_end: bool = False
    before: tuple[int, ...] = ()


def loss_by_index(packets: Packets, listed: Sequence[int]) -> Loss:
    """Compares the packets with the container's own index.

    Args:
      packets: those that could be read.
      listed: the offset of each packet in the file according to the index, bytes.
    """
    num_missing = len(listed) - len(packets.position)
    if num_missing <= 0:
        return Loss()
    found = set(packets.position.tolist())
    # AVI's index gives the offset of the chunk, 8 bytes before its data.
    shift = max((0, 8), key=lambda shift: len(found & {offset + shift for offset in listed}))
    lost = sorted({offset + shift for offset in listed} - found)
    before = np.searchsorted(packets.position, lost)
    in_the_middle = sorted(set(before[before < len(packets.position)].tolist()))
    return Loss(num_missing, is_at_end=not in_the_middle, before=tuple(in_the_middle))


def loss_by_time(packets: Packets, *, duration_sec: float, ended_early: bool, may_jump: bool) -> Loss:
    """Finds gaps in time; they are taken for a loss only where the container's reader reported damage.

    A gap by itself is no loss: slides and time-lapse videos have pauses.

    Args:
      packets: those that could be read.
      duration_sec: of the video according to the container, seconds; 0 if unknown.
      ended_early: whether the container's reader reported that the file ends too soon.
      may_jump: as in `Packets.frame_times`.
    """
    if not (ended_early or packets.is_suspect.any()):
        return Loss()
    order = np.argsort(packets.pts, kind="stable")
    times = packets.pts[order]
    steps = np.diff(times)
    steps = steps[~np.isnan(steps)]
    usual = float(np.median(steps)) if len(steps) else 0.0
    if usual <= 0:
        return Loss(int(ended_early), ended_early)
    num_missing, before = 0, []
    for number in np.flatnonzero(np.diff(times) > _GAP_STEPS * usual):
        gap = times[number + 1] - times[number]
        after = int(order[number + 1 :].min())
        if packets.is_suspect[: after + 1].any() and not (may_jump and gap > _JUMP_SEC):
            num_missing += round(gap / usual) - 1
            before.append(after)
    at_end = 0
    if ended_early:
        at_end = max(1, round((duration_sec - (np.nanmax(times) - np.nanmin(times))) / usual) - 1)
    return Loss(num_missing + at_end, is_at_end=at_end > 0 and not before, before=tuple(sorted(set(before))))


class Damage:
    """Follows which frames cannot be trusted while a video is decoded in order.

    A frame is damaged if its own packet is, or if a frame between it and its keyframe is missing or damaged:
    it may refer to that frame, and decoders report only what they notice.

    Args:
      packets: of the video.
      loss: what is missing among them.
    """

    def __init__(self, packets: Packets, loss: Loss) -> None:
        numbers = np.arange(len(packets.is_keyframe))
        self._keyframe_of = np.maximum.accumulate(np.where(packets.is_keyframe, numbers, 0))
        self._starts = [number - 0.5 for number in loss.before]
        self.num_missing = loss.num_missing
        self.num_damaged = 0

    def add_lost(self, number: int) -> None:
        """Records that a packet gave no frame because it is damaged."""
        bisect.insort(self._starts, number)
        self.num_missing += 1

    def affects(self, number: int, *, is_corrupt: bool) -> bool:
        """Whether the frame of a packet is damaged; `is_corrupt` is what the decoder says of it."""
        if is_corrupt:
            bisect.insort(self._starts, number)
        nearest = bisect.bisect_right(self._starts, number) - 1
        is_damaged = nearest >= 0 and self._starts[nearest] >= self._keyframe_of[number]
        self.num_damaged += is_damaged
        return is_damaged
