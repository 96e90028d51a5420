"""What every predictor takes and gives."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ift_components.evaluation.records import Item, Prediction


@dataclass(frozen=True)
class Work:
    """One answer that is to be given: an item, and which of its repeated runs (from 0)."""

    item: Item
    run: int = 0

    def seed(self, seed: int) -> int:
        """Return the seed of this answer's random draws; it depends on nothing but the item, the run and `seed`."""
        text = "/".join((str(seed), *self.item.key, str(self.run)))
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:6], "big")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, whoever gives them.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: sampled tokens are drawn from the most probable ones that together reach this probability.
        seed: seed of all draws; every answer has a seed of its own made from it (`Work.seed`).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True)
class Answer:
    """What a predictor gave.

    Attributes:
        generated: the text, without special tokens; None if only the letter was chosen, or nothing was answered.
        forced: the option whose letter was chosen when the answer sentence was forced; None if it was not.
        seconds: time spent, a batch's shared equally by its answers.
        unanswered: why there is no answer; None if there is one.
        passing: whether the same question may be answered when it is asked again.
        probabilities: of every option's letter where the answer sentence was forced; None if they were not asked for.
    """

    generated: str | None
    forced: int | None
    seconds: float
    unanswered: str | None = None
    passing: bool = False
    probabilities: tuple[float, ...] | None = None

    def to(self, work: Work) -> Prediction:
        """Return the answer as the prediction of what was asked."""
        return Prediction(
            work.item,
            work.run,
            self.generated,
            self.forced,
            self.seconds,
            self.unanswered,
            self.passing,
            self.probabilities,
        )


class Predictor(Protocol):
    """Anything that answers items."""

    def check(self, items: Sequence[Item]) -> None:
        """Raise a `UserError` if one of the items cannot be answered, before any is."""

    def answer(self, work: Sequence[Work], sampling: Sampling = GREEDY) -> Iterator[tuple[Work, Answer]]:
        """Yield every answer as soon as it is there, in any order."""

    def describe(self) -> dict[str, str | None]:
        """Return what identifies the model (name, weights' hash), for the results and for resuming."""
