"""Names in any script are drawn with the installed fonts that have them, or a line names what is missing."""

import logging
import warnings

import numpy as np
import pytest
from matplotlib import font_manager

from vidpipe.display import figures, fonts


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Each set of letters is warned of once per process."""
    fonts._families.cache_clear()


def _image(name: str) -> np.ndarray:
    return figures.confusion_matrix_image(np.eye(2, dtype=int), [name, "b"])


def _letters_of(family: str) -> frozenset[str]:
    entry = next(each for each in font_manager.fontManager.ttflist if each.name == family)
    return fonts._letters(entry.fname)


def test_letters_that_the_first_font_lacks_come_from_another(caplog: pytest.LogCaptureFixture) -> None:
    """Matplotlib brings both fonts."""
    first, second = sorted(_letters_of("DejaVu Serif") - _letters_of("DejaVu Sans"))[:2]
    assert fonts._families(frozenset(first + "a")) == ("DejaVu Sans", "DejaVu Serif")
    assert (_image(first) != _image(second)).any()  # two boxes would be equal
    assert caplog.messages == []


def test_letters_that_no_font_has_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    missing = [chr(code) for code in range(0x13000, 0x13400) if not _has(chr(code))][:2]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for _ in range(2):
            _image("".join(missing))
    (message,) = caplog.messages
    assert message.startswith(f"No installed font has {''.join(missing)}: pictures show boxes. Install one")


def _has(letter: str) -> bool:
    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return any(letter in _letters_of(name) for name in names if not name.startswith("Last Resort"))
