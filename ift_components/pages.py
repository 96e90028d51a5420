"""Pages of HTML that every room makes: the templates' environment, the shared style, pictures as data URLs, numbers as text."""

import base64
import io
from datetime import datetime
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

_FIRST, _LAST, _REPLACEMENT = "\ud800", "\udfff", "\ufffd"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as a percentage, or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def number(value: Any) -> str:
    """Return a number with four significant digits at most; anything else as text."""
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def now() -> str:
    """Return date and time of day with the time zone, to the minute."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")


def printable(value: Any) -> Any:
    """Return text with a replacement character for every lone surrogate, which UTF-8 cannot hold; other values as is."""
    if isinstance(value, str) and not value.isascii() and any(_FIRST <= char <= _LAST for char in value):
        return type(value)("".join(_REPLACEMENT if _FIRST <= char <= _LAST else char for char in value))
    return value


def environment(room: str) -> Environment:
    """Return the environment of a room's templates: everything put into HTML is escaped, and a missing value is an error.

    Args:
        room: the package with a `templates` folder, e.g. `ift_components.evaluation`; `base.html` is the shared one.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(room), PackageLoader("ift_components")]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "number": number, "points": points, "cell": cell, "zip": zip}
    return templates


def cell(text: Any) -> str:
    """Return text for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def tex(text: Any) -> str:
    """Return text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {char: f"\\{char}" for char in "&%$#_{}"}
    return "".join(special.get(char, char) for char in printable(str(text)))


def data_url(image: Image.Image, side: int | None = None) -> str:
    """Return a picture as a data URL: PNG as it is, or a JPEG of at most `side` pixels a side."""
    buffer = io.BytesIO()
    if side is None:
        image.save(buffer, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    small = image.convert("RGB")
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
