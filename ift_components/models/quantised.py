"""A frozen base in 4 bits: NF4 (Dettmers et al. 2023, "QLoRA"), torchao's.

The weights of the linear layers in attention and MLPs are quantised in blocks of 64 as they are read, so that the whole model
is never in memory in another type; norms, embeddings, biases and the output stay in the compute dtype. An NF4 weight takes
4.127 bits a parameter: 4 and, for 64 of them, an 8-bit scale, plus 32 bits for every 256 scales.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchao.dtypes.nf4tensor import to_nf4
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.adapters import TARGETS, AdaptedLinear
from ift_components.models.hf_layout import copy_weight, load_weights
from ift_components.models.hf_names import state_name

NF4 = "nf4"
_BLOCK, _SCALES = 64, 256
BITS = 4 + 8 / _BLOCK + 32 / (_BLOCK * _SCALES)
"""Bits of a quantised parameter."""


def quantise(weight: Tensor) -> nn.Parameter:
    """Return a weight in NF4, frozen; its size must be a multiple of 64."""
    scales = math.gcd(weight.numel() // _BLOCK, _SCALES)
    return nn.Parameter(to_nf4(weight.contiguous(), _BLOCK, scales), requires_grad=False)


def quantisable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers whose weights are held in NF4, by the weights' names in the state dict."""
    return {
        f"{state_name(name)}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | AdaptedLinear)
        and state_name(name).rpartition(".")[2] in TARGETS
        and not module.weight.requires_grad
        and module.weight.numel() % _BLOCK == 0
    }


def store_others(model: DeepFusionModel, device: torch.device) -> dict[str, nn.Module]:
    """Give storage to a model built on the meta device, but for the weights to be quantised; return the layers that have them.

    Args:
        model: the model; its parameters get storage in the dtype that they have.
        device: where it goes.
    """
    layers = quantisable(model)
    quantised = {id(module) for module in layers.values()}
    for module in model.modules():
        if id(module) not in quantised:
            module.to_empty(device=device, recurse=False)
        elif module.bias is not None:
            bias = module.bias
            module.bias = nn.Parameter(torch.empty_like(bias, device=device), requires_grad=bias.requires_grad)
    return layers


def fill_quantised(model: DeepFusionModel, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Give a model built on the meta device storage and a checkpoint's weights, quantising them one at a time.

    Args:
        model: the model; layers that `quantisable` does not name get storage in the dtype that they have.
        folder: a checkpoint in Hugging Face layout.
        device: where it goes.
        dtype: the compute dtype, which weights are rounded to before they are quantised, as they would be without.

    Raises:
        ConfigError: if the checkpoint does not fit.
    """
    layers = store_others(model, device)

    def store(name: str, target: Tensor, value: Tensor) -> None:
        if name in layers:
            layers[name].weight = quantise(value.to(device, dtype))
        else:
            copy_weight(name, target, value)

    load_weights(model, folder, store)
