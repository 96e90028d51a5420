"""Does a tuned model still follow instructions? Measures, each with its formula.

A model tuned on reports alone can fail in two ways that accuracy does not show: it answers whatever it is asked in the report's
format (image-dependence), or it uses what it learned only under the instruction it was trained with (instruction-dependence).
The share of well-formed answers and of those in report format are in `results`, retention is a comparison of two runs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from ift_components.data.schema import Attribute
from ift_components.evaluation.parsing import named_options
from ift_components.evaluation.records import Prediction
from ift_components.statistics import mean

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
        self._ngrams = {ngram for report in reports for ngram in _ngrams(report, n)}

    def overlap(self, text: str) -> float:
        """Return the share of the text's n-grams that occur in training reports; 0 if it has none."""
        return mean(float(ngram in self._ngrams) for ngram in _ngrams(text, self.n))

    def matches(self, text: str) -> bool:
        """Return whether the text is in report format."""
        return len(_ngrams(text, self.n)) >= self.min_ngrams and self.overlap(text) >= self.threshold


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
    stated = named_options(report, [phrases[index] for index in filled])
    if len(stated) == 1:
        return filled[stated.pop()]
    silent = [index for index, phrase in enumerate(phrases) if not phrase]
    return silent[0] if not stated and len(silent) == 1 else None


def stating(reports: Mapping[str, str], phrases: Sequence[str]) -> dict[str, str]:
    """Return reports by image; one that states none of the dataset's phrases is empty, so that nothing is read out of it.

    Args:
        reports: the reports by image.
        phrases: all phrases of the dataset's reports; with none of them, reports stay as they are.
    """
    return {image: text if not phrases or named_options(text, phrases) else "" for image, text in reports.items()}


def instruction_dependence(predictions: Sequence[Prediction]) -> dict[str, float | int] | None:
    """Compare what the model says under its training instruction with what it answers when asked.

    For the questions Q whose image has a generated report, with r(q) the option read out of the report and a(q) the
    parsed answer: `read_out_accuracy` = mean of [r(q) is right], `question_accuracy` = mean of [a(q) is right], `gap` =
    their difference. A gap above 0 means that the model knows things that it only tells under the instruction it was
    trained with.

    Args:
        predictions: scored answers to multiple-choice questions; None is returned if no image has a report.
    """
    both = [p for p in predictions if "read_out_correct" in p.scores]
    if not both:
        return None
    read = mean(float(bool(p.scores["read_out_correct"])) for p in both)
    answered = mean(float(p.correct) for p in both)
    return {
        "questions": len(both),
        "read_out_accuracy": read,
        "read_out_unparsed": sum(p.scores["read_out"] is None for p in both),
        "question_accuracy": answered,
        "gap": read - answered,
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
