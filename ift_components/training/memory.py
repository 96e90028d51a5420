"""What a run keeps in memory and sends: `python -m ift_components.training.memory` prints the tables for the 11B model.

Weights, gradients and optimizer state are counted exactly, for AdamW; activations by tracing a step (`activations.py`). Neither
counts what kernels use inside an operation, nor what an allocator loses between blocks.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torchtune.models.llama3_2_vision import llama3_2_vision_11b
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.adapters import is_added
from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.quantised import BITS, quantisable
from ift_components.models.sharding import RECOMPUTED, checkpoint_activations, gets_gradient, shard_units
from ift_components.models.trainable import FINE_TUNING, PARTS, WARM_UP, Tuning, apply_tuning
from ift_components.training.activations import meta_model, traced_bytes
from ift_components.training.flops import LAYOUTS, image_batch, in_layout

CARDS = (16, 24, 40, 80)
"""Memory of usual GPUs, in GB."""
_K, _POSITIONS = 8, 100
ROOM = 3 * 10**9
"""Bytes left for activations, kernels and a layer whose 4-bit weights are expanded; an assumption, not measured."""
_FP32, _BF16 = 4, 2
_ADAMW_MOMENTS = 2


def static_bytes(
    frozen: int, trained: int, processes: int, frozen_bytes: int = _BF16, *, shard_frozen: bool = True
) -> float:
    """Return the bytes that each process holds from the first optimizer step on.

    A trained parameter costs 16 bytes: its fp32 master, its fp32 gradient and AdamW's two fp32 moments; a frozen one only
    itself. What is trained is shared evenly.

    Args:
        frozen: frozen parameters of the whole model.
        trained: trained parameters of the whole model.
        processes: processes that share them.
        frozen_bytes: bytes of a frozen parameter: 2 in bf16, 4 in fp32.
        shard_frozen: whether frozen parameters are shared too; otherwise each process holds all of them.
    """
    whole = frozen * frozen_bytes / (processes if shard_frozen else 1)
    return whole + trained * _FP32 * (2 + _ADAMW_MOMENTS) / processes


def peak_bytes(
    model: DeepFusionModel, batch: Batch, dtype: torch.dtype, *, shards: int = 1, shard_frozen: bool = False
) -> int:
    """Return the most bytes that a process holds in a step after the first: state, gradients, activations, gathered weights.

    Args:
        model: from `meta_model`, its activation checkpointing applied.
        batch: a batch of the shapes in question, on any device.
        dtype: the compute dtype.
        shards: processes that share what is trained.
        shard_frozen: whether they share frozen weights too.
    """
    added = sum(p.numel() for name, p in model.named_parameters() if is_added(name))
    frozen, trained = parameter_counts(model)
    state = static_bytes(frozen, trained - added, shards, dtype.itemsize, shard_frozen=shard_frozen)
    state += static_bytes(0, added, 1)
    gradients = _FP32 * ((trained - added) / shards + added)
    # The unit that computes and the one that is prefetched.
    gathered = sorted(_unit_sizes(model, shard_frozen=shard_frozen).values())[-2:]
    is_gathered = shards > 1 or dtype is not torch.float32
    temporary = traced_bytes(model, batch, dtype, shards=shards) + sum(gathered) * dtype.itemsize * is_gathered
    return round(max(state, state - gradients + temporary))


def trained_bytes(model: DeepFusionModel, shards: int) -> int:
    """Return the bytes that one more fp32 copy of what is trained takes on each of the processes that share it."""
    added = sum(p.numel() for name, p in model.named_parameters() if is_added(name))
    return round(_FP32 * ((parameter_counts(model)[1] - added) / shards + added))


def _unit_sizes(model: DeepFusionModel, *, shard_frozen: bool) -> dict[nn.Module, int]:
    """Return how many parameters each unit of sharding gathers, in forward order; the rest is the model's."""
    sizes: dict[nn.Module, int] = {}
    counted: set[nn.Parameter] = set()
    for unit in (*shard_units(model), model.encoder.clip, model.encoder.projection, model):
        mine = {p for name, p in unit.named_parameters() if not is_added(name)} - counted
        counted |= mine
        if size := sum(p.numel() for p in mine if shard_frozen or p.requires_grad):
            sizes[unit] = size
    return sizes


def communication_bytes(
    model: DeepFusionModel, dtype: torch.dtype, processes: int, *, shard_frozen: bool
) -> tuple[int, int]:
    """Return the bytes that each process receives in a forward and backward pass: gathered weights, and reduced gradients.

    A unit is gathered for the forward pass and again for the backward pass, if a gradient goes through it; what lies outside of
    all units (norm and output among it) stays from one to the other. Gradients are reduced in fp32.

    Args:
        model: the model, with `requires_grad` as trained.
        dtype: the compute dtype, which weights are gathered in.
        processes: processes that share the weights.
        shard_frozen: whether frozen weights are shared.
    """
    gathered = 0
    for unit, size in _unit_sizes(model, shard_frozen=shard_frozen).items():
        gathered += size * (2 if unit is not model and gets_gradient(model, unit) else 1)
    reduced = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and not is_added(name))
    share = (processes - 1) / processes
    return round(gathered * dtype.itemsize * share), round(reduced * _FP32 * share)


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
    model = meta_model(build, tuning, torch.bfloat16, _POSITIONS)
    checkpoint_activations(model, "all")
    proxy = nn.Parameter(torch.zeros(_K, model.decoder.output.in_features, device="meta"))
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
        ResponseLoss(model, torch.bfloat16)(image_batch(grid=grid), proxy)
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


_STAGES = {"warm-up": WARM_UP, "fine-tuning": FINE_TUNING}


def _print_processes() -> None:
    print(
        "| GPUs | stage | frozen sharded, GiB each | GB received a pass | frozen whole, GiB each | GB received a pass |"
    )
    print("|---:|---|---:|---:|---:|---:|")
    for processes in (1, 2, 4, 8, 16):
        for stage, tuning in _STAGES.items():
            model = meta_model(llama3_2_vision_11b, tuning, torch.bfloat16, 1)
            cells = []
            for shard_frozen in (True, False):
                held = static_bytes(*parameter_counts(model), processes, shard_frozen=shard_frozen)
                sent = communication_bytes(model, torch.bfloat16, processes, shard_frozen=shard_frozen)
                cells += [f"{held / 2**30:.1f}", f"{sum(sent) / 1e9:.1f}"]
            print(f"| {processes} | {stage} | {' | '.join(cells)} |")


def _print_peaks() -> None:
    print(f"| one GPU, batch | {' | '.join(RECOMPUTED)} |")
    print("|---|" + "---:|" * len(RECOMPUTED))
    for stage, tuning in _STAGES.items():
        for images in (1, 2, 4, 8):
            cells = []
            for recomputed in RECOMPUTED:
                model = meta_model(llama3_2_vision_11b, tuning, torch.bfloat16, 100)
                checkpoint_activations(model, recomputed)
                cells.append(f"{peak_bytes(model, image_batch(images), torch.bfloat16) / 2**30:.1f}")
            print(f"| {stage}, {images} | {' | '.join(cells)} |")


def _print_layouts() -> None:
    print("| MiB an image keeps, all recomputed | warm-up | fine-tuning |")
    print("|---|---:|---:|")
    for name, (grid, tile_padding) in LAYOUTS.items():
        kept = [activation_bytes(tuning, grid=grid, tile_padding=tile_padding) for tuning in (WARM_UP, FINE_TUNING)]
        print(f"| {name} | {kept[0] / 2**20:.0f} | {kept[1] / 2**20:.0f} |")


def main() -> None:
    """Print the tables of the 11B model as Markdown."""
    for print_table in (_print_methods, _print_processes, _print_peaks, _print_layouts):
        print_table()
        print()


if __name__ == "__main__":
    main()
