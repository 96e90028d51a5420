"""The pages of one evaluation: report.html (self-contained), report.md and table.tex."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ift_components.data.wording import letters
from ift_components.evaluation.charts import latex_rows, radar, shades
from ift_components.evaluation.records import Prediction
from ift_components.evaluation.tasks import CHOICE, of_task
from ift_components.evaluation.verdict import verdict
from ift_components.files import write_text
from ift_components.pages import data_url, environment

_WRONG = 30
_THUMBNAIL = 180  # pixels


def wrong_answers(predictions: Sequence[Prediction], dataset: str, count: int = _WRONG) -> list[dict[str, Any]]:
    """Return wrong answers of the first run with their images, drawn with a fixed seed.

    Args:
        predictions: the scored answers.
        dataset: the main dataset.
        count: how many at most.
    """
    wrong = [p for p in of_task(predictions, CHOICE, dataset) if p.run == 0 and not p.correct]
    return [_shown(p) for p in random.Random(0).sample(wrong, min(count, len(wrong)))]


def _shown(prediction: Prediction) -> dict[str, Any]:
    item, predicted = prediction.item, prediction.predicted
    return {
        "id": item.id,
        "image": data_url(item.picture(), _THUMBNAIL),
        "question": item.prompt.splitlines()[0],
        "options": [
            {"letter": name, "text": text, "right": index == item.answer, "given": index == predicted}
            for index, (name, text) in enumerate(zip(letters(len(item.options)), item.options, strict=True))
        ],
        "unparsed": predicted is None,
        "generated": prediction.generated,
    }


def _matrices(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, **rates["confusion"], "shades": shades(rates["confusion"]["counts"])}
        for name, rates in results["attributes"].items()
        if "confusion" in rates
    ]


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
        "verdict": verdict(results),
        "matrices": [] if private else _matrices(results),
        "wrong": [] if private else wrong_answers(predictions, results["dataset"]),
        "maps": maps,
        "config": yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True),
    }
    templates = environment("ift_components.evaluation")
    for name in ("report.html", "report.md"):
        write_text(folder / name, templates.get_template(name).render(values))
    runs = results.get("runs", {"mean": results["accuracy"], "sd": None})
    write_text(folder / "table.tex", latex_rows({label: {results["dataset"]: (runs["mean"], runs["sd"])}}))
