"""What a reader of papers gives: figures, whole and with their texts, and the reason for everything it leaves out."""

import io
from collections import Counter
from dataclasses import dataclass, field

from PIL import Image


class LeftOut(Exception):  # noqa: N818 (a reason that is counted, not a failure of the run)
    """A paper or figure that cannot be used; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class Figure:
    """One figure of an article; sub-figures are one image.

    Attributes:
        name: unique in the article, e.g. the id in the XML or `figure-3`.
        label: as printed, e.g. `Figure 3`; may be empty.
        caption: its text, without the label.
        mentions: the sentences of the article that refer to it, in reading order, each once.
        content: the bytes of a JPEG or PNG.
        place: page of a PDF or file name of the picture, to find it again.
    """

    name: str
    label: str
    caption: str
    mentions: tuple[str, ...]
    content: bytes
    place: str


@dataclass
class Article:
    """One article and what became of its figures.

    Attributes:
        id: PubMed Central's number, else the DOI, else the file's path.
        licence: address or words of the licence; empty where the file does not say.
        figures: those that have a caption and a picture.
        dropped: figures left out, by reason.
    """

    id: str
    licence: str = ""
    figures: list[Figure] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def stacked(images: list[Image.Image], gap: int = 10) -> Image.Image:
    """Return pictures as one: below each other, centred on white, `gap` pixels apart."""
    width = max(image.width for image in images)
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    canvas = Image.new("RGB", (width, height), "white")
    top = 0
    for image in images:
        canvas.paste(image, ((width - image.width) // 2, top))
        top += image.height + gap
    return canvas
