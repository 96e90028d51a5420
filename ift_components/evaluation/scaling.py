"""How a loss falls with data, and what may be promised of more: `python -m ift_components.evaluation.scaling RESULTS...`.

RESULTS are a CSV of steps and losses, or folders of several training runs or evaluations of checkpoints of such runs. Writes
scaling.json and scaling.png into `--out`. The law is L(D) = a / D^b + E with the irreducible loss E, for one model size and one
recipe; it is fitted with a robust loss in log space from many starts (as Hoffmann et al. 2022, arXiv 2203.15556, appendix D.2).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ift_components.errors import ConfigError, DataError, UserError
from ift_components.evaluation.scaling_fits import (
    LAWS,
    POWER,
    SMALLEST_SCALE,
    Fit,
    Floats,
    bootstrap_fits,
    correlation,
    criterion,
    fit_law,
    interval,
)
from ift_components.evaluation.scaling_points import FIGURES, Points, read_points
from ift_components.files import atomic_path, write_json
from ift_components.statistics import rounded

_FEWEST_SIZES = 6  # four, one more than the law has parameters, and two that are held out
_LEAST_RANGE = 8.0  # largest size over smallest
_WIDEST = 3.0  # upper over lower end of the exponent's interval
_LARGEST_ERROR = 0.05  # of the held-out losses, in the mean
_DECISIVE = 2.0  # difference of the criterion from which a law counts as better (Burnham and Anderson 2002)
_FARTHEST = 4.0  # sizes beyond the largest, in times of it, up to which a forecast is given
_FEWEST_DRAWS = 100
_FAR = 3.0  # standard errors


def held_out(points: Points) -> dict[str, Any] | None:
    """Return how well the law, fitted to the points up to half of the largest size, tells the losses of the others.

    Args:
        points: the points.

    Returns:
        `sizes` (how many are kept and held out), `beyond` (largest size over the largest kept), `error` (mean absolute relative
        error) and `bias` (mean of predicted over measured less 1, in which the noise of single points cancels), and the same
        as `error_of_last` and `bias_of_last` if the loss just stayed where it was at the largest sizes kept. None if fewer than
        four sizes would be kept.
    """
    kept = points.sizes <= points.sizes.max() / 2
    sizes = np.unique(points.sizes[kept])
    if len(sizes) < len(POWER.parameters) + 1:
        return None
    fit = fit_law(POWER, points.sizes[kept], points.losses[kept])
    measured, predicted = points.losses[~kept], fit.predict(points.sizes[~kept])
    before = points.losses[kept][points.sizes[kept] >= sizes[-max(1, len(sizes) // 20)]]
    last = float(np.median(before))
    return {
        "sizes": [len(sizes), len(np.unique(points.sizes[~kept]))],
        "beyond": float(points.sizes.max() / sizes[-1]),
        "error": float(np.abs(predicted / measured - 1).mean()),
        "bias": float((predicted / measured - 1).mean()),
        "error_of_last": float(np.abs(last / measured - 1).mean()),
        "bias_of_last": float((last / measured - 1).mean()),
    }


def worst_stretch(fit: Fit, sizes: Floats, share: float) -> dict[str, float] | None:
    """Return where the law misses the points by more than their noise and by more than a twentieth; None if nowhere.

    A law of the wrong shape still has a narrow interval: what gives it away is a stretch of sizes, from one to twice that, with
    residuals to one side.

    Args:
        fit: the fit.
        sizes: [n] its sizes.
        share: independent points over points.

    Returns:
        `from`, `to` and `error`, the mean of the law over the points less 1, of the worst stretch.
    """
    octaves = np.floor(np.log2(sizes / sizes.min()) + SMALLEST_SCALE)
    worst: dict[str, float] | None = None
    for octave in np.unique(octaves):
        inside = octaves == octave
        mean = float(fit.residuals[inside].mean())
        noise = fit.scale / max(1.0, inside.sum() * share) ** 0.5
        if abs(mean) > max(_FAR * noise, _LARGEST_ERROR) and (
            worst is None or abs(np.expm1(-mean)) > abs(worst["error"])
        ):
            worst = {
                "from": float(sizes[inside].min()),
                "to": float(sizes[inside].max()),
                "error": float(np.expm1(-mean)),
            }
    return worst


def doubts(
    points: Points,
    laws: Mapping[str, Mapping[str, Any]],
    exponent: Sequence[float],
    test: Mapping[str, Any] | None,
    stretch: Mapping[str, float] | None,
) -> list[str]:
    """Return in words why nothing may be promised of more data; nothing if it may.

    Args:
        points: the points.
        laws: each law's `criterion`.
        exponent: interval of b.
        test: what `held_out` returned.
        stretch: what `worst_stretch` returned.
    """
    sizes = np.unique(points.sizes)
    reasons = []
    if len(sizes) < _FEWEST_SIZES:
        reasons.append(f"{len(sizes)} different sizes; at least {_FEWEST_SIZES} are needed")
    if sizes[-1] / sizes[0] < _LEAST_RANGE:
        reasons.append(f"the sizes span a factor of {sizes[-1] / sizes[0]:.3g}; at least {_LEAST_RANGE:g} is needed")
    best = min(laws, key=lambda name: laws[name]["criterion"])
    behind = laws["power law with offset"]["criterion"] - laws[best]["criterion"]
    if behind > _DECISIVE:
        reasons.append(f"the law '{best}' is nearer to the points (information criterion lower by {behind:.1f})")
    if exponent[0] <= 0 or exponent[1] / exponent[0] > _WIDEST:
        reasons.append(f"the exponent is only known to lie between {exponent[0]:.3g} and {exponent[1]:.3g}")
    if stretch is not None:
        reasons.append(
            f"the law misses the points from {stretch['from']:g} to {stretch['to']:g} by {100 * stretch['error']:+.0f} % in "
            "the mean: it has another shape there, so that exponent and intervals mean little; leave a beginning out by --from"
        )
    if test is None:
        reasons.append("too few sizes to hold the largest out and fit the law to the others")
    else:
        # Every step of a curve is noise of its own, which no law can tell: there the held-out points count in the mean.
        kind = "bias" if points.is_curve else "error"
        missed, by_last = abs(test[kind]), abs(test[f"{kind}_of_last"])
        if missed > _LARGEST_ERROR:
            reasons.append(f"fitted to the smaller sizes, it misses the largest ones by {100 * missed:.1f} %")
        elif missed > by_last:
            reasons.append(
                f"fitted to the smaller sizes, it misses the largest ones by {100 * missed:.1f} %, the last loss before them "
                f"by {100 * by_last:.1f} %"
            )
    return reasons


def scaling_law(points: Points, *, to: float | None = None, draws: int = 300, seed: int = 0) -> dict[str, Any]:
    """Return everything that points say of the law, and a forecast unless there are doubts.

    Args:
        points: the points.
        to: size to forecast; None takes twice the largest. More than four times the largest is nothing to promise.
        draws: bootstrap replicates behind the intervals.
        seed: seed of the draws.

    Returns:
        `laws` (each with `formula`, `parameters`, `criterion`), `exponent` and `irreducible` (value and interval),
        `correlation` of residuals (a curve's), `held_out`, `worst_stretch`, `doubts` in words, `forecast` (None if
        there are doubts), and the points as `data`.

    Raises:
        DataError: for fewer points than the law has parameters and one more.
    """
    sizes, losses = points.sizes, points.losses
    if len(sizes) <= len(POWER.parameters):
        raise DataError(
            f"scaling: {len(sizes)} points cannot determine the {len(POWER.parameters)} parameters of {POWER.formula}; give "
            "more runs of other sizes"
        )
    fits = {name: fit_law(law, sizes, losses) for name, law in LAWS.items()}
    fit = fits["power law with offset"]
    rho = correlation(fit.residuals) if points.is_curve else 0.0
    share = (1 - rho) / (1 + rho)  # independent points of an autoregression
    scale = min(one.scale for one in fits.values())
    laws = {
        name: {
            "formula": one.law.formula,
            "parameters": dict(zip(one.law.parameters, one.law.natural(one.parameters), strict=True)),
            "criterion": criterion(one, scale, share),
        }
        for name, one in fits.items()
    }
    replicates = bootstrap_fits(fit, sizes, rho=rho, draws=draws, seed=seed)
    freedom = len(sizes) * share - len(POWER.parameters)
    exponent = interval(replicates[:, 1], freedom)
    test = held_out(points)
    target = 2 * float(sizes[-1]) if to is None else to
    stretch = worst_stretch(fit, sizes, share)
    reasons = doubts(points, laws, exponent, test, stretch)
    if target > _FARTHEST * sizes[-1]:
        reasons.append(
            f"{target:g} lies {target / sizes[-1]:.1f} times beyond the largest size; at most {_FARTHEST:g} is told"
        )
    ahead = np.exp([fit.law.log_loss(one, np.array([target]))[0] for one in replicates])
    forecast = {"size": target, "loss": float(fit.predict(np.array([target]))[0]), "interval": interval(ahead, freedom)}
    result = {
        "size": points.size_name,
        "loss": points.loss_name,
        "points": len(sizes),
        "is_curve": points.is_curve,
        "laws": laws,
        "exponent": {"value": float(fit.parameters[1]), "interval": exponent},
        "irreducible": {
            "value": float(np.exp(fit.parameters[2])),
            "interval": interval(np.exp(replicates[:, 2]), freedom),
        },
        "correlation": rho,
        "held_out": test,
        "worst_stretch": stretch,
        "doubts": reasons,
        "forecast": None if reasons else forecast,
        "data": [{"size": float(x), "loss": float(y)} for x, y in zip(sizes, losses, strict=True)],
        "sources": list(points.sources),
    }
    plain: dict[str, Any] = rounded(result)
    return plain


def words(result: Mapping[str, Any]) -> str:
    """Return a result of `scaling_law` in words."""
    exponent, floor, test = result["exponent"], result["irreducible"], result["held_out"]

    def between(figure: Mapping[str, Any]) -> str:
        low, high = figure["interval"]
        return f"{figure['value']:.3g} (95 % interval {low:.3g} to {high:.3g})"

    lines = [f"{result['points']} points, {result['loss']} by {result['size']}: a / D^b + E"]
    lines.append(f"exponent b {between(exponent)}, irreducible loss E {between(floor)}")
    for name, law in sorted(result["laws"].items(), key=lambda entry: float(entry[1]["criterion"])):
        parameters = ", ".join(f"{key} = {value:.4g}" for key, value in law["parameters"].items())
        lines.append(f"  {name}: information criterion {law['criterion']:.1f}; {parameters}")
    if test is not None:
        lines.append(
            f"held out: the largest sizes, up to {test['beyond']:.2g} times beyond those fitted, are missed by "
            f"{100 * test['error']:.2f} % each, {100 * test['bias']:+.2f} % in the mean (by {100 * test['error_of_last']:.2f} "
            f"and {100 * test['bias_of_last']:+.2f} % if the loss just stayed where it was)"
        )
    if result["is_curve"]:
        lines.append(
            "all points are of one run: what other seeds and learning rates would give is not in these intervals"
        )
    forecast = result["forecast"]
    if forecast is None:
        lines += ["no promise is made:", *(f"  - {reason}" for reason in result["doubts"])]
    else:
        low, high = forecast["interval"]
        lines.append(
            f"at {forecast['size']:g} {result['size']}: {forecast['loss']:.4g} (95 % interval {low:.4g} to {high:.4g}), if "
            "nothing but the amount of data changes"
        )
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw points, law and forecast, both axes logarithmic, and write them as a PNG.

    Args:
        result: of `scaling_law`.
        path: the file to write.
    """
    sizes, losses = (np.array([row[key] for row in result["data"]]) for key in ("size", "loss"))
    figure = Figure(figsize=(7.5, 4.6), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    forecast, test = result["forecast"], result["held_out"]
    edge = sizes.max() / 2 if test is not None else np.inf
    axes.scatter(sizes[sizes <= edge], losses[sizes <= edge], s=12, color="#1b6ca8", label="points")
    if test is not None:
        axes.scatter(sizes[sizes > edge], losses[sizes > edge], s=12, color="#c98a1b", label="held out for the test")
    fitted = np.geomspace(sizes.min(), sizes.max(), 200)
    a, b, offset = result["laws"]["power law with offset"]["parameters"].values()
    axes.plot(fitted, a * fitted**-b + offset, color="#1d2733", label=f"a / D^b + E, b = {b:.2g}")
    if forecast is not None:
        beyond = np.geomspace(sizes.max(), forecast["size"], 50)
        axes.plot(beyond, a * beyond**-b + offset, color="#1d2733", linestyle="--")
        low, high = forecast["interval"]
        error = [[max(0.0, forecast["loss"] - low)], [max(0.0, high - forecast["loss"])]]
        axes.errorbar(
            [forecast["size"]], [forecast["loss"]], error, color="#d1495b", fmt="o", capsize=4, label="forecast"
        )
    axes.set(xscale="log", yscale="log", xlabel=f"D: {result['size']}", ylabel=result["loss"])
    axes.set_title("no promise is made of more data" if forecast is None else "scaling law", fontsize=11)
    axes.grid(which="both", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        canvas.print_figure(temporary, format="png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="a CSV, or folders of training runs or evaluations")
    parser.add_argument("--out", type=Path, default=Path("scaling"), help="folder for scaling.json and scaling.png")
    parser.add_argument("--figure", default="accuracy", help=f"of evaluations, one of {', '.join(FIGURES)}")
    parser.add_argument("--size", help="a CSV's column of sizes")
    parser.add_argument("--loss", help="a CSV's column of losses")
    parser.add_argument("--from", dest="begin", type=float, help="leave out smaller sizes, e.g. a curve's warm-up")
    parser.add_argument("--to", type=float, help="size to forecast; by default twice the largest")
    parser.add_argument("--draws", type=int, default=300, help="bootstrap replicates (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Fit the law, say what it is worth and write both files."""
    args = _arguments()
    try:
        if args.draws < _FEWEST_DRAWS:
            raise ConfigError(f"--draws: {args.draws}; at least {_FEWEST_DRAWS} make an interval")
        if args.to is not None and args.to <= 0:
            raise ConfigError(f"--to: {args.to:g}; expected a size above 0")
        points = read_points(args.results, size=args.size, loss=args.loss, figure=args.figure, begin=args.begin)
        result = scaling_law(points, to=args.to, draws=args.draws, seed=args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "scaling.json", result)
        draw(result, args.out / "scaling.png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(words(result))
    print(f"written: {args.out / 'scaling.json'}, {args.out / 'scaling.png'}")


if __name__ == "__main__":
    main()
