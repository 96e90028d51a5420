"""Articles in JATS XML, as PubMed Central and many publishers give them, with their pictures in the same folder."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lxml import etree
from PIL import Image

from ift_components.data.decode import Opened, Preparation, open_image
from ift_components.errors import DataError
from ift_components.papers.article import Article, Figure, LeftOut, png_bytes, stacked
from ift_components.papers.prose import Element, mentions, plain_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".bmp", ".webp")
_ELSEWHERE = ("sub-article", "response")
_ENDS = (".", "!", "?", ":", ";")


def read_jats(path: Path, root: Path, language: str) -> Iterator[Article]:
    """Yield the articles of a file, usually one, with the figures that have a caption and a picture.

    Entities are never expanded and nothing outside of the file is loaded: no DTD, no network.

    Args:
        path: an XML file.
        root: the folder under which pictures must lie, resolved.
        language: ISO 639-1 code, for splitting sentences.

    Raises:
        LeftOut: if the file is damaged, declares entities or holds no article.
    """
    top = _parse(path)
    articles = [
        element for element in top.iter("article") if element.find("front") is not None
    ]  # HTML has articles too
    if not articles:
        raise LeftOut("XML that is no JATS article")
    folder = _Pictures(path.parent, root)
    for number, element in enumerate(articles):
        name = str(path.relative_to(root)) + (f"#{number + 1}" if number else "")
        yield _read_article(element, name, folder, language)


def _parse(path: Path) -> Element:
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        tree = etree.parse(str(path), parser)
    except (etree.XMLSyntaxError, OSError) as error:
        raise LeftOut("damaged XML") from error
    declared = tree.docinfo.internalDTD
    if declared is not None and next(declared.iterentities(), None) is not None:
        raise LeftOut("XML that declares entities (a bomb?)")
    for element in tree.iter(etree.Element):
        element.tag = etree.QName(element).localname  # JATS comes with and without namespaces
    return tree.getroot()


def _read_article(element: Element, name: str, folder: "_Pictures", language: str) -> Article:
    article = Article(_identifier(element) or name, _licence(element))
    units = list(_units(element, article))
    targets = {
        part.get("id"): number
        for number, unit in enumerate(units)
        for part in unit.iter("fig-group", "fig", "graphic")
        if part.get("id")
    }
    sentences = mentions(element, targets, language)
    taken: set[str] = set()
    for number, unit in enumerate(units):
        figure_name = unit.get("id") or f"figure-{number + 1}"
        caption = _caption(unit)
        if not caption:
            article.dropped["figure without a caption"] += 1
            continue
        try:
            content, place = folder.picture(unit)
        except LeftOut as reason:
            article.dropped[str(reason)] += 1
            continue
        if figure_name in taken:
            figure_name = f"{figure_name}-{number + 1}"
        taken.add(figure_name)
        texts = tuple(sentences.get(number, ()))
        article.figures.append(Figure(figure_name, plain_text(unit.find("label")), caption, texts, content, place))
    return article


def _identifier(element: Element) -> str:
    ids = {item.get("pub-id-type"): plain_text(item) for item in element.iterfind("front/article-meta/article-id")}
    number = ids.get("pmcid") or ids.get("pmc") or ""
    return (f"PMC{number}" if number.isdigit() else number) or ids.get("doi", "")


def _licence(element: Element) -> str:
    for licence in element.iterfind("front/article-meta/permissions//license"):
        for part in licence.iter(etree.Element):
            address = part.text if part.tag == "license_ref" else _href(part)
            if address and "://" in address:
                return address.strip()
        return plain_text(licence)
    return ""


def _href(element: Element) -> str:
    return next((value for key, value in element.attrib.items() if etree.QName(key).localname == "href"), "")


def _units(element: Element, article: Article) -> Iterator[Element]:
    """Yield what counts as one figure: a `fig`, or a `fig-group` whose caption speaks for all of its parts."""
    for unit in element.iter("fig-group", "fig"):
        if next(unit.iterancestors(*_ELSEWHERE), None) is not None:
            if unit.tag == "fig":
                article.dropped["figure of a sub-article (a translation, a review)"] += 1
        elif any(group.find("caption") is not None for group in unit.iterancestors("fig-group")):
            continue
        elif unit.tag == "fig" or unit.find("caption") is not None:
            yield unit


def _caption(unit: Element) -> str:
    parts = [*_caption_parts(unit)]
    if unit.tag == "fig-group":
        for figure in unit.iter("fig"):
            parts += [text for text in (plain_text(figure.find("label")), *_caption_parts(figure)) if text]
    joined = ""
    for part in parts:
        stop = "." if joined and not joined.endswith(_ENDS) else ""
        joined = f"{joined}{stop} {part}".strip()
    return joined


def _caption_parts(unit: Element) -> Iterator[str]:
    """Yield title and paragraphs of a caption; paragraphs that only give the figure's DOI are none of it."""
    for part in unit.iterfind("caption/*"):
        text = plain_text(part)
        if text and not text.upper().startswith("DOI:"):
            yield text


@dataclass
class _Pictures:
    """The picture files of an article.

    Attributes:
        folder: where the XML lies.
        root: the folder that no picture may lie out of, resolved.
    """

    folder: Path
    root: Path

    def picture(self, unit: Element) -> tuple[bytes, str]:
        """Return the picture of a figure and its file names; several pictures become one, below each other.

        Of `alternatives`, and of files that differ only in their suffix, the one with the most pixels is taken.

        Raises:
            LeftOut: if a file is missing, out of the folder or cannot be read.
        """
        choices: dict[Element, list[str]] = {}
        for graphic in unit.iter("graphic"):
            parent = graphic.getparent()
            choices.setdefault(parent if parent.tag == "alternatives" else graphic, []).append(_href(graphic))
        if not choices:
            raise LeftOut("figure without a picture (a film, a table, a formula)")
        opened = [self._best(names) for names in choices.values()]
        place = " ".join(str(picture.path.relative_to(self.root)) for picture in opened)
        if len(opened) == 1:
            return opened[0].content, place
        return png_bytes(stacked([Image.open(io.BytesIO(picture.content)) for picture in opened])), place

    def _best(self, names: list[str]) -> Opened:
        paths = {path: _pixels(path) for name in names for path in self._files(name)}
        if not paths:
            raise LeftOut("picture file is missing")
        for path in sorted(paths, key=lambda path: -paths[path]):
            try:
                return open_image([path], Preparation())
            except DataError:
                continue  # another of the alternatives may be whole; if none is, the figure is counted below
        raise LeftOut("picture cannot be read")

    def _files(self, name: str) -> list[Path]:
        """Return the files that a reference may mean: its own, or those of its name with a picture's suffix.

        Raises:
            LeftOut: if the reference leads out of the folder.
        """
        name = name.rpartition("/")[2] if name.startswith("info:") else name
        if "://" in name:
            raise LeftOut("picture at a web address")
        path = self.folder / name
        try:
            inside = path.parent.resolve().is_relative_to(self.root)
            beside = sorted(path.parent.iterdir()) if inside and path.parent.is_dir() else []
            files = [file.resolve() for file in beside if name and _is_meant(file, path.name)]
        except (OSError, ValueError) as error:
            raise LeftOut("picture file is missing") from error
        if not inside or not all(file.is_relative_to(self.root) for file in files):
            raise LeftOut("picture out of the folder")
        return [file for file in files if file.is_file()]


def _is_meant(file: Path, name: str) -> bool:
    if file.suffix.lower() not in SUFFIXES:
        return False
    stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
    return file.name == name or file.stem == stem


def _pixels(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
