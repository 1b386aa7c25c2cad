"""Decoded frames to pixels as they are meant to be seen, cropped and resized: PyAV in, OpenCV's BGR out.

FFmpeg's own scaler converts the colours, as in the ffmpeg command: BT.601, BT.709 or BT.2020 as the frame
is marked (BT.601 if it is not), limited or full range, any bit depth and subsampling. Not converted, but
named by `unconverted`: interlaced frames, and the transfer curves of HDR.
"""

from fractions import Fraction

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter

# The scaler of the ffmpeg command uses bicubic interpolation where chroma has to be interpolated.
_INTERPOLATION = Interpolation.BICUBIC
_HDR_CURVES = {ColorTrc.SMPTE2084: "HDR (PQ)", ColorTrc.ARIB_STD_B67: "HDR (HLG)"}


class PixelConverter:
    """Converts the frames of one video.

    Args:
      sample_aspect_ratio: width of a pixel divided by its height.
    """

    def __init__(self, sample_aspect_ratio: Fraction) -> None:
        self._sample_aspect_ratio = sample_aspect_ratio
        self._reformatter = VideoReformatter()

    def convert(self, picture: av.VideoFrame) -> np.ndarray:
        """Returns a frame as it is shown: uint8 [H, W, 3], BGR.

        Pixels are made square by changing the width, the display matrix is applied (mirrorings, and rotations
        by multiples of 90 degrees), and transparent pixels are shown over black.
        """
        if picture.format.has_palette or any(component.is_alpha for component in picture.format.components):
            return _oriented(_over_black(self._reformat(picture, "bgra", 4)), picture)
        return _oriented(self._reformat(picture, "bgr24", 3), picture)

    def _reformat(self, picture: av.VideoFrame, pixel_format: str, channels: int) -> np.ndarray:
        width = max(1, round(picture.width * self._sample_aspect_ratio))
        converted = self._reformatter.reformat(
            picture, width=width, format=pixel_format, interpolation=_INTERPOLATION, threads=1
        )
        (plane,) = converted.planes
        shape, strides = (converted.height, converted.width, channels), (plane.line_size, channels, 1)
        return np.ndarray(shape, np.uint8, buffer=memoryview(plane), strides=strides)


def unconverted(picture: av.VideoFrame) -> str:
    """Names what `PixelConverter` leaves as it is: "interlaced", "HDR (PQ)" or "HDR (HLG)"; "" if nothing."""
    curve = _HDR_CURVES.get(picture.color_trc)
    return "; ".join(["interlaced"] * picture.interlaced_frame + ([curve] if curve else []))


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
