"""The instruction format of MILE (its Fig. 4 and 5): a template drawn for each question, with options from its category.

The paper's braces mark places to fill and are not written. Options stand as `(a)X-Ray; (b)MRI; (c)CT`, the answer among them in
random order; yes and no always as `(a)No; (b)Yes`. The answer is the right option's text. A question is tested without all
this, as it stands.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np

_YES_NO = ("No", "Yes")


@dataclass(frozen=True)
class Template:
    """One form of a question.

    Attributes:
        text: with the places `{question}` and, where there are options, `{options}`.
        options: how many options it offers; 0 without.
    """

    text: str
    options: int = 0


_THEN_THE_ANSWER = "Question:{question}Option:{options} The answer to the question is"
_ANSWER = "Question:{question}Option:{options} Answer:"
CLOSED = (
    Template(_THEN_THE_ANSWER, 2),
    Template(_ANSWER, 2),
    Template("Question:{question}Based on the image, give a judgmental answer to the question"),
)
OPEN = (
    Template(_THEN_THE_ANSWER, 2),
    Template(_ANSWER, 2),
    Template("Question:{question}Option:{options} Short answer:", 3),
    Template(
        "Used the provided image to answer the question:{question}Option:{options} Provide your answer based on the option",
        3,
    ),
    Template('What is the answer to the following question?"{question}"'),
)


def is_yes_or_no(answer: str) -> bool:
    """Return whether an answer is yes or no, in any case."""
    return answer.strip().casefold() in {"no", "yes"}


def fitting_forms(answer: str, *, closed: bool, category: Collection[str]) -> tuple[list[Template], list[str]]:
    """Return the forms that a question can take, and the wrong answers to draw options from.

    Args:
        answer: the right answer.
        closed: whether the closed forms apply; the open ones otherwise.
        category: the answers of the question's category; not looked at where a closed question's answer is yes or no.

    Returns:
        The forms whose options the category has enough answers for, and the category's wrong answers, sorted.
    """
    same = answer.strip().casefold()
    wrong_answers = sorted({text for text in category if text.strip().casefold() != same})
    if closed and is_yes_or_no(answer):
        return list(CLOSED), [text for text in _YES_NO if text.casefold() != same]
    if closed:  # "left or right?": a yes among its options would give itself away
        wrong_answers = [text for text in wrong_answers if not is_yes_or_no(text)]
    return [form for form in (CLOSED if closed else OPEN) if form.options <= len(wrong_answers) + 1], wrong_answers


def write(form: Template, question: str, options: Sequence[str]) -> str:
    """Return a question in a form, with its options in their order."""
    listed = "; ".join(f"({letter}){text}" for letter, text in zip(ascii_lowercase, options, strict=False))
    return form.text.format(question=question, options=listed)


def render(
    question: str, answer: str, *, closed: bool, category: Collection[str], generator: np.random.Generator
) -> str:
    """Return a question in a form drawn from those that fit it.

    Args:
        question: the sentence.
        answer: the right answer.
        closed: whether the closed forms apply; the open ones otherwise.
        category: the answers of the question's category, from which the wrong options are drawn.
        generator: draws the form, the wrong options and their order.
    """
    forms, wrong_answers = fitting_forms(answer, closed=closed, category=category)
    form = forms[generator.integers(len(forms))]
    if not form.options:
        return write(form, question, ())
    if closed and is_yes_or_no(answer):
        return write(form, question, _YES_NO)
    drawn = generator.choice(len(wrong_answers), form.options - 1, replace=False)
    options = [answer, *(wrong_answers[number] for number in drawn)]
    return write(form, question, [options[number] for number in generator.permutation(len(options))])
