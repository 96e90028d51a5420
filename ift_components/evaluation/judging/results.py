"""What judges' grades say, and what they are worth: scores, checks by planted answers, agreement, preferences."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from ift_components.evaluation.judging.agreement import alpha_agreement, pair_agreement
from ift_components.evaluation.judging.asking import Comparison, Judgements
from ift_components.evaluation.judging.subjects import PLANTED, Subject
from ift_components.statistics import bootstrap_interval, mean

_FEWEST_SETS = 5  # planted sets below which nothing is said of a judge
_GAIN = 0.5  # grades that padding may add in the mean
_CONSISTENT = 0.5  # share of pairs in which both orders must agree


def _image(subject: Subject) -> Hashable:
    return subject.item.dataset, subject.item.image_id


def _mean_interval(subjects: Sequence[Subject], values: Sequence[float], draws: int, seed: int) -> list[float] | None:
    images = [_image(subject) for subject in subjects]
    return list(bootstrap_interval(values, images, draws=draws, seed=seed)) if len(set(images)) > 1 else None


def score_answers(judgements: Judgements, subjects: Sequence[Subject], *, draws: int, seed: int) -> dict[str, Any]:
    """Return a judge's grades of some answers.

    Args:
        judgements: what it said.
        subjects: the answers of one evaluation to one group of questions.
        draws: bootstrap replicates, over images.
        seed: of the draws.

    Returns:
        `answers`, `graded`, `ungraded` (number by reason), `mean` and `interval` of the grades, and `length_correlation`
        (Spearman's, of grade and number of words: what may be a taste for long answers).
    """
    graded = judgements.graded(subjects)
    reasons = Counter(judgements.grades[s][1] for s in subjects if judgements.grades[s][0] is None)
    grades = list(graded.values())
    words = [len(subject.answer.split()) for subject in graded]
    correlated = len(set(grades)) > 1 and len(set(words)) > 1
    return {
        "answers": len(subjects),
        "graded": len(graded),
        "ungraded": dict(reasons.most_common()),
        "mean": mean(grades) if grades else None,
        "interval": _mean_interval(list(graded), grades, draws, seed) if grades else None,
        "length_correlation": float(spearmanr(grades, words).statistic) if correlated else None,
    }


def check_planted(
    judgements: Judgements, planted: Sequence[Subject], *, least: float, draws: int, seed: int
) -> dict[str, Any]:
    """Return whether a judge ranks planted answers as it must, and in which share of the sets.

    Args:
        judgements: what it said.
        planted: `planted_subjects` of one task.
        least: share of the sets in which the reference must be graded above each of the others.
        draws: bootstrap replicates, over sets.
        seed: of the draws.

    Returns:
        `sets`, `means` (grade by kind of planted answer), `above` (share of the sets in which the reference is graded
        above each other kind; equal grades count half, missing ones nothing), `padding_gain` (what padding adds to a wrong
        answer, with `padding_interval`) and `warnings`.
    """
    sets: dict[Hashable, dict[str, float | None]] = defaultdict(dict)
    for subject in planted:
        sets[subject.item.key][str(subject.planted)] = judgements.grades[subject][0]
    rows = list(sets.values())
    present = {kind: [grade for row in rows if (grade := row[kind]) is not None] for kind in PLANTED}
    above = {kind: mean(_above(row["reference"], row[kind]) for row in rows) for kind in PLANTED if kind != "reference"}
    gains = [p - o for row in rows if (p := row["padded"]) is not None and (o := row["other"]) is not None]
    interval = bootstrap_interval(gains, range(len(gains)), draws=draws, seed=seed) if len(gains) > 1 else None
    warnings = []
    if len(rows) < _FEWEST_SETS:
        warnings.append(f"only {len(rows)} sets of planted answers: nothing is known of this judge")
    else:
        warnings += [
            f"grades the reference above the planted '{kind}' answer in {100 * share:.0f} % of {len(rows)} sets only"
            for kind, share in above.items()
            if share < least
        ]
    if interval is not None and interval[0] > 0 and mean(gains) >= _GAIN:
        warnings.append(f"padding alone adds {mean(gains):.1f} to a wrong answer's grade")
    return {
        "sets": len(rows),
        "means": {kind: mean(grades) if grades else None for kind, grades in present.items()},
        "above": above if rows else None,
        "padding_gain": mean(gains) if gains else None,
        "padding_interval": list(interval) if interval else None,
        "warnings": warnings,
    }


def _above(higher: float | None, lower: float | None) -> float:
    """Return 1 where one grade is above another, half where they are equal, nothing where one is missing."""
    if higher is None or lower is None:
        return 0.0
    return 1.0 if higher > lower else 0.5 if higher == lower else 0.0


def _both_orders(judgements: Judgements, pair: Comparison) -> tuple[float | None, bool | None]:
    """Return who is better (1 the first answer, 0 the second, 0.5 neither) and whether both orders say so; None if unread."""
    if pair.first.answer == pair.second.answer:
        return 0.5, None
    forth, back = judgements.preferences[pair][0], judgements.preferences[pair.swapped()][0]
    if forth is None or back is None:
        return None, None
    # Only what both orders say counts: an answer preferred because of its place is preferred in one of them.
    return (forth, True) if forth == 1 - back else (0.5, False)


def compare_answers(
    judgements: Judgements, pairs: Sequence[Comparison], *, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Return a judge's comparison of every two evaluations.

    Args:
        judgements: what it said, in both orders.
        pairs: `comparisons`.
        draws: bootstrap replicates, over images.
        seed: of the draws.

    Returns:
        For each two: `better`, `worse`, `tied` (answers of the second that are better than the first's in both orders, and so
        on; where the orders disagree, tied), `equal_texts`, `unread`, `preference` (share of better, ties half) and `interval`,
        `consistent` (share in which both orders agree), `first_shown` (share in which the answer shown first is preferred, of
        those with a preference; 0.5 has no bias to a place).
    """
    grouped: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for pair in pairs:
        grouped[pair.first.evaluation, pair.second.evaluation].append(pair)
    results = []
    for (first, second), group in grouped.items():
        outcomes = [(pair, *_both_orders(judgements, pair)) for pair in group]
        read = [(pair, 1 - value) for pair, value, _ in outcomes if value is not None]
        orders = [agreed for *_, agreed in outcomes if agreed is not None]
        places = [
            value
            for pair, _, agreed in outcomes
            if agreed is not None
            for one in (pair, pair.swapped())
            if (value := judgements.preferences[one][0]) not in (None, 0.5)
        ]
        values = [value for _, value in read]
        results.append(
            {
                "first": first,
                "second": second,
                "better": values.count(1.0),
                "worse": values.count(0.0),
                "tied": values.count(0.5),
                "equal_texts": sum(pair.first.answer == pair.second.answer for pair in group),
                "unread": len(group) - len(read),
                "preference": mean(values) if values else None,
                "interval": _mean_interval([p.first for p, _ in read], values, draws, seed) if values else None,
                "consistent": mean(map(float, orders)) if orders else None,
                "first_shown": mean(float(v or 0) for v in places) if places else None,
            }
        )
    return results


def check_pairs(judgements: Judgements, pairs: Sequence[Comparison], least: float) -> dict[str, Any]:
    """Return whether a judge prefers the reference to another image's reference, in both orders.

    Args:
        judgements: what it said.
        pairs: `planted_comparisons`, in one order.
        least: share in which it must.
    """
    outcomes = [_both_orders(judgements, pair)[0] or 0.0 for pair in pairs]
    share = mean(outcomes)
    warnings = []
    if len(pairs) < _FEWEST_SETS:
        warnings.append(f"only {len(pairs)} planted pairs: nothing is known of this judge's comparisons")
    elif share < least:
        warnings.append(f"prefers the reference to another image's reference in {100 * share:.0f} % of pairs only")
    return {"sets": len(pairs), "preferred": share if pairs else None, "warnings": warnings}


def agreement(raters: Mapping[str, Mapping[Subject, float]], *, draws: int, seed: int) -> dict[str, Any]:
    """Return how far raters agree: of every two `pair_agreement`, of all `alpha_agreement`.

    Args:
        raters: grades by answer of each judge and person.
        draws: bootstrap replicates, over images.
        seed: of the draws.
    """
    images = {s: _image(s) for grades in raters.values() for s in grades}
    pairs = [
        {"first": a, "second": b, **pair_agreement(raters[a], raters[b], images, draws=draws, seed=seed)}
        for a, b in combinations(raters, 2)
    ]
    return {"pairs": pairs, "all": alpha_agreement(list(raters.values()), images, draws=draws, seed=seed)}


def judge_warnings(judge: Mapping[str, Any]) -> list[str]:
    """Return everything that speaks against a judge's figures, in words."""
    warnings = [f"{task}: {text}" for task, check in judge["planted"].items() for text in check["warnings"]]
    warnings += [f"comparisons: {text}" for text in judge.get("planted_pairs", {}).get("warnings", ())]
    for comparison in judge.get("comparisons", ()):
        consistent = comparison["consistent"]
        if consistent is not None and consistent < _CONSISTENT:
            names = f"{comparison['first']} and {comparison['second']}"
            warnings.append(f"both orders agree on {100 * consistent:.0f} % of the pairs of {names} only")
    return warnings


def disagreements(raters: Mapping[str, Mapping[Subject, float]], count: int) -> list[dict[str, Any]]:
    """Return the answers on which raters differ most, with all their grades."""
    grades: dict[Subject, dict[str, float]] = defaultdict(dict)
    for name, given in raters.items():
        for subject, grade in given.items():
            grades[subject][name] = grade
    spread = {s: float(np.ptp(list(given.values()))) for s, given in grades.items() if len(given) > 1}
    worst = sorted((s for s in spread if spread[s] > 0), key=lambda s: (-spread[s], s.code))[:count]
    return [
        {"question": s.item.prompt, "reference": s.reference, "answer": s.answer, "grades": grades[s]} for s in worst
    ]
