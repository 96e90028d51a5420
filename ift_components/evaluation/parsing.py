"""Reading the chosen option out of an answer: the authors' rule as it runs, the same on the answer alone, and a strict one.

None of them guesses: an answer without a reading is None, and counts as wrong and as unparsed.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from ift_components.data.wording import ANSWER_PREFIX, letters

VERSION = 2  # of the readings: an evaluation that was begun with another one is not gone on with


def parse_paper(text: str, options: Sequence[str]) -> int | None:
    """Read an answer by the authors' rule, on the answer alone.

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


def parse_authors(prompt: str, text: str, options: Sequence[str]) -> int | None:
    """Read an answer as the authors' code runs: prompt and answer are decoded together, and the prompt holds the sentence.

    So an answer that does not begin the sentence anew, a bare letter for instance, is not read. For figures that are compared
    with the paper's.

    Args:
        prompt: the question as it was asked.
        text: the generated answer, without special tokens.
        options: the options' texts.

    Returns:
        The option's index, or None.
    """
    return parse_paper(f"{prompt}assistant\n\n{text}", options)


_OPEN = r"[\s:=\-\u2013\u2014>\u2192\"'(\[{<]*"
_LETTER = r"([A-Za-z])(?!\w|'\w)"
_STATED = re.compile(
    r"\b(?i:answer|option|choice|letter|choose|select|pick|go(?:ing)? with)\b\s*"
    r"(?i:(?:is|are|was|would be|should be|must be|to)\b)?\s*(?i:(?:option|choice|letter)\b)?" + _OPEN + _LETTER
)
_AT_START = re.compile(r"\A" + _OPEN + _LETTER)
_LINE_START = re.compile(r"(?m)^[\s\"'(\[{<\-]*([A-Za-z])(?=[.):\]])")
_ITEM = re.compile(r"(?<!\w)([A-Z])(?=[.):\]]\s)")
_BRACKETED = re.compile(r"(?<!\w)[(\[{]\s*([A-Z])\s*[)\]}](?!\w)")
_JUDGED = re.compile(
    r"\b([A-Z])\s+(?:is|would be|seems|looks)\s+(?:the\s+)?(?:most\s+|best\s+)?(?:correct|right|answer|best|likely)\b"
)
_CORRECTED = re.compile(
    r"\b(?i:wait|actually|correction|on second thought|i meant?|scratch that|or rather)\b[\s,:.\-]*"
    r"(?i:(?:it'?s|it is|that is|i think it is|no)\b)?[\s,:]*" + _LETTER
)
_PATTERNS = (_STATED, _AT_START, _LINE_START, _ITEM, _BRACKETED, _JUDGED, _CORRECTED)
_SURE = (_STATED, _JUDGED, _CORRECTED)  # words before or after make the letter a choice
_LISTED = re.compile(
    r"\b([A-Z])\b['\")\]]*\s*(?:,|/|&|\bor\b|\band\b)\s*(?:\b(?:or|and|option)\b\s*)?['\"(\[]*([A-Z])\b(?!')"
)
_REFERENCE = re.compile(
    r"\b(?i:fig(?:ure|\.)?|panel|image|table|type|grade|group|vitamin|hepatitis|class|stage)\s*[(\[]?\s*\Z"
)
_AFTER_LETTER = re.compile(r"[\s.):\]}>\"',\-=\u2013\u2014]*")
_CLOSES = re.compile(
    r"\s*(?:$|[\n.,;:)\]}>\"'!?<-])|\s+(?:because|since|as|is|and|but|with|\u2013|\u2014)\b|\s+[\u2013\u2014]"
)

_BOUNDARY = re.compile(
    r"[.;!?\n](?=\s|$)|,\s|\s[\u2013\u2014-]\s|\s\(|\)"
    r"|\b(?i:but|because|since|while|whereas|so|therefore|thus|hence|and|although|though|instead of|instead|rather than)\b"
)
_NEGATION = re.compile(
    r"\b(?i:not|never|neither|nor|without|no|cannot|unlike|except|absence of|absent|lack of|lacks"
    r"|exclud(?:es?|ed|ing)|rul(?:e|es|ed|ing) out|incorrect|wrong|false|unlikely|eliminat(?:e|ed|ing)|hardly"
    r"|barely|isnt|arent)\b|n't\b"
)
_PASSED_OVER = re.compile(r"(?i)\b(?:rather than|instead of)\s+(?:a |an |the )?\Z")
_NO_DOUBT = re.compile(r"\b(?i:no doubt|without (?:a |any )?doubt|not only|undoubtedly)\b")


def _cleaned(text: str) -> str:
    """Return the answer proper: without thoughts, markup, LaTeX and typographic signs."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"(?is)<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", " ", text)
    text = re.sub(r"(?is)\A.*</think(?:ing)?>", " ", text)
    text = text.translate(str.maketrans("\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb", "''" + '"' * 5)).replace("`", "")
    text = re.sub(r"\\(?:boxed|text|textbf|mathbf|mathrm|fbox)\s*\{", "{", text)
    text = re.sub(r"\{\s*\{\s*([^{}]*)\}\s*\}", r"{\1}", text).replace("$", "")
    text = text.replace("*", "")
    return re.sub(r"(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])", "", text).strip()


def _without_echo(text: str, options: Sequence[str]) -> str:
    """Return the text without a repeated list of options and without the prompt's form of the answer."""
    names = "|".join(letters(len(options)))
    text = re.sub(rf"(?i:the correct answer is)\s*\[?\s*(?:{names})(?:\s+or\s+(?:{names}))+\s*\]?\.?", "\n", text)
    lines = [
        re.compile(rf"(?mi)^[ \t\-]*[(\[]?{letter}[.):\]][ \t]*{re.escape(option)}[ \t.,;]*$")
        for letter, option in zip(letters(len(options)), options, strict=True)
    ]
    echoed = [pattern for pattern in lines if pattern.search(text)]
    if len(echoed) > 1:
        for pattern in echoed:
            text = pattern.sub("\n", text)
    return text


def _words(text: str) -> str:
    """Return the text case-folded, with single blanks."""
    return " ".join(text.casefold().split())


def _mentions(text: str, options: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return start, end and option of every full option text, whole words; a longer one hides the shorter ones inside it."""
    covered = text
    places = []
    for index in sorted(range(len(options)), key=lambda i: -len(options[i])):
        # A hyphen belongs to the word: `segmented` is not in `segmented-bilobed`.
        words = r"\s+".join(map(re.escape, options[index].split()))
        pattern = re.compile(rf"(?i)(?<![\w-]){words}(?![\w-])")
        places += [(match.start(), match.end(), index) for match in pattern.finditer(covered)]
        covered = pattern.sub(lambda match: "\0" * len(match[0]), covered)
    return sorted(places)


def named_options(text: str, options: Sequence[str]) -> set[int]:
    """Return the options whose full text occurs as whole words; a longer text hides the shorter ones inside it.

    Args:
        text: any text.
        options: the options' texts.
    """
    return {index for _, _, index in _mentions(text.casefold(), [option.casefold() for option in options])}


def _negated(text: str, start: int, end: int, options: Sequence[str]) -> bool:
    """Return whether the clause around a mention denies it, before or after it."""
    before = _BOUNDARY.split(text[:start])[-1]
    after = _BOUNDARY.split(text[end:])[0]
    if _PASSED_OVER.search(text[:start]):
        return True
    words = {option.casefold() for option in options}
    for side in (before, after):
        plain = _NO_DOUBT.sub(" ", side)
        if any(match[0].casefold() not in words for match in _NEGATION.finditer(plain)):
            return True
    return False


def _follows(following: str, options: Sequence[str]) -> int | None:
    """Return the option whose text comes next, the longest that does."""
    start = _words(_AFTER_LETTER.sub("", following, count=1))
    matching = [i for i, text in enumerate(options) if re.match(rf"{re.escape(_words(text))}(?![\w-])", start)]
    return max(matching, key=lambda i: len(options[i]), default=None)


def _lettered(match: re.Match[str], text: str, options: Sequence[str]) -> int | None:  # noqa: PLR0911 (a way each)
    """Return the option of a matched letter; -1 where it cannot be one, or names another's text; None if it is no choice."""
    letter, following = match.group(1), text[match.end(1) :]
    names = letters(len(options))
    next_option = _follows(following, options)
    closed = bool(_CLOSES.match(following))
    if (letter.islower() and not closed) or _REFERENCE.search(text[: match.start(1)]):
        return None
    if match.re is _AT_START and _LISTED.match(text, match.start(1)):
        return None  # "A and B ..." is no choice of A
    if match.re is _LINE_START and not (next_option is not None or re.match(r"[.):\]]+\s*(?:$|\n)", following)):
        return None
    if letter.upper() not in names:
        # An option that does not exist is a choice all the same, a wrong one: never read another one instead.
        return -1 if closed and match.re is not _ITEM else None
    index = names.index(letter.upper())
    if match.re is _ITEM and next_option != index:
        return None
    if next_option is not None:
        # "A small cell" may begin a sentence: there the letter counts if it is set apart or names its own text.
        if next_option == index:
            return index
        return -1 if closed or match.re in _SURE else None
    return index if closed or letter not in "aAI" or match.re is _JUDGED else None


def _chosen_letters(text: str, options: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield place, end and option of every letter that is chosen and not denied, by all patterns."""
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            choice = _lettered(match, text, options)
            if choice is not None and not _negated(text, match.start(), match.end(1), options):
                yield match.start(1), match.end(1), choice
    names = letters(len(options))
    for match in _LISTED.finditer(text):
        for group in (1, 2):
            if match[group] in names and not _negated(text, match.start(), match.end(), options):
                yield match.start(group), match.end(group), names.index(match[group])


def parse_strict(text: str, options: Sequence[str]) -> int | None:
    """Read an answer in any usual form, or not at all.

    Letters are collected from all patterns: after "answer", "option", "choice" and the like; at the beginning of the answer
    or of a line (`B`, `(b)`, `B. small`); in brackets or a LaTeX box; before "is correct"; after "wait, actually". Without any,
    the full text of an option counts (whole words, longest match, so that `blue` is not read from `light blue`). What its
    clause denies is no choice ("not malignant", "A is incorrect"). Thoughts (`<think>`), a repeated list of options and the
    prompt's own form are left out. Two different letters, a letter with another option's text, or two options' texts are
    not read.

    Args:
        text: the generated answer, without special tokens.
        options: the options' texts.

    Returns:
        The option's index, or None.
    """
    text = _without_echo(_cleaned(text), options).strip()
    chosen = list(_chosen_letters(text, options))
    spans = [(start, end) for start, end, _ in chosen]
    named = {
        index
        for start, end, index in _mentions(text, options)
        if (start, end) not in spans and not _negated(text, start, end, options)
    }
    choices = {choice for _, _, choice in chosen}
    if not choices:
        return named.pop() if len(named) == 1 else None
    choice = choices.pop()
    if choices or choice == -1 or (len(named) == 1 and choice not in named):
        return None
    return choice


Parser = Callable[[str, str, Sequence[str]], int | None]
PARSERS: dict[str, Parser] = {
    "authors": parse_authors,
    "paper": lambda _, text, options: parse_paper(text, options),
    "strict": lambda _, text, options: parse_strict(text, options),
}
