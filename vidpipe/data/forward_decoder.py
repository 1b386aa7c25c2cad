"""Decodes the wanted frames of a video from a keyframe onwards, and can stay where the last one was found.

Pictures are named by the number of the packet that holds them, in the order of the file.
"""

from collections.abc import Iterable, Iterator

import av

# Decoders that, when asked, leave out frames that no other frame refers to, and only those.
_SKIPPING_DECODERS = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video"})


class ContradictionError(Exception):
    """Decoding does not give what the packets promise; decoding in order decides then."""


class ForwardDecoder:
    """Decodes wanted pictures from a keyframe onwards, in as many calls as needed.

    Args:
      decoder: of the video; what it still holds is dropped.
      keyframe: the number of the packet that decoding starts from.
      packets: from this keyframe, or an earlier one, to the end of the file.
    """

    def __init__(
        self, decoder: av.VideoCodecContext, keyframe: int, packets: Iterator[tuple[int, av.Packet]]
    ) -> None:
        start(decoder)
        self._decoder, self._keyframe, self._packets = decoder, keyframe, packets
        self._may_skip, self._is_skipping = decoder.name in _SKIPPING_DECODERS, False
        self._next = keyframe
        self._to_come: set[int] = set()  # decoded, but not returned yet
        self._returned_early: list[av.VideoFrame] = []

    def can_reach(self, keyframe: int, numbers: Iterable[int]) -> bool:
        """Whether the pictures of these packets, which are decoded from `keyframe`, can still come."""
        return keyframe == self._keyframe and all(
            number >= self._next or number in self._to_come for number in numbers
        )

    def decode(self, wanted: set[int], *, stay: bool) -> Iterator[av.VideoFrame]:
        """Yields the pictures of some packets, in the order in which they are shown.

        Args:
          wanted: numbers of packets that can be reached, at least one.
          stay: whether another call follows; if not, the decoder is emptied after the last wanted packet.

        Raises:
          ContradictionError: a picture is damaged, is missing, or comes twice.
        """
        missing, last, is_empty = set(wanted), max(wanted), False
        pictures, self._returned_early = self._returned_early, []
        while True:
            for picture in pictures:
                if not missing:
                    self._returned_early.append(picture)
                    continue
                self._to_come.discard(picture.pts)
                if picture.pts in wanted:
                    if picture.is_corrupt or picture.pts not in missing:
                        raise ContradictionError
                    missing.remove(picture.pts)
                    yield picture
            if not missing:
                return
            if is_empty:
                raise ContradictionError
            number, packet = next(self._packets, (last, None))
            if packet is None:
                pictures, is_empty = [], True
            else:
                pictures = self._decode(number, packet, is_needed=number in wanted or number > last)
                is_empty = number == last and not stay
            if is_empty:
                pictures += decode_packet(self._decoder, None)

    def _decode(self, number: int, packet: av.Packet, *, is_needed: bool) -> list[av.VideoFrame]:
        if self._may_skip and self._is_skipping == is_needed:
            self._is_skipping = not is_needed
            self._decoder.skip_frame = "NONREF" if self._is_skipping else "DEFAULT"
        self._next = number + 1
        if not self._is_skipping:
            self._to_come.add(number)
        return decode_packet(self._decoder, packet, number)


def start(decoder: av.VideoCodecContext) -> None:
    """Drops what a decoder holds, and makes it decode every frame."""
    decoder.flush_buffers()
    decoder.skip_frame = "DEFAULT"


def decode_packet(
    decoder: av.VideoCodecContext, packet: av.Packet | None, number: int = 0
) -> list[av.VideoFrame]:
    """Decodes a packet; None gives the pictures that the decoder still holds.

    Returns:
      The pictures that come out now; the `pts` of each is the number of the packet that holds it.

    Raises:
      ContradictionError: the packet cannot be decoded.
    """
    if packet is not None:
        packet.pts = number
    try:
        return decoder.decode(packet)
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise ContradictionError from error
