"""Papers made for tests: JATS articles in the documented form, and PDFs."""

from pathlib import Path

import numpy as np
from PIL import Image
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen import canvas

LOREM = (
    "The patient was examined twice and the findings were compared with those of healthy people of the same age. "
    "All measurements were repeated by a second reader who did not know the first result."
)


def noise(seed, size=(160, 120)):
    """A sharp picture: grey noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8))


def jats(body, number="100", floats="", doctype="", licence="https://creativecommons.org/licenses/by/4.0/"):
    """An article of PubMed Central with this body."""
    return f"""<?xml version="1.0"?>
{doctype or '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) v1.2//EN" "JATS-archivearticle1.dtd">'}
<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML">
<front><article-meta><article-id pub-id-type="pmc">{number}</article-id><article-id pub-id-type="doi">10.1/x</article-id>
<permissions><license xlink:href="{licence}"><license-p>Open access. <xref rid="F1">x</xref></license-p></license></permissions>
<abstract><p>Its abstract.</p></abstract></article-meta></front>
<body>{body}</body><floats-group>{floats}</floats-group></article>"""


def fig(name, label, caption, graphics):
    """A figure with one graphic a name; a tuple of names is `alternatives`."""

    def graphic(href):
        if isinstance(href, tuple):
            return f"<alternatives>{''.join(map(graphic, href))}</alternatives>"
        return f'<graphic xlink:href="{href}"/>'

    inside = "".join(map(graphic, graphics))
    return f'<fig id="{name}"><label>{label}</label><caption>{caption}</caption>{inside}</fig>'


def write_article(folder: Path, text: str, pictures: dict[str, Image.Image], name="article.nxml"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    for file, image in pictures.items():
        image.save(folder / file)
    return folder / name


class Paper:
    """A PDF that grows line by line; places in points from the lower left corner of an A4 page."""

    def __init__(self, path: Path, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.canvas = canvas.Canvas(str(path), pagesize=A4, **options)

    def text(self, x, y, lines, size=10):
        writer = self.canvas.beginText(x, y)
        writer.setFont("Helvetica", size)
        writer.setLeading(1.2 * size)
        for line in lines:
            writer.textLine(line)
        self.canvas.drawText(writer)
        return self

    def picture(self, x, y, width, height, image):
        self.canvas.drawImage(ImageReader(image), x, y, width, height)
        return self

    def page(self):
        self.canvas.showPage()
        return self

    def save(self):
        self.canvas.save()
