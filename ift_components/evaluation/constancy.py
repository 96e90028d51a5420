"""What accuracy hides: answers that do not depend on the image, and what would be right without looking at it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import mannwhitneyu

from ift_components.data.prepared import load_questions, load_reports, read_manifest
from ift_components.data.schema import Schema
from ift_components.evaluation.records import Prediction
from ift_components.evaluation.text_metrics import normalise
from ift_components.statistics import mean

CONSTANT = 0.95  # share of one answer from which answers count as constant
_TWO = 2
_POSITIVE = ("yes", "malignant", "present", "true", "positive", "abnormal")
Priors = Mapping[str, Counter[str]]


def training_answers(data: str | Path) -> dict[str, Counter[str]]:
    """Return how often each answer occurs in training, by attribute: of its questions and of its reports' attributes.

    Args:
        data: a prepared folder; one without a training split gives nothing.
    """
    manifest = read_manifest(data)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    if manifest["counts"]["questions"].get("train"):
        for row in load_questions(data, "train").select_columns(["attribute", "answer_text"]):
            answers[row["attribute"]][row["answer_text"]] += 1
    if manifest["counts"]["reports"].get("train") and manifest.get("schema"):
        attributes = {a.name: a for a in Schema.from_dict(manifest["schema"]).attributes}
        for row in load_reports(data, "train").select_columns(["attributes"]):
            for item in row["attributes"] or ():
                if item["name"] in attributes:
                    answers[item["name"]][attributes[item["name"]].text(item["value"])] += 1
    return dict(answers)


def training_texts(data: str | Path) -> dict[tuple[str, str], Counter[str]]:
    """Return how often each text is the answer of open and closed training questions, by attribute and kind.

    Args:
        data: a prepared folder; one without a training split gives nothing.
    """
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    if read_manifest(data)["counts"]["questions"].get("train"):
        for row in load_questions(data, "train").remove_columns("image"):
            kind = row.get("kind") or "choice"  # folders of format 1 hold nothing else
            if kind != "choice":
                answers[row["attribute"], kind][normalise(str(row["answer_text"] or ""))] += 1
    return dict(answers)


def prior_accuracy(predictions: Sequence[Prediction], priors: Priors, *, shown: bool) -> float | None:
    """Return the accuracy of answering from training frequencies alone; None where training says nothing of an attribute.

    Args:
        predictions: answers to multiple-choice questions.
        priors: `training_answers`.
        shown: choose the option that is most frequent in training among those shown (of equal ones each with equal chance);
            otherwise the attribute's most frequent training answer is always given, shown or not.
    """
    scores = []
    for prediction in predictions:
        item = prediction.item
        counts = priors.get(item.attribute)
        if not counts:
            return None
        if shown:
            best = max(counts[text] for text in item.options)
            chosen = [text for text in item.options if counts[text] == best]
            scores.append(chosen.count(item.answer_text) / len(chosen))
        else:
            scores.append(float(counts.most_common(1)[0][0] == item.answer_text))
    return mean(scores)


def _answered(prediction: Prediction) -> str | None:
    choice = prediction.predicted
    return None if choice is None else prediction.item.options[choice]


def balanced_accuracy(predictions: Sequence[Prediction]) -> float:
    """Return the mean over the right answers that occur of the share of their questions answered rightly."""
    scores: dict[str, list[float]] = defaultdict(list)
    for prediction in predictions:
        scores[prediction.item.answer_text].append(float(prediction.correct))
    return mean(mean(values) for values in scores.values())


def auroc(predictions: Sequence[Prediction]) -> float | None:
    """Return how well the letters' probabilities rank images, whatever is said most often: the area under the ROC curve.

    Mean over the options' texts of one against the rest, among the questions that show it: the chance that its share of the
    probabilities is larger where it is right than where it is not (Mann-Whitney U over n1 n0). None where an answer has no
    probabilities, or no option is both right and wrong.
    """
    shares: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for prediction in predictions:
        if prediction.shares is None:
            return None
        for index, (text, share) in enumerate(zip(prediction.item.options, prediction.shares, strict=True)):
            shares[text][index == prediction.item.answer].append(share)
    areas = [
        float(mannwhitneyu(of[True], of[False]).statistic) / (len(of[True]) * len(of[False]))
        for of in shares.values()
        if of[True] and of[False]
    ]
    return mean(areas) if areas else None


def kappa(predictions: Sequence[Prediction]) -> float | None:
    """Return Cohen's kappa of given and right answers: (p_o - p_e) / (1 - p_e); an unparsed answer is a label of its own.

    p_o is the accuracy, p_e the accuracy that the two frequencies alone would give (Cohen 1960); None where that is 1.
    """
    number = len(predictions)
    right = Counter(p.item.answer_text for p in predictions)
    answered = Counter(_answered(p) for p in predictions)
    expected = sum(count * answered[text] for text, count in right.items()) / number**2
    observed = mean(float(p.correct) for p in predictions)
    return (observed - expected) / (1 - expected) if expected < 1 else None


def most_frequent_answer(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the most frequent given answer, its share, the share of the most frequent letter, and the flag `constant`.

    Answers are constant if one text, or one letter, makes up at least 95 % of them although the right ones differ.
    """
    number = len(predictions)
    texts = Counter(text for p in predictions if (text := _answered(p)) is not None)
    places = Counter(p.predicted for p in predictions if p.predicted is not None)
    text, count = texts.most_common(1)[0] if texts else (None, 0)
    letter_share = places.most_common(1)[0][1] / number if places else 0.0
    differ = len({p.item.answer_text for p in predictions}) > 1
    letters_differ = differ and len({p.item.answer for p in predictions}) > 1
    constant = (differ and count / number >= CONSTANT) or (letters_differ and letter_share >= CONSTANT)
    return {"text": text, "share": count / number, "letter_share": letter_share, "constant": constant}


def two_valued(predictions: Sequence[Prediction]) -> dict[str, Any] | None:
    """Return sensitivity and specificity of an attribute with two options; None of any other.

    The positive answer is `yes`, `malignant` or the like, else the rarer one; an unparsed answer is a miss of either.
    """
    options = {text for p in predictions for text in p.item.options}
    if len(options) != _TWO:
        return None
    counts = Counter(p.item.answer_text for p in predictions)
    named = [text for text in options if text.casefold() in _POSITIVE]
    positive = named[0] if len(named) == 1 else min(sorted(options), key=lambda text: counts[text])
    sides = {
        side: [float(p.correct) for p in predictions if (p.item.answer_text == positive) == side]
        for side in (True, False)
    }
    return {
        "positive": positive,
        "sensitivity": mean(sides[True]) if sides[True] else None,
        "specificity": mean(sides[False]) if sides[False] else None,
    }
