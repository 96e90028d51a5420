"""How far raters agree, judges and people alike: weighted kappa of two, Krippendorff's alpha of all, with intervals."""

from collections.abc import Hashable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift_components.errors import ConfigError
from ift_components.statistics import cluster_draws, percentiles

Floats = NDArray[np.float64]
Grades = Mapping[Any, float]  # a rater's grades by what was graded


def load_krippendorff() -> ModuleType:
    """Return the package.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import krippendorff  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError(
            "agreement of raters needs krippendorff: pip install 'instruction-free-tuning[judge]'"
        ) from error
    return krippendorff


def weighted_kappa(moments: Floats) -> Floats:
    """Return Cohen's kappa of two raters with quadratic weights (Cohen 1968).

    With weights (x - y)^2: 1 - E[(x - y)^2] / (var x + var y + (mean x - mean y)^2), for the expectation of (x - y)^2 under
    independence is the denominator.

    Args:
        moments: [..., 6] sums over the graded: 1, x, y, x^2, y^2, x y.

    Returns:
        [...] kappas; NaN where neither rater's grades vary and both are the same.
    """
    count, x, y, xx, yy, xy = (moments[..., index] for index in range(6))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = (xx + yy - 2 * xy) / count
        expected = (xx + yy) / count - 2 * x * y / count**2
        return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), np.nan)


def _clusters(units: Sequence[Hashable], images: Mapping[Any, Hashable]) -> NDArray[np.intp]:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(images[unit], len(index)) for unit in units], dtype=np.intp)


def _interval(replicates: Floats) -> list[float] | None:
    """Return the 95 % percentile interval; None if fewer than nine in ten replicates are defined."""
    return list(percentiles(replicates)) if np.isfinite(replicates).mean() > 0.9 else None  # noqa: PLR2004


def pair_agreement(
    first: Grades, second: Grades, images: Mapping[Any, Hashable], *, draws: int, seed: int
) -> dict[str, Any]:
    """Return the agreement of two raters on what both graded.

    Args:
        first: a rater's grades.
        second: another's.
        images: the image of everything graded; whole images are drawn.
        draws: bootstrap replicates.
        seed: of the draws.

    Returns:
        `both` (how many), `kappa` and `kappa_interval`, `exact` (share of equal grades), `within_one`, `difference` (the second
        less the first, in the mean). Figures that are not defined are None.
    """
    units = [unit for unit in first if unit in second]
    result: dict[str, Any] = {"both": len(units)}
    if not units:
        return result | dict.fromkeys(("kappa", "kappa_interval", "exact", "within_one", "difference"))
    x, y = (np.array([rater[unit] for unit in units]) for rater in (first, second))
    rows = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    clusters = _clusters(units, images)
    sums = np.zeros((clusters.max() + 1, rows.shape[1]))
    np.add.at(sums, clusters, rows)
    kappa = float(weighted_kappa(rows.sum(0)))
    replicates = np.concatenate([weighted_kappa(weights @ sums) for weights in cluster_draws(len(sums), draws, seed)])
    distance = np.abs(x - y)
    return result | {
        "kappa": kappa if np.isfinite(kappa) else None,
        "kappa_interval": _interval(replicates) if len(sums) > 1 else None,
        "exact": float((distance == 0).mean()),
        "within_one": float((distance <= 1).mean()),
        "difference": float((y - x).mean()),
    }


def alpha_agreement(
    raters: Sequence[Grades], images: Mapping[Any, Hashable], *, draws: int, seed: int
) -> dict[str, Any]:
    """Return Krippendorff's alpha (interval scale) of any number of raters, who need not have graded everything.

    Args:
        raters: each rater's grades.
        images: the image of everything graded; whole images are drawn.
        draws: bootstrap replicates.
        seed: of the draws.

    Returns:
        `units` (how many have two grades or more), `alpha` and `interval`; None where they are not defined.

    Raises:
        ConfigError: if the package krippendorff is missing.
    """
    krippendorff = load_krippendorff()
    units = list(dict.fromkeys(unit for rater in raters for unit in rater))
    units = [unit for unit in units if sum(unit in rater for rater in raters) > 1]
    domain = sorted({rater[unit] for rater in raters for unit in units if unit in rater})
    if len(domain) < 2:  # noqa: PLR2004
        return {"units": len(units), "alpha": None, "interval": None}
    place = {value: index for index, value in enumerate(domain)}
    counts = np.zeros((len(units), len(domain)))
    for row, unit in enumerate(units):
        for rater in raters:
            if unit in rater:
                counts[row, place[rater[unit]]] += 1

    def alpha(rows: Floats) -> float:
        used = rows.sum(0) > 0
        if used.sum() < 2:  # noqa: PLR2004
            return float("nan")
        values = np.array(domain)[used]
        return float(
            krippendorff.alpha(value_counts=rows[:, used], value_domain=values, level_of_measurement="interval")
        )

    clusters = _clusters(units, images)
    number = int(clusters.max()) + 1
    replicates = [
        alpha(np.repeat(counts, weights[clusters].astype(int), axis=0))
        for chunk in cluster_draws(number, draws, seed)
        for weights in chunk
    ]
    return {
        "units": len(units),
        "alpha": alpha(counts),
        "interval": _interval(np.array(replicates)) if number > 1 else None,
    }
