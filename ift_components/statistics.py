"""Uncertainty of accuracies: intervals and paired tests that respect that questions about one image are not independent."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student

_CHUNK = 500  # bootstrap draws held in memory at once
_ZERO = 1e-12  # replicates are sums of fractions: what is zero may come out as 1e-17
_FEWEST = 10  # clusters on either side below which a percentile interval degenerates

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


def cluster_draws(clusters: int, draws: int, seed: int) -> Iterator[Floats]:
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
    return np.concatenate([(w @ sums) / (w @ counts) for w in cluster_draws(len(sums), draws, seed)])


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


def wilson_interval(share: float, count: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927).

    With z the normal quantile: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Args:
        share: the observed proportion p.
        count: number of independent observations n.
        level: coverage of the interval.
    """
    z = float(norm.ppf((1 + level) / 2))
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # The share lies between them; rounding alone can put a bound of 0 or 1 on its other side.
    return min(share, max(0.0, float((centre - half) / scale))), max(share, min(1.0, float((centre + half) / scale)))


def share_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a share: by cluster bootstrap, or Wilson's where the bootstrap degenerates.

    With fewer than ten clusters on either side of right and wrong the percentile interval is too short (at 30 clusters and
    a share of 0.95 it covers 74 %); Wilson's takes the number of clusters as the sample size.

    Args:
        values: one number a question, 0 to 1.
        clusters: the image of each question.
        draws: number of replicates.
        seed: seed of the draws.
    """
    number = len(set(clusters))
    share = mean(values)
    if min(share, 1 - share) * number < _FEWEST:
        return wilson_interval(share, number)
    return bootstrap_interval(values, clusters, draws=draws, seed=seed)


def mean_interval(estimates: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the interval of the mean of independent estimates from their own intervals (MOVER, Zou and Donner 2008).

    With m estimates p_i of intervals l_i to u_i: mean - sqrt(sum (p_i - l_i)^2) / m to mean + sqrt(sum (u_i - p_i)^2) / m.
    It keeps the width that the parts have where a bootstrap degenerates, e.g. where all of a class are right.

    Args:
        estimates: the parts' estimates.
        intervals: their intervals, all of one level, which the result has too.
    """
    number, middle = len(estimates), mean(estimates)
    pairs = list(zip(estimates, intervals, strict=True))
    below = sum((value - low) ** 2 for value, (low, _) in pairs) ** 0.5 / number
    above = sum((high - value) ** 2 for value, (_, high) in pairs) ** 0.5 / number
    return middle - below, middle + above


def bootstrap_cells(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    cells: Sequence[Hashable],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[list[Hashable], Floats]:
    """Return bootstrap replicates of the mean of `values` in each cell, whole clusters drawn with replacement.

    Args:
        values: one number a question.
        clusters: the image of each question.
        cells: what each question's mean is taken over, e.g. its attribute and right answer.
        draws: number of replicates.
        seed: seed of the draws.

    Returns:
        The cells, and replicates [draws, cells]; NaN where a draw has no question of a cell.
    """
    names: dict[Hashable, int] = {}
    columns = np.array([names.setdefault(cell, len(names)) for cell in cells])
    index: dict[Hashable, int] = {}
    which = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    sums, counts = np.zeros((2, len(index), len(names)))
    np.add.at(sums, (which, columns), np.asarray(values, dtype=float))
    np.add.at(counts, (which, columns), 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = [(w @ sums) / (w @ counts) for w in cluster_draws(len(index), draws, seed)]
    return list(names), np.concatenate(replicates)


def percentiles(replicates: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap replicates, leaving out those that are no number."""
    low, high = np.nanquantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (Holm 1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in corrected]


@dataclass(frozen=True)
class MethodComparison:
    """Two methods on the same questions, each by one or more runs (seeds).

    Attributes:
        difference: mean of the second method's runs less that of the first's.
        low: lower end of the 95 % interval.
        high: its upper end.
        p: two-sided p-value of no difference.
        sd_images: standard error that comes from the images.
        sd_seeds: standard error that comes from the seeds; 0 where neither method has two runs.
        seeds: number of runs of either.
    """

    difference: float
    low: float
    high: float
    p: float
    sd_images: float
    sd_seeds: float
    seeds: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {**asdict(self), "seeds": list(self.seeds)}


def influences(
    values: Floats,
    clusters: Sequence[Hashable],
    cells: Sequence[Hashable],
    weights: Mapping[Hashable, float] | None = None,
) -> tuple[Floats, Floats]:
    """Return each run's weighted mean over cells of the cells' means, and what each cluster contributes to it.

    The mean of ratios of sums is linearised (Taylor): cluster i contributes sum over cells c of w_c (s_ic - p_c n_ic) / N_c, so
    that the sum of squared contributions estimates the variance over clusters, as the cluster bootstrap with many draws does.

    Args:
        values: [runs, questions].
        clusters: the image of each question.
        cells: the cell of each question; one cell gives the plain mean.
        weights: weight w_c of each cell, 1 in all; None weighs them alike.

    Returns:
        Estimates [runs] and contributions [runs, clusters].
    """
    names: dict[Hashable, int] = {}
    columns = np.array([names.setdefault(cell, len(names)) for cell in cells])
    index: dict[Hashable, int] = {}
    which = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    totals = np.bincount(columns, minlength=len(names))
    means = np.stack([np.bincount(columns, weights=run, minlength=len(names)) for run in values]) / totals
    weight = np.array([1 / len(names) if weights is None else weights[name] for name in names])
    # A mean fits its own questions: what they leave over is too small by (N - 1) / N, and nothing where a cell has one
    # question. There the deviation from the mean of all stands in.
    alone = totals == 1
    centres = np.where(alone, values.mean(axis=1, keepdims=True), means)
    scale = np.sqrt(totals / np.where(alone, 1, totals - 1))
    parts = (values - centres[:, columns]) * (weight * scale / totals)[columns]
    contributions = np.stack([np.bincount(which, weights=run, minlength=len(index)) for run in parts])
    return np.asarray(means @ weight, dtype=float), np.asarray(contributions, dtype=float)


def compare_methods(
    first: Floats,
    second: Floats,
    clusters: Sequence[Hashable],
    cells: Sequence[Hashable] | None = None,
    weights: Mapping[Hashable, float] | None = None,
) -> MethodComparison:
    """Compare two methods whose runs answer the same questions, with what both images and seeds leave uncertain.

    The variance of the difference has two levels: images, drawn in common by all runs, from the contributions of
    `influences` averaged over a method's runs; and seeds, S^2 / m from the spread S of a method's m runs, less the part of S
    that is chance between runs on single images, which the first level holds already (a two-way layout, Owen 2007, "The
    pigeonhole bootstrap"). Interval and p-value are Student's with Satterthwaite's degrees of freedom, because three
    seeds know their spread badly and cannot be resampled: a bootstrap over three of them would promise too much.

    Args:
        first: [runs, questions], what each question earned.
        second: [runs, questions], the same questions.
        clusters: the image of each question.
        cells: cells whose means are averaged (balanced or macro figures); None takes the plain mean.
        weights: weight of each cell, 1 in all; None weighs them alike.
    """
    cells = cells if cells is not None else [0] * first.shape[1]
    (mean_first, of_first), (mean_second, of_second) = (
        influences(x, clusters, cells, weights) for x in (first, second)
    )
    difference = float(mean_second.mean() - mean_first.mean())
    number = of_first.shape[1]
    over_images = float(((of_second.mean(0) - of_first.mean(0)) ** 2).sum()) * number / max(1, number - 1)
    over_seeds, spread = 0.0, over_images**2 / max(1, number - 1)
    for estimates, contributions in ((mean_first, of_first), (mean_second, of_second)):
        runs = len(estimates)
        if runs > 1:
            between = float(estimates.var(ddof=1))
            chance = float(((contributions - contributions.mean(0)) ** 2).sum()) / (runs - 1)
            own = max(0.0, between - chance) / runs
            over_seeds += own
            # Between the square of what is counted and that of the spread as it was seen, which alone would be too cautious.
            spread += own * (between / runs) / (runs - 1)
    variance = over_images + over_seeds
    if variance <= _ZERO**2:
        p = 1.0 if abs(difference) <= _ZERO else 0.0
        return MethodComparison(difference, difference, difference, p, 0.0, 0.0, (len(first), len(second)))
    freedom, error = variance**2 / spread, variance**0.5
    half = float(student.ppf(0.975, freedom)) * error
    return MethodComparison(
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=float(2 * student.sf(abs(difference) / error, freedom)),
        sd_images=over_images**0.5,
        sd_seeds=over_seeds**0.5,
        seeds=(len(first), len(second)),
    )


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


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (n - 1); the latter is None for one value."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None
