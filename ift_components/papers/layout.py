"""Where things stand on a page of a PDF: which lines are captions, which pictures belong together and to which caption.

All lengths are in points (1/72 inch); the origin is the lower left corner, as in PDF.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# `Figure 1.`, `Fig. 2 |`, `FIGURE S3:`; without a mark a capital, a bracket or nothing must follow.
_LABEL = re.compile(
    r"(?P<label>fig(?:ure|\.)?\s*(?P<number>S?\d+))(?![\d\w])\s*(?P<mark>[.:|\u2013\u2014-])?\s*(?P<text>.*)",
    re.IGNORECASE,
)
_OWN_DOI = re.compile(
    r"\s*(?:\bDOI: \S+|\bFig(?:ure|\.) \w+ continued on next page)$", re.IGNORECASE
)  # after the caption
GATHER = 24.0  # pictures at most this far apart are parts of one figure
REACH = 72.0  # a caption stands at most this far from its picture
_LEADING = 0.8  # lines of one paragraph are at most this many of their heights apart
_SAME_SIZE = 0.2  # lines of one caption differ in height by at most this share
_NOT_BELOW = 1.5  # most captions stand below: another place counts as that many times as far


@dataclass(frozen=True)
class Box:
    """A rectangle on a page."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def width(self) -> float:
        """Its width."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Its height."""
        return self.top - self.bottom

    def gaps(self, other: "Box") -> tuple[float, float]:
        """Return how far two rectangles are apart, horizontally and vertically; 0 where they overlap."""
        across = max(0.0, self.left - other.right, other.left - self.right)
        along = max(0.0, self.bottom - other.top, other.bottom - self.top)
        return across, along


@dataclass(frozen=True)
class Line:
    """A line of text; `hyphen` tells that its last word goes on in the next line."""

    text: str
    box: Box
    hyphen: bool = False


@dataclass(frozen=True)
class Picture:
    """An image on a page and how many of its pixels go into a point."""

    box: Box
    resolution: float


@dataclass
class Page:
    """What stands on a page as a reader sees it: lines in the order of the file's content, and images."""

    number: int
    lines: list[Line] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Caption:
    """A caption: label and number as printed, its text, where it stands, and its lines' places in `Page.lines`."""

    label: str
    number: str
    text: str
    box: Box
    lines: range


def union(boxes: Sequence[Box]) -> Box:
    """Return the smallest rectangle that holds all."""
    return Box(
        min(box.left for box in boxes),
        min(box.bottom for box in boxes),
        max(box.right for box in boxes),
        max(box.top for box in boxes),
    )


def _goes_on(line: Line, before: Line) -> bool:
    """Tell whether a line follows another in one paragraph."""
    height = min(line.box.height, before.box.height)
    across, _ = line.box.gaps(before.box)
    gap = before.box.bottom - line.box.top
    same_size = abs(line.box.height - before.box.height) <= _SAME_SIZE * max(line.box.height, before.box.height)
    return across == 0 and -height < gap <= _LEADING * height and line.box.top < before.box.top and same_size


def captions_of(page: Page) -> Iterator[Caption]:
    """Yield the captions of a page: paragraphs that begin with a figure's label."""
    lines = page.lines
    for place, line in enumerate(lines):
        match = _LABEL.fullmatch(line.text)
        if match is None or (place and _goes_on(line, lines[place - 1])):
            continue
        rest = match["text"]
        if not (match["mark"] or not rest or rest[0].isupper() or rest[0] in "([<"):
            continue
        end = place + 1
        while end < len(lines) and _goes_on(lines[end], lines[end - 1]):
            end += 1
        first = Line(rest, line.box, line.hyphen)
        text = _OWN_DOI.sub("", prose_of([first, *lines[place + 1 : end]]))
        label = " ".join(match["label"].split())
        box = union([held.box for held in lines[place:end]])
        yield Caption(label, match["number"].upper(), text, box, range(place, end))


def prose_of(lines: Sequence[Line]) -> str:
    """Return lines as running text; words divided at a line's end are joined."""
    text = ""
    for line in lines:
        text += line.text if line.hyphen else f"{line.text} "
    return " ".join(text.split())


def clusters(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Return the pictures in groups: those at most `GATHER` apart, directly or through others, are parts of one figure."""
    groups: list[list[Picture]] = []
    for picture in pictures:
        near = [group for group in groups if any(max(picture.box.gaps(other.box)) <= GATHER for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append([picture, *(other for group in near for other in group)])
    return groups


def figure_regions(
    groups: Sequence[list[Picture]], captions: Sequence[Caption]
) -> tuple[dict[int, list[Picture]], int]:
    """Give groups of pictures to captions, the nearest first; what a caption has makes it reach further.

    Returns:
        The pictures of each caption, by its place, and how many groups stand further than `REACH` from any caption.
    """
    regions: dict[int, list[Picture]] = {}
    open_groups = list(groups)
    while open_groups:
        distances = [
            (_distance(union([picture.box for picture in group]), caption, regions.get(place, [])), number, place)
            for number, group in enumerate(open_groups)
            for place, caption in enumerate(captions)
        ]
        distance, number, place = min(distances, default=(REACH + 1, 0, 0))
        if distance > REACH:
            break
        regions.setdefault(place, []).extend(open_groups.pop(number))
    return regions, len(open_groups)


def _distance(box: Box, caption: Caption, pictures: Sequence[Picture]) -> float:
    """Return how far a group of pictures is from a caption or from the pictures it has; infinite where diagonal."""
    distances = []
    for other in (caption.box, *(picture.box for picture in pictures)):
        across, along = box.gaps(other)
        below = not across and other.bottom <= box.bottom
        distances.append(math.inf if across and along else (across + along) * (1 if below else _NOT_BELOW))
    return min(distances)


def paragraphs(lines: Sequence[Line]) -> Iterator[str]:
    """Yield running text by paragraphs; one that goes on in another column or on the next page is joined.

    A paragraph goes on if it ends without a full stop and the next begins with a small letter.
    """
    held: list[Line] = []
    for line in lines:
        if held and not _goes_on(line, held[-1]):
            ended = not held[-1].hyphen and held[-1].text.endswith((".", "!", "?", ":"))
            if ended or not line.text[0].islower():
                yield prose_of(held)
                held = []
        held.append(line)
    if held:
        yield prose_of(held)
