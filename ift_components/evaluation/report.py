"""The pages of one evaluation: report.html (self-contained), report.md and table.tex."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ift_components.evaluation.charts import latex_rows, radar, shades
from ift_components.evaluation.items import Item
from ift_components.evaluation.questions import letters
from ift_components.files import write_text
from ift_components.pages import data_url, environment

_WRONG = 30
_THUMBNAIL = 180  # pixels


def wrong_answers(
    rows: Sequence[Mapping[str, Any]], items: Sequence[Item], dataset: str, count: int = _WRONG
) -> list[dict[str, Any]]:
    """Return wrong answers of the first run with their images, drawn with a fixed seed.

    Args:
        rows: the lines of predictions.jsonl.
        items: what was asked.
        dataset: the main dataset.
        count: how many at most.
    """
    wrong = [
        row for row in rows
        if row["task"] == "choice" and row["dataset"] == dataset and row["run"] == 0 and not row["correct"]
    ]  # fmt: skip
    drawn = random.Random(0).sample(wrong, min(count, len(wrong)))
    by_key = {item.key: item for item in items}
    shown = []
    for row in drawn:
        options, given = row["options"], row["predicted"]
        item = by_key[row["task"], row["dataset"], row["id"]]
        names = letters(len(options))
        shown.append(
            {
                "id": row["id"],
                "image": data_url(item.picture(), _THUMBNAIL),
                "question": row["prompt"].splitlines()[0],
                "options": [
                    {"letter": name, "text": text, "right": index == row["answer"], "given": index == given}
                    for index, (name, text) in enumerate(zip(names, options, strict=True))
                ],
                "unparsed": given is None,
                "generated": row.get("generated"),
            }
        )
    return shown


def _matrices(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, **rates["confusion"], "shades": shades(rates["confusion"]["counts"])}
        for name, rates in results["attributes"].items()
        if "confusion" in rates
    ]


def write_pages(
    folder: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], items: Sequence[Item]
) -> None:
    """Write report.html, report.md and table.tex into a run's folder.

    Args:
        folder: the folder.
        results: the content of results.json.
        rows: the lines of predictions.jsonl.
        items: what was asked, for the images.
    """
    attributes = results["attributes"]
    label = results["label"] or folder.resolve().name
    chart = radar(
        {label: {name: rates["accuracy"] for name, rates in attributes.items()}},
        {name: rates["chance"] for name, rates in attributes.items()},
    )
    values = {
        "r": results,
        "label": label,
        "radar": chart,
        "matrices": _matrices(results),
        "wrong": wrong_answers(rows, items, results["dataset"]),
        "config": yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True),
    }
    templates = environment("ift_components.evaluation")
    for name in ("report.html", "report.md"):
        write_text(folder / name, templates.get_template(name).render(values))
    runs = results.get("runs", {"mean": results["accuracy"], "sd": None})
    write_text(folder / "table.tex", latex_rows({label: {results["dataset"]: (runs["mean"], runs["sd"])}}))
