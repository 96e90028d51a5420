"""The model card of a tuned checkpoint, written from the facts of its run.

`python -m ift_components.models.model_card RUN/checkpoint OUT/results.json` puts an evaluation's scores into the card.
"""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ift_components.errors import ConfigError
from ift_components.files import write_text
from ift_components.models.image_layout import ImageLayout

CARD = "README.md"
_SCORES = ("<!-- scores -->", "<!-- end of scores -->")
_LAYOUTS = {
    "none": "without padding, as torchtune computes it; transformers and servers compute another layout and answer differently",
    "meta": "padded to four tiles as in Meta's training, which transformers and servers compute",
    "paper": "without padding in training, and is asked padded to four tiles, as in the paper's protocol and by transformers",
}
_TUNED = "A Llama-3.2-Vision model tuned on medical images and their reports: {prompt}."
_TILES = {
    1: "Every picture was turned upright and resized to one square tile whatever its shape ({resize}). transformers' processor "
    "cuts a picture that is larger than a tile into several: resize it to the tile's size first.",
    4: "Every picture was turned upright and cut into up to four tiles, its shape kept, as transformers' processor does "
    "({resize}).",
}
_PADDING = " The model saw tiles {padding} (`tile_padding: {tile_padding}`, `tiles: {tiles}`)."
_PRIVATE = "Some of the data is private. Ask its owner before you publish weights that were trained on it."
_USE = (
    "Research on tuning and evaluating vision-language models. It is no medical device: do not use it to diagnose, to treat "
    "or to decide about a patient. Its answers can be wrong and sound sure, and nothing is known of images from other devices, "
    "hospitals or populations than those of the data above."
)


@dataclass(frozen=True)
class RunFacts:
    """What a model card tells of a run; nothing of it may be private text.

    Attributes:
        base: name of the model that training started from, as `base_name` finds it; None for random weights.
        base_licence: its licence, as `base_licence` reads it.
        data: for each dataset the numbers of its training samples, by kind.
        private: whether some of the data must not be published.
        trained: for each trained part how it was trained, in words.
        prompt: what the instruction was or what stood in its place, as a clause.
        settings: further settings by name: steps, samples a step, learning rate, dtype.
        seed: the run's seed.
        layout: the layout of pictures in training.
    """

    base: str | None
    base_licence: str | None
    data: Mapping[str, Mapping[str, int]]
    private: bool
    trained: Mapping[str, str]
    prompt: str
    settings: Mapping[str, str | int | float]
    seed: int
    layout: ImageLayout


def base_name(folder: Path) -> str:
    """Return a checkpoint's name: on the Hub if it lies in the Hub's cache, else its card's title or its folder's name."""
    for name in folder.absolute().parts:
        if name.startswith("models--"):
            return name.removeprefix("models--").replace("--", "/")
    path = folder / CARD
    title = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE) if path.is_file() else None
    return title.group(1).split(":")[0].strip() if title else folder.absolute().name


def base_licence(folder: Path | None) -> str | None:
    """Return the licence that a checkpoint's own card declares in its YAML header; None if there is none."""
    path = folder / CARD if folder is not None else None
    if path is None or not path.is_file():
        return None
    header = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    values = yaml.safe_load(header.group(1)) if header else None
    licence = values.get("license") if isinstance(values, dict) else None
    return str(licence) if licence else None


def _licence_text(facts: RunFacts) -> str:
    if facts.base is None:
        return "The weights were trained from random ones; whoever trained them chooses the licence."
    if facts.base_licence is None:
        return f"That of {facts.base}, whose card declares none: look it up before you publish these weights."
    text = f"That of {facts.base}: `{facts.base_licence}`."
    if facts.base_licence.startswith("llama"):
        text += (
            ' It asks who passes the weights on to include the licence, to show "Built with Llama" and to begin the model\'s '
            'name with "Llama"; for multimodal models it grants no rights to people and companies in the European Union.'
        )
    return text


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    return [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def model_card(facts: RunFacts) -> str:
    """Return the text of a checkpoint's `README.md`, with the header that Hugging Face reads."""
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=facts.base_licence,
        tags=["mllama", "medical", "instruction-free-tuning"],
    ).to_yaml()
    data = {name: ", ".join(f"{n} {kind}" for kind, n in counts.items()) for name, counts in facts.data.items()}
    layout = facts.layout
    pictures = (_TILES[layout.tiles] + _PADDING).format(padding=_LAYOUTS[layout.tile_padding], **layout.note())
    lines = ["---", header, "---", f"# {facts.base or 'A Llama-3.2-Vision model'}, tuned", ""]
    lines += [_TUNED.format(prompt=facts.prompt), "", *_table("training data", data)]
    lines += [_PRIVATE, ""] if facts.private else []
    lines += _table("trained part", facts.trained)
    lines += _table("setting", {"seed": facts.seed, **facts.settings})
    lines += ["## Scores", "", _SCORES[0], "Not evaluated yet.", _SCORES[1], ""]
    for title, text in (("Pictures", pictures), ("Intended use", _USE), ("Licence", _licence_text(facts))):
        lines += [f"## {title}", "", text, ""]
    return "\n".join(lines)


def with_scores(card: str, scores: Mapping[str, Any], measured_on: str) -> str:
    """Return a model card with scores in it, in place of those that were there.

    Args:
        card: what `model_card` gives.
        scores: numbers by name; a pair is an interval.
        measured_on: the data, in words.

    Raises:
        ConfigError: if the card has no place for scores.
    """
    begin, end = (card.find(mark) for mark in _SCORES)
    if begin < 0 or end < begin:
        raise ConfigError(f"model card: it has no '{_SCORES[0]}' and '{_SCORES[1]}' to put scores between")
    table = _table(f"on {measured_on}", {name: _written(value) for name, value in scores.items()})
    return card[: begin + len(_SCORES[0])] + "\n" + "\n".join(table) + card[end:]


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(_written(number) for number in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an evaluation's `results.json`: its numbers, and its interval."""
    figures = {name: value for name, value in results.items() if isinstance(value, int | float)}
    timing = ("seconds", "answers_per_second", "format")
    return {
        **{name: value for name, value in figures.items() if not isinstance(value, bool) and name not in timing},
        **({"interval": results["interval"]} if "interval" in results else {}),
    }


def main() -> None:
    """Put an evaluation's scores into a checkpoint's card."""
    parser = argparse.ArgumentParser(description="Put an evaluation's scores into a checkpoint's model card.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("results", type=Path, help="the evaluation's results.json")
    arguments = parser.parse_args()
    for path in (arguments.checkpoint / CARD, arguments.results):
        if not path.is_file():
            parser.error(f"{path} is not a file")
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    measured_on = f"the {results['split']} split of {results['dataset']}"
    card = with_scores((arguments.checkpoint / CARD).read_text(encoding="utf-8"), _scores(results), measured_on)
    write_text(arguments.checkpoint / CARD, card)


if __name__ == "__main__":
    main()
