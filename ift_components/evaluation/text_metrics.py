"""Scores of free text against a reference: overlap, length, hedging, exact match, and accuracy on open and closed questions.

None of them measures whether a text is true; they are given because others give them.
"""

import re
import string
from collections.abc import Sequence
from typing import Any

import sacrebleu

from ift_components.evaluation.records import Prediction
from ift_components.statistics import mean, rounded

# Words by which a report commits itself to nothing.
HEDGES = (
    "possible", "possibly", "probable", "probably", "likely", "unlikely", "may", "might", "could", "perhaps",
    "suggest", "suggests", "suggesting", "suggestive", "appears", "appear", "seems", "seem", "presumably",
    "suspected", "suspicious", "questionable", "cannot", "unclear", "uncertain", "equivocal", "indeterminate",
)  # fmt: skip
_HEDGE = re.compile(rf"\b(?:{'|'.join(HEDGES)})\b", re.IGNORECASE)
ROUGES = ("rouge1", "rouge2", "rougeL")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def normalise(text: str) -> str:
    """Return a text case-folded, without punctuation and the articles a, an, the, with single blanks (SQuAD's rule)."""
    words = text.casefold().translate(_PUNCTUATION).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def exact_match(text: str, reference: str) -> bool:
    """Return whether two texts are equal after `normalise`."""
    return normalise(text) == normalise(reference)


def token_recall(text: str, reference: str) -> float:
    """Return the share of the reference's different words that occur in the text, after `normalise` (open score)."""
    words = set(normalise(reference).split())
    return len(words & set(normalise(text).split())) / len(words) if words else float(not normalise(text))


def closed_answer(text: str) -> str | None:
    """Return `yes` or `no` if exactly one of the words occurs in the text, else None."""
    words = {"yes", "no"} & set(normalise(text).split())
    return words.pop() if len(words) == 1 else None


def closed_match(text: str, reference: str) -> bool:
    """Return whether a closed answer is right: yes and no by `closed_answer`, anything else by whole words.

    A reference other than yes or no must occur in the text as whole words (VQA-RAD marks "left or right?" as closed too).
    """
    answer = normalise(reference)
    if answer in ("yes", "no"):
        return closed_answer(text) == answer
    return bool(answer) and f" {answer} " in f" {normalise(text)} "


def count_hedges(text: str) -> int:
    """Return the number of words of `HEDGES` in a text."""
    return len(_HEDGE.findall(text))


def _average(predictions: Sequence[Prediction], name: str) -> float:
    return mean(float(p.scores[name] or 0) for p in predictions)


def summarise_texts(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the scores of generated texts.

    `bleu` is sacrebleu's corpus BLEU-4 (0 to 100, signature in `bleu_signature`); `rouge1`, `rouge2` and `rougeL` the
    mean F1 of rouge-score with stemming; `length_ratio` = words of all texts / words of all references;
    `hedges_per_100_words` the number of words of `HEDGES` in the texts per 100 words, `reference_hedges_per_100_words`
    the same of the references; `exact_match` the share equal after `normalise`. Of questions by their kind:
    `closed_accuracy` by `closed_match`, `open_accuracy` by exact match and `open_recall` by `token_recall`, as for
    VQA-RAD and SLAKE.

    Args:
        predictions: scored predictions whose items have a reference.
    """
    bleu = sacrebleu.BLEU()
    corpus = bleu.corpus_score([p.generated or "" for p in predictions], [[p.item.reference for p in predictions]])
    names = ("words", "reference_words", "hedges", "reference_hedges")
    words, reference_words, hedges, reference_hedges = (
        sum(int(p.scores[name] or 0) for p in predictions) for name in names
    )
    result: dict[str, Any] = {
        "texts": len(predictions),
        "bleu": corpus.score,
        "bleu_signature": str(bleu.get_signature()),
        **{name: _average(predictions, name) for name in ROUGES},
        "length_ratio": words / reference_words if reference_words else 0.0,
        "hedges_per_100_words": 100 * hedges / words if words else 0.0,
        "reference_hedges_per_100_words": 100 * reference_hedges / reference_words if reference_words else 0.0,
        "exact_match": _average(predictions, "exact_match"),
    }
    closed = [p for p in predictions if p.item.kind == "closed"]
    opened = [p for p in predictions if p.item.kind == "open"]
    if closed:
        result["closed_questions"] = len(closed)
        result["closed_accuracy"] = _average(closed, "correct")
    if opened:
        result["open_questions"] = len(opened)
        result["open_accuracy"] = _average(opened, "correct")
        result["open_recall"] = _average(opened, "recall")
    return rounded(result)
