"""All tests of the maps of one model on some questions, as a table by method and a verdict on each.

Beside the methods stand two masks that know nothing of the model: random numbers, and the middle of the picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ift_components.saliency.faithfulness import Curves, centre_grid, curves, random_grids
from ift_components.saliency.localisation import Location, Mask, locate, part_asked
from ift_components.saliency.mapper import Grid, Mapper
from ift_components.saliency.sanity import correlation, randomised_maps
from ift_components.saliency.walk import Asked
from ift_components.statistics import bootstrap_interval, mean

RANDOM, CENTRE = "random", "centre"
_RANDOM_ORDERS = 3


@dataclass(frozen=True)
class Question:
    """One answer whose maps are tested.

    Attributes:
        image_id: questions about one image are not independent.
        pixels: [down, across, 3, h, w].
        asked: prompt and answer.
        attribute: what the question asks for.
        masks: where the parts of a drawn cell lie; None for other pictures.
    """

    image_id: str
    pixels: Tensor
    asked: Asked
    attribute: str = ""
    masks: Mapping[str, Mask] | None = None


@dataclass
class MethodScores:
    """What was measured of one method or mask, a number a question; curves are means over its orders."""

    images: list[str] = field(default_factory=list)
    deletion: list[float] = field(default_factory=list)
    insertion: list[float] = field(default_factory=list)
    deletion_curves: list[list[float]] = field(default_factory=list)
    insertion_curves: list[list[float]] = field(default_factory=list)
    cell: list[Location] = field(default_factory=list)
    part: list[Location] = field(default_factory=list)

    def add_curves(self, image: str, orders: Sequence[Curves]) -> None:
        """Add a question's curves, the mean over several maps of the same kind."""
        self.images.append(image)
        deletion, insertion = zip(*(one.areas for one in orders), strict=True)
        self.deletion.append(mean(deletion))
        self.insertion.append(mean(insertion))
        self.deletion_curves.append(np.mean([one.deletion for one in orders], axis=0).tolist())
        self.insertion_curves.append(np.mean([one.insertion for one in orders], axis=0).tolist())


def measure(
    mapper: Mapper, questions: Iterable[Question], methods: Sequence[str], seed: int = 0
) -> dict[str, MethodScores]:
    """Measure maps and masks on questions.

    Args:
        mapper: makes the maps.
        questions: what is asked.
        methods: names of methods.
        seed: seed of random maps and of the order of equals.

    Returns:
        By method, and for `random` and `centre`.
    """
    generator = np.random.default_rng(seed)
    scores = {name: MethodScores() for name in (*methods, CENTRE, RANDOM)}
    for question in questions:
        chosen = mapper.chosen(question.asked, None)
        grids = {name: [mapper.explain_pixels(question.pixels, question.asked, name).grid] for name in methods}
        rows, columns = next(iter(grids.values()))[0].shape
        grids[CENTRE] = [centre_grid(rows, columns)]
        grids[RANDOM] = random_grids(rows, columns, _RANDOM_ORDERS, generator)
        flat = [grid for several in grids.values() for grid in several]
        done = iter(curves(mapper.walk, question.pixels, question.asked, chosen, grids=flat, generator=generator))
        for name, several in grids.items():
            scores[name].add_curves(question.image_id, [next(done) for _ in several])
            if question.masks is not None:
                part = part_asked(question.attribute, question.masks)
                for found, mask in ((scores[name].cell, "cell"), (scores[name].part, part)):
                    places = [locate(grid, question.masks[mask]) for grid in several]
                    found.append(
                        Location(
                            mean(place.share for place in places),
                            mean(place.pointing for place in places),
                            places[0].area,
                        )
                    )
    return scores


def sanity(mapper: Mapper, questions: Sequence[Question], methods: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Return the mean rank correlation of each method's maps with those under random weights, by stage."""

    def maps(method: str) -> list[Grid]:
        return [mapper.explain_pixels(q.pixels, q.asked, method).grid for q in questions]

    def all_maps() -> list[Grid]:
        return [grid for method in methods for grid in maps(method)]

    whole, count = all_maps(), len(questions)
    result: dict[str, Any] = {method: {} for method in methods}
    for stage, changed in randomised_maps(mapper.walk.model, all_maps, seed):
        for index, method in enumerate(methods):
            part = slice(index * count, (index + 1) * count)
            pairs = zip(whole[part], changed[part], strict=True)
            result[method][stage] = mean(correlation(first, second) for first, second in pairs)
    return result


def summary(scores: Mapping[str, MethodScores], draws: int = 10_000) -> dict[str, dict[str, Any]]:
    """Return figures with 95 % intervals by a bootstrap over images, and whether each method beats the masks.

    Args:
        scores: from `measure`.
        draws: bootstrap replicates.
    """

    def estimate(values: Sequence[float], images: Sequence[str]) -> dict[str, Any]:
        low, high = bootstrap_interval(values, images, draws=draws)
        return {"value": mean(values), "low": low, "high": high}

    def better(own: Sequence[float], other: Sequence[float], sign: int, images: Sequence[str]) -> dict[str, Any]:
        return estimate([sign * (a - b) for a, b in zip(own, other, strict=True)], images)

    table: dict[str, dict[str, Any]] = {}
    for name, own in scores.items():
        row: dict[str, Any] = {"questions": len(own.deletion)}
        row["deletion"], row["insertion"] = estimate(own.deletion, own.images), estimate(own.insertion, own.images)
        row["deletion_curve"] = np.mean(own.deletion_curves, axis=0).tolist()
        row["insertion_curve"] = np.mean(own.insertion_curves, axis=0).tolist()
        for place in ("cell", "part"):
            located: list[Location] = getattr(own, place)
            if located:
                row[place] = {
                    "share": estimate([one.share for one in located], own.images),
                    "pointing": estimate([one.pointing for one in located], own.images),
                    "area": mean(one.area for one in located),
                }
        for mask in (RANDOM, CENTRE):
            if name != mask:
                row[f"against_{mask}"] = {
                    "deletion": better(own.deletion, scores[mask].deletion, -1, own.images),
                    "insertion": better(own.insertion, scores[mask].insertion, 1, own.images),
                }
        if name not in (RANDOM, CENTRE):
            row["beats_centre"] = all(gain["low"] > 0 for gain in row[f"against_{CENTRE}"].values())
        table[name] = row
    return table


def verdict(row: Mapping[str, Any]) -> str:
    """Return one sentence on whether a method beats the mask in the middle of the picture."""
    gains = row[f"against_{CENTRE}"]
    figures = ", ".join(
        f"{name} {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" for name, gain in gains.items()
    )
    outcome = "Beats" if row["beats_centre"] else "Does not beat"
    return f"{outcome} a mask at the picture's centre on {row['questions']} questions; gain in area: {figures}."
