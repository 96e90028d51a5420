"""How questions are worded: the multiple-choice prompt of the paper, which training and evaluation share."""

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
    named = " or ".join(letters(len(options)))
    form = f'Response with only the letter of the correct choice, starting with "{ANSWER_PREFIX} [{named}].".'
    return "\n".join([question, *option_lines(options), form])


def option_lines(options: Sequence[str]) -> list[str]:
    """Return the options' texts, each behind its letter."""
    return [f"{letter}. {option}" for letter, option in zip(letters(len(options)), options, strict=True)]


def choice_answer(answer: int) -> str:
    """Return the answer that names option `answer` (from 0), as the prompt asks for it."""
    return f"{ANSWER_PREFIX} {letters(answer + 1)[answer]}."
