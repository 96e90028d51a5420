"""Asking the judges, each thing once: replies are appended to judgements.jsonl as they come."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from ift_components.chat import ChatClient
from ift_components.errors import DataError
from ift_components.evaluation.judging.grading import PREFERENCE, JudgeTemplate, Reading
from ift_components.evaluation.judging.subjects import JudgedEvaluation, Subject
from ift_components.generation.asking import ChatServer, ReplyFile, Task

JUDGEMENTS = "judgements.jsonl"


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question, the first shown as A.

    Attributes:
        first: the answer shown first.
        second: the other.
    """

    first: Subject
    second: Subject

    def swapped(self) -> "Comparison":
        """Return the comparison in the other order."""
        return Comparison(self.second, self.first)


@dataclass
class Judgements:
    """What one judge said, read.

    Attributes:
        grades: of single answers, planted ones among them.
        preferences: 1 where the answer shown first is preferred, 0 the second, 0.5 neither.
    """

    grades: dict[Subject, Reading] = field(default_factory=dict)
    preferences: dict[Comparison, Reading] = field(default_factory=dict)

    def graded(self, subjects: Iterable[Subject]) -> dict[Subject, float]:
        """Return the grades of those of the subjects that have one."""
        grades = {subject: self.grades[subject][0] for subject in subjects}
        return {subject: grade for subject, grade in grades.items() if grade is not None}


def comparisons(evaluations: Sequence[JudgedEvaluation]) -> list[Comparison]:
    """Return the answers of every two evaluations to the same question and run, in one order; equal answers need no judge.

    Raises:
        DataError: if two evaluations have no question in common.
    """
    pairs = []
    for first, second in combinations(evaluations, 2):
        theirs = {(*subject.item.key, subject.run): subject for subject in second.subjects()}
        common = [(s, theirs[key]) for s in first.subjects() if (key := (*s.item.key, s.run)) in theirs]
        if not common:
            raise DataError(
                f"evaluations: '{first.label}' and '{second.label}' have no question in common; "
                "judge.pairs=false grades them alone"
            )
        for a, b in common:
            if a.reference != b.reference or a.item.prompt != b.item.prompt:
                raise DataError(
                    f"evaluations: '{first.label}' and '{second.label}' were asked something else under the id "
                    f"'{a.item.id}'; judge.pairs=false grades them alone"
                )
        pairs += [Comparison(a, b) for a, b in common]
    return pairs


def planted_comparisons(planted: Sequence[Subject]) -> list[Comparison]:
    """Return the comparison of the reference with another image's reference for each planted set."""
    by_set: dict[tuple[str, str, str], dict[str | None, Subject]] = {}
    for subject in planted:
        by_set.setdefault(subject.item.key, {})[subject.planted] = subject
    return [Comparison(texts["reference"], texts["other"]) for texts in by_set.values()]


def ask_judge(
    folder: Path,
    name: str,
    *,
    server: ChatServer,
    client: ChatClient,
    subjects: Sequence[Subject],
    pairs: Sequence[Comparison],
    templates: Mapping[str, tuple[str, JudgeTemplate]],
) -> Judgements:
    """Ask one judge about everything it has not been asked about yet, and return all that it said.

    Args:
        folder: where judgements.jsonl is or will be.
        name: the judge's name.
        server: its model and sampling.
        client: asks it.
        subjects: answers to grade, planted ones first.
        pairs: answers to compare, in the orders to ask.
        templates: name and template by task.

    Raises:
        UserError: if the server cannot be used or left something without a reply; what it replied is kept.
    """
    file = ReplyFile(folder / JUDGEMENTS, server, "", what="judgements")
    grading = {subject: _grading_task(name, subject, *templates[subject.item.task]) for subject in subjects}
    comparing = {pair: _comparing_task(name, pair) for pair in pairs}
    tasks = [*grading.values(), *comparing.values()]
    # Equal answers to one question, of two models or two runs, are the same request: it is made once.
    file.ask({file.key(task): task for task in tasks}.values(), client)
    stored = file.read()

    def reading(task: Task, template: JudgeTemplate) -> Reading:
        reply = stored[file.key(task)]
        return template.read(reply.text) if reply.text is not None else (None, "no reply")

    return Judgements(
        {subject: reading(task, templates[subject.item.task][1]) for subject, task in grading.items()},
        {pair: reading(task, PREFERENCE) for pair, task in comparing.items()},
    )


def _task(judge: str, subject: Subject, template: str, prompt: str) -> Task:
    item = subject.item
    place = {"judge": judge, "task": item.task, "dataset": item.dataset, "id": item.id, "image_id": item.image_id}
    # The judge's name is part of what replies are filed under: two judges never share one, be their models called alike.
    return Task("/".join((judge, *item.key)), prompt, {**place, "template": template, "prompt": prompt})


def _grading_task(judge: str, subject: Subject, name: str, template: JudgeTemplate) -> Task:
    prompt = template.render(subject.item.prompt or "(report of the image)", subject.reference, subject.answer)
    return _task(judge, subject, name, prompt)


def _comparing_task(judge: str, pair: Comparison) -> Task:
    first = pair.first
    question = first.item.prompt or "(report of the image)"
    prompt = PREFERENCE.render(question, first.reference, first.answer, pair.second.answer)
    return _task(judge, first, "preference", prompt)
