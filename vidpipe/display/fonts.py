"""Fonts for names in any script: the installed ones that have their letters."""

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import font_manager, get_cachedir
from matplotlib.figure import Figure
from matplotlib.text import Text

_FIRST = "DejaVu Sans"
_BOXES = "Last Resort"  # a font whose letters are boxes
_log = logging.getLogger(__name__)


@contextmanager
def in_any_script(figure: Figure) -> Iterator[None]:
    """Gives each text of a figure the fonts that have its letters, to be drawn inside the block.

    Where no installed font has a letter, a box is drawn, and a warning names the letter once.
    """
    texts = figure.findobj(Text)
    letters = frozenset("".join(text.get_text() for text in texts if isinstance(text, Text)))
    for text in texts:
        assert isinstance(text, Text)
        text.set_fontfamily(list(_families(letters)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


@functools.lru_cache
def _families(letters: frozenset[str]) -> tuple[str, ...]:
    """Returns the first font, and others for the letters that it lacks."""
    entries = {entry.name: entry.fname for entry in reversed(font_manager.fontManager.ttflist)}
    families, missing = [_FIRST], {letter for letter in letters if letter.isprintable()}
    missing -= _letters(entries.pop(_FIRST))
    for name, path in sorted(entries.items()):
        found = missing & _letters(path) if missing and not name.startswith(_BOXES) else set()
        if found:
            families.append(name)
            missing -= found
    if missing:
        _log.warning(
            "No installed font has %s: pictures show boxes. Install one, such as Debian's fonts-noto-cjk, "
            "and delete Matplotlib's list of fonts (%s).",
            "".join(sorted(missing)), get_cachedir(),
        )  # fmt: skip
    return tuple(families)


@functools.cache
def _letters(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
