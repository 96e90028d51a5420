"""Splitting free text into sentences."""

import re

import sentencex

_PLURAL = re.compile(r"\b(?:Figs|Eqs|Refs|Tabs)\.$")


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Return the sentences of a text; joined by spaces they are the text again, apart from white space.

    The splitter (sentencex) takes the `1.` of a numbered list for a sentence; here a piece without a letter goes to the
    sentence after it, or, at the end, to the one before. It also parts `Figs.` from its numbers; they are joined again.

    Args:
        text: prose.
        language: its ISO 639-1 code.
    """
    sentences: list[str] = []
    held = ""
    for piece in (" ".join(piece.split()) for piece in sentencex.segment(language, text)):
        if sentences and _PLURAL.search(sentences[-1]):
            sentences[-1] += f" {piece}"
        elif not any(letter.isalpha() for letter in piece):
            held = f"{held} {piece}".strip()
        else:
            sentences.append(f"{held} {piece}".strip())
            held = ""
    if held and sentences:
        sentences[-1] += f" {held}"
    elif held:
        sentences.append(held)
    return sentences
