"""Bad rows, collected and grouped, so that one message shows what is wrong with a whole table and how to mend it."""

from collections import Counter
from dataclasses import dataclass, field

from ift_components.errors import DataError

EXAMPLES = 3  # shown of each kind
KINDS_SHOWN = 20  # kinds shown in one message
UNLISTED = "value that the schema does not list"
# How the commonest kinds of problem are mended; the keys are the kinds that `Problems.add` is given.
FIXES = {
    "image is missing": "are the images in builder.root, and does builder.image_column name them?",
    "image could be several files": "write the sub-folder or the extension into the table",
    "image lies outside of the dataset's folder": "if a link leads to another disk on purpose: builder.follow_links=true",
    UNLISTED: "correct the cell, or add the value to the schema",
    "cell holds an error or a formula without a value": "open the workbook in a spreadsheet program, mend and save it",
    "no text file": "write one, or move the image elsewhere",
    "report is empty": "fill in the row",
    "wrong number of cells": "quote cells that hold commas",
}


@dataclass
class _Kind:
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Problems:
    """Bad rows by kind: how many, and the first few of each.

    Args:
        private: whether cells must not appear in messages; an example then names the row and the kind alone.
        follow_links: whether images may lie where a link inside the dataset's folder leads.

    Attributes:
        left_out: rows that a dataset's protocol leaves out, which is no mistake: their number by reason.
    """

    def __init__(self, *, private: bool = False, follow_links: bool = False) -> None:
        self.private = private
        self.follow_links = follow_links
        self.kinds: dict[str, _Kind] = {}
        self.rows: set[str] = set()
        self.left_out: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """The number of problems."""
        return sum(kind.count for kind in self.kinds.values())

    @property
    def first(self) -> list[str]:
        """The examples of every kind."""
        return [example for kind in self.kinds.values() for example in kind.examples]

    def add(self, where: str, what: str, kind: str | None = None) -> None:
        """Note what is wrong with a row.

        Args:
            where: file and row.
            what: the problem in words; it may hold a cell's text.
            kind: the kind of problem, without anything from the data; by default `what`, which then must not hold any.
        """
        kind = kind or what
        group = self.kinds.setdefault(kind, _Kind())
        group.count += 1
        self.rows.add(where)
        if len(group.examples) < EXAMPLES:
            group.examples.append(f"{where}: {kind if self.private else what}")

    def extend(self, other: "Problems") -> None:
        """Add the problems that another collected."""
        for name, kind in other.kinds.items():
            group = self.kinds.setdefault(name, _Kind())
            group.count += kind.count
            group.examples = (group.examples + kind.examples)[:EXAMPLES]
        self.rows |= other.rows
        self.left_out += other.left_out

    def by_kind(self) -> dict[str, int]:
        """Return the number of problems of each kind, the commonest first."""
        return {name: kind.count for name, kind in sorted(self.kinds.items(), key=lambda item: -item[1].count)}

    def summary(self) -> str:
        """Return the kinds with their counts, examples and fixes, indented, the commonest kind first."""
        lines: list[str] = []
        for name, count in list(self.by_kind().items())[:KINDS_SHOWN]:
            fix = f" ({FIXES[name]})" if name in FIXES else ""
            lines += [f"  {count} x {name}{fix}", *(f"    {example}" for example in self.kinds[name].examples)]
        if len(self.kinds) > KINDS_SHOWN:
            lines.append(f"  and {len(self.kinds) - KINDS_SHOWN} more kinds")
        return "\n".join(lines)

    def raise_if_any(self, name: str, usable: int) -> None:
        """Raise one DataError that shows all kinds of problem, if there is any.

        Args:
            name: the dataset.
            usable: the number of rows without a problem.
        """
        if self.kinds:
            lost = len(self.rows) / max(1, len(self.rows) + usable)
            raise DataError(
                f"{name}: {self.count} bad row(s)\n{self.summary()}\n"
                f"mend them, or leave them out with builder.on_bad_row=skip, which loses {lost:.0%} of the rows"
            )
