"""What is asked and what was answered: the two types that everything in this room passes on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from PIL import Image

Score = float | int | bool | None
Key = tuple[str, str, str, int]


def _no_picture() -> Image.Image:
    raise RuntimeError("an item that was read back from predictions.jsonl has no picture")


@dataclass(frozen=True)
class Item:
    """One thing a model is asked about one image.

    Attributes:
        id: unique within task and dataset.
        task: name of a task (`tasks.TASKS`).
        dataset: name of the dataset.
        image_id: images of one name are encoded once.
        prompt: the instruction's text; empty if it is the proxy instruction.
        picture: opens the image.
        max_new_tokens: longest answer in tokens.
        attribute: what a question asks for.
        options: a multiple-choice question's options' texts.
        answer: index of the right option.
        circular_group: the question whose rotation this is.
        reference: the text that an answer is compared with.
        kind: `choice`, `open` or `closed`; None where nobody says.
    """

    id: str
    task: str
    dataset: str
    image_id: str
    prompt: str
    picture: Callable[[], Image.Image] = _no_picture
    max_new_tokens: int = 50
    attribute: str = ""
    options: tuple[str, ...] = ()
    answer: int = -1
    circular_group: str | None = None
    reference: str = ""
    kind: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the item from all others."""
        return self.task, self.dataset, self.id

    @property
    def answer_text(self) -> str:
        """The right answer as a text."""
        return self.options[self.answer] if self.options else self.reference

    def facts(self) -> dict[str, Any]:
        """Return what a prediction's line says about the item."""
        facts: dict[str, Any] = {"task": self.task, "dataset": self.dataset, "id": self.id, "image_id": self.image_id}
        facts |= {"attribute": self.attribute, "prompt": self.prompt}
        if self.options:
            return facts | {"options": list(self.options), "answer": self.answer, "circular_group": self.circular_group}
        return facts | {"reference": self.reference, "kind": self.kind}

    @classmethod
    def from_facts(cls, row: Mapping[str, Any]) -> Self:
        """Return the item of a prediction's line; it has no picture.

        Raises:
            KeyError: if the line lacks a field.
        """
        options = tuple(row.get("options") or ())
        return cls(
            id=row["id"],
            task=row["task"],
            dataset=row["dataset"],
            image_id=row["image_id"],
            prompt=row["prompt"],
            attribute=row.get("attribute", ""),
            options=options,
            answer=row["answer"] if options else -1,
            circular_group=row.get("circular_group"),
            reference="" if options else row["reference"],
            kind="choice" if options else row.get("kind"),
        )


@dataclass(frozen=True)
class Prediction:
    """One answer to one item.

    Attributes:
        item: what was asked.
        run: which of the item's repeated runs, from 0.
        generated: the text, without special tokens; None if only the letter was chosen, or nothing was answered.
        forced: the option whose letter was chosen when the answer sentence was forced; None if it was not.
        seconds: time spent, a batch's shared equally by its answers.
        unanswered: why there is no answer, e.g. a server's refusal; None if there is one.
        passing: whether the same question may be answered when it is asked again.
        probabilities: of every option's letter where the answer sentence was forced; None if they were not asked for.
        scores: what the task's scorers say of it, by name; empty until it is scored.
    """

    item: Item
    run: int = 0
    generated: str | None = None
    forced: int | None = None
    seconds: float = 0.0
    unanswered: str | None = None
    passing: bool = False
    probabilities: tuple[float, ...] | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells the prediction from all others."""
        return (*self.item.key, self.run)

    @property
    def shares(self) -> tuple[float, ...] | None:
        """Every option's share of the letters' probabilities; None if they were not asked for."""
        if self.probabilities is None:
            return None
        total = sum(self.probabilities)
        return tuple(p / total if total else 0.0 for p in self.probabilities)

    @property
    def predicted(self) -> int | None:
        """The option that was read; None if none was."""
        value = self.scores["predicted"]
        return None if value is None else int(value)

    @property
    def correct(self) -> bool:
        """Whether the answer is right; an answer that cannot be read is not."""
        return bool(self.scores["correct"])

    def scored(self, scores: Mapping[str, Score]) -> Self:
        """Return the prediction with these scores."""
        return replace(self, scores=dict(scores))

    def line(self) -> dict[str, Any]:
        """Return what predictions.jsonl says about it."""
        line = {**self.item.facts(), "run": self.run}
        answer = {"generated": self.generated, "forced": self.forced, "probabilities": self.probabilities}
        answer["unanswered"] = self.unanswered
        line |= {name: value for name, value in answer.items() if value is not None}
        if self.passing:
            line["passing"] = True
        return {**line, **self.scores, "seconds": round(self.seconds, 4)}

    @classmethod
    def from_line(cls, row: Mapping[str, Any], item: Item | None = None) -> Self:
        """Return the prediction of a line, unscored: verdicts are derived from the answer, never read.

        Args:
            row: the line.
            item: what was asked; None takes what the line says of it.

        Raises:
            KeyError: if the line lacks a field.
        """
        return cls(
            item=item or Item.from_facts(row),
            run=row["run"],
            generated=row.get("generated"),
            forced=row.get("forced"),
            seconds=row["seconds"],
            unanswered=row.get("unanswered"),
            passing=bool(row.get("passing", False)),
            probabilities=tuple(map(float, row["probabilities"])) if "probabilities" in row else None,
        )


def line_key(row: Mapping[str, Any]) -> Key:
    """Return what tells a line from all others: task, dataset, id and run."""
    return row["task"], row["dataset"], row["id"], row["run"]
