"""Accuracy of multiple-choice answers, overall and per attribute."""

from collections.abc import Mapping, Sequence
from typing import Any


def _rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    count = len(rows)
    rates: dict[str, float | int] = {"questions": count, "chance": sum(1 / row["options"] for row in rows) / count}
    if "generated" in rows[0]:
        rates["accuracy"] = sum(row["predicted"] == row["answer"] for row in rows) / count
        rates["well_formed"] = sum(row["predicted"] is not None for row in rows) / count
    if "forced" in rows[0]:
        rates["forced_accuracy"] = sum(row["forced"] == row["answer"] for row in rows) / count
    return {name: round(rate, 6) for name, rate in rates.items()}


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rates over all questions and for each attribute.

    `accuracy` is the share of questions whose parsed answer is right (an answer that is not well formed is wrong),
    `well_formed` the share that parses, `forced_accuracy` the share right when the answer sentence is forced and only the letter
    chosen, `chance` the accuracy of a uniform guess.

    Args:
        rows: predictions with `attribute`, `options` (their number), `answer`, and `generated` and `predicted` or `forced`.
    """
    attributes = sorted({row["attribute"] for row in rows})
    by_attribute = {name: _rates([row for row in rows if row["attribute"] == name]) for name in attributes}
    return {**_rates(rows), "attributes": by_attribute}
