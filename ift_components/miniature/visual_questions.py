"""Drawn cells with questions in place of descriptions: visual question answering that the miniature learns from its images."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.data.problems import Problems
from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import Question, Record, Source
from ift_components.errors import ConfigError
from ift_components.miniature.tasks import YES_NO, ask
from ift_components.smears.dataset import smears

_LABEL = "label"
_FORMS = tuple(form for form, yes, _ in YES_NO if yes == "Yes.")


def smear_questions(
    *,
    questions: int = 4,
    train: int = 2000,
    val: int = 300,
    test: int = 500,
    seed: int = 0,
    root: str | None = None,
) -> Source:
    """Return the cells of `smears`, in its stained style, with questions about their attributes, by turns open and closed.

    An open question is answered by the attribute's value, a closed one by yes or no, either in half of them.

    Args:
        questions: questions about a training image, each about another attribute; one is asked about any other image.
        train: images of the training split.
        val: images of the validation split.
        test: images of the test split.
        seed: seed of attributes, drawings and questions.
        root: folder for images and table; null takes one in the cache.

    Raises:
        ConfigError: if a number is out of range.
    """
    names = [attribute.name for attribute in SCHEMA.attributes]
    if not 1 <= questions <= len(names):
        raise ConfigError(f"builder.questions: {questions} is not a number from 1 to {len(names)}, the attributes")
    cells = smears(train=train, val=val, test=test, seed=seed, root=root)

    def records(problems: Problems) -> Iterator[Record]:
        for number, record in enumerate(cells.records(problems)):
            rng = random.Random(f"{seed} {record.id}")
            asked = rng.sample(
                sorted(record.values), min(questions, len(record.values)) if record.split == "train" else 1
            )
            made = tuple(
                _question(name, record.values, rng, closed=(number + i) % 2 == 1) for i, name in enumerate(asked)
            )
            yield replace(record, values={_LABEL: record.values[_LABEL]}, report="", questions=made)

    arguments = {**cells.arguments, "questions": questions}
    schema = Schema((Attribute(_LABEL, asked=False),))
    source = replace(cells, schema=schema, records=records, has_reports=False, question_names=tuple(names))
    return replace(source, name="smear_questions", arguments=arguments)


def _question(name: str, values: Mapping[str, str], rng: random.Random, *, closed: bool) -> Question:
    if not closed:
        return Question(name, ask({name: values[name]}, {}, rng)[0], values[name], "open")
    right = rng.random() < 0.5  # noqa: PLR2004 (a coin)
    others = [
        value for value in next(a for a in SCHEMA.attributes if a.name == name).values or () if value != values[name]
    ]
    value = values[name] if right else rng.choice(others)
    return Question(name, rng.choice(_FORMS).format(name=name, value=value), "yes" if right else "no", "closed")
