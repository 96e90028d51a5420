"""Multiple-choice questions, by the authors' protocol or in full."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import Choice, Problems, Record
from ift_components.errors import ConfigError, DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class QuestionOptions:
    """How questions are made.

    Attributes:
        protocol: `paper` asks and samples as the authors' code does; `full` asks every applicable attribute.
        n_options: options of every question; null takes what the dataset's protocol says.
        shuffle_options: shuffle the options of every question by a generator of its own.
        circular: write every rotation of the options as a row of its own (`circular_group`, `rotation`).
        seed: seed of sampled and shuffled options; the authors evaluate with 1.
    """

    protocol: str = "paper"
    n_options: int | None = None
    shuffle_options: bool = False
    circular: bool = False
    seed: int = 1

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: naming the key and what it may be.
        """
        if self.protocol not in ("paper", "full"):
            raise ConfigError(f"questions.protocol is '{self.protocol}', expected one of: paper, full")
        if self.n_options is not None and not 1 < self.n_options <= len(LETTERS):
            raise ConfigError(f"questions.n_options is {self.n_options}, expected 2 to {len(LETTERS)}")


class QuestionMaker:
    """Makes the questions of records, which must come in the dataset's order: val, then test.

    Three kinds of random stream, none of which disturbs another: the attribute drawn for an image (`Random(0)`, one
    stream over val and test), the sampled options (`Random(seed)`, from the start for each split, as the authors
    evaluate each split in a run of its own), and one generator a question for whatever the authors' protocol lacks.

    Args:
        schema: the dataset's attributes.
        options: how questions are made.
        pools: the texts that occur in the data by attribute name, for attributes that do not list them.
    """

    def __init__(self, schema: Schema, options: QuestionOptions, pools: Mapping[str, Collection[str]]) -> None:
        options.check()
        self.schema = schema
        self.options = options
        self.pools = {name: sorted(pool) for name, pool in pools.items()}
        self.one_per_image = schema.one_per_image and options.protocol == "paper"
        self.drawing = random.Random(0)
        self.sampling: dict[str, random.Random] = {}

    def make(self, record: Record, problems: Problems) -> list[dict[str, Any]]:
        """Return the rows of a record's questions, without the image.

        A question with no wrong option or with more options than letters is noted in `problems` and left out.
        """
        sampling = self.sampling.setdefault(record.split, random.Random(self.options.seed))
        rows: list[dict[str, Any]] = []
        for attribute in self._attributes(record):
            answer = attribute.text(record.values[attribute.name])
            pool = self._pool(attribute)
            if attribute.choices is not None and answer not in attribute.choices:
                continue  # the published question set leaves such answers out
            choice = Choice(attribute.name, attribute.question, answer)
            texts = self._draw(record, choice, pool, attribute.sampled, sampling)
            rows += self._rows(record, choice, texts, len(rows), problems)
        for choice in record.choices:
            if choice.options is not None:
                texts = self._limited(record, choice, list(choice.options))
            else:
                texts = self._draw(record, choice, self.pools.get(choice.attribute, ()), 5, sampling)
            rows += self._rows(record, choice, texts, len(rows), problems)
        return rows

    def check_attribute(self, attribute: Attribute) -> None:
        """Check that an attribute can be asked.

        Raises:
            DataError: for no wrong option, more options than letters, or options that read the same.
        """
        pool = self._pool(attribute)
        limit = len(pool) if attribute.sampled or self.options.n_options else len(LETTERS)
        wrong = wrong_options(pool, pool[0], limit)
        if wrong:
            raise DataError(f"schema: attribute '{attribute.name}' {wrong}; or do not ask it (asked: false)")

    def _pool(self, attribute: Attribute) -> Sequence[str]:
        texts = attribute.option_texts()
        return self.pools.get(attribute.name, ()) if texts is None else texts

    def _attributes(self, record: Record) -> list[Attribute]:
        asked = [a for a in self.schema.attributes if a.asked and a.name in record.values]
        if self.one_per_image and asked:
            self.drawing.shuffle(asked)
            return asked[:1]
        return asked

    def _own(self, record: Record, choice: Choice, purpose: str) -> random.Random:
        return random.Random(f"{self.options.seed}/{purpose}/{record.id}/{choice.attribute}/{choice.answer}")

    def _draw(
        self, record: Record, choice: Choice, pool: Sequence[str], sampled: int | None, sampling: random.Random
    ) -> list[str]:
        barred = {text.casefold() for text in (choice.answer, *choice.also_right)}
        if sampled is None or self.options.n_options is not None:
            right = [text for text in pool if text == choice.answer or text.casefold() not in barred]
            return self._limited(record, choice, right if choice.answer in right else [choice.answer, *right])
        wrong = [text for text in pool if text.casefold() not in barred]
        texts = [choice.answer, *sampling.sample(wrong, min(len(wrong), sampled - 1))]
        sampling.shuffle(texts)
        return texts

    def _limited(self, record: Record, choice: Choice, texts: list[str]) -> list[str]:
        limit = self.options.n_options
        if limit is None or len(texts) <= limit:
            return texts
        wrong = [text for text in texts if text != choice.answer]
        kept = {choice.answer, *self._own(record, choice, "options").sample(wrong, limit - 1)}
        return [text for text in texts if text in kept]

    def _rows(
        self, record: Record, choice: Choice, texts: list[str], number: int, problems: Problems
    ) -> Iterator[dict[str, Any]]:
        if self.options.shuffle_options:
            self._own(record, choice, "shuffle").shuffle(texts)
        wrong = wrong_options(texts, choice.answer, len(LETTERS))
        if wrong:
            problems.add(record.where, f"question '{choice.attribute}' {wrong}")
            return
        base = f"{record.id}#{number}"
        row = {"image_id": record.id, "attribute": choice.attribute, "question": choice.question}
        answer = texts.index(choice.answer)
        if not self.options.circular:
            yield {"id": base, **row, "options": texts, "answer": answer, "circular_group": None, "rotation": None}
            return
        for turn in range(len(texts)):
            turned = texts[turn:] + texts[:turn]
            place = (answer - turn) % len(texts)
            yield {
                "id": f"{base}/{turn}",
                **row,
                "options": turned,
                "answer": place,
                "circular_group": base,
                "rotation": turn,
            }


def wrong_choices(record: Record) -> str:
    """Return what is wrong with the questions that a record brings; empty if nothing is."""
    for choice in record.choices:
        if choice.options is not None:
            # How many options are too many, the question options decide later.
            wrong = wrong_options(choice.options, choice.answer, len(choice.options))
            if wrong:
                return f"question '{choice.attribute}' {wrong}"
        elif not choice.answer.strip():
            return f"question '{choice.attribute}' has no answer"
    return ""


def wrong_options(options: Sequence[str], answer: str, limit: int) -> str:
    """Return why a question with these options cannot be asked; empty if it can."""
    if answer not in options:
        return "does not offer its answer"
    if len(options) <= 1:
        return "has no wrong option"
    if len(options) > limit:
        return f"has {len(options)} options, more than there are letters ({limit}); set questions.n_options"
    if any(not text.strip() for text in options):
        return "has an empty option"
    if len({text.casefold() for text in options}) < len(options):
        return "has two options that read the same"
    return ""
