"""Scores of free text against a reference: overlap, length, hedging, exact match, and accuracy on open and closed questions.

None of them measures whether a text is true; they are given because others give them.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from ift_components.evaluation.metrics import mean, rounded

# Words by which a report commits itself to nothing.
HEDGES = (
    "possible", "possibly", "probable", "probably", "likely", "unlikely", "may", "might", "could", "perhaps",
    "suggest", "suggests", "suggesting", "suggestive", "appears", "appear", "seems", "seem", "presumably",
    "suspected", "suspicious", "questionable", "cannot", "unclear", "uncertain", "equivocal", "indeterminate",
)  # fmt: skip
_HEDGE = re.compile(rf"\b(?:{'|'.join(HEDGES)})\b", re.IGNORECASE)
_ROUGES = ("rouge1", "rouge2", "rougeL")
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
    wanted = set(normalise(reference).split())
    return len(wanted & set(normalise(text).split())) / len(wanted) if wanted else float(not normalise(text))


def closed_answer(text: str) -> str | None:
    """Return `yes` or `no` if exactly one of the words occurs in the text, else None."""
    found = {"yes", "no"} & set(normalise(text).split())
    return found.pop() if len(found) == 1 else None


def closed_match(text: str, reference: str) -> bool:
    """Return whether a closed answer is right: yes and no by `closed_answer`, anything else by whole words.

    A reference other than yes or no must occur in the text as whole words (VQA-RAD marks "left or right?" as closed too).
    """
    wanted = normalise(reference)
    if wanted in ("yes", "no"):
        return closed_answer(text) == wanted
    return bool(wanted) and f" {wanted} " in f" {normalise(text)} "


def summarise_texts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scores of generated texts.

    `bleu` is sacrebleu's corpus BLEU-4 (0 to 100, signature in `bleu_signature`); `rouge1`, `rouge2` and `rougeL` the
    mean F1 of rouge-score with stemming; `length_ratio` = words of all texts / words of all references;
    `hedges_per_100_words` the number of words of `HEDGES` in the texts per 100 words, `reference_hedges_per_100_words`
    the same of the references; `exact_match` the share equal after `normalise`. Where rows carry `kind`:
    `closed_accuracy` by `closed_match`, `open_accuracy` by exact match and `open_recall` by `token_recall`, as for
    VQA-RAD and SLAKE.

    Args:
        rows: mappings with `generated`, `reference` and, for questions, `kind` (`open` or `closed`).
    """
    texts = [row["generated"] for row in rows]
    references = [row["reference"] for row in rows]
    bleu = sacrebleu.BLEU()
    corpus = bleu.corpus_score(texts, [references])
    scorer = RougeScorer(_ROUGES, use_stemmer=True)
    rouges = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    words = sum(len(text.split()) for text in texts)
    wanted = sum(len(text.split()) for text in references)
    hedges, wanted_hedges = (sum(len(_HEDGE.findall(text)) for text in side) for side in (texts, references))
    result: dict[str, Any] = {
        "texts": len(rows),
        "bleu": corpus.score,
        "bleu_signature": str(bleu.get_signature()),
        **{name: mean(score[name].fmeasure for score in rouges) for name in _ROUGES},
        "length_ratio": words / wanted if wanted else 0.0,
        "hedges_per_100_words": 100 * hedges / words if words else 0.0,
        "reference_hedges_per_100_words": 100 * wanted_hedges / wanted if wanted else 0.0,
        "exact_match": mean(float(exact_match(a, b)) for a, b in zip(texts, references, strict=True)),
    }
    closed = [row for row in rows if row.get("kind") == "closed"]
    opened = [row for row in rows if row.get("kind") == "open"]
    if closed:
        result["closed_questions"] = len(closed)
        result["closed_accuracy"] = mean(float(closed_match(r["generated"], r["reference"])) for r in closed)
    if opened:
        result["open_questions"] = len(opened)
        result["open_accuracy"] = mean(float(exact_match(r["generated"], r["reference"])) for r in opened)
        result["open_recall"] = mean(token_recall(r["generated"], r["reference"]) for r in opened)
    return rounded(result)
