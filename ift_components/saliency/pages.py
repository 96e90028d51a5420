"""The pages of maps: an index with the tests, and one page a sample. They need no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ift_components.files import write_text
from ift_components.pages import data_url, environment
from ift_components.saliency.checks import CENTRE, RANDOM, verdict
from ift_components.saliency.mapper import CAUTION, AnswerMap
from ift_components.saliency.methods import METHODS, CrossAttention
from ift_components.saliency.overlay import palette

UNTESTED = "Not tested on this model: nobody knows whether it says more than a mask at the picture's centre."
_MOST_VALUES = 12_000_000  # of raw attention on a page; beyond, heads are averaged
_LEVELS = 65_535
_PICTURE = 448


@dataclass(frozen=True)
class Sample:
    """A question whose answer is mapped.

    Attributes:
        id: in the prepared folder.
        name: of its files.
        question: what was asked.
        prompt: the whole instruction.
        answer: what is mapped.
        right: the right answer.
    """

    id: str
    name: str
    question: str
    prompt: str
    answer: str
    right: str

    def facts(self) -> dict[str, str]:
        """Return which files belong to which question, without words of the data."""
        return {"id": self.id, "name": self.name}


def mark(method: str, checks: Mapping[str, Any]) -> tuple[bool, str]:
    """Return whether a method has passed its test on this model, and the sentence that stands beside its maps."""
    row = checks.get(method)
    return (False, UNTESTED) if row is None else (bool(row["beats_centre"]), verdict(row))


def _packed(values: np.ndarray) -> dict[str, Any]:
    """Return numbers from 0 up as 16-bit levels of their greatest, little-endian, in base64."""
    most = float(values.max())
    levels = np.rint(values / most * _LEVELS if most > 0 else values).astype("<u2")
    return {"shape": list(values.shape), "most": most, "levels": base64.b64encode(levels.tobytes()).decode()}


def _size(canvas: Image.Image) -> tuple[int, int]:
    """Return width and height of a canvas on a page: its longer side is fixed."""
    scale = _PICTURE / max(canvas.size)
    return round(canvas.width * scale), round(canvas.height * scale)


def _attention(raw: CrossAttention) -> dict[str, Any]:
    weights = raw.weights.numpy()
    by_head = weights.size <= _MOST_VALUES
    if not by_head:
        weights = weights.mean(axis=1, keepdims=True)
    return {"layers": raw.layers, "gates": raw.gates, "by_head": by_head, **_packed(weights)}


def write_sample(
    path: Path,
    sample: Sample,
    canvas: Image.Image,
    *,
    by_token: Mapping[str, AnswerMap],
    maps: Mapping[str, AnswerMap],
    raw: CrossAttention | None,
    checks: Mapping[str, Any],
) -> None:
    """Write the page of a sample.

    Args:
        path: where.
        sample: question and answer.
        canvas: the picture as the model sees it.
        by_token: maps of each answer token, where the method has them; else of the decisive ones together.
        maps: maps of the decisive tokens.
        raw: raw attention of all answer tokens.
        checks: the tests' figures.
    """
    first = next(iter(maps.values()))
    methods = []
    for name, made in by_token.items():
        passed, sentence = mark(name, checks)
        entry: dict[str, Any] = {"name": name, "title": METHODS[name].title, "meaning": METHODS[name].meaning}
        entry |= {"passed": passed, "verdict": sentence, "byToken": METHODS[name].by_token, "raw": name == "attention"}
        methods.append(entry if entry["raw"] else entry | {"maps": _packed(np.clip(made.signed, 0, None))})
    data = {
        "size": _size(canvas),
        "rows": first.grid.shape[0],
        "columns": first.grid.shape[1],
        "pieces": first.pieces,
        "chosen": first.chosen,
        "methods": methods,
        "attention": None if raw is None else _attention(raw),
        "palette": palette().tolist(),
    }
    values = {
        "sample": sample,
        "data": data,
        "picture": data_url(canvas.resize(_size(canvas), Image.Resampling.BICUBIC)),
        "caution": CAUTION,
    }
    write_text(path, environment("ift_components.saliency").get_template("sample.html").render(values))


def _chart(checks: Mapping[str, Any]) -> str:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, kind, hint in zip(
        figure.subplots(1, 2), ("deletion", "insertion"), ("low is good", "high is good"), strict=True
    ):
        for name, row in checks.items():
            curve = row[f"{kind}_curve"]
            style = {RANDOM: ":", CENTRE: "--"}.get(name, "-")
            colour = {RANDOM: "grey", CENTRE: "black"}.get(name)
            axes.plot(np.linspace(0, 100, len(curve)), curve, style, color=colour, label=label(name))
        axes.set(title=f"{kind} ({hint})", xlabel="patches replaced, %", ylabel="probability of the answer")
    axes.legend(fontsize=8)
    canvas.draw()
    return data_url(Image.fromarray(np.asarray(canvas.buffer_rgba())))


def label(name: str) -> str:
    """Return what tables call a method or a mask."""
    masks = {CENTRE: "mask at the centre", RANDOM: "random mask"}
    return masks.get(name) or METHODS[name].title


def write_index(
    folder: Path, samples: Sequence[Sample], checks: Mapping[str, Any], methods: Sequence[str], *, private: bool
) -> None:
    """Write the index.

    Args:
        folder: holds `samples/`.
        samples: what was mapped.
        checks: the tests' figures by method and mask; empty if there are none.
        methods: the methods.
        private: show figures alone, no image, question or answer.
    """
    values = {
        "samples": [] if private else [asdict(sample) for sample in samples],
        "mapped": len(samples),
        "private": private,
        "checks": checks,
        "label": label,
        "methods": [(name, METHODS[name], *mark(name, checks)) for name in methods],
        "chart": _chart(checks) if checks else None,
        "caution": CAUTION,
    }
    write_text(folder / "index.html", environment("ift_components.saliency").get_template("index.html").render(values))
