"""Animations of the frames that a model saw: the only importer of Pillow."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidpipe.storage import files

_FRAME_MS = 150
_MIN_WIDTH, _FONT_SIZE = 224, 15  # pixels


def write(path: Path, frames: np.ndarray, probabilities: Mapping[str, float]) -> None:
    """Writes an endless animation with the predicted class and its probability below the frames.

    Frames less than 224 pixels wide are enlarged by a whole factor. A class name that is too long for the
    line is shortened; the probability is always complete.

    Args:
      path: the file; it appears there when it is complete.
      frames: uint8 [n, H, W, 3], RGB, n >= 1.
      probabilities: per class, most probable first.

    Raises:
      OSError: the file cannot be written.
    """
    name, probability = next(iter(probabilities.items()))
    font = ImageFont.load_default(_FONT_SIZE)
    images = [Image.fromarray(frame) for frame in frames]
    zoom = math.ceil(_MIN_WIDTH / images[0].width)
    width, height = images[0].width * zoom, images[0].height * zoom
    while font.getlength(_caption(name, probability)) > width - _FONT_SIZE:
        name = name.rstrip("…")[:-1] + "…"
    pages = []
    for image in images:
        page = Image.new("RGB", (width, height + 2 * _FONT_SIZE))
        page.paste(image.resize((width, height), Image.Resampling.NEAREST))
        position = (width // 2, height + _FONT_SIZE)
        ImageDraw.Draw(page).text(position, _caption(name, probability), "white", font, anchor="mm")
        pages.append(page)
    with files.staged(path) as temporary:
        pages[0].save(temporary, "GIF", save_all=True, append_images=pages[1:], duration=_FRAME_MS, loop=0)


def _caption(name: str, probability: float) -> str:
    return f"{name} {probability:.0%}"
