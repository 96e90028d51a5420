"""The prompts that judges are asked with, and how their replies are read: a grade, a verdict, a preference, or nothing."""

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ift_components.errors import ConfigError

LOWEST, HIGHEST = 0, 10
Reading = tuple[float | None, str]  # the value, or None and why there is none

_GRADE_FORM = (
    'Write your reasons first if you need to. Write "Grade: N" on the last line, N being the whole number from 0 to 10.'
)

_TEXTS = """Question or task:
{question}

Reference (right by definition):
{reference}

Answer to be judged:
{answer}
"""

_DESCRIPTION = f"""You grade a description of a medical image against a reference description of the same image. You do not see
the image: the reference alone says what it shows. Give 10 where every finding of the reference is there and nothing contradicts
it or is made up, 0 where nothing agrees. Length and fluent style earn nothing; statements that commit to nothing earn nothing.

{_TEXTS}
{_GRADE_FORM}
"""

_REASONING = f"""You grade an answer to a question about a medical image against a reference answer. You do not see the image:
the reference alone says what is right. Give 10 where the conclusion and every step that leads to it agree with the reference,
about 5 where the conclusion agrees but the steps do not or are missing, 0 where the conclusion contradicts the reference or
there is none. Length and fluent style earn nothing.

{_TEXTS}
{_GRADE_FORM}
"""

_CORRECT = f"""Decide whether an answer to a question about a medical image says the same as the reference answer. Other words
for the same thing are correct; a missing, evasive or contradicting answer is incorrect.

{_TEXTS}
Write "Verdict: correct" or "Verdict: incorrect" on the last line.
"""

_PREFERENCE = """Two answers to the same question about a medical image are compared with a reference answer. You do not see the
image: the reference alone says what is right. Say which answer agrees with it better. Length, style and the order in which the
answers stand count nothing.

Question or task:
{question}

Reference (right by definition):
{reference}

Answer A:
{answer}

Answer B:
{other}

Write "Better: A", "Better: B" or "Better: tie" on the last line.
"""

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_NUMBER = r"(-?\d+(?:[.,]\d+)?)"
_SCALE = r"(?:\s*(?:/|out of)\s*(\d+))?"
_AFTER = r"(?![\d.,]*\d|\s*(?:-|\u2013|to)\s*\d|\s*%)"  # neither a range (0 to 10) nor a percentage
_LABELLED = re.compile(
    rf"\b(?:grade|score|rating)\b[\"'*_\s]*(?:\([^)\n]*\))?[\"'*_\s]*[:=][\"'*_\s\[]*{_NUMBER}{_SCALE}{_AFTER}",
    re.IGNORECASE,
)
_OUT_OF = re.compile(rf"(?<![\d.,/-]){_NUMBER}\s*(?:/|out of)\s*(\d+)(?![\d/])", re.IGNORECASE)
_SAID = re.compile(rf"\b(?:grade|score|rating)\s+(?:of|is)\s+[*_\[]*{_NUMBER}{_SCALE}{_AFTER}", re.IGNORECASE)
_BARE = re.compile(rf"[*_\[\s]*{_NUMBER}{_SCALE}[*_\]\s.]*", re.IGNORECASE)


def read_grade(reply: str) -> Reading:
    """Return the grade from 0 to 10 that a reply gives, or None and the reason; never a guess.

    A labelled grade counts before `N/10` and that before "a grade of N"; a reply that is a number alone is one. Thoughts are
    cut off. Two different grades, another scale or a number outside 0 to 10 are none.
    """
    text = _THOUGHT.sub("", reply).strip()
    bare = _BARE.fullmatch(text)
    found = [bare.groups()] if bare else next((m for p in (_LABELLED, _OUT_OF, _SAID) if (m := p.findall(text))), [])
    if not found:
        return None, "no grade"
    if any(scale and int(scale) != HIGHEST for _, scale in found):
        return None, "another scale"
    values = {float(value.replace(",", ".")) for value, _ in found}
    if len(values) > 1:
        return None, "several grades"
    (value,) = values
    return (value, "") if LOWEST <= value <= HIGHEST else (None, "outside 0 to 10")


def _read_word(reply: str, label: str, words: Mapping[str, float], what: str) -> Reading:
    """Return the value of the one word that a reply gives behind a label, or that it consists of."""
    text = _THOUGHT.sub("", reply).strip()
    choice = "|".join(sorted(words, key=len, reverse=True))
    labelled = re.findall(rf"\b(?:{label})\b[\"'*_\s]*[:=][\"'*_\s\[]*({choice})\b", text, re.IGNORECASE)
    bare = re.fullmatch(rf"[\"'*_\[\s]*({choice})[\"'*_\]\s.]*", text, re.IGNORECASE)
    values = {words[word.casefold()] for word in (labelled or ([bare[1]] if bare else []))}
    if len(values) != 1:
        return None, f"several {what}s" if values else f"no {what}"
    return values.pop(), ""


def read_verdict(reply: str) -> Reading:
    """Return 10 for a reply that says correct, 0 for incorrect, or None and the reason."""
    words = {"correct": 10.0, "incorrect": 0.0, "not correct": 0.0, "yes": 10.0, "no": 0.0, "wrong": 0.0}
    return _read_word(reply, "verdict|answer|correct", words, "verdict")


def read_preference(reply: str) -> Reading:
    """Return 1 for a reply that prefers the first answer, 0 for the second, 0.5 for a tie, or None and the reason."""
    words = {"a": 1.0, "answer a": 1.0, "b": 0.0, "answer b": 0.0, "tie": 0.5}
    return _read_word(reply, "better|winner", words, "preference")


@dataclass(frozen=True)
class JudgeTemplate:
    """A prompt for a judge and how its reply is read.

    Attributes:
        prompt: text with the fields `{question}`, `{reference}` and `{answer}`, and `{other}` where two answers are compared.
        read: turns a reply into a number, or None and why there is none.
    """

    prompt: str
    read: Callable[[str], Reading]

    def render(self, question: str, reference: str, answer: str, other: str = "") -> str:
        """Return the prompt; braces in the texts stay as they are."""
        texts = {"question": question, "reference": reference, "answer": answer, "other": other}
        return self.prompt.format(**{name: text if text.strip() else "(empty)" for name, text in texts.items()})


TEMPLATES = {
    "description": JudgeTemplate(_DESCRIPTION, read_grade),
    "reasoning": JudgeTemplate(_REASONING, read_grade),
    "correct": JudgeTemplate(_CORRECT, read_verdict),
}
PREFERENCE = JudgeTemplate(_PREFERENCE, read_preference)
SCALES = {"grade": read_grade, "verdict": read_verdict}


@dataclass
class PromptOptions:
    """A prompt of the user's own.

    Attributes:
        text: with the fields `{question}`, `{reference}` and `{answer}`; braces that are none are doubled.
        scale: `grade`: the reply holds a number from 0 to 10, e.g. "Grade: 7"; `verdict`: "Verdict: correct" or "incorrect".
    """

    text: str = ""
    scale: str = "grade"


def find_template(name: str, prompts: Mapping[str, PromptOptions], where: str) -> JudgeTemplate:
    """Return a template by name: one of `prompts`, or else a named one.

    Args:
        name: the template's name.
        prompts: the user's own.
        where: the config key that names it, for messages.

    Raises:
        ConfigError: for an unknown name or scale, a missing or an unknown field.
    """
    if name not in prompts:
        if name not in TEMPLATES:
            raise ConfigError(f"{where}: '{name}' is not one of {', '.join([*TEMPLATES, *prompts])}")
        return TEMPLATES[name]
    prompt, key = prompts[name], f"judge.prompts.{name}"
    if prompt.scale not in SCALES:
        raise ConfigError(f"{key}.scale: '{prompt.scale}' is not one of {', '.join(SCALES)}")
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(prompt.text) if field is not None]
    except ValueError as error:
        raise ConfigError(f"{key}.text: {error}; write {{{{ and }}}} for braces") from error
    unknown = [field for field in fields if field not in ("question", "reference", "answer")]
    missing = [field for field in ("reference", "answer") if field not in fields]
    if unknown or missing:
        problem = f"unknown field {{{unknown[0]}}}" if unknown else f"no field {{{missing[0]}}}"
        raise ConfigError(f"{key}.text: {problem}; it must hold {{reference}} and {{answer}} and may hold {{question}}")
    return JudgeTemplate(prompt.text, SCALES[prompt.scale])
