"""Reading what a language model replied: question and answer pairs, one question, or a description.

Nothing is guessed: a reply, or a piece of one, that is not plainly of a known layout is refused with a reason.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Pair:
    """A question and its answer; `options` are what a multiple-choice question offers, the answer among them."""

    question: str
    answer: str
    options: tuple[str, ...] | None = None


@dataclass
class Parsed:
    """What a reply holds: pairs, and why other pieces of it, or all of it, were refused.

    A reply gives its pairs if it has some and nothing of it was refused.
    """

    pairs: list[Pair] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the reply gives its pairs."""
        return bool(self.pairs) and not self.refused


Parser = Callable[[str], Parsed]

_DECLINED = re.compile(
    r"\W*(?:i'?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(?:no|')t|i am (?:unable|not able)|i'm (?:unable|not able)"
    r"|unfortunately|as an ai|please (?:go ahead|provide|share)|i don'?t (?:have|see)|there is no (?:caption|image))",
    re.IGNORECASE,
)
_MARK_UP = re.compile(r"\*\*|__|`|^#+\s*|^>\s*")
_BULLET = re.compile(r"^(?:[-*\u2022]\s+|\(?\d{1,2}[.)]\s+)")
_QUESTION = re.compile(r"^(?:q|question)\s*#?\d*\s*(?P<mark>[:.)-]|$)\s*(?P<text>.*)$", re.IGNORECASE)
_ANSWER = re.compile(
    r"^(?:a(?=\s*\d*\s*:)|ans(?=\s*[:.])|(?:correct )?answer)\s*#?\d*\s*(?:[:.)-]|$)\s*(?P<text>.*)$", re.IGNORECASE
)
_INLINE = re.compile(r"\s+(?:A|Answer):\s+")
_OPTION = re.compile(r"^\(?(?P<letter>[A-Z])\s*(?P<mark>[).:])\s*(?P<text>.+)$")
_CLOSING = re.compile(
    r"^\W*(?:let me know|please let me know|please note|note\b|i(?:'ve| have)\b|these (?:questions?|qa|pairs?)|i hope|feel free"
    r"|would you|if you|removed\b|do you want|is there anything)",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(r"^\W*(?:here|sure|certainly|of course|below|based on|the following|okay|ok\b)", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"^[\[(<][^\])>]*[\])>]$")


@dataclass(frozen=True)
class _Line:
    """A line of a reply without mark-up; `apart` tells that an empty line stands before it."""

    text: str
    apart: bool


def _lines(reply: str) -> list[_Line]:
    lines: list[_Line] = []
    apart = False
    for raw in reply.splitlines():
        text = " ".join(_BULLET.sub("", _MARK_UP.sub("", raw.strip())).split())
        if text:
            lines.append(_Line(text, apart))
        apart = not text
    return lines


def parse_pairs(reply: str) -> Parsed:
    """Return the pairs of a reply in one of the known layouts.

    Known are labelled lines (`Q:` and `A:`, `Question 1` and `Answer`, with or without numbers, bold or bullets), bare or
    numbered lines (a question that ends in a question mark, the answer in the lines below up to an empty line), and JSON
    (a list of objects with `question` and `answer`). A sentence before the first pair and remarks after the last are left
    out. Options (`A) ...`, `B) ...`) may stand between a question and its answer, which is then a letter or an option.
    """
    if _DECLINED.match(reply):
        return Parsed(refused=["the model declined"])
    if not reply.strip():
        return Parsed(refused=["empty reply"])
    objects = _json_objects(reply)
    if objects is not None:
        return _from_json(objects)
    lines = _lines(reply)
    labelled = any(_QUESTION.match(line.text) for line in lines)
    parsed = Parsed()
    for block in _labelled_blocks(lines) if labelled else _bare_blocks(lines):
        outcome = block.pair()
        if isinstance(outcome, Pair):
            parsed.pairs.append(outcome)
        else:
            parsed.refused.append(outcome)
    if not parsed.pairs and not parsed.refused:
        parsed.refused.append("no question in it")
    return parsed


def parse_one_pair(reply: str) -> Parsed:
    """Return the pair of a reply that should hold one; several are refused."""
    parsed = parse_pairs(reply)
    return Parsed(refused=["several pairs instead of one"]) if len(parsed.pairs) > 1 else parsed


def parse_choices(reply: str) -> Parsed:
    """Return the pairs that have options; pairs without are refused."""
    parsed = parse_pairs(reply)
    without = sum(pair.options is None for pair in parsed.pairs)
    return Parsed(
        [pair for pair in parsed.pairs if pair.options is not None],
        parsed.refused + ["question without options"] * without,
    )


def parse_question(reply: str) -> Parsed:
    """Return the one question of a reply as a pair whose answer is empty: the caption answers it."""
    if _DECLINED.match(reply):
        return Parsed(refused=["the model declined"])
    lines = [line.text for line in _lines(reply)]
    texts = [match["text"] if (match := _QUESTION.match(line)) else line for line in lines]
    questions = [text.strip("\"'\u201c\u201d ") for text in texts if text.strip("\"'\u201c\u201d ").endswith("?")]
    others = [text for text in texts if not text.strip("\"'\u201c\u201d ").endswith("?") and text]
    if not questions:
        return Parsed(refused=["no question in it" if lines else "empty reply"])
    if len(questions) > 1:
        return Parsed(refused=["several questions instead of one"])
    if any(not (_PREAMBLE.match(text) or _CLOSING.match(text)) for text in others):
        return Parsed(refused=["text beside the question"])
    return Parsed([Pair(questions[0], "")])


def parse_description(reply: str) -> Parsed:
    """Return a reply that is a description as a pair whose question is empty: the template asks it."""
    if _DECLINED.match(reply):
        return Parsed(refused=["the model declined"])
    lines = _lines(reply)
    if len(lines) > 1 and lines[0].text.endswith(":") and _PREAMBLE.match(lines[0].text):
        lines = lines[1:]
    while lines and lines[-1].apart and _CLOSING.match(lines[-1].text):
        lines.pop()
    text = " ".join(line.text for line in lines)
    return Parsed([Pair("", text)]) if text else Parsed(refused=["empty reply"])


@dataclass
class _Block:
    """The lines of one pair: its question, options and answer; `foreign` are lines that belong to neither."""

    question: list[str] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)
    answer: list[str] | None = None
    foreign: bool = False

    def pair(self) -> Pair | str:
        """Return the pair, or why there is none."""
        question = " ".join(self.question).strip("\"'\u201c\u201d ")
        answer = " ".join(self.answer or []).strip()
        if not question:
            return "answer without a question"
        if self.foreign:
            return "text that is neither question nor answer"
        if not answer:
            return "question without an answer"
        if _PLACEHOLDER.match(answer):
            return "a placeholder instead of an answer"
        if not self.options:
            return Pair(question, answer)
        return self._choice(question, answer)

    def _choice(self, question: str, answer: str) -> Pair | str:
        texts = tuple(text for _, text in self.options)
        letters = "".join(letter for letter, _ in self.options)
        if letters != LETTERS[: len(letters)] or len(texts) < 2:  # noqa: PLR2004
            return "options whose letters do not run from A"
        if len({text.casefold() for text in texts}) < len(texts):
            return "two options that read the same"
        match = re.match(r"^\(?([A-Z])\)?(?:[).:]\s*(.*))?$", answer)
        if match and match[1] in letters:
            chosen = texts[letters.index(match[1])]
            if match[2] and match[2].strip(" .").casefold() != chosen.strip(" .").casefold():
                return "an answer whose letter and text differ"
            return Pair(question, chosen, texts)
        same = [text for text in texts if text.strip(" .").casefold() == answer.strip(" .").casefold()]
        return Pair(question, same[0], texts) if same else "an answer that is none of its options"


def _labelled_blocks(lines: list[_Line]) -> Iterator[_Block]:
    """Yield a block for each labelled question, and for an answer that has none."""
    block: _Block | None = None
    for line, after in zip_longest(lines, lines[1:]):
        question, answer, option = _QUESTION.match(line.text), _ANSWER.match(line.text), _OPTION.match(line.text)
        if question:
            if block is not None:
                yield block
            text, *rest = _INLINE.split(question["text"], maxsplit=1)
            block = _Block([text] if text else [], answer=rest or None)
        elif block is None:
            if answer:
                block = _Block(answer=[answer["text"]])
        elif block.answer is None and option and (option["letter"] != "A" or not answer or _is_b(after)):
            block.options.append((option["letter"], option["text"]))
        elif answer:
            if block.answer is not None:
                yield block
                block = _Block()
            block.answer = [answer["text"]] if answer["text"] else []
        elif not _add_loose(block, line):
            block.foreign = True
    if block is not None:
        yield block


def _is_b(line: _Line | None) -> bool:
    """Tell whether a line is option B, so that `A: ...` before it is an option too and no answer."""
    option = _OPTION.match(line.text) if line else None
    return option is not None and option["letter"] == "B"


def _add_loose(block: _Block, line: _Line) -> bool:
    """Add a line without a label to the block; returns whether it is clear what it is."""
    before_answer = block.answer is None
    inline = _INLINE.search(f" {line.text}") if before_answer else None
    if inline:
        block.foreign = inline.start() > 0  # words between a question and its answer
        block.answer = [f" {line.text}"[inline.end() :]]
    elif before_answer:
        if block.question:
            return False
        block.question.append(line.text)
    elif not block.answer or not line.apart:
        block.answer = [*(block.answer or []), line.text]
    else:
        return bool(_CLOSING.match(line.text))
    return True


def _bare_blocks(lines: list[_Line]) -> Iterator[_Block]:
    """Yield a block for each line that ends in a question mark; its answer goes on until an empty line."""
    block: _Block | None = None
    for line, after in zip_longest(lines, lines[1:]):
        answer, option = _ANSWER.match(line.text), _OPTION.match(line.text)
        if line.text.endswith("?") and not (_CLOSING.match(line.text) and block and block.answer):
            if block is not None:
                yield block
            block = _Block([line.text])
        elif block is None:
            continue
        elif block.answer is None and option and (option["letter"] != "A" or not answer or _is_b(after)):
            block.options.append((option["letter"], option["text"]))
        elif answer:
            block.answer = [*(block.answer or []), answer["text"]]
        elif block.answer is None or not line.apart:
            block.answer = [*(block.answer or []), line.text]
        elif not _CLOSING.match(line.text):
            block.foreign = True
    if block is not None:
        yield block


def _json_objects(reply: str) -> list[Any] | None:
    """Return the objects of a reply that is JSON, perhaps in a fence or after a sentence; None if it is none."""
    fenced = re.search(r"```(?:json)?\s*(.*?)```", reply, re.DOTALL)
    text = fenced[1] if fenced else reply[min((reply.find(c) for c in "[{" if c in reply), default=0) :]
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        value = next(iter(value.values()))
    return value if isinstance(value, list) else [value]


def _from_json(objects: list[Any]) -> Parsed:
    parsed = Parsed()
    for value in objects:
        fields = {str(key).lower(): item for key, item in value.items()} if isinstance(value, dict) else {}
        question, answer = fields.get("question"), fields.get("answer")
        offered = fields.get("options", fields.get("choices"))
        if isinstance(offered, dict):
            offered = [f"{letter}) {text}" for letter, text in offered.items()]
        if not isinstance(question, str) or not isinstance(answer, str):
            parsed.refused.append("JSON without a question and an answer in words")
            continue
        block = _Block([question.strip()], answer=[answer.strip()])
        for number, text in enumerate(offered if isinstance(offered, list) else []):
            match = _OPTION.match(str(text))
            block.options.append((match["letter"], match["text"]) if match else (LETTERS[number % 26], str(text)))
        outcome = block.pair()
        if isinstance(outcome, Pair):
            parsed.pairs.append(outcome)
        else:
            parsed.refused.append(outcome)
    return parsed
