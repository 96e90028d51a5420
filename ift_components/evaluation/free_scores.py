"""Figures of free questions: open, closed and in all, each with its interval and what is reached without looking."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ift_components.evaluation.constancy import CONSTANT
from ift_components.evaluation.records import Prediction
from ift_components.evaluation.scorers import AnswerMatch
from ift_components.evaluation.text_metrics import ROUGES, closed_answer, normalise, summarise_texts
from ift_components.statistics import mean, mean_interval, rounded, share_interval

TextPriors = Mapping[tuple[str, str], Counter[str]]
_YES_NO = ("yes", "no")
_match = AnswerMatch()


def _group(prediction: Prediction) -> tuple[str, str]:
    return prediction.item.attribute, prediction.item.kind or ""


def _without_looking(predictions: Sequence[Prediction], priors: TextPriors) -> float | None:
    """Return the accuracy of giving the most frequent answer of each question's attribute and kind; None if one is unknown."""
    scores = []
    for prediction in predictions:
        counts = priors.get(_group(prediction))
        if not counts:
            return None
        text = counts.most_common(1)[0][0]
        scores.append(float(bool(_match(prediction.item, replace(prediction, generated=text))["correct"])))
    return mean(scores)


def _yes_no(closed: Sequence[Prediction], draws: int, seed: int) -> dict[str, Any] | None:
    """Return the figures of yes-or-no questions, to which always saying the same adds nothing; None if one side is missing."""
    sides = {word: [p for p in closed if normalise(p.item.reference) == word] for word in _YES_NO}
    if not all(sides.values()):
        return None
    rows = [p for side in sides.values() for p in side]
    recalls = [mean(float(p.correct) for p in side) for side in sides.values()]
    intervals = [_interval(side, "correct", draws, seed) for side in sides.values()]
    answers = Counter(closed_answer(p.generated or "") for p in rows)
    word, count = max(((word, answers[word]) for word in _YES_NO), key=lambda pair: pair[1])
    return {
        "questions": len(rows),
        "sensitivity": recalls[0],
        "specificity": recalls[1],
        "balanced_accuracy": mean(recalls),
        "balanced_interval": list(mean_interval(recalls, intervals)),
        "most_frequent_answer": {"text": word, "share": count / len(rows), "constant": count / len(rows) >= CONSTANT},
    }


def _interval(rows: Sequence[Prediction], score: str, draws: int, seed: int) -> tuple[float, float]:
    values = [float(p.scores[score] or 0) for p in rows]
    return share_interval(values, [(p.item.dataset, p.item.image_id) for p in rows], draws=draws, seed=seed)


def summarise_free(
    predictions: Sequence[Prediction], *, priors: TextPriors | None = None, draws: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Return the figures of open and closed questions, beside those of their texts (`text_metrics.summarise_texts`).

    `accuracy` is that of all questions, by the rule of each one's kind, `interval` its 95 % interval
    (`statistics.share_interval`); `closed_interval`, `open_interval`, `open_recall_interval` and so on belong to the others.
    `prior`, `closed_prior` and `open_prior` are the accuracy of always giving the most frequent training answer of a question's
    attribute and kind, `majority` and its like that of these questions themselves. `yes_no` holds balanced accuracy,
    sensitivity (yes), specificity (no) and the flag `constant` of the yes-or-no questions.

    Args:
        predictions: scored answers to free questions.
        priors: `constancy.training_texts`.
        draws: bootstrap replicates.
        seed: their seed.
    """
    own: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for prediction in predictions:
        own[_group(prediction)][normalise(prediction.item.reference)] += 1
    closed, opened = ([p for p in predictions if p.item.kind == kind] for kind in ("closed", "open"))
    result = summarise_texts(predictions)
    result["questions"] = len({p.item.key for p in predictions})
    result["images"] = len({(p.item.dataset, p.item.image_id) for p in predictions})
    for prefix, rows in (("", predictions), ("closed_", closed), ("open_", opened)):
        if rows:
            result[f"{prefix}accuracy"] = mean(float(p.correct) for p in rows)
            result[f"{prefix}interval"] = list(_interval(rows, "correct", draws, seed))
            result[f"{prefix}prior"] = _without_looking(rows, priors or {})
            result[f"{prefix}majority"] = _without_looking(rows, own)
    for score in ("exact_match", *ROUGES):
        result[f"{score}_interval"] = list(_interval(predictions, score, draws, seed))
    if opened:
        result["open_recall_interval"] = list(_interval(opened, "recall", draws, seed))
    yes_no = _yes_no(closed, draws, seed)
    if yes_no is not None:
        result["yes_no"] = yes_no
    return rounded(result)
