"""Functions of the lmms-eval task beside this file: prompt, image, target and score of a multiple-choice question."""

from string import ascii_uppercase
from typing import Any

PREFIX = "The correct answer is"


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Return the question's image."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:  # noqa: ARG001
    """Return the paper's prompt: question, one option a line, and how to answer."""
    letters = ascii_uppercase[: len(doc["options"])]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, doc["options"], strict=True)]
    form = f'Response with only the letter of the correct choice, starting with "{PREFIX} [{" or ".join(letters)}].".'
    return "\n".join([doc["question"], *lines, form])


def doc_to_target(doc: dict[str, Any]) -> str:
    """Return the letter of the right option."""
    return doc["answer"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1 for a right answer: the text after the last "The correct answer is" must be the letter."""
    said = results[0].split(PREFIX)[-1].translate(str.maketrans("", "", ".*[]")).strip()
    return {"accuracy": float(said.upper() == doc["answer"])}
