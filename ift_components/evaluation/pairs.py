"""Two methods on the same questions, each by one or more runs: differences with what images and seeds leave uncertain."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ift_components.errors import DataError
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.tasks import CHOICE, CONTROLS, FREE
from ift_components.statistics import Floats, MethodComparison, compare_methods, holm, mcnemar, mean, wilson_interval

_HALF = 0.5
_LAYOUT = ("tiles", "tile_padding", "resize")
_FROM_IMAGE = {"difference": "accuracy", "open_recall_difference": "open_recall"}
Key = tuple[str, str, str]


@dataclass
class Run:
    """A finished evaluation.

    Attributes:
        name: its folder's name, with its parent's where several are called alike.
        results: the content of results.json.
        predictions: its answers, scored.
    """

    name: str
    results: dict[str, Any]
    predictions: list[Prediction]

    @property
    def method(self) -> str:
        """What was evaluated; runs of one method are its seeds."""
        return str(self.results["label"] or self.name)

    @property
    def benchmark(self) -> tuple[str, str]:
        """Dataset and split."""
        return self.results["dataset"], self.results["split"]

    @property
    def unrelated(self) -> list[str]:
        """Names of the tasks that the model was not tuned on."""
        return list(self.results["config"].get("unrelated") or {})

    @cached_property
    def items(self) -> dict[Key, Item]:
        """What was asked, by its key; the control is left out."""
        controls = {task.name for task in CONTROLS.values()}
        return {p.item.key: p.item for p in self.predictions if p.item.task not in controls}

    @cached_property
    def _scores(self) -> dict[str, dict[Key, float]]:
        values: dict[str, dict[Key, list[float]]] = defaultdict(lambda: defaultdict(list))
        for prediction in self.predictions:
            for name in ("correct", "recall"):
                if name in prediction.scores:
                    values[name][prediction.item.key].append(float(prediction.scores[name] or 0))
        return {name: {key: mean(all_runs) for key, all_runs in keys.items()} for name, keys in values.items()}

    def scores(self, name: str, items: Sequence[Item]) -> list[float]:
        """Return a score of questions (`correct` or `recall`), averaged over their repeated runs."""
        return [self._scores[name][item.key] for item in items]

    def scores_of_control(self, name: str, items: Sequence[Item]) -> list[float]:
        """Return the score of the same questions with another image's pixels."""
        return [self._scores[name][CONTROLS[item.task].name, item.dataset, item.id] for item in items]


def check_alike(first: Run, second: Run) -> None:
    """Refuse runs that were read, shown or asked differently: their accuracies do not compare.

    Raises:
        DataError: naming the key or question in which they differ.
    """
    _check_reading(first, second)
    _check_questions(first, second)


def _check_reading(first: Run, second: Run) -> None:
    ours, theirs = first.results, second.results
    differing = [key for key in ("parser", "parser_version") if ours.get(key) != theirs.get(key)]
    values = {key: (ours.get(key), theirs.get(key)) for key in differing}
    configs = ours["config"], theirs["config"]
    forced = [config.get("scoring") == "logits" for config in configs]
    if forced[0] != forced[1]:
        values["scoring"] = (configs[0].get("scoring"), configs[1].get("scoring"))
    if not any(config.get("predictor") for config in configs):  # who else answers has a layout of its own
        values |= {key: (a, b) for key in _LAYOUT if (a := configs[0].get(key)) != (b := configs[1].get(key))}
    for key, (mine, other) in values.items():
        raise DataError(f"compare: {first.name} has {key}={mine}, {second.name} {key}={other}; evaluate them alike")


def _check_questions(first: Run, second: Run) -> None:
    # A task that only one of them was asked is left out; where both were, all questions must be the same.
    once = set(first.unrelated) ^ set(second.unrelated)
    sides = [{key: item for key, item in run.items.items() if item.dataset not in once} for run in (first, second)]
    for name, task in (("multiple-choice", CHOICE.name), ("free", FREE.name)):
        ours, theirs = ({key for key in side if key[0] == task} for side in sides)
        alone = sorted(ours ^ theirs)
        if alone:
            raise DataError(
                f"compare: {first.name} has {len(ours)} {name} questions, {second.name} {len(theirs)}; "
                f"'{alone[0][2]}' was asked in one of them only; evaluate the same questions"
            )
        for key in sorted(ours):
            if _asked(sides[0][key]) != _asked(sides[1][key]):
                raise DataError(f"compare: {first.name} and {second.name} ask question '{key[2]}' differently")


def _asked(item: Item) -> tuple[Any, ...]:
    return item.prompt, item.options, item.answer_text, item.image_id, item.kind


@dataclass(frozen=True)
class _Sides:
    """Both methods' runs, to compare them on any of their questions."""

    first: Sequence[Run]
    second: Sequence[Run]

    def values(self, items: Sequence[Item], score: str = "correct") -> tuple[Floats, Floats]:
        before, after = (np.array([run.scores(score, items) for run in runs]) for runs in (self.first, self.second))
        return before, after

    def compared(
        self,
        items: Sequence[Item],
        score: str = "correct",
        cells: Sequence[Any] | None = None,
        weights: Mapping[Any, float] | None = None,
    ) -> dict[str, Any]:
        found = compare_methods(*self.values(items, score), clusters_of(items), cells, weights)
        return {"questions": len(items), **found.to_dict()}


def clusters_of(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Return the image of each question; images of two datasets may have one name."""
    return [(item.dataset, item.image_id) for item in items]


def _classes(items: Sequence[Item]) -> tuple[list[tuple[str, str]], dict[tuple[str, str], float]]:
    """Return the class of each multiple-choice question, its attribute and right answer, and the classes' weights.

    A class weighs 1 / (attributes * its attribute's classes): the mean over attributes of means over their classes.
    """
    classes = [(item.attribute, item.answer_text) for item in items]
    numbers = Counter(name for name, _ in set(classes))
    return classes, {cell: 1 / (len(numbers) * numbers[cell[0]]) for cell in classes}


def _choices(sides: _Sides, items: Sequence[Item]) -> dict[str, Any]:
    """Return the comparison on multiple-choice questions: in all, balanced, macro and by attribute."""
    by_attribute: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_attribute[item.attribute].append(item)
    classes, weights = _classes(items)
    return {
        **sides.compared(items),
        "balanced": sides.compared(items, cells=classes, weights=weights),
        "macro": sides.compared(items, cells=[item.attribute for item in items]),
        "attributes": {name: sides.compared(members) for name, members in sorted(by_attribute.items())},
    }


def _free(sides: _Sides, items: Sequence[Item]) -> dict[str, Any]:
    """Return the comparison on free questions: in all, closed, open, the recall of open ones, and by set."""
    kinds = {kind: [item for item in items if item.kind == kind] for kind in ("closed", "open")}
    found = {"accuracy": sides.compared(items)}
    found |= {f"{kind}_accuracy": sides.compared(members) for kind, members in kinds.items() if members}
    if kinds["open"]:
        found["open_recall"] = sides.compared(kinds["open"], "recall")
    sets = sorted({item.dataset for item in items})
    if len(sets) > 1:
        by_set = {name: [item for item in items if item.dataset == name] for name in sets}
        found["sets"] = {name: sides.compared(members) for name, members in by_set.items()}
    return found


def _unrelated(sides: _Sides, items: Sequence[Item]) -> dict[str, Any]:
    """Return the comparison on a task that was not tuned on, and what is retained of it.

    `retained` = (after - chance) / (before - chance), of multiple-choice questions, where the first method is above chance; its
    interval by the delta method, from the comparison of `after - chance` with `retained * (before - chance)`.
    """
    choices = [item for item in items if item.options]
    items = choices or items
    before, after = sides.values(items)
    found = {**sides.compared(items), "before": float(before.mean()), "after": float(after.mean())}
    found |= {"chance": None, "retained": None, "retained_interval": None}
    if choices:
        chance = mean(1 / len(item.options) for item in choices)
        found["chance"] = chance
        above = found["before"] - chance
        if above > 0:
            share = (found["after"] - chance) / above
            both = compare_methods(share * (before - chance), after - chance, clusters_of(items))
            found |= {"retained": share, "retained_interval": [share + both.low / above, share + both.high / above]}
    return found


def compare_labels(first: Sequence[Run], second: Sequence[Run]) -> dict[str, Any]:
    """Return the comparison of two methods, each by its runs (seeds), on the same questions.

    The top level is the accuracy of the multiple-choice questions (`measure` says so), with `balanced` (mean over attributes
    and right answers), `macro` and `attributes`; where there are none, that of the free questions. `free` and `unrelated` hold
    the others. Every part is a `statistics.compare_methods`. McNemar's test is given for two single runs whose images have one
    question each, where its questions are independent.

    Args:
        first: the runs of one method.
        second: the runs of the other; differences are its figures less the first's.

    Raises:
        DataError: if the runs were read, shown or asked differently.
    """
    every = [*first, *second]
    for run in every[1:]:
        check_alike(every[0], run)
    sides = _Sides(first, second)
    names = {name for name in every[0].unrelated if all(name in run.unrelated for run in every)}
    anywhere = {name for run in every for name in run.unrelated}
    own = [item for item in every[0].items.values() if item.dataset not in anywhere]
    choices, free = ([item for item in own if item.task == task.name] for task in (CHOICE, FREE))
    pair: dict[str, Any] = {"first": first[0].method, "second": second[0].method}
    if choices:
        pair |= {"measure": "accuracy", **_choices(sides, choices)}
    else:
        pair |= {"measure": "accuracy of free questions", **sides.compared(free), "attributes": {}}
    if free:
        pair["free"] = _free(sides, free)
    if not choices:
        del pair["free"]["accuracy"]  # it stands at the top level
    if names:
        asked = every[0].items.values()
        pair["unrelated"] = {n: _unrelated(sides, [i for i in asked if i.dataset == n]) for n in sorted(names)}
    main = choices or free
    if len(first) == len(second) == 1 and len(set(clusters_of(main))) == len(main):
        before, after = ((side[0] > _HALF).tolist() for side in sides.values(main))
        pair["only_first"], pair["only_second"], pair["p_mcnemar"] = mcnemar(before, after)
    return pair


_FREE_TITLES = {
    "accuracy": "free questions",
    "closed_accuracy": "closed questions",
    "open_accuracy": "open questions",
    "open_recall": "open questions, recall",
}


def parts(pair: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the title and the comparison of every part of a pair but its attributes."""
    yield pair["measure"], pair
    for name, title in (("balanced", "balanced accuracy"), ("macro", "macro accuracy")):
        if name in pair:
            yield title, pair[name]
    free = pair.get("free", {})
    for name, title in _FREE_TITLES.items():
        if name in free and not (
            name == "accuracy" and "balanced" not in pair
        ):  # without choices it is the main figure
            yield title, free[name]
    for name, part in free.get("sets", {}).items():
        yield f"free questions: {name}", part
    for name, part in pair.get("unrelated", {}).items():
        yield f"unrelated: {name}", part


def correct_for_number(pairs: Sequence[dict[str, Any]]) -> None:
    """Add `p_holm` to every comparison: p corrected by Holm for all of them."""
    printed = [part for pair in pairs for _, part in parts(pair)]
    printed += [part for pair in pairs for part in pair["attributes"].values()]
    for part, corrected in zip(printed, holm([part["p"] for part in printed]), strict=True):
        part["p_holm"] = corrected


def method_bar(runs: Sequence[Run], items: Sequence[Item]) -> tuple[float, tuple[float, float]]:
    """Return a method's accuracy on some questions over several runs, and the interval that images and seeds leave."""
    values = np.array([run.scores("correct", items) for run in runs])
    found = compare_methods(np.zeros((1, len(items))), values, clusters_of(items))
    return found.difference, (max(0.0, found.low), min(1.0, found.high))


@dataclass(frozen=True)
class Measure:
    """What a figure of results.json is made of: the questions, what is counted of each, and how it is averaged.

    Attributes:
        key: the figure's dotted key.
        items: the questions.
        score: `correct` or `recall`.
        cells: cells whose means are averaged; None takes the plain mean.
        weights: the cells' weights; None weighs them alike.
        from_image: count what was read from the image, the score less that with another image's pixels.
    """

    key: str
    items: list[Item]
    score: str = "correct"
    cells: list[Any] | None = None
    weights: Mapping[Any, float] | None = None
    from_image: bool = False

    def values(self, runs: Sequence[Run]) -> Floats:
        """Return what each question earned in each run, [runs, questions]."""
        scores = np.array([run.scores(self.score, self.items) for run in runs])
        if self.from_image:
            scores -= np.array([run.scores_of_control(self.score, self.items) for run in runs])
        return scores

    def compared(self, first: Sequence[Run], second: Sequence[Run]) -> MethodComparison:
        """Return the second method's figure less the first's, with what images and seeds leave uncertain.

        Questions that the figure is not made of may have been asked in one of them only.

        Raises:
            DataError: if the runs were read or shown differently, or asked other questions.
        """
        for run in (*first[1:], *second):
            _check_reading(first[0], run)
            other = measure_of(run, self.key)
            mine, theirs = ({i.key: _asked(i) for i in items} for items in (self.items, other.items if other else []))
            differing = sorted(key[2] for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
            if differing:
                raise DataError(
                    f"compare: {self.key}: {first[0].name} has {len(mine)} questions, {run.name} {len(theirs)}; "
                    f"'{differing[0]}' is not the same in both; evaluate the same questions"
                )
        clusters = clusters_of(self.items)
        return compare_methods(self.values(first), self.values(second), clusters, self.cells, self.weights)

    def interval(self, runs: Sequence[Run]) -> tuple[float, float]:
        """Return the 95 % interval of a method's figure that its images and seeds leave, within the figure's range.

        Where all answers are right, or all wrong, nothing spreads: Wilson's over the images stands in; where no answer was read
        from the image, its bound of the share of images in which one might be, to either side.
        """
        clusters = clusters_of(self.items)
        nothing = np.zeros((1, len(self.items)))
        spread = compare_methods(nothing, self.values(runs), clusters, self.cells, self.weights)
        least = -1.0 if self.from_image else 0.0
        if spread.low < spread.high:
            return max(least, spread.low), min(1.0, spread.high)
        if self.from_image:
            reach = wilson_interval(0.0, len(set(clusters)))[1]
            return max(least, spread.difference - reach), min(1.0, spread.difference + reach)
        return wilson_interval(spread.difference, len(set(clusters)))


def measure_of(run: Run, key: str) -> Measure | None:
    """Return what a figure of results.json is made of; None for one that is no mean over questions.

    Args:
        run: an evaluation with the figure.
        key: its dotted key: `accuracy`, `balanced_accuracy`, `macro_accuracy`, `attributes.NAME.accuracy`,
            `unrelated.NAME.accuracy`, `free.accuracy`, `free.open_accuracy`, `free.sets.NAME.closed_accuracy`,
            `free.open_recall` and the like; `image_control.difference`, `free.image_control.open_recall_difference`.
    """
    group, _, figure = key.rpartition(".")
    if group in ("image_control", "free.image_control"):
        whole = measure_of(run, group.removesuffix("image_control") + _FROM_IMAGE.get(figure, ""))
        return whole and replace(whole, key=key, from_image=True)
    own = [item for item in run.items.values() if item.dataset not in run.unrelated]
    choices, free = ([item for item in own if item.task == task.name] for task in (CHOICE, FREE))
    if group == "free" or group.startswith("free.sets."):
        name = group.removeprefix("free.sets.")
        free = [item for item in free if group == "free" or item.dataset == name]
        return _free_measure(key, free, figure)
    if group.startswith("attributes."):
        choices = [item for item in choices if item.attribute == group.removeprefix("attributes.")]
    elif group.startswith("unrelated."):
        choices = [i for i in run.items.values() if i.dataset == group.removeprefix("unrelated.") and i.options]
    elif group:
        choices = []
    if not choices:
        return None
    if figure == "balanced_accuracy":
        return Measure(key, choices, "correct", *_classes(choices))
    if figure == "macro_accuracy":
        return Measure(key, choices, "correct", [item.attribute for item in choices])
    return Measure(key, choices) if figure == "accuracy" else None


def _free_measure(key: str, items: list[Item], figure: str) -> Measure | None:
    kind, _, what = figure.rpartition("_")
    if kind:
        items = [item for item in items if item.kind == kind]
    if not items or kind not in ("", "open", "closed") or what not in ("accuracy", "recall"):
        return None
    return Measure(key, items, "recall" if what == "recall" else "correct")
