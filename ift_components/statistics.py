"""Uncertainty of accuracies: intervals and paired tests that respect that questions about one image are not independent."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

_CHUNK = 500  # bootstrap draws held in memory at once
_ZERO = 1e-12  # replicates are sums of fractions: what is zero may come out as 1e-17
_HALF = 0.5

Floats = NDArray[np.float64]


def mean(values: Iterable[float]) -> float:
    """Return the mean; 0 of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def rounded(value: Any, digits: int = 8) -> Any:
    """Return plain data with its floats rounded to so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list | tuple) else value


def _cluster_sums(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Return the sum of values and the number of values of each cluster."""
    index: dict[Hashable, int] = {}
    which = np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.intp)
    sums = np.bincount(which, weights=np.asarray(values, dtype=float), minlength=len(index))
    return sums.astype(float), np.bincount(which, minlength=len(index)).astype(float)


def _draws(clusters: int, draws: int, seed: int) -> Iterator[Floats]:
    """Yield how often each cluster is drawn, [chunk, clusters]: with replacement, as many as there are."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        yield generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=size).astype(float)


def bootstrap_means(
    values: Sequence[float], clusters: Sequence[Hashable], *, draws: int = 10_000, seed: int = 0
) -> Floats:
    """Return bootstrap replicates of the mean of `values`, whole clusters drawn with replacement (cluster bootstrap).

    A replicate is the sum of the drawn clusters' values over their number of values, so that images with many questions weigh
    as in the mean itself (Field and Welsh 2007, "Bootstrapping clustered data", the cluster bootstrap).

    Args:
        values: one number a question, e.g. 1 where the answer is right.
        clusters: the image of each question.
        draws: number of replicates.
        seed: seed of the draws.

    Returns:
        [draws] replicates.
    """
    sums, counts = _cluster_sums(values, clusters)
    return np.concatenate([(w @ sums) / (w @ counts) for w in _draws(len(sums), draws, seed)])


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile interval of the mean of `values` from `bootstrap_means`.

    Args:
        values: one number a question.
        clusters: the image of each question.
        draws: number of replicates.
        seed: seed of the draws.
        level: coverage of the interval.
    """
    means = bootstrap_means(values, clusters, draws=draws, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedComparison:
    """Two runs on the same questions.

    Attributes:
        questions: number of questions.
        difference: accuracy of the second run less that of the first.
        low: lower end of the 95 % interval of the difference, by cluster bootstrap.
        high: its upper end.
        p_bootstrap: two-sided p-value of no difference from the same replicates.
        only_first: questions that only the first run answers rightly.
        only_second: questions that only the second run answers rightly.
        p_mcnemar: exact two-sided McNemar p-value; it takes questions as independent.
    """

    questions: int
    difference: float
    low: float
    high: float
    p_bootstrap: float
    only_first: int
    only_second: int
    p_mcnemar: float

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return asdict(self)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Compare two runs by McNemar's exact test: is a discordant question equally likely to fall to either side?

    With b questions right only in the first run and c only in the second, p is the two-sided binomial p-value of b in b +
    c trials of probability 1/2 (McNemar 1947, exact form).

    Args:
        first: whether each question is right in the first run.
        second: the same in the second run, in the same order.

    Returns:
        b, c and p; p is 1 where no question is discordant.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    total = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0


def compare_paired(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two runs on the same questions by cluster bootstrap of the difference and by McNemar's test.

    The bootstrap p-value is 2 min(#{d* <= 0}, #{d* >= 0}) over the replicates d* of the difference, with one added to count and
    number of draws (Davison and Hinkley 1997, section 4.2), at most 1.

    Args:
        first: what each question earned in the first run, 0 to 1 (a mean over repeated runs is allowed).
        second: the same in the second run, in the same order.
        clusters: the image of each question.
        draws: number of replicates.
        seed: seed of the draws.
    """
    gains = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    means = bootstrap_means(gains.tolist(), clusters, draws=draws, seed=seed)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(int((means <= _ZERO).sum()), int((means >= -_ZERO).sum()))
    b, c, p = mcnemar([value > _HALF for value in first], [value > _HALF for value in second])
    return PairedComparison(
        questions=len(gains),
        difference=float(gains.mean()),
        low=float(low),
        high=float(high),
        p_bootstrap=min(1.0, 2 * (tail + 1) / (draws + 1)),
        only_first=b,
        only_second=c,
        p_mcnemar=p,
    )


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (n - 1); the latter is None for one value."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None
