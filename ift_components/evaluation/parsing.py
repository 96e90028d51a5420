"""Reading the chosen option out of an answer: the authors' rule, and a strict robust one.

Both return None rather than guess; an answer without a reading counts as wrong and as unparsed.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from ift_components.data.wording import ANSWER_PREFIX, letters


def parse_paper(text: str, options: Sequence[str]) -> int | None:
    """Read an answer as the authors' code does.

    What follows the last "The correct answer is" (or the whole answer where that is missing), without `.`, `*`, `[`, `]` and
    surrounding white space, must be the letter of an option, in either case.

    Args:
        text: the generated answer, without special tokens.
        options: the options' texts.

    Returns:
        The option's index, or None.
    """
    answer = text.rpartition(ANSWER_PREFIX)[2]
    letter = answer.translate(str.maketrans("", "", ".*[]")).strip().upper()
    names = letters(len(options))
    return names.index(letter) if letter in names else None


_STATED = re.compile(
    r"\b(?i:answer|option|choice)\b\s*(?i:(?:is|are|was|would be|should be|must be)\b)?\s*(?i:option\b|choice\b|letter\b)?"
    r"[\s:=\-*_`\"'(\[{<]*([A-Za-z])(?![\w'\u2019])"
)
_AT_START = re.compile(r"^[\s*_`\"'(\[{<]*([A-Za-z])(?![\w'\u2019])")
_BRACKETED = re.compile(r"(?<!\w)[(\[{]\s*[*_`]*([A-Z])[*_`]*\s*[)\]}](?!\w)")
_AFTER_LETTER = re.compile(r"[\s.):\]}>*_`\"',\-]*")
_CLOSES = re.compile(r"\s*(?:$|[\n.,;:)\]}>*_`\"'!?-])|\s+(?:because|since|as|is)\b")


def _words(text: str) -> str:
    """Return the text case-folded, with single blanks."""
    return " ".join(text.casefold().split())


def named_options(text: str, options: Sequence[str]) -> set[int]:
    """Return the options whose full text occurs as whole words; a longer text hides the shorter ones inside it.

    Args:
        text: any text.
        options: the options' texts.
    """
    rest = _words(text)
    found = set()
    for index in sorted(range(len(options)), key=lambda i: -len(options[i])):
        # A hyphen belongs to the word: `segmented` is not in `segmented-bilobed`.
        pattern = rf"(?<![\w-]){re.escape(_words(options[index]))}(?![\w-])"
        rest, count = re.subn(pattern, "\0", rest)
        if count:
            found.add(index)
    return found


def _follows(rest: str, options: Sequence[str]) -> int | None:
    """Return the option whose text comes next, the longest that does."""
    start = _words(_AFTER_LETTER.sub("", rest, count=1))
    matching = [i for i, text in enumerate(options) if re.match(rf"{re.escape(_words(text))}(?![\w-])", start)]
    return max(matching, key=lambda i: len(options[i]), default=None)


def _lettered(match: re.Match[str], text: str, options: Sequence[str]) -> int | None:
    """Return the option of a matched letter; -1 where the text after it names another; None if it is no choice."""
    letter, rest = match.group(1), text[match.end(1) :]
    names = letters(len(options))
    following = _follows(rest, options)
    closed = bool(_CLOSES.match(rest))
    if letter.islower() and not closed:
        return None
    if letter.upper() not in names:
        # An option that does not exist is a choice all the same, a wrong one: never read another one instead.
        return -1 if closed else None
    index = names.index(letter.upper())
    if following is not None:
        # "A small cell" may begin a sentence: there the letter counts if it is set apart or names its own text.
        if following == index:
            return index
        return -1 if closed or match.re is _STATED else None
    return index if closed or letter not in "aAI" else None


def parse_strict(text: str, options: Sequence[str]) -> int | None:
    """Read an answer in any usual form, or not at all.

    In this order: a letter after "answer", "option" or "choice"; a letter that begins the answer (`B`, `(b)`, `B. small`); a
    capital in brackets; the full text of exactly one option (whole words, longest match, so that `blue` is not read from
    `light blue`). Two different letters, a letter whose text is another option's, or the texts of two options are not read.

    Args:
        text: the generated answer, without special tokens.
        options: the options' texts.

    Returns:
        The option's index, or None.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    for pattern in (_STATED, _AT_START, _BRACKETED):
        found = {_lettered(match, text, options) for match in pattern.finditer(text)} - {None}
        if found:
            choice = found.pop()
            return None if found or choice == -1 else choice
    named = named_options(text, options)
    return named.pop() if len(named) == 1 else None


PARSERS: dict[str, Callable[[str, Sequence[str]], int | None]] = {"paper": parse_paper, "strict": parse_strict}
