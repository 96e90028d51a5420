"""Metrics for reports of chest X-rays by the package RadEval, where it is installed."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Protocol

from ift_components.errors import ConfigError

_HOSTED = ("crimson", "mammo_green", "radfact_ct")  # these send the texts to a hosted model


class Evaluator(Protocol):
    """RadEval's own evaluator."""

    def __call__(self, refs: list[str], hyps: list[str]) -> Mapping[str, Any]:
        """Return its figures by name."""


def load_radeval(metrics: Sequence[str], private: str | None) -> Evaluator | None:
    """Return RadEval's evaluator, with the models of its metrics loaded; None for no metrics.

    Args:
        metrics: names that RadEval gives its metrics.
        private: why the texts may not leave this machine; None if they may.

    Raises:
        ConfigError: if the package is missing, or a metric is unknown to it or would send private texts away.
    """
    if not metrics:
        return None
    hosted = [name for name in metrics if name in _HOSTED]
    if hosted and private is not None:
        raise ConfigError(
            f"judge.radeval: '{hosted[0]}' asks a hosted model, but {private}; leave it out, or set judge.allow_remote=true "
            "if the data's terms allow it"
        )
    try:
        from radeval import RadEval  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError(
            f"judge.radeval: {error}; install it by pip install 'instruction-free-tuning[radeval]', or leave the key out"
        ) from error
    try:
        evaluator: Evaluator = RadEval(metrics=list(metrics), show_progress=False)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"judge.radeval: {' '.join(str(error).split())}") from error
    return evaluator


def radeval_figures(evaluator: Evaluator, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return RadEval's figures of texts against references, those that are numbers."""
    figures = evaluator(refs=list(references), hyps=list(texts))
    return {name: float(value) for name, value in figures.items() if isinstance(value, Real)}
