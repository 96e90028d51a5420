"""Scorers: each turns an item and its prediction into named numbers, which stand in the prediction's line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rouge_score.rouge_scorer import RougeScorer

from ift_components.data.schema import Attribute, Schema
from ift_components.evaluation.instruction import ReportTemplate, read_out, stating
from ift_components.evaluation.parsing import PARSERS
from ift_components.evaluation.records import Item, Prediction, Score
from ift_components.evaluation.text_metrics import ROUGES, closed_match, count_hedges, exact_match, token_recall

Scores = dict[str, Score]


class Scorer(Protocol):
    """Anything that judges one prediction."""

    def __call__(self, item: Item, prediction: Prediction) -> Scores:
        """Return its numbers by name; a name is given by one scorer of a task only."""


@dataclass(frozen=True)
class ScoringContext:
    """What scorers need beside item and prediction.

    Attributes:
        parser: name of the parser that decides (`parsing.PARSERS`).
        template: the training reports' n-grams; None where there are none.
        reports: the report generated under the training instruction, by image.
        schema: the dataset's attributes; None where it has none.
    """

    parser: str = "authors"
    template: ReportTemplate | None = None
    reports: Mapping[str, str] = field(default_factory=dict)
    schema: Schema | None = None


class LetterReading:
    """The option that was chosen: each parser's reading of a generated answer (`parsing.PARSERS`), else the forced letter.

    `predicted` is the reading of the parser that decides, `correct` whether it is the right option.

    Args:
        parser: name of the parser that decides.
    """

    def __init__(self, parser: str) -> None:
        self._parser = parser

    def __call__(self, item: Item, prediction: Prediction) -> Scores:
        """Return the readings, `predicted` and `correct`."""
        text = prediction.generated
        scores: Scores = {}
        if text is not None:
            scores |= {name: parse(item.prompt, text, item.options) for name, parse in PARSERS.items()}
        scores["predicted"] = prediction.forced if text is None else scores[self._parser]
        scores["correct"] = scores["predicted"] == item.answer
        return scores


class AnswerMatch:
    """Whether a text is the right answer, by the question's kind: `closed` by `closed_match`, else `exact_match`."""

    def __call__(self, item: Item, prediction: Prediction) -> Scores:
        """Return `correct` and, of open questions, `recall`."""
        text = prediction.generated or ""
        if item.kind == "closed":
            return {"correct": closed_match(text, item.reference)}
        return {"correct": exact_match(text, item.reference), "recall": token_recall(text, item.reference)}


class TextOverlap:
    """Overlap with the reference (ROUGE F1 with stemming, exact match), length and hedging words."""

    def __init__(self) -> None:
        self._rouge = RougeScorer(ROUGES, use_stemmer=True)

    def __call__(self, item: Item, prediction: Prediction) -> Scores:
        """Return `rouge1`, `rouge2`, `rougeL`, `exact_match`, `words`, `reference_words`, `hedges`, `reference_hedges`."""
        text = prediction.generated or ""
        rouges = self._rouge.score(item.reference, text)
        return {
            **{name: round(rouges[name].fmeasure, 8) for name in ROUGES},
            "exact_match": exact_match(text, item.reference),
            "words": len(text.split()),
            "reference_words": len(item.reference.split()),
            "hedges": count_hedges(text),
            "reference_hedges": count_hedges(item.reference),
        }


class ReportFormat:
    """Whether an answer to a question is written as a report, whatever was asked (image-dependence).

    Args:
        template: the training reports' n-grams; None judges nothing.
    """

    def __init__(self, template: ReportTemplate | None) -> None:
        self._template = template

    def __call__(self, item: Item, prediction: Prediction) -> Scores:  # noqa: ARG002 (the signature of all)
        """Return `report_format`."""
        if self._template is None or prediction.generated is None:
            return {}
        return {"report_format": self._template.matches(prediction.generated)}


class ReadOut:
    """The option that the image's generated report states, to set against what the model answers when it is asked.

    Args:
        reports: the report generated under the training instruction, by image.
        schema: the dataset's attributes, for their phrases; None takes the options' texts as the phrases.
    """

    def __init__(self, reports: Mapping[str, str], schema: Schema | None) -> None:
        self._attributes: dict[str, Attribute] = {a.name: a for a in schema.attributes} if schema else {}
        self._separator = schema.separator if schema else ", "
        phrases = [a.in_report(value) for a in self._attributes.values() for value in a.values or ()]
        self._reports = stating(reports, [phrase for phrase in phrases if phrase])

    def __call__(self, item: Item, prediction: Prediction) -> Scores:  # noqa: ARG002 (the signature of all)
        """Return `read_out` and `read_out_correct` where the image has a report."""
        report = self._reports.get(item.image_id)
        if report is None:
            return {}
        option = read_out(report, item.options, self._attributes.get(item.attribute), self._separator)
        return {"read_out": option, "read_out_correct": option == item.answer}
