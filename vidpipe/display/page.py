"""Self-contained HTML pages, rendered from templates/; the only importer of Jinja2.

A page opens from disk, makes no network requests and follows the reader's colour scheme. Values are escaped,
and are never part of a script.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vidpipe.data import video
from vidpipe.display.colours import SCHEMES

_MISSING = "–"
_STRIP_FRAMES, _STRIP_SIDE, _STRIP_QUALITY = 20, 112, 75


@dataclass(frozen=True)
class Strip:
    """The frames of a clip as a page plays them.

    Attributes:
      jpeg: one image with the frames side by side.
      num_frames: the number of frames in it.
      height, width: of one frame, in pixels.
    """

    jpeg: bytes
    num_frames: int
    height: int
    width: int


def render(template: str, **values: Any) -> str:
    """Renders a template.

    Beside the filters of Jinja, templates have `data_uri`, `sha256`, `fixed`, `percent`, `breakable` and
    `zip`; `schemes` holds the colours.

    Args:
      template: a file of templates/, such as "report.html.j2".
      values: the variables of the template; a missing one is an error.

    Returns:
      The page.
    """
    return _environment.get_template(template).render(values)


def strip(frames: np.ndarray) -> Strip:
    """Joins frames of a clip side by side: at most 20, evenly spread, with sides of at most 112 pixels.

    Args:
      frames: uint8 [n, H, W, 3], RGB, n >= 1.
    """
    count = min(len(frames), _STRIP_FRAMES)
    chosen = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    scale = min(1.0, _STRIP_SIDE / max(frames.shape[1:3]))
    height, width = (max(1, round(side * scale)) for side in frames.shape[1:3])
    if scale < 1:
        chosen = tf.cast(tf.round(tf.image.resize(chosen, (height, width), "area")), tf.uint8).numpy()
    jpeg = video.encode_frame(np.concatenate(chosen, axis=1), "jpeg", _STRIP_QUALITY)
    return Strip(jpeg, count, height, width)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Formats a fraction as a percentage, without a line break before the sign; a dash for None."""
    return _MISSING if fraction is None else f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _sha256(text: str) -> str:
    """Computes the digest by which a content security policy allows a script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fixed(number: float | None, digits: int = 3) -> str:
    return _MISSING if number is None else f"{number:.{digits}f}"


def _breakable(text: str) -> Markup:
    """Allows line breaks in a file name after each slash and underscore."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(text))))


def _new_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vidpipe.display"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": _data_uri, "sha256": _sha256, "zip": zip}
    environment.filters |= {"fixed": _fixed, "percent": percent, "breakable": _breakable}
    environment.globals["schemes"] = SCHEMES
    return environment


_environment = _new_environment()
