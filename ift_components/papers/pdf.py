"""Articles in PDF: pictures with the captions printed beside them, and the sentences that mention them.

Read with pypdfium2 (Apache-2.0 or BSD-3-Clause; Google's PDFium, BSD), which a BSD project can depend on. PyMuPDF would need
the AGPL. docling (MIT) fetches its layout models from a hub on first use and wants PyTorch to run them. pdfplumber (MIT) reads
lines across the columns of a page and, all in Python, takes many times as long; PDFium gives the text in the order of the
file's content, which keeps columns apart, with a box for every character.

A picture is an image that the page shows; figures drawn as vectors alone are not read, and counted.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ift_components.data.sentences import split_sentences
from ift_components.errors import UserError
from ift_components.papers.article import Article, Figure, LeftOut, png_bytes
from ift_components.papers.layout import (
    Box,
    Caption,
    Line,
    Page,
    Picture,
    captions_of,
    clusters,
    figure_regions,
    paragraphs,
    union,
)

try:
    import pypdfium2
    from pypdfium2 import raw
except ImportError as missing:  # said when a PDF is met, so that JATS can be read without
    pypdfium2, _MISSING = None, missing

MIN_CHARACTERS = 100  # of text a page, on average; below, the PDF is a scan without a text layer
SCANNED_AREA = 0.85  # a picture over more than this share of a page is the page itself
SPECK = 8.0  # points; smaller pictures are glyphs and rules
DPI = 300  # pictures are rendered with at most this many dots an inch
_POINTS = 72.0
_ON_LINE = 0.3  # letters of one line overlap in height by more than this share of the smaller
_LONGEST = 1000  # characters; what is longer, such as a table read as text, is no sentence
_SOFT_HYPHENS = ("\x02", "\ufffe", "\xad")  # what PDFium gives for a hyphen at a line's end

# `Fig. 2A`, `Figure S1`, or in the plural a list: `Figs. 1, 3 and 4-6`.
_NUMBER = r"S?\d+"
_MENTION = re.compile(
    rf"\bfig(?:(?P<many>ures|s\.?)|ure|\.)?\s*(?P<list>{_NUMBER}[A-Za-z]?"
    rf"(?:\s*(?:,|and|&|to|[-\u2013\u2014])\s*(?:and\s*)?{_NUMBER}[A-Za-z]?)*)",
    re.IGNORECASE,
)
_ITEM = re.compile(rf"({_NUMBER})[A-Za-z]?(?:\s*(?:to|[-\u2013\u2014])\s*({_NUMBER}))?", re.IGNORECASE)


def read_pdf(path: Path, root: Path, language: str) -> Article:
    """Return the article of a file, with the figures that have a caption and a picture.

    Args:
        path: a PDF.
        root: the folder that the article's name, its path, is relative to.
        language: ISO 639-1 code, for splitting sentences.

    Raises:
        LeftOut: if it is encrypted, damaged or scanned.
        UserError: if pypdfium2 is not installed.
    """
    if pypdfium2 is None:
        raise UserError(
            f"reading {path.name} needs pypdfium2: pip install 'instruction-free-tuning[papers]'"
        ) from _MISSING
    article = Article(str(path.relative_to(root)))
    try:
        with pypdfium2.PdfDocument(path) as document:
            pages = [_read_page(document[number], number) for number in range(len(document))]
            _require_text(pages, document)
            _drop_repeated(pages, article)
            _read_figures(document, pages, article, language)
    except pypdfium2.PdfiumError as error:
        encrypted = getattr(error, "err_code", None) == raw.FPDF_ERR_PASSWORD
        raise LeftOut("encrypted PDF (it wants a password)" if encrypted else "damaged PDF") from error
    return article


def _read_page(page: "pypdfium2.PdfPage", number: int) -> Page:
    upright = _upright(page)
    return Page(number, list(_lines(page.get_textpage(), upright)), list(_pictures(page, upright)))


def _upright(page: "pypdfium2.PdfPage") -> Callable[[Box], Box]:
    """Return the function that takes a box in the file's coordinates to the page as it is shown, cropped and turned."""
    left, bottom, right, top = page.get_cropbox()
    turned = page.get_rotation()

    def upright(box: Box) -> Box:
        box = Box(box.left - left, box.bottom - bottom, box.right - left, box.top - bottom)
        width, height = right - left, top - bottom
        for _ in range(turned // 90):  # a quarter turn, clockwise: (x, y) goes to (y, width - x)
            box = Box(box.bottom, width - box.right, box.top, width - box.left)
            width, height = height, width
        return box

    return upright


def _lines(textpage: "pypdfium2.PdfTextPage", upright: Callable[[Box], Box]) -> Iterator[Line]:
    """Yield the lines of a page; a wide gap on a line, between columns, ends it."""
    letters: list[str] = []
    boxes: list[Box] = []

    def line() -> Iterator[Line]:
        text = "".join(letters).strip()
        hyphen = text.endswith(_SOFT_HYPHENS)
        text = " ".join(text.rstrip("".join(_SOFT_HYPHENS)).split())
        if text and boxes:
            bottom = statistics.median(box.bottom for box in boxes)  # raised and lowered letters count for nothing
            top = statistics.median(box.top for box in boxes)
            whole = union(boxes)
            yield Line(text, Box(whole.left, bottom, whole.right, top), hyphen)
        letters.clear()
        boxes.clear()

    for place in range(textpage.count_chars()):
        letter = chr(raw.FPDFText_GetUnicode(textpage, place))
        if letter in _SOFT_HYPHENS or letter.isspace():
            letters.append(letter)  # a line break may stand before a raised or lowered letter: the next letter decides
        elif letter != "\0":
            box = upright(Box(*textpage.get_charbox(place, loose=True)))
            if boxes and not _same_line(box, boxes[-1]):
                yield from line()
            letters.append(letter)
            boxes.append(box)
    yield from line()


def _same_line(box: Box, before: Box) -> bool:
    """Tell whether a letter stands on the line of the one before it, perhaps raised or lowered, and not far from it."""
    overlap = min(box.top, before.top) - max(box.bottom, before.bottom)
    step = box.left - before.right
    height = max(box.height, before.height)
    return overlap > _ON_LINE * min(box.height, before.height) and -height < step < 2 * height


def _pictures(page: "pypdfium2.PdfPage", upright: Callable[[Box], Box]) -> Iterator[Picture]:
    """Yield the images of a page that are larger than a speck, those inside of forms too."""
    for found in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]):
        left, bottom, right, top = found.get_bounds()
        corners = [(x, y) for x in (left, right) for y in (bottom, top)]
        form = found.container
        while form is not None:  # an object's bounds are those in its form; each form is placed by a matrix
            matrix = form.get_matrix()
            corners = [matrix.on_point(x, y) for x, y in corners]
            form = form.container
        xs, ys = zip(*corners, strict=True)
        box = upright(Box(min(xs), min(ys), max(xs), max(ys)))
        if min(box.width, box.height) >= SPECK:
            yield Picture(box, max(found.get_px_size()) / max(box.width, box.height))


def _require_text(pages: list[Page], document: "pypdfium2.PdfDocument") -> None:
    """Refuse a scan: pages without text, or pictures of whole pages behind recognised text."""
    characters = sum(len(line.text) for page in pages for line in page.lines)
    whole = 0
    for page in pages:
        width, height = document.get_page_size(page.number)
        whole += any(p.box.width * p.box.height > SCANNED_AREA * width * height for p in page.pictures)
    if characters < MIN_CHARACTERS * len(pages) or 2 * whole > len(pages):
        raise LeftOut("scanned PDF (its pages are pictures)")


def _drop_repeated(pages: list[Page], article: Article) -> None:
    """Drop pictures that stand in the same place on several pages, and lines that run along the head or foot of pages."""

    def place(picture: Picture) -> tuple[int, ...]:
        box = picture.box
        return tuple(round(value) for value in (box.left, box.bottom, box.right, box.top))

    def words(line: Line) -> str:
        return re.sub(r"\d+", "#", line.text)

    places = Counter(place(picture) for page in pages for picture in page.pictures)
    texts = Counter(text for page in pages for text in {words(line) for line in page.lines})
    for page in pages:
        count = len(page.pictures)
        page.pictures = [picture for picture in page.pictures if places[place(picture)] == 1]
        article.dropped["logo (in the same place on several pages)"] += count - len(page.pictures)
        page.lines = [line for line in page.lines if texts[words(line)] <= max(2, len(pages) // 3)]


def _read_figures(document: "pypdfium2.PdfDocument", pages: list[Page], article: Article, language: str) -> None:
    captions = {page.number: list(captions_of(page)) for page in pages}
    sentences = _mentions(pages, captions, language)
    taken: set[str] = set()
    for page in pages:
        regions, without = figure_regions(clusters(page.pictures), captions[page.number])
        article.dropped["picture without a caption"] += without
        for place, caption in enumerate(captions[page.number]):
            if place not in regions:
                article.dropped["caption without a picture (drawn as vectors, or on another page)"] += 1
            elif not caption.text:
                article.dropped["figure without a caption"] += 1
            elif caption.number in taken:
                article.dropped["figure whose number occurs a second time"] += 1
            else:
                taken.add(caption.number)
                content = _render(document[page.number], regions[place])
                texts = tuple(sentences.get(caption.number, ()))
                name, where = f"figure-{caption.number}", f"page {page.number + 1}"
                article.figures.append(Figure(name, caption.label, caption.text, texts, content, where))


def _render(page: "pypdfium2.PdfPage", pictures: list[Picture]) -> bytes:
    """Return a region of a page as PNG, in the resolution of its finest image: labels drawn over images are in it."""
    width, height = page.get_size()
    box = union([picture.box for picture in pictures])
    margins = (box.left, box.bottom, width - box.right, height - box.top)
    scale = min(max(picture.resolution for picture in pictures), DPI / _POINTS)
    image = page.render(scale=scale, crop=tuple(max(0.0, margin) for margin in margins)).to_pil()
    return png_bytes(image.convert("RGB"))


def _mentions(pages: list[Page], captions: Mapping[int, list[Caption]], language: str) -> dict[str, list[str]]:
    """Return the sentences that name each figure's number, in reading order, each once; captions are not searched."""
    body: list[Line] = []
    for page in pages:
        inside = {place for caption in captions[page.number] for place in caption.lines}
        body += [line for place, line in enumerate(page.lines) if place not in inside]
    sentences: dict[str, list[str]] = {}
    for paragraph in paragraphs(body):
        for sentence in split_sentences(paragraph, language):
            for number in dict.fromkeys(_numbers(sentence)) if len(sentence) <= _LONGEST else ():
                if sentence not in sentences.setdefault(number, []):
                    sentences[number].append(sentence)
    return sentences


def _numbers(sentence: str) -> Iterator[str]:
    """Yield the numbers of the figures that a sentence names; a range names all in between."""
    for match in _MENTION.finditer(sentence):
        for number, last in _ITEM.findall(match["list"]) if match["many"] else _ITEM.findall(match["list"])[:1]:
            yield number.upper()
            if last and number.isdigit() and last.isdigit() and match["many"]:
                yield from map(str, range(int(number) + 1, int(last) + 1))
