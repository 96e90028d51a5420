"""Does a tuned model still follow instructions? Four measures, each with its formula.

A model tuned on reports alone can fail in two ways that accuracy does not show: it answers whatever it is asked in the report's
format (image-dependence), or it uses what it learned only under the instruction it was trained with (instruction-dependence).
The share of well-formed answers is in `metrics`, retention is a comparison of two runs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ift_components.data.schema import Attribute, Schema
from ift_components.evaluation.metrics import mean
from ift_components.evaluation.parsing import named_options

_TOKEN = re.compile(r"[\w-]+|[^\w\s]")


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = _TOKEN.findall(text.casefold())
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


class ReportTemplate:
    """The n-grams of training reports, to tell whether an answer is written as a report.

    Words and punctuation marks are tokens, case-folded. With G the n-grams of all training reports, the overlap of an
    answer a with n-grams g(a) is |{x in g(a): x in G}| / |g(a)|; the answer is in report format if its overlap is at
    least `threshold` and it has at least `min_ngrams` n-grams, so that one attribute's value given as an answer is not
    taken for a report.

    Args:
        reports: the training reports.
        n: length of the n-grams.
        threshold: overlap from which an answer is in report format.
        min_ngrams: n-grams that an answer must have.
    """

    def __init__(self, reports: Iterable[str], n: int = 3, threshold: float = 0.5, min_ngrams: int = 4) -> None:
        self.n, self.threshold, self.min_ngrams = n, threshold, min_ngrams
        self._known = {ngram for report in reports for ngram in _ngrams(report, n)}

    def overlap(self, text: str) -> float:
        """Return the share of the text's n-grams that occur in training reports; 0 if it has none."""
        return mean(float(ngram in self._known) for ngram in _ngrams(text, self.n))

    def matches(self, text: str) -> bool:
        """Return whether the text is in report format."""
        return len(_ngrams(text, self.n)) >= self.min_ngrams and self.overlap(text) >= self.threshold


def image_dependence(answers: Sequence[str], template: ReportTemplate) -> float:
    """Return the share of answers to non-report instructions that are in report format.

    (1 / |A|) sum over a in A of [`template` matches a]; 0 is best, 1 means that the model describes the image whatever it
    is asked.

    Args:
        answers: generated answers to questions.
        template: the training reports'.
    """
    return mean(float(template.matches(answer)) for answer in answers)


def _phrase(attribute: Attribute, option: str) -> str:
    """Return how an option's text reads in a report."""
    for value in attribute.values or ():
        if attribute.text(value) == option:
            return attribute.in_report(value)
    return attribute.in_report(option)


def read_out(report: str, options: Sequence[str], attribute: Attribute | None, separator: str = ", ") -> int | None:
    """Read the option that a report states for an attribute.

    An option is stated if its phrase (`small cell size`) is the only one of the options' phrases in the report, whole words and
    longest match. An option that reports leave out (`no`) is stated by the absence of the others, unless the report is
    empty. Options that are whole lists (`papule, erythema`) are stated if the report holds exactly their parts, in any
    order.

    Args:
        report: a generated report.
        options: the question's options.
        attribute: the attribute asked for; None takes the options' texts as the phrases.
        separator: what separates the parts of a report.

    Returns:
        The option's index, or None if none or several are stated.
    """
    if not report.strip():
        return None
    phrases = [_phrase(attribute, text) if attribute else text for text in options]
    mark = separator.strip() or separator
    if any(mark in text for text in options):
        parts = [
            frozenset(part.strip().casefold() for part in text.split(mark)) for text in (report.rstrip(". "), *options)
        ]
        same = [index for index, option in enumerate(parts[1:]) if option == parts[0]]
        return same[0] if len(same) == 1 else None
    filled = [index for index, phrase in enumerate(phrases) if phrase]
    found = named_options(report, [phrases[index] for index in filled])
    if len(found) == 1:
        return filled[found.pop()]
    silent = [index for index, phrase in enumerate(phrases) if not phrase]
    return silent[0] if not found and len(silent) == 1 else None


def instruction_dependence(
    rows: Sequence[Mapping[str, Any]], reports: Mapping[str, str], schema: Schema | None
) -> dict[str, float | int]:
    """Compare what the model says under its training instruction with what it answers when asked.

    For the questions Q whose image has a generated report, with r(q) the option read out of the report and a(q) the
    parsed answer: `read_out_accuracy` = mean of [r(q) is right], `question_accuracy` = mean of [a(q) is right], `gap` =
    their difference. A gap above 0 means that the model knows things that it only tells under the instruction it was
    trained with.

    Args:
        rows: answers to multiple-choice questions.
        reports: the report generated under the training instruction, by image id.
        schema: the dataset's attributes, for their phrases; None takes the options' texts as the phrases.
    """
    attributes = {attribute.name: attribute for attribute in schema.attributes} if schema else {}
    separator = schema.separator if schema else ", "
    asked = [row for row in rows if row["image_id"] in reports]
    known = [a.in_report(value) for a in attributes.values() for value in a.values or ()]
    known = [phrase for phrase in known if phrase]
    told_by = {key: text if not known or named_options(text, known) else "" for key, text in reports.items()}
    read = [
        read_out(told_by[row["image_id"]], row["options"], attributes.get(row["attribute"]), separator) for row in asked
    ]
    told = mean(float(choice == row["answer"]) for choice, row in zip(read, asked, strict=True))
    answered = mean(float(row["correct"]) for row in asked)
    return {
        "questions": len(asked),
        "read_out_accuracy": told,
        "read_out_unparsed": sum(choice is None for choice in read),
        "question_accuracy": answered,
        "gap": told - answered,
    }


def retention(before: float, after: float, chance: float) -> dict[str, float | None]:
    """Return how much of an ability on an unrelated task is left after tuning.

    `difference` = after - before; `retained` = (after - chance) / (before - chance), the share of the accuracy above
    chance that is kept; None where the model was not above chance before.

    Args:
        before: accuracy before tuning.
        after: accuracy after tuning.
        chance: accuracy of a uniform guess.
    """
    retained = (after - chance) / (before - chance) if before > chance else None
    return {"before": before, "after": after, "difference": after - before, "retained": retained}
