"""The multiple-choice prompt of the paper and the reading of its answers."""

from collections.abc import Sequence
from string import ascii_uppercase

ANSWER_PREFIX = "The correct answer is"


def letters(count: int) -> list[str]:
    """Return the option letters A, B, C, ...

    Raises:
        ValueError: if there are more options than letters.
    """
    if count > len(ascii_uppercase):
        raise ValueError(f"{count} options, but only {len(ascii_uppercase)} letters")
    return list(ascii_uppercase[:count])


def multiple_choice_prompt(question: str, options: Sequence[str]) -> str:
    """Return the instruction of a multiple-choice question, exactly as the authors word it.

    Args:
        question: the question's sentence.
        options: the options' texts, in order.
    """
    names = letters(len(options))
    lines = [f"{letter}. {option}" for letter, option in zip(names, options, strict=True)]
    form = (
        f'Response with only the letter of the correct choice, starting with "{ANSWER_PREFIX} [{" or ".join(names)}].".'
    )
    return "\n".join([question, *lines, form])


def parse_answer(text: str, count: int) -> int | None:
    """Read an answer as the authors' code does.

    What follows the last "The correct answer is", without `.`, `*`, `[`, `]` and surrounding white space, must be a letter of an
    option, in either case.

    Args:
        text: the generated answer, without special tokens.
        count: number of options.

    Returns:
        The option's index, or None if the answer is not well formed; that counts as wrong.
    """
    answer = text.rpartition(ANSWER_PREFIX)[2]
    letter = answer.translate(str.maketrans("", "", ".*[]")).strip().upper()
    names = letters(count)
    return names.index(letter) if letter in names else None
