"""Small trained parameters inside a frozen linear layer: LoRA, DoRA and (IA)3.

torchtune's LoRA modules assume one dtype for base and adapter, peft's rename the base weights, on which checkpoints, sharding
and compilation rest. Here a linear layer keeps its weight's name, frozen in whatever dtype (NF4 too), and gets a child module
`adapter`, whose parameters are in fp32 and take part in the compute dtype. Saved files are peft's (`adapter_files.py`).
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.models.parts import part_of, part_parameters

CHILD = "adapter"
"""Name of the child module that holds what a method adds, whatever the method."""

TARGETS = ("q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3")
"""Linear layers that can be adapted: attention's four, and the MLP's (w1 gate or first, w2 down or second, w3 up)."""

_RANK = 8
_SCALED_INPUTS = ("w2",)  # (IA)3 scales the MLP's inner activation, which is the input of the down projection


def is_added(parameter_name: str) -> bool:
    """Whether a parameter is none of the base model's but one that a method has added."""
    return f".{CHILD}." in parameter_name


def added_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that methods have added."""
    return (parameter for name, parameter in model.named_parameters() if is_added(name))


def dense(weight: Tensor) -> Tensor:
    """Return a weight in fp32, whole, whatever it is held in; all processes take part if it is sharded."""
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    return weight.get_original_weight().float() if isinstance(weight, NF4Tensor) else weight.float()


class LowRank(nn.Module):
    """LoRA's pair of matrices (Hu et al. 2021), and DoRA's magnitudes (Liu et al. 2024) if wanted.

    The weight W [out, in] becomes W + alpha / rank * B A; with magnitudes m [out], each row of that is scaled to the norm m.

    Args:
        linear: the layer it adapts.
        rank: r, columns of B [out, r] and rows of A [r, in].
        alpha: the update's scale times r.
        magnitudes: whether it is DoRA.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, *, magnitudes: bool) -> None:
        super().__init__()
        device = linear.weight.device
        self.rank, self.alpha = rank, alpha
        self.a = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.b = nn.Parameter(torch.empty(linear.out_features, rank, device=device))
        self.magnitude = nn.Parameter(torch.empty(linear.out_features, device=device)) if magnitudes else None

    @torch.no_grad()
    def initialise(self, weight: Tensor, generator: torch.Generator) -> None:
        """Draw A, set B to 0 and the magnitudes to the weight's row norms, so that nothing changes yet."""
        bound = self.a.shape[1] ** -0.5
        self.a.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator))
        self.b.zero_()
        if self.magnitude is not None:
            self.magnitude.copy_(torch.linalg.norm(dense(weight), dim=1))

    def _update(self) -> Tensor:
        return (self.b @ self.a) * (self.alpha / self.rank)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the adapted layer's output, [..., in] to [..., out]."""
        update = F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * (self.alpha / self.rank)
        if self.magnitude is None:
            return F.linear(x, weight, bias) + update
        with torch.no_grad():  # the norm is a constant to the gradient (Liu et al. 2024, section 4.3)
            norm = torch.linalg.norm(dense(weight) + self._update(), dim=1)
        out = (F.linear(x, weight) + update) * (self.magnitude / norm).to(x.dtype)
        return out if bias is None else out + bias

    def merge_weight(self, weight: Tensor) -> Tensor:
        """Return the weight in fp32 of the plain layer that does the same."""
        total = weight.float() + self._update().to(weight.device)
        if self.magnitude is not None:
            total *= (self.magnitude.to(weight.device) / torch.linalg.norm(total, dim=1)).unsqueeze(1)
        return total

    def merge_bias(self, bias: Tensor) -> Tensor:
        """Return the bias of the plain layer that does the same."""
        return bias


class Scaling(nn.Module):
    """(IA)3's vector (Liu et al. 2022), 1 at the start: it scales a layer's outputs, or its inputs.

    Args:
        linear: the layer it adapts.
        inputs: whether it scales the inputs.
    """

    def __init__(self, linear: nn.Linear, *, inputs: bool) -> None:
        super().__init__()
        self.inputs = inputs
        size = linear.in_features if inputs else linear.out_features
        self.scale = nn.Parameter(torch.empty(size, device=linear.weight.device))

    @torch.no_grad()
    def initialise(self, weight: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002 (nothing is drawn)
        """Set the vector to 1."""
        self.scale.fill_(1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the adapted layer's output, [..., in] to [..., out]."""
        scale = self.scale.to(x.dtype)
        return F.linear(x * scale, weight, bias) if self.inputs else F.linear(x, weight, bias) * scale

    def merge_weight(self, weight: Tensor) -> Tensor:
        """Return the weight in fp32 of the plain layer that does the same."""
        scale = self.scale.to(weight.device)
        return weight.float() * (scale if self.inputs else scale.unsqueeze(1))

    def merge_bias(self, bias: Tensor) -> Tensor:
        """Return the bias of the plain layer that does the same."""
        return bias if self.inputs else bias.float() * self.scale.to(bias.device)


class AdaptedLinear(nn.Module):
    """A linear layer with an adapter; its own parameters keep their names.

    Args:
        linear: the layer that it stands in for.
        adapter: what is trained in it.
    """

    def __init__(self, linear: nn.Linear, adapter: LowRank | Scaling) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for [..., in]."""
        out: Tensor = self.adapter(x, self.weight, self.bias)
        return out


def linear_layers(model: DeepFusionModel, part: str) -> dict[str, nn.Linear]:
    """Return the linear layers of a part that can be adapted, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS and part_of(f"{name}.") == part
    }


def replace_layer(model: nn.Module, name: str, adapter: LowRank | Scaling) -> None:
    """Put an adapter into the linear layer of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, AdaptedLinear(model.get_submodule(name), adapter))  # type: ignore[arg-type]


def _targeted(model: DeepFusionModel, part: str, targets: list[str]) -> dict[str, nn.Linear]:
    layers = linear_layers(model, part)
    present = sorted({name.rpartition(".")[2] for name in layers})
    absent = [target for target in targets if target not in present]
    if absent:
        raise ConfigError(f"tuning.{part}.targets: the {part} has no {absent[0]}; it has {', '.join(present)}")
    return {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in targets}


def freeze(model: DeepFusionModel, part: str) -> None:
    """Freeze what a part has so far."""
    for _, parameter in part_parameters(model, part):
        parameter.requires_grad = False


def _add_low_rank(model: DeepFusionModel, part: str, arguments: Mapping[str, Any], *, magnitudes: bool) -> None:
    rank = int(arguments.get("rank", _RANK))
    freeze(model, part)
    for name, layer in _targeted(model, part, list(arguments.get("targets", ("q_proj", "k_proj")))).items():
        largest = min(layer.in_features, layer.out_features)
        if rank > largest:
            raise ConfigError(
                f"tuning.{part}.rank: {rank} is above {largest}, the rank of {name} "
                f"({layer.out_features} x {layer.in_features}); give at most that"
            )
        alpha = float(arguments.get("alpha", 2 * rank))
        replace_layer(model, name, LowRank(layer, rank, alpha, magnitudes=magnitudes))


def add_lora(model: DeepFusionModel, part: str, arguments: Mapping[str, Any]) -> None:
    """Freeze a part and add LoRA (`rank`, `alpha`, `targets`) to its linear layers."""
    _add_low_rank(model, part, arguments, magnitudes=False)


def add_dora(model: DeepFusionModel, part: str, arguments: Mapping[str, Any]) -> None:
    """Freeze a part and add DoRA (`rank`, `alpha`, `targets`) to its linear layers."""
    _add_low_rank(model, part, arguments, magnitudes=True)


def add_ia3(model: DeepFusionModel, part: str, arguments: Mapping[str, Any]) -> None:
    """Freeze a part and add (IA)3 (`targets`) to its linear layers."""
    freeze(model, part)
    for name, layer in _targeted(model, part, list(arguments.get("targets", ("k_proj", "v_proj", "w2")))).items():
        replace_layer(model, name, Scaling(layer, inputs=name.rpartition(".")[2] in _SCALED_INPUTS))


def refuse_unknown(arguments: Mapping[str, Any], key: str, *allowed: str) -> None:
    """Raise `ConfigError` for an argument that a method does not take."""
    unknown = [name for name in arguments if name not in allowed]
    if unknown:
        takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
        raise ConfigError(f"{key}.{unknown[0]}: the method takes no such argument; {takes}")


def _check_targets(arguments: Mapping[str, Any], key: str) -> None:
    targets = arguments.get("targets", [])
    if isinstance(targets, str) or (not targets and "targets" in arguments):
        raise ConfigError(f"{key}.targets: {targets} is no list of layers; give some of {', '.join(TARGETS)}")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ConfigError(f"{key}.targets: '{unknown[0]}' is not one of {', '.join(TARGETS)}")


def check_low_rank(arguments: Mapping[str, Any], key: str) -> None:
    """Check the arguments of LoRA and DoRA."""
    refuse_unknown(arguments, key, "rank", "alpha", "targets")
    check_count(arguments.get("rank", _RANK), f"{key}.rank")
    alpha = arguments.get("alpha", 1)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha <= 0:
        raise ConfigError(f"{key}.alpha: {alpha} is not a number above 0; by default it is twice the rank")
    _check_targets(arguments, key)


def check_ia3(arguments: Mapping[str, Any], key: str) -> None:
    """Check the arguments of (IA)3."""
    refuse_unknown(arguments, key, "targets")
    _check_targets(arguments, key)


def check_count(value: Any, key: str) -> None:
    """Raise `ConfigError` unless a value is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}: {value} is not a whole number above 0")


def initialise_added(model: nn.Module, seed: int) -> None:
    """Give everything that methods have added its first values; call when the base weights are loaded.

    Args:
        model: the model; if it is sharded, all processes must call this.
        seed: every module draws from a generator of (seed, its name), so that the values depend on nothing else.
    """
    for name, module in model.named_modules():
        added = getattr(module, CHILD, None)
        if isinstance(added, nn.Module):
            digest = sha256(f"{seed}/{name}".replace("_checkpoint_wrapped_module.", "").encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6]))
            added.initialise(getattr(module, "weight", None), generator)  # type: ignore[operator]


def added_to_device(model: nn.Module, device: torch.device) -> None:
    """Move what methods have added to a device and to fp32; the base stays where it is."""
    for parameter in added_parameters(model):
        parameter.data = parameter.data.to(device, torch.float32)
