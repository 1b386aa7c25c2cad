"""Self-contained HTML pages: the only importer of Jinja2; the templates lie in templates/.

A page opens from disk, asks the network for nothing and follows the reader's colour scheme. What a child of
base.html.j2 fills in is escaped; values never stand in a script.
"""

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vidpipe import report

_MISSING = "–"


def render(template: str, **values: Any) -> str:
    """Fills in a template.

    Args:
      template: a file of templates/, such as "report.html.j2".
      values: the names it uses; one that is missing is an error.

    Returns:
      The page. Templates have the filters `data_uri`, `sha256`, `fixed` and `percent` beside Jinja's own.
    """
    return _environment.get_template(template).render(values)


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _sha256(text: str) -> str:
    """As a content security policy names a script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fixed(number: float | None, digits: int = 3) -> str:
    return _MISSING if number is None else f"{number:.{digits}f}"


def _percent(share: float | None, digits: int = 1) -> str:
    return _MISSING if share is None else f"{share:.{digits}%}".replace("%", " %")


def _new_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vidpipe"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": _data_uri, "sha256": _sha256, "fixed": _fixed, "percent": _percent}
    environment.globals["schemes"] = report.SCHEMES
    return environment


_environment = _new_environment()
