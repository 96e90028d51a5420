"""What a run keeps in memory: `python -m ift_components.training.memory` prints the tables for the 11B model.

Counted exactly: weights, gradients, optimizer state, sharded over all processes; and what one image and its response keep from
the forward to the backward pass. Not counted: the layer that is recomputed at the time, and the one or two layers that are
gathered whole.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torchtune.models.llama3_2_vision import llama3_2_vision_11b

from ift_components.models.forward import ResponseLoss
from ift_components.models.quantised import BITS, quantisable
from ift_components.models.sharding import checkpoint_activations
from ift_components.models.trainable import FINE_TUNING, PARTS, WARM_UP, Tuning, apply_tuning
from ift_components.training.activations import meta_model
from ift_components.training.flops import LAYOUTS, LONGEST, RESPONSE, K, in_layout, meta_batch

CARDS = (16, 24, 40, 80)
"""Memory of usual GPUs, in GB."""
ROOM = 3 * 10**9
"""Bytes left for activations, kernels and a layer whose 4-bit weights are expanded; an assumption, not measured."""
_FP32, _BF16 = 4, 2
_ADAMW_MOMENTS = 2


def static_bytes(frozen: int, trained: int, processes: int, frozen_bytes: int = _BF16) -> float:
    """Return the bytes that each process holds from the first optimizer step on.

    A trained parameter costs 16 bytes: its fp32 master, its fp32 gradient and AdamW's two fp32 moments; a frozen one only
    itself. All are sharded evenly.

    Args:
        frozen: frozen parameters of the whole model.
        trained: trained parameters of the whole model.
        processes: processes that share them.
        frozen_bytes: bytes of a frozen parameter: 2 in bf16, 4 in fp32.
    """
    return (frozen * frozen_bytes + trained * _FP32 * (2 + _ADAMW_MOMENTS)) / processes


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the frozen and the trained parameters of a model, in numbers."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters) - trained, trained


def quantised_bytes(model: nn.Module) -> float:
    """Return the bytes by which NF4 makes a model, its methods applied, smaller than bf16 does."""
    weights = [layer.get_parameter("weight") for layer in quantisable(model).values()]
    return sum(weight.numel() for weight in weights) * (_BF16 - BITS / 8)


def activation_bytes(tuning: Tuning, *, grid: tuple[int, int] = (1, 1), tile_padding: str = "none") -> int:
    """Return the bytes that the 11B model keeps of one image and one response from the forward to the backward pass.

    In bf16, with activations recomputed. Counted by torch's hooks over the package's own forward pass, without storage.

    Args:
        tuning: what is trained of the model; the proxy is in any case.
        grid: tiles down and across of the image.
        tile_padding: `none` or `meta`.
    """
    build = partial(in_layout, grid[0] * grid[1], tile_padding)
    model = meta_model(build, tuning, torch.bfloat16, LONGEST)
    checkpoint_activations(model, "all")
    proxy = nn.Parameter(torch.zeros(K, model.decoder.output.in_features, device="meta"))
    own = {StorageWeakRef(parameter.untyped_storage()) for parameter in (*model.parameters(), proxy)}
    kept: dict[StorageWeakRef, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(
            StorageWeakRef(tensor.untyped_storage()), tensor
        )  # the tensor keeps its storage from being reused
        return tensor

    # Cross-attention layers hold what the encoder gave without autograd's knowledge: they are recomputed from it.
    model.encoder.register_forward_hook(lambda _module, _inputs, features: keep(features))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ResponseLoss(model, torch.bfloat16)(meta_batch(grid, RESPONSE), proxy)
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


_ALL = ["q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2"]
METHODS: dict[str, dict[str, Any]] = {
    "warm-up": dict.fromkeys(PARTS, "frozen"),
    "full encoder and fusion": {"encoder": "full", "fusion": "full", "decoder": "frozen"},
    "full encoder and fusion, LoRA 8": {"encoder": "full", "fusion": "full", "decoder": "lora"},
    "LoRA 8, query and key": dict.fromkeys(PARTS, "lora"),
    "LoRA 64, all but w3": {part: {"method": "lora", "rank": 64, "targets": _ALL} for part in PARTS},
    "DoRA 8, query and key": dict.fromkeys(PARTS, "dora"),
    "(IA)3": dict.fromkeys(PARTS, "ia3"),
    "P-tuning v2, 16 tokens": dict.fromkeys(PARTS, "ptuning_v2"),
    "prefix, 16 tokens": {"encoder": "frozen", "fusion": "frozen", "decoder": "prefix"},
}
"""What the table lists: a name and the section `tuning`."""


def smallest_card(held: float) -> str:
    """Return the smallest of the usual GPUs that holds so many bytes and `ROOM` beside them."""
    fitting = [card for card in CARDS if held + ROOM <= card * 10**9]
    return f"{fitting[0]} GB" if fitting else "several"


def _print_methods() -> None:
    print("| one GPU | trained | bf16 base, GiB | fits | NF4 base, GiB | fits |")
    print("|---|---:|---:|---|---:|---|")
    for name, section in METHODS.items():
        with torch.device("meta"):
            model = llama3_2_vision_11b()
        tuning = Tuning.parse(section)
        apply_tuning(model, tuning)
        frozen, trained = parameter_counts(model)
        held = static_bytes(frozen, trained, 1)
        row = f"| {name} | {trained / 1e6:,.1f} M | {held / 2**30:.1f} | {smallest_card(held)} |"
        if any(how.trains_base for _, how in tuning.items()):
            print(f"{row} | |")  # NF4 cannot be trained
        else:
            held -= quantised_bytes(model)
            print(f"{row} {held / 2**30:.1f} | {smallest_card(held)} |")


def _print_activations() -> None:
    print("| MiB an image | warm-up | fine-tuning |")
    print("|---|---:|---:|")
    for name, (grid, tile_padding) in LAYOUTS.items():
        warm_up, tuned = (activation_bytes(t, grid=grid, tile_padding=tile_padding) for t in (WARM_UP, FINE_TUNING))
        print(f"| {name} | {warm_up / 2**20:.0f} | {tuned / 2**20:.0f} |")


def main() -> None:
    """Print the tables of the 11B model as Markdown."""
    _print_methods()
    print()
    _print_activations()
    print()
    with torch.device("meta"):
        model = llama3_2_vision_11b()
    apply_tuning(model, FINE_TUNING)
    frozen, trained = parameter_counts(model)
    print("| GPUs | warm-up, GiB each | fine-tuning, GiB each |")
    print("|---|---|---|")
    for processes in (1, 2, 4, 8, 16):
        warm_up = static_bytes(frozen + trained, 0, processes) / 2**30
        fine_tuning = static_bytes(frozen, trained, processes) / 2**30
        print(f"| {processes} | {warm_up:.1f} | {fine_tuning:.1f} |")


if __name__ == "__main__":
    main()
