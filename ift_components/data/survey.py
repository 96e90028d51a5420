"""The first pass over a source: every table row is checked and counted before an image is opened."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ift_components.data.mcq import QuestionMaker, QuestionOptions, questions_fault
from ift_components.data.prepared import SPLITS
from ift_components.data.problems import Problems
from ift_components.data.reports import make_report
from ift_components.data.source import Record, Source
from ift_components.errors import DataError


@dataclass
class Survey:
    """What the first pass over the records tells."""

    counts: Counter[str] = field(default_factory=Counter)
    pools: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    problems: Problems = field(default_factory=Problems)

    def outcome(self) -> dict[str, Any]:
        """Return how many rows were usable and how many were not, to tell whether that has changed since."""
        unusable = {"problems": self.problems.by_kind(), "left_out": dict(self.problems.left_out)}
        return {"usable": dict(self.counts), **unusable}


def survey_records(source: Source, questions: QuestionOptions) -> Survey:
    """Read the tables once, without the images, and check them.

    Raises:
        DataError: for bad rows, unless the source skips them, and for an empty split.
    """
    problems = source.problems()
    survey = Survey(problems=problems)
    open_pools = {a.name: a for a in source.schema.attributes if a.asked and a.option_texts() is None}
    for record, _ in checked_records(source, problems):
        survey.counts[record.split] += 1
        for name, value in record.values.items():
            if name in open_pools:
                survey.pools[name].add(open_pools[name].text(value))
        for question in record.questions:
            if question.kind == "choice" and question.options is None:
                survey.pools[question.attribute].add(question.answer)
    if source.on_bad_row == "error":
        problems.raise_if_any(source.name, survey.counts.total())
    for split in source.splits:
        if not survey.counts[split]:
            hint = f"; {problems.count} bad row(s) were left out\n{problems.summary()}" if problems.count else ""
            raise DataError(f"{source.name}: split '{split}' is empty{hint}")
    _check_questions(source, survey, questions)
    return survey


def _check_questions(source: Source, survey: Survey, questions: QuestionOptions) -> None:
    """Check that every attribute can be asked, before an image is opened."""
    maker = QuestionMaker(source.schema, questions, survey.pools)
    for attribute in source.schema.attributes:
        if attribute.asked and (attribute.option_texts() or survey.pools[attribute.name]):
            maker.check_attribute(attribute)


def checked_records(source: Source, problems: Problems) -> Iterator[tuple[Record, str]]:
    """Yield the source's usable records with their reports; notes bad rows, repeated ids and empty reports."""
    seen: set[str] = set()
    for record in source.records(problems):
        report = record.report if record.report is not None else make_report(source.schema, record.values)
        fault = questions_fault(record)
        if record.split not in SPLITS:
            expected = f"expected one of: {', '.join(SPLITS)}"
            problems.add(record.where, f"split is '{record.split}', {expected}", f"split is unknown, {expected}")
        elif record.id in seen:
            problems.add(record.where, f"id '{record.id}' occurs a second time", "image or id occurs a second time")
        elif source.has_reports and not report.strip():
            problems.add(record.where, "the report is empty", "report is empty")
        elif fault:
            problems.add(record.where, f"question '{fault[0]}' {fault[1]}", f"question {fault[1]}")
        else:
            seen.add(record.id)
            yield record, report
