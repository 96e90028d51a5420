"""Where a model stands after tuning on data of one's own: against guessing, in a sentence."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from ift_components.data.prepared import load_questions

FEW_STEPS = 500  # below this a tuning is likely to have been too short


@dataclass(frozen=True)
class Priors:
    """Accuracies of ignoring the images of a split.

    Attributes:
        questions: number of multiple-choice questions.
        chance: of guessing at random: the mean of 1/options.
        majority: of always giving each attribute's most frequent answer among these questions.
    """

    questions: int
    chance: float
    majority: float


def priors(folder: str | Path, split: str) -> Priors:
    """Return what the multiple-choice questions of a split allow without looking; each question counts once.

    Args:
        folder: the prepared folder.
        split: train, val or test.

    Raises:
        DataError: if the folder or the split is missing, or the split has no question.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    chance = 0.0
    for row in load_questions(folder, split).remove_columns("image"):
        if row["kind"] == "choice" and not row["rotation"]:
            answers[row["attribute"]][row["answer_text"]] += 1
            chance += 1 / len(row["options"])
    count = sum(counter.total() for counter in answers.values())
    if not count:
        return Priors(0, 0.0, 0.0)
    majority = sum(counter.most_common(1)[0][1] for counter in answers.values()) / count
    return Priors(count, chance / count, majority)


def standing(accuracy: float, split_priors: Priors, steps: int | None = None) -> str:
    """Return a sentence on where an accuracy stands, and what to try if always the most frequent answer does better.

    Args:
        accuracy: share of right answers, 0 to 1.
        split_priors: of the same questions.
        steps: optimizer steps of the tuning, if known.
    """
    trained = f" after {steps} steps" if steps is not None else ""
    against = (
        f"always the most frequent answer would have {split_priors.majority:.1%}, chance {split_priors.chance:.1%}"
    )
    sentence = f"accuracy {accuracy:.1%}{trained} on {split_priors.questions} questions; {against}."
    if accuracy > split_priors.majority:
        return sentence
    if steps is not None and steps < FEW_STEPS:
        return f"{sentence} The model is not above guessing: train longer (epochs, dataset.repeat), then look at shuffling."
    return (
        f"{sentence} The model is not above guessing: look at preview.html whether the answers can be seen in the images, "
        "balance rare values, or try another learning rate."
    )
