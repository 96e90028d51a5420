"""Running text of JATS XML, and the sentences in it that refer to a figure."""

import html.entities
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lxml import etree

from ift_components.data.sentences import split_sentences
from ift_components.papers.article import LeftOut

Element = Any  # lxml gives its elements no public type

# Elements inside a paragraph that are not part of its sentences; those that hold paragraphs of their own are visited apart.
_APART = frozenset(
    [
        *(
            "fig",
            "fig-group",
            "table-wrap",
            "table-wrap-group",
            "list",
            "def-list",
            "disp-quote",
            "boxed-text",
            "fn",
            "p",
        ),
        *("supplementary-material", "media", "graphic", "inline-graphic", "tex-math", "object-id", "statement"),
    ]
)
# Elements whose paragraphs are no running text of the article.
_NO_PROSE = frozenset(
    [
        *("fig", "fig-group", "table-wrap", "table-wrap-group", "caption", "sub-article", "response", "ref-list"),
        *("fn-group", "supplementary-material", "front-stub", "floats-group", "author-notes", "permissions"),
    ]
)
_RANGE = frozenset(("-", "\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "to", "through"))


@dataclass(frozen=True)
class _Mark:
    """A reference to figures in a text; start and end count the characters before it that are no white space."""

    start: int
    end: int
    figures: tuple[int, ...]


class _Prose:
    """Collects the text of an element and the places in it that refer to figures.

    Args:
        targets: the number of the figure that an id stands for.
    """

    def __init__(self, targets: Mapping[str, int]) -> None:
        self.targets = targets
        self.pieces: list[str] = []
        self.solid = ""  # the text without white space: sentence splitting may change nothing but white space
        self.marks: list[_Mark] = []

    def write(self, text: str | None) -> None:
        if text:
            self.pieces.append(text)
            self.solid += "".join(text.split())

    def read(self, element: Element) -> None:
        """Add the text of an element and of what it holds."""
        self.write(element.text)
        for child in element:
            if child.tag is etree.Entity:
                self.write(_character(child.name))
            elif child.tag in _APART or child.tag == "break":
                self.write(" ")
            elif not _is_citation_mark(child):
                self._read_child(child)
            self.write(child.tail)

    def _read_child(self, child: Element) -> None:
        start = len(self.solid)
        self.read(child)
        if child.tag == "xref":
            figures = tuple(self.targets[name] for name in (child.get("rid") or "").split() if name in self.targets)
            if figures:
                self.marks.append(_Mark(start, len(self.solid), figures))

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())


def _character(name: str) -> str:
    """Return the character of an entity that a DTD defines, by HTML's names, which include ISO's."""
    try:
        return html.entities.html5[f"{name};"]
    except KeyError as error:
        raise LeftOut("XML with an entity that only its DTD defines") from error


def _is_citation_mark(element: Element) -> bool:
    """Tell whether an element is the raised number of a reference, which would stick to the word before it."""
    if element.tag == "sup":
        return any(child.get("ref-type") == "bibr" for child in element.iter("xref"))
    return element.tag == "xref" and element.get("ref-type") == "bibr" and element.find("sup") is not None


def plain_text(element: Element | None) -> str:
    """Return the text of an element, with single spaces; empty for None."""
    if element is None:
        return ""
    prose = _Prose({})
    prose.read(element)
    return prose.text


def paragraphs(element: Element) -> Iterator[Element]:
    """Yield the paragraphs of the running text under an element, in order."""
    for child in element:
        if child.tag in _NO_PROSE:
            continue
        if child.tag == "p":
            yield child
        yield from paragraphs(child)


def mentions(article: Element, targets: Mapping[str, int], language: str) -> dict[int, list[str]]:
    """Return the sentences that refer to each figure, in reading order, each once.

    A reference is an `xref` by id. Of `Figures 1-3`, marked up as two references with a dash between, the figures in
    between count too.

    Args:
        article: the root of an article.
        targets: the number of the figure, in the article's order, that an id stands for.
        language: ISO 639-1 code, for splitting sentences.
    """
    sentences: dict[int, list[str]] = {}
    for paragraph in paragraphs(article):
        prose = _Prose(targets)
        prose.read(paragraph)
        if not prose.marks:
            continue
        marks = _with_ranges(prose)
        start = 0
        for sentence in split_sentences(prose.text, language):
            end = start + len("".join(sentence.split()))
            numbers = [number for mark in marks if start <= mark.start < end for number in mark.figures]
            for number in dict.fromkeys(numbers):
                if sentence not in sentences.setdefault(number, []):
                    sentences[number].append(sentence)
            start = end
    return sentences


def _with_ranges(prose: _Prose) -> list[_Mark]:
    """Return the marks of a text; where only a dash stands between two, the figures between theirs are added."""
    marks = list(prose.marks)
    for first, second in zip(prose.marks, prose.marks[1:], strict=False):
        if prose.solid[first.end : second.start] in _RANGE:
            between = range(max(first.figures) + 1, min(second.figures))
            marks.append(_Mark(first.start, first.end, tuple(between)))
    return marks
