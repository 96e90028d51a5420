"""Rates of multiple-choice answers: accuracy, its baselines and intervals, circular accuracy, consistency, confusion."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from ift_components.evaluation.constancy import (
    Priors,
    auroc,
    balanced_accuracy,
    kappa,
    most_frequent_answer,
    prior_accuracy,
    two_valued,
)
from ift_components.evaluation.parsing import PARSERS
from ift_components.evaluation.records import Prediction
from ift_components.statistics import (
    bootstrap_cells,
    bootstrap_interval,
    mean,
    mean_interval,
    mean_sd,
    percentiles,
    rounded,
    share_interval,
    wilson_interval,
)

UNPARSED = "unparsed"
_ZERO = 1e-9
MAX_CONFUSION = 12  # a larger matrix cannot be read


def _by(rows: Iterable[Prediction], key: Callable[[Prediction], Any]) -> dict[Any, list[Prediction]]:
    groups: dict[Any, list[Prediction]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def scores_by_question(rows: Sequence[Prediction]) -> dict[str, float]:
    """Return the share of right answers over the runs of each question, by its id."""
    return {key: mean(float(row.correct) for row in group) for key, group in _by(rows, lambda r: r.item.id).items()}


def chance(rows: Sequence[Prediction]) -> float:
    """Return the accuracy of a uniform guess: the mean of 1 / number of options."""
    return mean(1 / len(row.item.options) for row in rows)


def majority(rows: Sequence[Prediction]) -> float:
    """Return the accuracy of always giving an attribute's most frequent answer text among these questions.

    It knows the answers of the questions it is measured on. It bounds what one fixed text an attribute can reach, but not what
    ignoring the image can: where options are sampled, choosing among those shown reaches more (`constancy.prior_accuracy`).
    """
    right = 0
    for group in _by(rows, lambda r: r.item.attribute).values():
        right += Counter(row.item.answer_text for row in group).most_common(1)[0][1]
    return right / len(rows)


def headline(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where accuracy and interval stand: multiple-choice questions' at the top level, else the free questions'.

    Args:
        results: the content of results.json, or of one of its unrelated tasks.
    """
    found: Mapping[str, Any] = results if "accuracy" in results else results["free"]
    return found


def circular_accuracy(rows: Sequence[Prediction]) -> float | None:
    """Return the share of questions answered rightly in every rotation of their options; None without rotated questions.

    Source: MMBench's CircularEval (Liu et al. 2023).
    """
    groups = _by((row for row in rows if row.item.circular_group), lambda r: (r.item.circular_group, r.run))
    return mean(float(all(row.correct for row in group)) for group in groups.values()) if groups else None


def consistency(rows: Sequence[Prediction], differing: int = 3) -> dict[str, float | int]:
    """Score repeated runs of the same questions: three or more differing labels among the runs cost a point.

    For a question with labels l_1 ... l_n over n runs (n is 5 in the source; an unparsed answer is a label of its own):
    `right` = 1 if the most frequent label is the answer and no other is as frequent; `docked` = 1 if the runs hold
    `differing` or more different labels. `score` is the mean of right - docked (so a question earns 1, 0 or -1),
    `accuracy` the mean of right, `consistent_accuracy` the mean of right where not docked, `inconsistent` the mean of
    docked.

    Source: "Adapting Lightweight Multimodal Language Models for Radiological Visual Question Answering", section 5.2 ("perform
    inference five times; if the model generates different answer labels in at least three out of five runs, we dock a point").

    Args:
        rows: the answers, every question with the same number of runs.
        differing: number of different labels that costs the point.
    """
    right, docked = [], []
    for group in _by(rows, lambda r: r.item.id).values():
        labels = Counter(row.predicted for row in group).most_common()
        tied = len(labels) > 1 and labels[0][1] == labels[1][1]
        right.append(labels[0][0] == group[0].item.answer and not tied)
        docked.append(len(labels) >= differing)
    pairs = list(zip(right, docked, strict=True))
    return {
        "runs": len(rows) // len(pairs),
        "differing_labels": differing,
        "score": mean(r - d for r, d in pairs),
        "accuracy": mean(map(float, right)),
        "consistent_accuracy": mean(float(r and not d) for r, d in pairs),
        "inconsistent": mean(map(float, docked)),
    }


def confusion(rows: Sequence[Prediction]) -> dict[str, Any] | None:
    """Return counts of answers by right text (rows) and given text (columns, `unparsed` last).

    None where the options have more than `MAX_CONFUSION` different texts.
    """
    labels = list(dict.fromkeys(text for row in rows for text in sorted(row.item.options)))
    if len(labels) > MAX_CONFUSION:
        return None
    columns = [*labels, UNPARSED]
    counts = [[0] * len(columns) for _ in labels]
    for row in rows:
        answered = UNPARSED if row.predicted is None else row.item.options[row.predicted]
        counts[labels.index(row.item.answer_text)][columns.index(answered)] += 1
    return {"labels": labels, "columns": columns, "counts": counts}


def _rates(rows: Sequence[Prediction], priors: Priors, draws: int, seed: int) -> dict[str, Any]:
    scores = [float(row.correct) for row in rows]
    clusters = [row.item.image_id for row in rows]
    generated = any(row.generated is not None for row in rows)
    rates: dict[str, Any] = {
        "questions": len({row.item.id for row in rows}),
        "images": len(set(clusters)),
        "chance": chance(rows),
        "majority": majority(rows),
        "prior": prior_accuracy(rows, priors, shown=False),
        "prior_shown": prior_accuracy(rows, priors, shown=True),
        "accuracy": mean(scores),
        "interval": list(share_interval(scores, clusters, draws=draws, seed=seed)),
        "unparsed": sum(row.predicted is None for row in rows),
        "well_formed": mean(float(row.scores.get("paper") is not None) for row in rows) if generated else None,
    }
    if generated:
        rates["parsers"] = {
            name: {
                "accuracy": mean(float(row.scores.get(name) == row.item.answer) for row in rows),
                "unparsed": sum(row.scores.get(name) is None for row in rows),
            }
            for name in PARSERS
        }
    if any(row.forced is not None for row in rows):
        rates["forced_accuracy"] = mean(float(row.forced == row.item.answer) for row in rows)
    stated = [float(bool(row.scores["read_out_correct"])) for row in rows if "read_out_correct" in row.scores]
    if stated:
        rates["read_out_accuracy"] = mean(stated)
    runs = _by(rows, lambda r: r.run)
    if len(runs) > 1:
        accuracies = [mean(float(row.correct) for row in group) for group in runs.values()]
        average, sd = mean_sd(accuracies)
        rates["runs"] = {"accuracies": accuracies, "mean": average, "sd": sd, "consistency": consistency(rows)}
    circular = circular_accuracy(rows)
    if circular is not None:
        rates["circular_accuracy"] = circular
    return rates


def _balanced_interval(rows: Sequence[Prediction], draws: int, seed: int) -> list[float]:
    """Return the interval of an attribute's balanced accuracy: its classes are other images, so independent."""
    classes = [[float(row.correct) for row in group] for group in _by(rows, lambda r: r.item.answer_text).values()]
    images = [[row.item.image_id for row in group] for group in _by(rows, lambda r: r.item.answer_text).values()]
    intervals = [share_interval(*pair, draws=draws, seed=seed) for pair in zip(classes, images, strict=True)]
    return list(mean_interval([mean(values) for values in classes], intervals))


def _of_attribute(rows: Sequence[Prediction], priors: Priors, draws: int, seed: int) -> dict[str, Any]:
    rates = _rates(rows, priors, draws, seed)
    rates |= {
        "balanced_accuracy": balanced_accuracy(rows),
        "balanced_interval": _balanced_interval(rows, draws, seed),
        "kappa": kappa(rows),
        "most_frequent_answer": most_frequent_answer(rows),
    }
    area = auroc(rows)
    if area is not None:
        rates["auroc"] = area
    sides = two_valued(rows)
    if sides is not None:
        rates["two_valued"] = sides
    matrix = confusion(rows)
    if matrix is not None:
        rates["confusion"] = matrix
    return rates


def mean_balanced_accuracy(rows: Sequence[Prediction]) -> float:
    """Return the mean over attributes of balanced accuracy."""
    return mean(balanced_accuracy(group) for group in _by(rows, lambda r: r.item.attribute).values())


def averaged_intervals(rows: Sequence[Prediction], *, draws: int, seed: int) -> dict[str, list[float]]:
    """Return the 95 % intervals of the mean over attributes of accuracy (`macro`) and of balanced accuracy (`balanced`).

    Args:
        rows: the answers.
        draws: bootstrap replicates.
        seed: their seed.
    """
    scores, clusters = [float(row.correct) for row in rows], [row.item.image_id for row in rows]
    names, macro = bootstrap_cells(scores, clusters, [row.item.attribute for row in rows], draws=draws, seed=seed)
    classes = [(row.item.attribute, row.item.answer_text) for row in rows]
    cells, recalls = bootstrap_cells(scores, clusters, classes, draws=draws, seed=seed)
    owners = [cell[0] for cell in cast("list[tuple[str, str]]", cells)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any question of an attribute: no number there
        by_attribute = [np.nanmean(recalls[:, [owner == name for owner in owners]], axis=1) for name in names]
        balanced = np.nanmean(np.stack(by_attribute), axis=0)
        macro_means = np.nanmean(macro, axis=1)
    images = len(set(clusters))
    return {name: _not_degenerate(x, images) for name, x in (("macro", macro_means), ("balanced", balanced))}


def _not_degenerate(replicates: Any, images: int) -> list[float]:
    """Return the replicates' percentile interval, or Wilson's over images where all replicates are the same."""
    low, high = percentiles(replicates)
    return list(wilson_interval(low, images)) if high - low < _ZERO else [low, high]


def image_control(
    rows: Sequence[Prediction], controls: Sequence[Prediction], *, draws: int, seed: int
) -> dict[str, Any] | None:
    """Return what is left of the accuracy when the same questions come with another image's pixels.

    `accuracy` of the control and `difference`: accuracy with the right image less that with another, which is what was read
    from the image, with its interval. Of multiple-choice questions also `balanced_accuracy` (mean over attributes) and the
    accuracy by attribute; of open ones also `open_recall`, the share of the reference's words, and its difference.

    Args:
        rows: the answers about the right images; the first run of each question counts.
        controls: the answers to the same questions about other images.
        draws: bootstrap replicates.
        seed: their seed.
    """
    if not controls:
        return None
    first = {(row.item.dataset, row.item.id): row for row in rows if row.run == 0}
    pairs = [(first[control.item.dataset, control.item.id], control) for control in controls]
    clusters = [row.item.image_id for row, _ in pairs]
    scores = [float(control.correct) for control in controls]

    def read(score: Callable[[Prediction], float], kind: str | None = None) -> tuple[float, list[float]]:
        of_kind = [pair for pair in pairs if kind is None or pair[0].item.kind == kind]
        gains = [score(row) - score(control) for row, control in of_kind]
        images = [row.item.image_id for row, _ in of_kind]
        return mean(gains), list(bootstrap_interval(gains, images, draws=draws, seed=seed))

    difference, interval = read(lambda answer: float(answer.correct))
    left: dict[str, Any] = {
        "questions": len(pairs),
        "accuracy": mean(scores),
        "interval": list(share_interval(scores, clusters, draws=draws, seed=seed)),
        "difference": difference,
        "difference_interval": interval,
    }
    if not controls[0].item.options:
        opened = [control for control in controls if control.item.kind == "open"]
        if opened:
            left["open_recall"] = mean(_recall(control) for control in opened)
            left["open_recall_difference"], left["open_recall_difference_interval"] = read(_recall, "open")
        return left
    groups = _by(controls, lambda control: control.item.attribute)
    return left | {
        "balanced_accuracy": mean_balanced_accuracy(controls),
        "attributes": {name: mean(float(c.correct) for c in group) for name, group in sorted(groups.items())},
    }


def _recall(answer: Prediction) -> float:
    return float(answer.scores["recall"] or 0)


def summarise(
    rows: Sequence[Prediction], *, priors: Priors | None = None, draws: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Return the rates over all questions and for each attribute.

    `accuracy` is the share of answers whose reading is right (an unparsed answer is wrong) and `interval` its 95 %
    interval (`statistics.share_interval`); `macro_accuracy` the mean of the attributes' accuracies, `balanced_accuracy` that of
    their balanced ones, `kappa` of their kappas; `constant` the attributes that are answered alike whatever the image;
    `prior` and `prior_shown` the accuracy of training frequencies alone; `well_formed` the share of answers in the form that
    was asked for (None where nothing was generated); `parsers` the accuracy under each parser; `forced_accuracy` the share
    right when the answer sentence is forced and only the letter chosen;
    `auroc`, where the letters' probabilities are known, the mean of the attributes' areas under the ROC curve;
    `read_out_accuracy` the share whose right option the model's own report of the image states, where reports were written.

    Args:
        rows: the answers.
        priors: how often each answer occurs in training, by attribute.
        draws: bootstrap replicates.
        seed: their seed.
    """
    priors = priors or {}
    groups = sorted(_by(rows, lambda r: r.item.attribute).items())
    attributes = {name: _of_attribute(group, priors, draws, seed) for name, group in groups}
    whole = _rates(rows, priors, draws, seed)
    intervals = averaged_intervals(rows, draws=draws, seed=seed)
    areas = [rates["auroc"] for rates in attributes.values() if "auroc" in rates]
    kappas = [rates["kappa"] for rates in attributes.values() if rates["kappa"] is not None]
    whole |= {
        "macro_accuracy": mean(rates["accuracy"] for rates in attributes.values()),
        "macro_interval": intervals["macro"],
        "balanced_accuracy": mean(rates["balanced_accuracy"] for rates in attributes.values()),
        "balanced_interval": intervals["balanced"],
        "kappa": mean(kappas) if kappas else None,
        "constant": [name for name, rates in attributes.items() if rates["most_frequent_answer"]["constant"]],
    }
    if areas:
        whole["auroc"] = mean(areas)
    return rounded({**whole, "attributes": attributes})
