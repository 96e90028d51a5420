"""The pages of one evaluation: report.html (self-contained), report.md and table.tex."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from ift_components.data.wording import letters
from ift_components.evaluation.charts import Bar, interval_bars, latex_rows, radar, shades
from ift_components.evaluation.metrics import headline
from ift_components.evaluation.pairs import parts
from ift_components.evaluation.records import Prediction
from ift_components.evaluation.tasks import CHOICE, FREE, of_task
from ift_components.evaluation.verdict import verdict
from ift_components.files import write_text
from ift_components.pages import data_url, environment

_WRONG, _RIGHT = 30, 12
_SIDE = 512  # pixels of an enlarged image


def sample_answers(predictions: Sequence[Prediction], *, right: bool, count: int) -> list[dict[str, Any]]:
    """Return right or wrong answers with their images, drawn with a fixed seed.

    Args:
        predictions: the scored answers.
        right: which of them.
        count: how many at most.
    """
    candidates = [p for p in predictions if p.correct == right]
    return [_shown(p) for p in random.Random(0).sample(candidates, min(count, len(candidates)))]


def _shown(prediction: Prediction) -> dict[str, Any]:
    item = prediction.item
    predicted = prediction.predicted if item.options else None
    return {
        "id": item.id,
        "image": data_url(item.picture(), _SIDE),
        "question": item.prompt.splitlines()[0] if item.options else item.prompt,
        "options": [
            {"letter": name, "text": text, "right": index == item.answer, "given": index == predicted}
            for index, (name, text) in enumerate(zip(letters(len(item.options)), item.options, strict=True))
        ],
        "reference": item.reference,
        "right": prediction.correct,
        "unparsed": bool(item.options) and predicted is None,
        "generated": prediction.generated,
        "unanswered": prediction.unanswered,
    }


def bars_of(results: Mapping[str, Any]) -> dict[str, Bar]:
    """Return accuracy and interval by attribute and in all, or by kind of free question where there are no others."""
    if "attributes" in results:
        rows = {**results["attributes"], "all": results}
        return {name: (rates["accuracy"], tuple(rates["interval"])) for name, rates in rows.items()}
    free = results["free"]
    kinds = {name: f"{name}_" for name in ("closed", "open") if f"{name}_accuracy" in free} | {"all": ""}
    return {name: (free[f"{prefix}accuracy"], tuple(free[f"{prefix}interval"])) for name, prefix in kinds.items()}


def reached_anyway(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return what is reached without looking at an image, for the lines in `bars_of`'s chart."""
    if "attributes" in results:
        rows = {**results["attributes"], "all": results}
        titles = {"most frequent training answer": "prior", "of the options shown": "prior_shown", "chance": "chance"}
        return {title: {name: rates[key] for name, rates in rows.items()} for title, key in titles.items()}
    free = results["free"]
    titles = {"most frequent training answer": "prior", "most frequent answer of these": "majority"}
    kinds = {"closed": "closed_", "open": "open_", "all": ""}
    return {
        title: {name: free.get(f"{kinds[name]}{key}") for name in bars_of(results)} for title, key in titles.items()
    }


def _matrices(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, **rates["confusion"], "shades": shades(rates["confusion"]["counts"])}
        for name, rates in results.get("attributes", {}).items()
        if "confusion" in rates
    ]


def page_templates() -> Environment:
    """Return the environment of this room's pages."""
    templates = environment("ift_components.evaluation")
    templates.filters["parts"] = lambda pair: list(parts(pair))
    return templates


_KINDS = (("closed", "closed_", "closed_questions"), ("open", "open_", "open_questions"), ("all", "", "questions"))


def _free_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of open and closed questions: those of each set, and of all."""
    free = results.get("free")
    if free is None:
        return []
    rows = []
    for name, figures in [*free.get("sets", {}).items(), (None, free)]:
        for kind, prefix, count in _KINDS:
            if count in figures:
                keys = ("accuracy", "interval", "prior", "majority")
                row = {key: figures[f"{prefix}{key}"] for key in keys}
                rows.append({"set": name, "kind": kind, "questions": figures[count], **row})
    return rows


def write_pages(
    folder: Path,
    results: Mapping[str, Any],
    predictions: Sequence[Prediction],
    *,
    private: bool = False,
    maps: Mapping[str, Any] | None = None,
) -> None:
    """Write report.html, report.md and table.tex into a run's folder.

    Args:
        folder: the folder.
        results: the content of results.json.
        predictions: the scored answers, with their pictures.
        private: whether the data are: the pages then hold figures alone, no image, question, option or answer.
        maps: from `maps.answer_maps`; None shows none.
    """
    label = results["label"] or folder.resolve().name
    attributes = results.get("attributes", {})
    lines = {label: {name: rates["accuracy"] for name, rates in attributes.items()}}
    unrelated = results["config"].get("unrelated") or {}
    own = [
        p
        for task in (CHOICE, FREE)
        for p in of_task(predictions, task)
        if p.run == 0 and p.item.dataset not in unrelated
    ]
    values = {
        "r": results,
        "main": headline(results),
        "label": label,
        "private": private,
        "bars": interval_bars({label: bars_of(results)}, reached_anyway(results)),
        "radar": radar(lines, {name: rates["chance"] for name, rates in attributes.items()}),
        "verdict": verdict(results),
        "free_rows": _free_rows(results),
        "matrices": [] if private else _matrices(results),
        "wrong": [] if private else sample_answers(own, right=False, count=_WRONG),
        "right": [] if private else sample_answers(own, right=True, count=_RIGHT),
        "maps": maps,
        "config": yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True),
    }
    templates = page_templates()
    for name in ("report.html", "report.md"):
        write_text(folder / name, templates.get_template(name).render(values))
    runs = results.get("runs", {"mean": headline(results)["accuracy"], "sd": None})
    write_text(folder / "table.tex", latex_rows({label: {results["dataset"]: (runs["mean"], runs["sd"])}}))
