"""From tables to verdicts, by rule.

A claim that a row is higher shows if the difference is above 0 with p < 0.05 after Holm's correction; a claim that two rows
are the same shows if the 95 % interval of the difference lies within the stated margin. Neither says anything where both
rows lie at their control, such as what they score with another image's pixels. Where the table has compared both rows, its
own test stands, which is paired by question. Else, and where both rows answer every question alike so that the pairs know no
variance, the interval is made of both rows' own (MOVER: Zou and Donner 2008, "Construction of confidence limits about effect
measures", for independent estimates: too wide, if anything, for rows that were asked the same questions), and where a figure
has no interval, of the seeds (Welch's t-test; images are not in it).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from scipy.stats import norm
from scipy.stats import t as student

from ift_components.errors import DataError
from ift_components.statistics import holm, mean_sd
from ift_components.tables.findings.claims import Claim, Comparison, Paper, Side

SIGNIFICANT = 0.05
_Z = float(norm.ppf(0.975))


class Verdict(StrEnum):
    """What tables say about a claim."""

    SHOWS = "shows here"
    PART = "shows in part"
    NOT = "does not show"
    CANNOT = "cannot be tested here"
    NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Measured:
    """A difference between two rows.

    Attributes:
        difference: first less second.
        low: lower end of its 95 % interval.
        high: its upper end.
        p: p-value of no difference.
        how: `paired` (the table's own test, corrected there), `intervals` or `seeds`.
        single: rows with one run, whose part of the interval holds the images alone.
    """

    difference: float
    low: float
    high: float
    p: float
    how: str
    single: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A comparison on one dataset, and what came of it; `reason` says why nothing did."""

    comparison: Comparison
    dataset: str
    verdict: Verdict
    measured: Measured | None = None
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim, what came of its tests, and the verdict."""

    claim: Claim
    verdict: Verdict
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class TableFile:
    """The table.json of a table folder."""

    title: str
    cells: Mapping[tuple[str, str, str], Mapping[str, Any]]

    @property
    def datasets(self) -> list[str]:
        """Names of its datasets."""
        return list(dict.fromkeys(dataset for _, dataset, _ in self.cells))


def read_table(folder: Path) -> TableFile | None:
    """Return a folder's table; None if no table has been written there yet.

    Raises:
        DataError: if what is there is no table.
    """
    path = folder / "table.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = {(cell["row"], cell["dataset"], cell["column"]): cell for cell in content["cells"]}
        if old := next((cell for cell in content["cells"] if "differences" not in cell), None):
            raise DataError(
                f"{path}: the cell of '{old['row']}' has no differences; write the table anew by its command"
            )
        return TableFile(content["title"], cells)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no table of ift_table_recipe ({error!r})") from error


def joined(first: TableFile, second: TableFile) -> TableFile:
    """Return one table of two of the same plan, its datasets run apart; where both have a cell, the second's counts."""
    return replace(second, cells={**first.cells, **second.cells})


def from_intervals(first: Mapping[str, Any], second: Mapping[str, Any]) -> Measured:
    """Return the difference of two cells from their own intervals (MOVER), and a p-value from its width on the side of 0."""
    (low1, high1), (low2, high2) = first["interval"], second["interval"]
    difference = first["mean"] - second["mean"]
    below = math.hypot(first["mean"] - low1, high2 - second["mean"])
    above = math.hypot(high1 - first["mean"], second["mean"] - low2)
    side = below if difference > 0 else above
    p = 2 * float(norm.sf(_Z * abs(difference) / side)) if side else float(difference == 0)
    return Measured(difference, difference - below, difference + above, p, "intervals")


def from_seeds(first: Sequence[float], second: Sequence[float]) -> Measured | None:
    """Return the difference of two cells by Welch's t-test over seeds; None if neither side varies.

    A side with one value, such as a model that is not tuned, has no variance of its own.
    """
    (mean1, sd1), (mean2, sd2) = mean_sd(first), mean_sd(second)
    shares = [((sd or 0.0) ** 2 / len(side), len(side) - 1) for sd, side in ((sd1, first), (sd2, second))]
    variance = sum(share for share, _ in shares)
    if not variance:
        return None
    freedom = variance**2 / sum(share**2 / count for share, count in shares if count)
    difference, error = mean1 - mean2, math.sqrt(variance)
    reach = float(student.ppf(0.975, freedom)) * error
    p = 2 * float(student.sf(abs(difference) / error, freedom))
    return Measured(difference, difference - reach, difference + reach, p, "seeds")


def measure(first: TableFile, second: TableFile, comparison: Comparison, dataset: str) -> Measured | str:
    """Return the difference of two finished cells, or why there is none."""
    one = first.cells[comparison.first.row, dataset, comparison.column]
    other = second.cells[comparison.second.row, dataset, comparison.column]
    for cell in (one, other):
        if len(cell["values"]) < cell["planned"]:
            return f"'{cell['row']}' has no such figure"
    found = _compared(one, other, one_table=comparison.first.plan == comparison.second.plan)
    single = tuple(cell["row"] for cell in (one, other) if len(cell["values"]) == 1)
    return replace(found, single=single) if found else "one run of either, and no interval"


def _compared(one: Mapping[str, Any], other: Mapping[str, Any], *, one_table: bool) -> Measured | None:
    if one_table:
        for cell, row, sign in ((one, other["row"], 1), (other, one["row"], -1)):
            tested = cell["differences"].get(row)
            if tested and tested["low"] < tested["high"]:
                low, high = sorted((sign * tested["low"], sign * tested["high"]))
                return Measured(sign * tested["value"], low, high, tested["p_holm"], "paired")
    if one["interval"] and other["interval"]:
        return from_intervals(one, other)
    return from_seeds(one["values"], other["values"])


def _at_control(sides: Sequence[tuple[TableFile, Side]], columns: tuple[str, ...], dataset: str) -> str | None:
    """Return that no row's interval lies above its control, or that a row has none; None if one lies above."""
    texts = []
    for table, side in sides:
        cells = [table.cells[side.row, dataset, column] for column in columns]
        missing = [column for column, cell in zip(columns, cells, strict=True) if cell["mean"] is None]
        if missing:
            return f"'{side.row}' has no figure in '{missing[0]}'"
        least = (cells[0]["interval"] or [cells[0]["mean"]])[0]
        if least > (cells[1]["mean"] if len(cells) > 1 else 0):
            return None
        texts.append(" beside ".join(f"{100 * cell['mean']:.1f} %" for cell in cells))
    other = f"'{columns[1]}'" if len(columns) > 1 else "0"
    return f"neither is in '{columns[0]}' above {other} ({', '.join(texts)}), so that what is seen is not compared"


def _finished(table: TableFile, side: Side, dataset: str, column: str) -> bool:
    cell = table.cells[side.row, dataset, column]
    return bool(0 < cell["planned"] == cell["finished"])


def _outcomes(comparison: Comparison, tables: Mapping[str, TableFile]) -> list[Outcome]:
    """Return what is measured on each dataset that has both rows; verdicts of what has been measured come later."""
    first, second = tables.get(comparison.first.plan), tables.get(comparison.second.plan)
    if first is None or second is None:
        return [Outcome(comparison, "", Verdict.NOT_RUN)]
    sides = ((first, comparison.first), (second, comparison.second))
    outcomes = []
    for dataset in comparison.datasets or first.datasets:
        if not all((side.row, dataset, comparison.column) in table.cells for table, side in sides):
            continue  # a row may be meant for some of its plan's datasets
        if not all(_finished(table, side, dataset, comparison.column) for table, side in sides):
            outcomes.append(Outcome(comparison, dataset, Verdict.NOT_RUN))
            continue
        blind = _at_control(sides, comparison.control, dataset) if comparison.control else None
        found = blind or measure(first, second, comparison, dataset)
        if isinstance(found, str):
            outcomes.append(Outcome(comparison, dataset, Verdict.CANNOT, reason=found))
        else:
            outcomes.append(Outcome(comparison, dataset, Verdict.NOT, found))
    return outcomes or [Outcome(comparison, "", Verdict.NOT_RUN)]


def _decided(outcome: Outcome) -> Outcome:
    found, within = outcome.measured, outcome.comparison.within
    if found is None:
        return outcome
    if within is not None:
        shows = -within <= found.low and found.high <= within
    else:
        shows = found.difference > 0 and found.p < SIGNIFICANT
    return replace(outcome, verdict=Verdict.SHOWS if shows else Verdict.NOT)


def _verdict(claim: Claim, outcomes: Sequence[Outcome]) -> Verdict:
    verdicts = {outcome.verdict for outcome in outcomes}
    if not outcomes or (claim.cannot and verdicts == {Verdict.NOT_RUN}):
        return Verdict.CANNOT
    if Verdict.NOT_RUN in verdicts:
        return Verdict.NOT_RUN
    if len(verdicts) == 1:
        return verdicts.pop()
    return Verdict.PART if Verdict.SHOWS in verdicts else Verdict.NOT


def decide(papers: Sequence[Paper], tables: Mapping[str, TableFile]) -> list[tuple[Paper, list[Finding]]]:
    """Return the verdict on every claim.

    Args:
        papers: from `read_claims`.
        tables: by the file name of their plan.
    """
    every = [
        (claim, [o for test in claim.tests for o in _outcomes(test, tables)]) for p in papers for claim in p.claims
    ]
    # The tables have corrected their own tests; those that are made here are corrected together.
    made = [o.measured for _, some in every for o in some if o.measured is not None and o.measured.how != "paired"]
    corrected = dict(zip(map(id, made), holm([found.p for found in made]) if made else [], strict=True))

    def with_p(outcome: Outcome) -> Outcome:
        p = corrected.get(id(outcome.measured))
        if outcome.measured is None or p is None:
            return outcome
        return replace(outcome, measured=replace(outcome.measured, p=p))

    findings = iter(
        Finding(claim, _verdict(claim, decided), decided)
        for claim, some in every
        for decided in [tuple(_decided(with_p(outcome)) for outcome in some)]
    )
    return [(paper, [next(findings) for _ in paper.claims]) for paper in papers]
