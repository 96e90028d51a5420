"""Questions about images: multiple choice by the authors' protocol or in full, and those that a dataset brings."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ift_components.data.problems import Problems
from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import Question, QuestionKind, Record
from ift_components.errors import ConfigError, DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = " or ".join(get_args(QuestionKind))


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
    """Makes the questions of records, which must come in the dataset's order: train, val, then test.

    Attributes are asked in val and test; questions that a record brings are taken in every split.

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
            question = Question(attribute.name, attribute.sentence, answer)
            texts = self._draw(record, question, pool, attribute.sampled, sampling)
            rows += self._choice_rows(record, question, texts, len(rows), problems)
        for question in record.questions:
            if question.kind != "choice":
                rows.append(_row(record, question, f"{record.id}#{len(rows)}"))
                continue
            if question.options is not None:
                texts = self._limited(record, question, list(question.options))
            else:
                texts = self._draw(record, question, self.pools.get(question.attribute, ()), 5, sampling)
            rows += self._choice_rows(record, question, texts, len(rows), problems)
        return rows

    def check_attribute(self, attribute: Attribute) -> None:
        """Check that an attribute can be asked.

        Raises:
            DataError: for no wrong option, more options than letters, or options that read the same.
        """
        pool = self._pool(attribute)
        limit = len(pool) if attribute.sampled or self.options.n_options else len(LETTERS)
        fault = options_fault(pool, pool[0], limit)
        if fault:
            raise DataError(
                f"schema: attribute '{attribute.name}' {fault}; mend that in the schema, or do not ask it (asked: false)"
            )

    def _pool(self, attribute: Attribute) -> Sequence[str]:
        texts = attribute.option_texts()
        return self.pools.get(attribute.name, ()) if texts is None else texts

    def _attributes(self, record: Record) -> list[Attribute]:
        if record.split == "train":
            return []
        attributes = [a for a in self.schema.attributes if a.asked and a.name in record.values]
        if self.one_per_image and attributes:
            self.drawing.shuffle(attributes)
            return attributes[:1]
        return attributes

    def _own(self, record: Record, question: Question, purpose: str) -> random.Random:
        return random.Random(f"{self.options.seed}/{purpose}/{record.id}/{question.attribute}/{question.answer}")

    def _draw(
        self, record: Record, question: Question, pool: Sequence[str], sampled: int | None, sampling: random.Random
    ) -> list[str]:
        barred = {text.casefold() for text in (question.answer, *question.also_right)}
        if sampled is None or self.options.n_options is not None:
            allowed = [text for text in pool if text == question.answer or text.casefold() not in barred]
            return self._limited(
                record, question, allowed if question.answer in allowed else [question.answer, *allowed]
            )
        wrong_texts = [text for text in pool if text.casefold() not in barred]
        texts = [question.answer, *sampling.sample(wrong_texts, min(len(wrong_texts), sampled - 1))]
        sampling.shuffle(texts)
        return texts

    def _limited(self, record: Record, question: Question, texts: list[str]) -> list[str]:
        limit = self.options.n_options
        if limit is None or len(texts) <= limit:
            return texts
        wrong_texts = [text for text in texts if text != question.answer]
        offered = {question.answer, *self._own(record, question, "options").sample(wrong_texts, limit - 1)}
        return [text for text in texts if text in offered]

    def _choice_rows(
        self, record: Record, question: Question, texts: list[str], number: int, problems: Problems
    ) -> Iterator[dict[str, Any]]:
        """Yield the row of a question with its options, or one row for each rotation of them."""
        if self.options.shuffle_options:
            self._own(record, question, "shuffle").shuffle(texts)
        fault = options_fault(texts, question.answer, len(LETTERS))
        if fault:
            problems.add(record.where, f"question '{question.attribute}' {fault}", f"question {fault}")
            return
        key = f"{record.id}#{number}"
        answer = texts.index(question.answer)
        if not self.options.circular:
            yield {**_row(record, question, key), "options": texts, "answer": answer}
            return
        for turn in range(len(texts)):
            yield {
                **_row(record, question, f"{key}/{turn}"),
                "options": texts[turn:] + texts[:turn],
                "answer": (answer - turn) % len(texts),
                "circular_group": key,
                "rotation": turn,
            }


def _row(record: Record, question: Question, key: str) -> dict[str, Any]:
    """Return the row of a question without the image; what only a choice has is null."""
    return {
        "id": key,
        "image_id": record.id,
        "attribute": question.attribute,
        "question": question.text,
        "options": None,
        "answer": None,
        "kind": question.kind,
        "answer_text": question.answer,
        "circular_group": None,
        "rotation": None,
    }


def questions_fault(record: Record) -> tuple[str, str] | None:
    """Return the attribute of a question that a record brings and that cannot be asked, and why; None if all can."""
    for question in record.questions:
        fault = ""
        if question.kind not in get_args(QuestionKind):
            fault = f"is of an unknown kind; expected {KINDS}"
        elif question.options is not None and question.kind == "choice":
            # How many options are too many, the question options decide later.
            fault = options_fault(question.options, question.answer, len(question.options))
        elif not question.answer.strip():
            fault = "has no answer"
        if fault:
            return question.attribute, fault
    return None


def options_fault(options: Sequence[str], answer: str, limit: int) -> str:
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
