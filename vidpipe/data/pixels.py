"""Decoded frames to pixels as they are meant to be seen, cropped and resized: PyAV in, OpenCV's BGR out.

FFmpeg's own filter converts the colours, with the pixels of the ffmpeg command: BT.601, BT.709 or BT.2020
as the frame is marked (BT.601 if it is not), limited or full range, any bit depth and subsampling. Not
converted, but named by `unconverted`: interlaced frames, transfer curves of HDR, and rare colour matrices.
"""

from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import av.filter
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorTrc

# Matrix coefficients (ITU-T H.273, table 4) that FFmpeg converts, and names of some that it does not.
_CONVERTED_MATRICES = frozenset((0, 1, 2, 4, 5, 6, 7, 9))
_UNSPECIFIED_MATRIX = 2
_MATRIX_NAMES = {8: "YCgCo", 10: "BT.2020 with constant luminance", 14: "ICtCp"}
_HDR_CURVES = {ColorTrc.SMPTE2084: "HDR (PQ)", ColorTrc.ARIB_STD_B67: "HDR (HLG)"}


class PixelError(Exception):
    """The pixels of a frame cannot be converted."""


class PixelConverter:
    """Converts the frames of one video.

    Args:
      sample_aspect_ratio: width of a pixel divided by its height.
    """

    def __init__(self, sample_aspect_ratio: Fraction) -> None:
        self._sample_aspect_ratio = sample_aspect_ratio
        self._scaler: _Scaler | None = None

    def convert(self, picture: av.VideoFrame) -> np.ndarray:
        """Returns a frame as it is shown: uint8 [H, W, 3], BGR.

        Pixels are made square by changing the width, the display matrix is applied (mirrorings, and rotations
        by multiples of 90 degrees), and transparent pixels are shown over black.

        Raises:
          PixelError: FFmpeg cannot convert them.
        """
        kind = _Kind(
            width=picture.width,
            height=picture.height,
            pixel_format=picture.format.name,
            colorspace=int(picture.colorspace),
            color_range=int(picture.color_range),
        )
        try:
            if self._scaler is None or self._scaler.kind != kind:
                self._scaler = _Scaler(kind, self._sample_aspect_ratio)
            image = self._scaler.scale(picture)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            raise PixelError(f"FFmpeg cannot convert its pixels ({error.strerror})") from error
        return _oriented(image if image.shape[2] == 3 else _over_black(image), picture)


class _Kind(NamedTuple):
    """What a scaler is set up for; one file may have frames of several kinds."""

    width: int
    height: int
    pixel_format: str
    colorspace: int
    color_range: int


class _Scaler:
    """FFmpeg's filter `scale` from frames of one kind to BGR, or BGRA if they may be transparent."""

    def __init__(self, kind: _Kind, sample_aspect_ratio: Fraction) -> None:
        self.kind = kind
        layout = av.VideoFormat(kind.pixel_format)
        is_transparent = layout.has_palette or any(component.is_alpha for component in layout.components)
        self._channels = 4 if is_transparent else 3
        is_converted = kind.colorspace in _CONVERTED_MATRICES
        graph = av.filter.Graph()
        graph.threads = 1
        self._source = graph.add(
            "buffer",
            video_size=f"{kind.width}x{kind.height}",
            pix_fmt=kind.pixel_format,
            colorspace=str(kind.colorspace if is_converted else _UNSPECIFIED_MATRIX),
            range=str(kind.color_range),
            time_base="1/1",
        )
        width = max(1, round(kind.width * sample_aspect_ratio))
        self._sink = graph.add("buffersink")
        filters = [
            self._source,
            graph.add("scale", width=str(width), height=str(kind.height)),
            graph.add("format", pix_fmts="bgra" if is_transparent else "bgr24"),
            self._sink,
        ]
        if not is_converted:
            filters.insert(1, graph.add("setparams", colorspace=str(_UNSPECIFIED_MATRIX)))
        for filter_, next_filter in pairwise(filters):
            filter_.link_to(next_filter)
        graph.configure()
        self._graph = graph  # the filters do not keep it alive

    def scale(self, picture: av.VideoFrame) -> np.ndarray:
        """Returns uint8 [H, W, 3 or 4], a view of memory that it keeps alive."""
        self._source.push(picture)
        converted = self._sink.pull()
        (plane,) = converted.planes
        shape = (converted.height, converted.width, self._channels)
        return np.ndarray(
            shape, np.uint8, buffer=memoryview(plane), strides=(plane.line_size, self._channels, 1)
        )


def unconverted(picture: av.VideoFrame) -> str:
    """Names what `PixelConverter` leaves as it is, such as "interlaced; HDR (PQ)"; "" if nothing.

    "HDR (HLG)" is the other transfer curve; "colours (YCgCo)" a matrix that is taken for BT.601.
    """
    names = ["interlaced"] if picture.interlaced_frame else []
    if picture.color_trc in _HDR_CURVES:
        names.append(_HDR_CURVES[picture.color_trc])
    matrix = int(picture.colorspace)
    if matrix not in _CONVERTED_MATRICES:
        names.append(f"colours ({_MATRIX_NAMES.get(matrix, f'matrix {matrix} of H.273')})")
    return "; ".join(names)


def write_resized(image: np.ndarray, frame: np.ndarray, resize: str) -> None:
    """Resizes `image`, or its centre square, into `frame`; `resize` is one of `config.RESIZE`."""
    if resize == "crop":
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape != frame.shape:
        # Linear interpolation reads 2 x 2 pixels: from half size down it skips some and aliases. INTER_AREA
        # averages all of them at five times the cost, so it is used only where needed.
        is_halved = min(image.shape[:2]) >= 2 * min(frame.shape[:2])
        interpolation = cv2.INTER_AREA if is_halved else cv2.INTER_LINEAR
        cv2.resize(image, (frame.shape[1], frame.shape[0]), dst=frame, interpolation=interpolation)
    else:
        frame[:] = image


def _over_black(image: np.ndarray) -> np.ndarray:
    """Blends uint8 [H, W, 4] BGRA over black."""
    alpha = image[..., 3]
    if alpha.min() == 255:
        return np.ascontiguousarray(image[..., :3])
    return cv2.multiply(image[..., :3], cv2.merge([alpha] * 3), scale=1 / 255)


def _display_matrix(picture: av.VideoFrame) -> np.ndarray | None:
    """Reads the upper left 2 x 2 of the display matrix, int32; None if there is none.

    The stored pixel (x, y) is shown at (x, y) @ matrix, but for the origin (see libavutil/display.h).
    """
    try:
        data = picture.side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return None
    return np.frombuffer(data, np.int32)[:6].reshape(2, 3)[:, :2]


def _is_transposed(matrix: np.ndarray | None) -> bool:
    return matrix is not None and abs(int(matrix[0, 1])) > abs(int(matrix[0, 0]))


def _oriented(image: np.ndarray, picture: av.VideoFrame) -> np.ndarray:
    """Applies the display matrix, to the nearest multiple of 90 degrees."""
    matrix = _display_matrix(picture)
    if matrix is None:
        return image
    (a, b), (c, d) = matrix
    if _is_transposed(matrix):
        image, (mirror_x, mirror_y) = cv2.transpose(image), (c < 0, b < 0)
    else:
        mirror_x, mirror_y = a < 0, d < 0
    if mirror_x or mirror_y:
        image = cv2.flip(image, -1 if mirror_x and mirror_y else 1 if mirror_x else 0)
    return image
