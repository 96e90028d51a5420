"""What every predictor takes and gives."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ift_components.evaluation.items import Item


@dataclass(frozen=True)
class Work:
    """One answer that is to be given: an item, and which of its repeated runs (from 0)."""

    item: Item
    run: int = 0

    def seed(self, seed: int) -> int:
        """Return the seed of this answer's random draws; it depends on nothing but the item, the run and `seed`."""
        text = "/".join((str(seed), *self.item.key, str(self.run)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Answer:
    """What a predictor gave.

    Attributes:
        generated: the text, without special tokens; None if only the letter was chosen.
        forced: the option whose letter was chosen when the answer sentence was forced; None if it was not.
        seconds: time spent, a batch's shared equally by its answers.
    """

    generated: str | None
    forced: int | None
    seconds: float


class Predictor(Protocol):
    """Anything that answers items."""

    def check(self, items: Sequence[Item]) -> None:
        """Raise a `UserError` if one of the items cannot be answered, before any is."""

    def answer(self, work: Sequence[Work]) -> Iterator[tuple[Work, Answer]]:
        """Yield every answer as soon as it is there, in any order."""

    def describe(self) -> dict[str, str | None]:
        """Return what identifies the model (name, weights' hash), for the results and for resuming."""
