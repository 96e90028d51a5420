"""Filters: components that say which generated pairs to leave out, and why.

A filter is called with the pairs that are left and returns a reason for each; empty keeps it.
"""

import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nltk.stem.porter import PorterStemmer

from ift_components.errors import ConfigError
from ift_components.generation.replies import Pair

Filter = Callable[[Sequence["Candidate"]], list[str]]


@dataclass(frozen=True)
class Candidate:
    """A pair that was parsed, with the image it is about.

    Attributes:
        image_id: the image.
        split: the image's split.
        pair: question, answer and options.
        caption: the image's caption.
        facts: what else was told about the image: its attributes and context.
        template: name of the template.
        stated_split: the split that came with the reply, where it came with one.
        elsewhere: other splits that hold the same image, by content, or its group.
    """

    image_id: str
    split: str
    pair: Pair
    caption: str
    facts: str
    template: str
    stated_split: str | None = None
    elsewhere: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What a reviewer's decision is filed under: a hash of image, question and answer."""
        text = "\n".join((self.image_id, self.pair.question, self.pair.answer))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def kind(self) -> str:
        """`choice` with options, `closed` if the answer is yes or no, else `open`."""
        return "choice" if self.pair.options is not None else "closed" if self.yes_or_no else "open"

    @property
    def yes_or_no(self) -> str:
        """`yes` or `no` if that is all that the answer says; else empty."""
        word = self.pair.answer.strip(" .!").casefold()
        return word if word in ("yes", "no") else ""


_STOP = frozenset(
    "a an and are as at be been by can do does for from has have in is it its of on or that the their there these this to was "  # noqa: SIM905
    "were what where which who with within image images picture shown show shows showing seen visible present located "
    "location type kind yes no not there's it's".split()
)
_STEMMER = PorterStemmer()


@functools.lru_cache(100_000)
def _stem(word: str) -> str:
    return _STEMMER.stem(word)


def content_words(text: str) -> frozenset[str]:
    """Return the stems (Porter) of the words of a text that carry meaning: no articles, prepositions and the like."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return frozenset(_stem(word) for word in words if word not in _STOP)


def _each(reason: Callable[[Candidate], str]) -> Filter:
    return lambda candidates: [reason(candidate) for candidate in candidates]


def given_away() -> Filter:
    """Leave out open pairs whose question holds all content words of the answer, unless it asks which of two (`or`)."""

    def reason(candidate: Candidate) -> str:
        words, question = content_words(candidate.pair.answer), candidate.pair.question
        inside = candidate.kind == "open" and bool(words) and words <= content_words(question)
        inside = inside and not re.search(r"\bor\b", question, re.IGNORECASE)
        return "the question gives the answer away" if inside else ""

    return _each(reason)


def unsupported(min_share: float = 0.5) -> Filter:
    """Leave out pairs of whose answer too few content words stand in the caption or the other facts about the image.

    Answers of yes or no alone have no words to look for and are kept. What stands in brackets behind other words, usually the
    same in other words, does not count.

    Args:
        min_share: least share of the answer's content words, 0 to 1.

    Raises:
        ConfigError: if the share is none.
    """
    if not 0 <= min_share <= 1:
        raise ConfigError(f"filters: min_share is {min_share}, expected 0 to 1")

    def reason(candidate: Candidate) -> str:
        words = content_words(re.sub(r"\([^)]*\)", "", candidate.pair.answer)) or content_words(candidate.pair.answer)
        share = len(words & content_words(f"{candidate.caption} {candidate.facts}")) / len(words) if words else 1.0
        return "" if share >= min_share else "the caption does not support the answer"

    return _each(reason)


def pattern(words: str, reason: str, *, ignore_case: bool = True) -> Filter:
    """Leave out pairs in whose question or answer a pattern is found.

    Args:
        words: regular expression.
        reason: under which they are counted.
        ignore_case: whether capitals do not matter.

    Raises:
        ConfigError: if it is no regular expression.
    """
    try:
        expression = re.compile(words, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise ConfigError(f"filters: '{words}' is no regular expression: {error}") from error
    return _each(lambda c: reason if expression.search(f"{c.pair.question}\n{c.pair.answer}") else "")


def talks_of_text() -> Filter:
    """Leave out pairs that speak of the caption or of what a text mentions, instead of the image."""
    return pattern(
        r"\b(?:captions?|mention(?:s|ed)?|case information|context|the (?:text|description|passage|report)|as stated"
        r"|(?:is|are|was|were) (?:stated|described as)|according to(?! (?:the|this) image))\b",
        "talk of the caption",
    )


def unanswered() -> Filter:
    """Leave out pairs whose answer says that there is none."""
    missing = re.compile(
        r"\b(?:isn.t enough information"
        r"|not? (?:available|specified|provided|known|given|mentioned|stated|enough information|indicated|applicable)"
        r"|(?:information|answer) (?:is )?unavailable|unknown|unspecified|unclear|cannot be determined|n/a|no information)\b",
        re.IGNORECASE,
    )
    return _each(lambda c: "the answer says that there is none" if missing.search(c.pair.answer) else "")


def measurements() -> Filter:
    """Leave out pairs with sizes, amounts, densities and percentages, which an image without a scale does not show."""
    return pattern(
        r"\d\s*(?:x\s*\d|(?:mm|cm|ml|cc|mg|kg|hu|msec|ms|gy|kv|ma|mci|tesla|t\b|degrees?|percent|weeks?|months?|years?|days?"
        r"|hours?)\b|%)|hounsfield|\bhow (?:large|big|many (?:mm|cm|millimet|centimet))"
        r"|\bwhat (?:is|are|was) the (?:size|diameter|dimensions?|measurements?)\b|\bmeasur(?:es?|ed|ing|ements?)\b",
        "a measurement",
    )


def history() -> Filter:
    """Leave out pairs about age, sex, complaints, earlier diseases and treatment, which an image does not tell."""
    return pattern(
        r"\b(?:histor(?:y|ies)|\d+[- ]?(?:year|month|week|day)s?[- ]?old|how old|(?:patient'?s?|his|her) (?:age|sex|gender)"
        r"|symptoms?|complain(?:s|ed|ts?)?|presented with|presents with|previous(?:ly)?|prior to|family|smok(?:er|ing)|date)\b",
        "history that no image shows",
    )


def names() -> Filter:
    """Leave out pairs that name people or hospitals."""
    return pattern(
        r"\b(?:Dr|Mr|Mrs|Ms|Prof)\.? [A-Z]|\b(?:[Hh]ospital|[Pp]hysician|[Rr]adiologist|[Aa]uthors?)\b",
        "a name or a person",
        ignore_case=False,
    )


def duplicates() -> Filter:
    """Leave out pairs whose question was already asked of the same image, in the same words."""

    def reasons(candidates: Sequence[Candidate]) -> list[str]:
        seen: set[tuple[str, str]] = set()
        out = []
        for candidate in candidates:
            key = (candidate.image_id, " ".join(re.findall(r"[^\W_]+", candidate.pair.question.casefold())))
            out.append("the question occurs a second time" if key in seen else "")
            seen.add(key)
        return out

    return reasons


def wrong_split() -> Filter:
    """Leave out pairs that would leak between splits.

    Those whose reply came with another split than the image has, and, in training, those whose image, by content, or whose
    group also lies in val or test.
    """

    def reason(candidate: Candidate) -> str:
        if candidate.stated_split not in (None, candidate.split):
            return "the reply comes from another split than its image"
        if candidate.split == "train" and candidate.elsewhere:
            return "its image or case is in another split too"
        return ""

    return _each(reason)


def yes_no_balance(max_ratio: float = 1.0, seed: int = 0) -> Filter:
    """Leave out, in each split, as many of the more frequent of the answers yes and no as are too many.

    Args:
        max_ratio: the more frequent may occur this many times as often as the other.
        seed: which are left out is decided by a hash of it and the pair.

    Raises:
        ConfigError: if the ratio is below 1.
    """
    if max_ratio < 1:
        raise ConfigError(f"filters: max_ratio is {max_ratio}, expected at least 1")

    def reasons(candidates: Sequence[Candidate]) -> list[str]:
        by_answer: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, candidate in enumerate(candidates):
            if candidate.kind == "closed":
                by_answer[candidate.split, candidate.yes_or_no].append(place)
        out = [""] * len(candidates)
        for (split, word), places in by_answer.items():
            others = by_answer.get((split, "no" if word == "yes" else "yes"), [])
            order = sorted(
                places, key=lambda place: hashlib.sha256(f"{seed}/{candidates[place].key}".encode()).digest()
            )
            for place in order[int(max_ratio * len(others)) :] if len(places) > len(others) else ():
                out[place] = f"too many answers of {word}"
        return out

    return reasons


def apply_filters(
    filters: Mapping[str, Filter], candidates: Iterable[Candidate]
) -> tuple[list[Candidate], dict[str, Counter[str]]]:
    """Return the pairs that every filter keeps, in order, and what each filter left out by reason.

    Args:
        filters: by name, in the order in which they are called; each sees what those before it kept.
        candidates: the pairs.
    """
    left = list(candidates)
    counts: dict[str, Counter[str]] = {}
    for name, check in filters.items():
        reasons = check(left)
        counts[name] = Counter(reason for reason in reasons if reason)
        left = [candidate for candidate, reason in zip(left, reasons, strict=True) if not reason]
    return left, counts
