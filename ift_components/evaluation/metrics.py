"""Rates of multiple-choice answers: accuracy, its baselines and intervals, circular accuracy, consistency, confusion."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ift_components.evaluation.parsing import PARSERS
from ift_components.evaluation.records import Prediction
from ift_components.statistics import bootstrap_interval, mean, mean_sd, rounded

UNPARSED = "unparsed"
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

    It knows the answers of the questions it is measured on, so it is an upper bound of what ignoring the image can reach
    with one fixed text an attribute.
    """
    right = 0
    for group in _by(rows, lambda r: r.item.attribute).values():
        right += Counter(row.item.answer_text for row in group).most_common(1)[0][1]
    return right / len(rows)


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


def _rates(rows: Sequence[Prediction], draws: int, seed: int) -> dict[str, Any]:
    scores = [float(row.correct) for row in rows]
    clusters = [row.item.image_id for row in rows]
    low, high = bootstrap_interval(scores, clusters, draws=draws, seed=seed)
    generated = any(row.generated is not None for row in rows)
    rates: dict[str, Any] = {
        "questions": len({row.item.id for row in rows}),
        "images": len(set(clusters)),
        "chance": chance(rows),
        "majority": majority(rows),
        "accuracy": mean(scores),
        "interval": [low, high],
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
    runs = _by(rows, lambda r: r.run)
    if len(runs) > 1:
        accuracies = [mean(float(row.correct) for row in group) for group in runs.values()]
        average, sd = mean_sd(accuracies)
        rates["runs"] = {"accuracies": accuracies, "mean": average, "sd": sd, "consistency": consistency(rows)}
    circular = circular_accuracy(rows)
    if circular is not None:
        rates["circular_accuracy"] = circular
    return rates


def summarise(rows: Sequence[Prediction], *, draws: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Return the rates over all questions and for each attribute.

    `accuracy` is the share of answers whose reading is right (an unparsed answer is wrong) and `interval` its 95 %
    image-clustered bootstrap interval; `macro_accuracy` the mean of the attributes' accuracies; `well_formed` the share
    of answers in the form that was asked for (the authors' parser reads them; None where nothing was generated);
    `parsers` the accuracy under either parser; `forced_accuracy` the share right when the answer sentence is forced and
    only the letter chosen.

    Args:
        rows: the answers.
        draws: bootstrap replicates.
        seed: their seed.
    """
    attributes = {}
    for name, group in sorted(_by(rows, lambda r: r.item.attribute).items()):
        attributes[name] = _rates(group, draws, seed)
        matrix = confusion(group)
        if matrix is not None:
            attributes[name]["confusion"] = matrix
    whole = _rates(rows, draws, seed)
    whole["macro_accuracy"] = mean(rates["accuracy"] for rates in attributes.values())
    return rounded({**whole, "attributes": attributes})
