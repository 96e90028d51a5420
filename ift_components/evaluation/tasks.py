"""The kinds of things that are asked: how each words its prompt, and which scorers judge its answers.

This is the one table in which tasks differ; everything else looks here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ift_components.data.wording import multiple_choice_prompt
from ift_components.evaluation.records import Prediction, Score
from ift_components.evaluation.scorers import (
    AnswerMatch,
    LetterReading,
    ReadOut,
    ReportFormat,
    Scorer,
    ScoringContext,
    TextOverlap,
)


def _as_it_is(question: str, options: Sequence[str]) -> str:  # noqa: ARG001 (the signature of all)
    return question


def _of_choices(context: ScoringContext) -> Iterable[Scorer]:
    yield LetterReading(context.parser)
    yield ReportFormat(context.template)
    yield ReadOut(context.reports, context.schema)


def _of_answers(context: ScoringContext) -> Iterable[Scorer]:
    yield AnswerMatch()
    yield TextOverlap()
    yield ReportFormat(context.template)


def _of_reports(context: ScoringContext) -> Iterable[Scorer]:  # noqa: ARG001 (the signature of all)
    yield TextOverlap()


@dataclass(frozen=True)
class Task:
    """A kind of thing that is asked.

    Attributes:
        name: what predictions.jsonl calls it.
        render: makes the prompt of a question and its options.
        scorers: gives the scorers of its answers.
        lettered: whether the answer is a letter, which can be forced.
        repeated: whether `n_runs` asks it again.
    """

    name: str
    render: Callable[[str, Sequence[str]], str]
    scorers: Callable[[ScoringContext], Iterable[Scorer]]
    lettered: bool = False
    repeated: bool = False


CHOICE = Task("choice", multiple_choice_prompt, _of_choices, lettered=True, repeated=True)
CONTROL = Task("control", multiple_choice_prompt, _of_choices, lettered=True)  # with another image's pixels
FREE = Task("free", _as_it_is, _of_answers)
FREE_CONTROL = Task("free control", _as_it_is, _of_answers)  # with another image's pixels
REPORT = Task("report", _as_it_is, _of_reports)
TASKS = {task.name: task for task in (CHOICE, CONTROL, FREE, FREE_CONTROL, REPORT)}
CONTROLS = {CHOICE.name: CONTROL, FREE.name: FREE_CONTROL}


def task_of_kind(kind: str) -> Task:
    """Return the task that asks a prepared folder's question of a kind (`choice`, `closed` or `open`)."""
    return CHOICE if kind == CHOICE.name else FREE


def of_task(predictions: Iterable[Prediction], task: Task, dataset: str | None = None) -> list[Prediction]:
    """Return the predictions of a task, of one dataset or of all."""
    return [p for p in predictions if p.item.task == task.name and dataset in (None, p.item.dataset)]


def score_all(predictions: Iterable[Prediction], context: ScoringContext) -> list[Prediction]:
    """Return predictions with the scores that their tasks' scorers give them."""
    scorers = {name: list(task.scorers(context)) for name, task in TASKS.items()}
    scored = []
    for prediction in predictions:
        scores: dict[str, Score] = {}
        for scorer in scorers[prediction.item.task]:
            scores |= scorer(prediction.item, prediction)
        scored.append(prediction.scored(scores))
    return scored
