"""What is trained: for each part of the model a method, with its learning rate and arguments.

A config says it in one section, `tuning: {encoder: full, fusion: full, decoder: frozen}`; a part's value is a method's name or
a mapping `{method: ..., lr: ..., <the method's arguments>}`. Methods stand in `METHODS`; a new one is added there and no caller
changes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.models import adapters, prompts_by_layer
from ift_components.models.parts import PARTS, part_of, part_parameters

__all__ = [
    "FINE_TUNING", "FROZEN", "METHODS", "PARTS", "WARM_UP", "Method", "PartTuning", "Tuning", "apply_tuning", "part_of",
    "part_parameters",
]  # fmt: skip

FROZEN = "frozen"


@dataclass(frozen=True)
class PartTuning:
    """How one part of the model is trained."""

    method: str = FROZEN
    """A name in `METHODS`."""

    lr: float | None = None
    """Learning rate of this part; None is the optimizer's."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The method's own arguments."""

    @property
    def trains_base(self) -> bool:
        """Whether the base's own weights are trained."""
        return self.method != FROZEN and METHODS[self.method].adapter is None

    @property
    def pull(self) -> float:
        """How strongly every step pulls the part back to its start weights (L2-SP); 0 does not."""
        return float(self.arguments.get("pull", 0.0))

    @property
    def share(self) -> float:
        """How far from its start weights to its trained ones the part stands in a saved checkpoint; below 1 it is set back."""
        return METHODS[self.method].share(self.arguments)


@dataclass(frozen=True)
class Tuning:
    """How each part of the model is trained; without arguments all are frozen, as in the warm-up."""

    encoder: PartTuning = PartTuning()
    """The vision encoder."""

    fusion: PartTuning = PartTuning()
    """Projection, cross-attention layers and the embeddings of the special tokens that fusion adds."""

    decoder: PartTuning = PartTuning()
    """The language layers, with embeddings and output."""

    @classmethod
    def parse(cls, node: Mapping[str, Any], key: str = "tuning") -> Self:
        """Read the section of a config.

        Args:
            node: for every part a method's name, or a mapping with `method` and perhaps `lr` and arguments.
            key: the section's name, for messages.

        Raises:
            ConfigError: if a part is missing or unknown, or its method, learning rate or arguments are wrong.
        """
        unknown = sorted(set(node) - set(PARTS))
        if unknown:
            raise ConfigError(f"{key}: '{unknown[0]}' is not one of {', '.join(PARTS)} (the proxy's rate is proxy.lr)")
        missing = [part for part in PARTS if node.get(part) is None]
        if missing:
            raise ConfigError(f"{key}.{missing[0]}: give one of {', '.join(METHODS)}")
        tuning = cls(**{part: _parse_part(node[part], f"{key}.{part}") for part in PARTS})
        kinds = sorted(tuning.adapter_kinds - {"prompts"})
        if len(kinds) > 1:
            raise ConfigError(f"{key}: {' and '.join(kinds)} do not go into one adapter; use one of them for all parts")
        return tuning

    def items(self) -> Iterator[tuple[str, PartTuning]]:
        """Yield (part, how it is trained) in the order of `PARTS`."""
        return ((part.name, getattr(self, part.name)) for part in fields(self))

    def __getitem__(self, part: str) -> PartTuning:
        """Return how a part is trained."""
        how: PartTuning = getattr(self, part)
        return how

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return what `parse` reads."""
        return {part: {"method": how.method, "lr": how.lr, **how.arguments} for part, how in self.items()}

    @property
    def adapter_kinds(self) -> set[str]:
        """Kinds of adapters that the parts are given; without any, the whole model is saved."""
        return {kind for _, how in self.items() if (kind := METHODS[how.method].adapter) is not None}

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of the model is trained."""
        return all(part.method == FROZEN for _, part in self.items())


WARM_UP = Tuning()
"""The whole model frozen: the proxy alone is trained."""

FINE_TUNING = Tuning(encoder=PartTuning("full"), fusion=PartTuning("full"))
"""What the paper trains."""


def _parse_part(value: Any, key: str) -> PartTuning:
    settings = {"method": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else None
    names = ", ".join(METHODS)
    if settings is None or "method" not in settings:
        raise ConfigError(f"{key}: {value} names no method; give one of {names}, or {{method: ..., lr: ...}}")
    method, lr = settings.pop("method"), settings.pop("lr", None)
    if method not in METHODS:
        raise ConfigError(f"{key}: '{method}' is not one of {names}")
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, int | float) or lr <= 0):
        raise ConfigError(f"{key}.lr: {lr} is not a number above 0")
    if lr is not None and method == FROZEN:
        raise ConfigError(f"{key}.lr: {lr} has no effect on a frozen part; remove it or choose another method")
    METHODS[method].check(settings, key)
    return PartTuning(method, lr, settings)


@dataclass(frozen=True)
class Method:
    """A way to train a part of the model."""

    apply: Callable[[DeepFusionModel, str, Mapping[str, Any]], None]
    """Takes the model, the part and the arguments; adds what the method needs and sets `requires_grad` in the part."""

    check: Callable[[Mapping[str, Any], str], None]
    """Takes the arguments and the section's key; raises `ConfigError` if they are wrong."""

    adapter: str | None = None
    """Kind of adapter that is saved beside its base, if the method adds one; None trains the base's own weights."""

    share: Callable[[Mapping[str, Any]], float] = lambda arguments: 1.0  # noqa: ARG005
    """Takes the arguments; returns the share of the way from start to trained weights that a saved checkpoint keeps."""


def _train_all(model: DeepFusionModel, part: str, arguments: Mapping[str, Any]) -> None:  # noqa: ARG001
    for _, parameter in part_parameters(model, part):
        parameter.requires_grad = True


def _train_none(model: DeepFusionModel, part: str, arguments: Mapping[str, Any]) -> None:  # noqa: ARG001
    for _, parameter in part_parameters(model, part):
        parameter.requires_grad = False


def _check_pull(arguments: Mapping[str, Any], key: str) -> None:
    adapters.refuse_unknown(arguments, key, "pull")
    pull = arguments.get("pull", 0.0)
    if isinstance(pull, bool) or not isinstance(pull, int | float) or pull < 0:
        raise ConfigError(f"{key}.pull: {pull} is not a number of 0 or more")


def _check_share(arguments: Mapping[str, Any], key: str) -> None:
    adapters.refuse_unknown(arguments, key, "keep")
    share = arguments.get("keep", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError(f"{key}.keep: {share} is not a number from 0 (set back to the start) to 1 (as trained)")


METHODS: dict[str, Method] = {
    FROZEN: Method(_train_none, adapters.refuse_unknown),
    "full": Method(_train_all, _check_pull),
    "lora": Method(adapters.add_lora, adapters.check_low_rank, adapter="lora"),
    "dora": Method(adapters.add_dora, adapters.check_low_rank, adapter="dora"),
    "ia3": Method(adapters.add_ia3, adapters.check_ia3, adapter="ia3"),
    "prefix": Method(prompts_by_layer.add_prefix, prompts_by_layer.check_prefix, adapter="prompts"),
    "ptuning_v2": Method(prompts_by_layer.add_ptuning_v2, prompts_by_layer.check_ptuning_v2, adapter="prompts"),
    # Trained in full and set back in the saved checkpoint: it helps the others to learn and is thrown away, as the proxy is.
    "scaffold": Method(_train_all, _check_share, share=lambda arguments: float(arguments.get("keep", 0.0))),
}


def apply_tuning(model: DeepFusionModel, tuning: Tuning) -> None:
    """Make a model, fresh from its builder and not yet sharded, one that trains what `tuning` says."""
    for part, how in tuning.items():
        METHODS[how.method].apply(model, part, how.arguments)
