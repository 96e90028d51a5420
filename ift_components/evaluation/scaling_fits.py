"""Laws of how a loss falls with data, fitted in log space by a robust loss, with intervals by the bootstrap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import expit, huber
from scipy.stats import norm
from scipy.stats import t as student

Floats = NDArray[np.float64]

_EXPONENTS = (0.1, 0.3, 0.7, 1.5)
_OFFSETS = (0.01, 0.5, 0.95)  # starts of E, as shares of the smallest loss
_HUBER = 1.345  # in standard deviations: 95 % efficient for normal errors
SMALLEST_SCALE = 1e-9  # scale of residuals below which a fit is exact
_TINY = 1e-12
_ROUNDS = 3
_ROUGH, _FINE = 60, 400  # evaluations of many starts, and from one: a flat valley is followed to its end


@dataclass(frozen=True)
class Law:
    """A shape of L(D).

    Attributes:
        formula: as people write it.
        parameters: their names.
        log_loss: log L of the parameters [p] at D [n]; positive parameters are given as logarithms.
        slopes: derivatives [n, p] of `log_loss` by the parameters.
        starts: starting points [p] for sizes and losses.
        natural: turns fitted parameters into those of the formula.
    """

    formula: str
    parameters: tuple[str, ...]
    log_loss: Callable[[Floats, Floats], Floats]
    slopes: Callable[[Floats, Floats], Floats]
    starts: Callable[[Floats, Floats], list[list[float]]]
    natural: Callable[[Floats], list[float]]


def _offsets(losses: Floats) -> list[float]:
    return [float(np.log(max(share * losses.min(), _TINY * losses.min()))) for share in _OFFSETS]


def _power_starts(sizes: Floats, losses: Floats) -> list[list[float]]:
    place = np.log(sizes.min())
    return [
        [float(np.log(max(losses.max() - np.exp(e), _TINY))) + b * place, b, e]
        for b in _EXPONENTS
        for e in _offsets(losses)
    ]


def _exponential_starts(sizes: Floats, losses: Floats) -> list[list[float]]:
    scales = np.log(np.ptp(sizes) * np.array([0.1, 0.3, 1.0]))
    return [
        [float(np.log(max(losses.max() - np.exp(e), _TINY))), float(s), e] for s in scales for e in _offsets(losses)
    ]


def _power_slopes(parameters: Floats, sizes: Floats) -> Floats:
    # The share of the power law in the loss; the rest is the offset's.
    share = expit(parameters[0] - parameters[1] * np.log(sizes) - parameters[2])
    return np.stack([share, -share * np.log(sizes), 1 - share], axis=1)


def _exponential_slopes(parameters: Floats, sizes: Floats) -> Floats:
    exponent = sizes * np.exp(-parameters[1])
    share = expit(parameters[0] - exponent - parameters[2])
    return np.stack([share, share * exponent, 1 - share], axis=1)


LAWS = {
    "power law with offset": Law(
        "a / D^b + E",
        ("a", "b", "E"),
        lambda p, d: np.logaddexp(p[0] - p[1] * np.log(d), p[2]),
        _power_slopes,
        _power_starts,
        lambda p: [float(np.exp(p[0])), float(p[1]), float(np.exp(p[2]))],
    ),
    "power law": Law(
        "a / D^b",
        ("a", "b"),
        lambda p, d: p[0] - p[1] * np.log(d),
        lambda p, d: np.stack([np.ones(len(d)), -np.log(d)], axis=1),  # noqa: ARG005 (the signature of all)
        lambda d, losses: [[float(np.log(losses).mean()) + b * float(np.log(d).mean()), b] for b in (0.0, 0.3)],
        lambda p: [float(np.exp(p[0])), float(p[1])],
    ),
    "exponential with offset": Law(
        "a exp(-D / c) + E",
        ("a", "c", "E"),
        lambda p, d: np.logaddexp(p[0] - d * np.exp(-p[1]), p[2]),
        _exponential_slopes,
        _exponential_starts,
        lambda p: [float(np.exp(value)) for value in p],
    ),
    "constant": Law(
        "E",
        ("E",),
        lambda p, d: np.full(len(d), p[0]),
        lambda p, d: np.ones((len(d), 1)),  # noqa: ARG005 (the signature of all)
        lambda d, losses: [[float(np.median(np.log(losses)))]],  # noqa: ARG005 (the signature of all)
        lambda p: [float(np.exp(p[0]))],
    ),
}
POWER = LAWS["power law with offset"]
_BOUNDS = (-60.0, 60.0)  # of every parameter: logarithms and exponents


@dataclass(frozen=True)
class Fit:
    """A law fitted to points.

    Attributes:
        law: the law.
        parameters: [p] as `Law.log_loss` takes them.
        residuals: [n] log loss less the law's.
        scale: robust standard deviation of the residuals.
    """

    law: Law
    parameters: Floats
    residuals: Floats
    scale: float

    def predict(self, sizes: Floats) -> Floats:
        """Return the losses that the law gives at sizes."""
        return np.exp(self.law.log_loss(self.parameters, sizes))


def _solve(law: Law, sizes: Floats, log_losses: Floats, starts: Sequence[Sequence[float]], scale: float | None) -> Any:
    """Return the best of the solutions from all starts; least squares without a scale, else Huber's loss."""

    def residuals(parameters: Floats) -> Floats:
        return law.log_loss(parameters, sizes) - log_losses

    robust = {} if scale is None else {"loss": "huber", "f_scale": _HUBER * scale}
    bounds = ([_BOUNDS[0]] * len(law.parameters), [_BOUNDS[1]] * len(law.parameters))
    solutions = [
        least_squares(
            residuals,
            np.clip(start, -59.0, 59.0),
            jac=lambda parameters: law.slopes(parameters, sizes),
            bounds=bounds,
            x_scale="jac",
            max_nfev=_ROUGH if len(starts) > 1 else _FINE,
            **robust,
        )
        for start in starts
    ]
    return min(solutions, key=lambda solution: solution.cost)


def _spread(residuals: Floats, parameters: int) -> float:
    """Return a robust standard deviation: the median absolute residual by that of a normal one, for the degrees of freedom."""
    count = len(residuals)
    scale = float(np.median(np.abs(residuals)) / norm.ppf(0.75))
    return max(SMALLEST_SCALE, scale * (count / max(1, count - parameters)) ** 0.5)


def fit_law(law: Law, sizes: Floats, losses: Floats) -> Fit:
    """Fit a law by Huber's loss of log residuals, after least squares has given their scale.

    Args:
        law: one of `LAWS`.
        sizes: [n] amounts of data, above 0.
        losses: [n] losses, above 0.
    """
    log_losses = np.log(losses)
    starts = law.starts(sizes, losses)
    best = _solve(law, sizes, log_losses, starts, None)
    scale = _spread(best.fun, len(law.parameters))
    # Least squares follow outliers, and their scale is then too large: nearly absolute residuals come next, then Huber's loss
    # with scales that are estimated again.
    best = _solve(law, sizes, log_losses, [best.x, *starts], scale / 10)
    scale = _spread(best.fun, len(law.parameters))
    for _ in range(_ROUNDS):
        best = _solve(law, sizes, log_losses, [best.x], scale)
        scale = _spread(best.fun, len(law.parameters))
    return Fit(law, best.x, -best.fun, scale)


def correlation(residuals: Floats) -> float:
    """Return the correlation of residuals with the next ones, 0 where it is negative or there are few."""
    if len(residuals) < 10 or not residuals.std() > 0:  # noqa: PLR2004
        return 0.0
    centred = residuals - residuals.mean()
    return float(np.clip((centred[1:] * centred[:-1]).sum() / (centred**2).sum(), 0.0, 0.99))


def criterion(fit: Fit, scale: float, share: float) -> float:
    """Return the robust information criterion (Ronchetti 1985) with the correction for few points: smaller is better.

    2 sum rho(r / s) + 2 p + 2 p (p + 1) / (n - p - 1), rho Huber's function and s one scale for all laws. Of correlated
    residuals only a share counts as independent.

    Args:
        fit: a fitted law.
        scale: s.
        share: independent points over points.
    """
    count, p = len(fit.residuals) * share, len(fit.parameters) + 1
    if count <= p + 1:
        return float("inf")
    deviance = 2 * float(huber(_HUBER, fit.residuals / scale).sum()) * share
    return deviance + 2 * p + 2 * p * (p + 1) / (count - p - 1)


def _block_length(rho: float, count: int) -> int:
    """Return the length of bootstrap blocks for residuals of an autoregression (Carlstein 1986); 1 if they are independent."""
    return max(1, round((2 * rho / (1 - rho**2)) ** (2 / 3) * count ** (1 / 3))) if rho > 0 else 1


def bootstrap_fits(fit: Fit, sizes: Floats, *, rho: float, draws: int, seed: int) -> Floats:
    """Return parameters [draws, p] fitted to residual bootstrap samples, in blocks where a curve's residuals are correlated.

    Residuals are scaled up by sqrt(n / (n - p)), for a fit takes up a part of them.

    Args:
        fit: the fit.
        sizes: [n] its sizes, in increasing order.
        rho: correlation of its residuals with the next ones; 0 where points are independent.
        draws: number of samples.
        seed: seed of the draws.
    """
    count, p = len(sizes), len(fit.parameters)
    generator = np.random.default_rng(seed)
    scaled = (fit.residuals - fit.residuals.mean()) * (count / max(1, count - p)) ** 0.5
    length = _block_length(rho, count)
    centre = fit.law.log_loss(fit.parameters, sizes)
    replicates = []
    for _ in range(draws):
        begins = generator.integers(0, count - length + 1, -(-count // length))
        picked = (begins[:, None] + np.arange(length)).ravel()[:count]
        best = _solve(fit.law, sizes, centre + scaled[picked], [fit.parameters.tolist()], fit.scale)
        replicates.append(best.x)
    return np.array(replicates)


def interval(replicates: Floats, freedom: float) -> list[float]:
    """Return the 95 % percentile interval of [draws] replicates, widened for few points (Hesterberg 2015, expanded percentile).

    Args:
        replicates: of one figure.
        freedom: independent points less parameters.
    """
    tail = float(norm.cdf(student.ppf(0.025, max(1.0, freedom))))
    return [float(value) for value in np.quantile(replicates, [tail, 1 - tail])]
