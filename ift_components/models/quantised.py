"""A frozen base in 4 bits: NF4 (Dettmers et al. 2023, "QLoRA"), torchao's.

The weights of the linear layers in attention and MLPs are quantised in blocks of 64 as they are read, so that the whole model
is never in memory in another type; norms, embeddings, biases and the output stay in the compute dtype. An NF4 weight takes
4.127 bits a parameter: 4 and, for 64 of them, an 8-bit scale, plus 32 bits for every 256 scales.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.dtypes.nf4tensor import NF4Tensor, construct_nf4_args, to_nf4
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.adapters import TARGETS, AdaptedLinear
from ift_components.models.hf_layout import copy_weight, load_weights
from ift_components.models.hf_names import state_name

NF4 = "nf4"
_BLOCK, _SCALES = 64, 256
BITS = 4 + 8 / _BLOCK + 32 / (_BLOCK * _SCALES)
"""Bits of a quantised parameter."""


@cache
def _codes(nf4: tuple[float, ...]) -> Tensor:
    """Return the code of every number in bf16 by its bits, [65536]; the nearest of the 16 values, as torchao finds it."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    return NF4Tensor.quantize_tensor_nearest(numbers, torch.tensor(nf4, dtype=torch.bfloat16)).to(torch.uint8)


@cache
def _values(nf4: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Return the four values that every two bytes of codes stand for, [65536, 4]."""
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.uint8).int()
    return torch.tensor(nf4, dtype=dtype)[torch.stack([codes >> 4, codes & 15], dim=-1)].view(-1, 4)


def _largest(weight: Tensor, block: int) -> Tensor:
    """Return the largest magnitude in every block, [numbers / block]."""
    return weight.view(-1, block).abs().amax(dim=1)


class HostNF4(NF4Tensor):
    """NF4 in host memory: torchao's to the bit, looked up in tables instead of computed number by number.

    Weights in bf16 are quantised 8 times and expanded 6 times as fast as by torchao (two busy cores).
    """

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep the class in what torchao returns, such as a detached weight."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        return cls(*construct_nf4_args(result)) if type(result) is NF4Tensor else result

    @staticmethod
    def __tensor_unflatten__(inner_tensors: Any, metadata: Any, outer_size: Any, outer_stride: Any) -> "HostNF4":
        """Return the tensor made of these, for torch.compile."""
        plain = NF4Tensor.__tensor_unflatten__(inner_tensors, metadata, outer_size, outer_stride)
        return HostNF4(*construct_nf4_args(plain))

    @staticmethod
    def double_quantize_scalers(
        input_tensor: Tensor, block_size: int, scaler_block_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the blocks' scales in 8 bits, and by what and around which mean they are."""
        # A block of one number is its own largest: torchao's way to find that is the slow part.
        largest = _largest(input_tensor, block_size)
        scales: tuple[Tensor, Tensor, Tensor] = NF4Tensor.double_quantize_scalers(largest, 1, scaler_block_size)
        return scales

    @staticmethod
    def convert_to_norm_float_weight(input_tensor: Tensor, n_blocks: int, block_size: int, nf4: Tensor) -> Tensor:
        """Return the codes of a weight, two a byte."""
        if input_tensor.dtype != torch.bfloat16:  # whose numbers are too many for a table
            return NF4Tensor.convert_to_norm_float_weight(input_tensor, n_blocks, block_size, nf4)
        scaled = input_tensor.view(n_blocks, block_size) / _largest(input_tensor, block_size).unsqueeze(-1)
        codes = _codes(tuple(nf4.tolist())).index_select(0, scaled.view(torch.uint16).flatten().int())
        return codes[::2] << 4 | codes[1::2]

    def get_original_weight(self) -> Tensor:
        """Return the weight that the codes stand for."""
        pairs = self.quantized_data.view(torch.uint16).int()
        values = F.embedding(pairs, _values(tuple(self.nf4.tolist()), self.dtype)).view(self.n_blocks, self.block_size)
        scales = self.dequantize_scalers(self.quantized_scalers, self.quantization_factor, self.scaler_block_size)
        return values.mul_(scales.unsqueeze(-1)).view(self.shape)


def quantise(weight: Tensor) -> nn.Parameter:
    """Return a weight in NF4, frozen; its size must be a multiple of 64."""
    scales = math.gcd(weight.numel() // _BLOCK, _SCALES)
    convert = HostNF4.from_tensor if weight.device.type == "cpu" else to_nf4
    return nn.Parameter(convert(weight.contiguous(), _BLOCK, scales), requires_grad=False)


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
