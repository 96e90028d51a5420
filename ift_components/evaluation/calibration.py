"""Answers without what a model says on average: what it has read from the image, whatever it tends to say.

A model that answers "no" for nearly every image may still find "yes" more likely for the right ones. With s_i the logarithm of
an option's share of the letters' probabilities, and m_i its mean over the validation questions of the attribute that show it,
the answer is the option with the highest s_i - share * m_i. Means need no labels (batch calibration, Zhou et al. 2024;
contextual calibration, Zhao et al. 2021); `share` (the tau of logit adjustment, Menon et al. 2021) is chosen by validation
answers: by the sum of accuracy and balanced accuracy, because the latter hardly changes over shares at which the former falls.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ift_components.errors import DataError
from ift_components.evaluation.metrics import mean_balanced_accuracy, summarise
from ift_components.evaluation.pairs import Run
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.tasks import CHOICE, of_task
from ift_components.statistics import mean

_SHARES = [step / 10 for step in range(11)]
_LEAST = 1e-12  # a share of 0 has no logarithm
_KEPT = ("accuracy", "interval", "macro_accuracy", "balanced_accuracy", "balanced_interval", "constant")


def log_shares(prediction: Prediction) -> list[float]:
    """Return the logarithm of every option's share of the letters' probabilities.

    Raises:
        DataError: if the prediction has none.
    """
    if prediction.shares is None:
        raise DataError(
            f"calibration: the answer to '{prediction.item.id}' has no probabilities; evaluate with letter_probabilities=true"
        )
    return [math.log(max(share, _LEAST)) for share in prediction.shares]


@dataclass(frozen=True)
class Calibration:
    """What a model says on average, and how much of that is taken off.

    Attributes:
        means: by attribute and option, the mean of `log_shares` over the questions that show it.
        share: 0 (answers as they are) to 1.
    """

    means: dict[tuple[str, str], float]
    share: float

    def choose(self, prediction: Prediction) -> int:
        """Return the option that is chosen; one that no validation question showed counts as the attribute's mean."""
        item = prediction.item
        known = [value for (attribute, _), value in self.means.items() if attribute == item.attribute]
        means = [self.means.get((item.attribute, option), mean(known)) for option in item.options]
        scores = [s - self.share * m for s, m in zip(log_shares(prediction), means, strict=True)]
        return max(range(len(scores)), key=scores.__getitem__)

    def apply(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Return the predictions with these answers in place of the model's own."""
        chosen = [(p, self.choose(p)) for p in predictions]
        return [p.scored({**p.scores, "predicted": c, "correct": c == p.item.answer}) for p, c in chosen]


def _worth(predictions: Sequence[Prediction]) -> float:
    """Return the sum of accuracy and balanced accuracy."""
    return mean(float(p.correct) for p in predictions) + mean_balanced_accuracy(predictions)


def fit(predictions: Sequence[Prediction]) -> Calibration:
    """Return the calibration with the highest sum of accuracy and balanced accuracy on some scored answers.

    Of equal ones it is the one with the smallest share.

    Args:
        predictions: answers to multiple-choice questions, with probabilities.

    Raises:
        DataError: if one has none.
    """
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for prediction in predictions:
        for option, score in zip(prediction.item.options, log_shares(prediction), strict=True):
            values[prediction.item.attribute, option].append(score)
    means = {key: mean(scores) for key, scores in values.items()}
    candidates = [Calibration(means, share) for share in _SHARES]
    return max(candidates, key=lambda candidate: _worth(candidate.apply(predictions)))


def check_calibration(run: Run, weights: object, items: Sequence[Item]) -> list[Prediction]:
    """Return an evaluation's answers that a calibration may be fitted to.

    Args:
        run: the evaluation.
        weights: what identifies the model that is to be calibrated.
        items: the multiple-choice questions whose answers are to be calibrated.

    Raises:
        DataError: if it is another model's, is about the same images, or asks for fewer attributes.
    """
    if run.results["weights"] != weights:
        raise DataError(
            f"calibration: {run.name} was answered by {run.results['weights']}, this model is {weights}; evaluate this one's "
            "validation split"
        )
    choices = of_task(run.predictions, CHOICE, run.results["dataset"])
    unknown = {item.attribute for item in items} - {p.item.attribute for p in choices}
    if unknown:
        raise DataError(f"calibration: {run.name} does not ask for '{min(unknown)}'; evaluate a split that does")
    shared = {p.item.image_id for p in choices} & {item.image_id for item in items}
    if shared:
        raise DataError(
            f"calibration: {run.name} is about {len(shared)} of the same images, such as '{min(shared)}'; what is chosen by "
            "their answers would flatter; evaluate another split"
        )
    for choice in choices[:1]:
        log_shares(choice)  # refuses answers without probabilities
    return choices


def calibrated(predictions: Sequence[Prediction], validation: Sequence[Prediction], **settings: Any) -> dict[str, Any]:
    """Return the figures of calibrated answers, by attribute too, and the share that was chosen.

    Args:
        predictions: scored answers to multiple-choice questions, with probabilities.
        validation: those that the calibration is fitted to (`check_calibration`).
        settings: of `metrics.summarise`.
    """
    calibration = fit(validation)
    rates = summarise(calibration.apply(predictions), **settings)
    attributes = {
        name: {key: of[key] for key in ("accuracy", "balanced_accuracy", "most_frequent_answer")}
        for name, of in rates["attributes"].items()
    }
    return {"share": calibration.share, **{key: rates[key] for key in _KEPT}, "attributes": attributes}
