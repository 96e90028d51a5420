"""Precision and sharding: fp32 masters for what is trained, the compute dtype for what is frozen, FSDP2 over all processes."""

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torchtune.modules import TransformerCrossAttentionLayer, TransformerSelfAttentionLayer
from torchtune.modules.model_fusion import DeepFusionModel, FusionEmbedding, FusionLayer
from torchtune.training import set_activation_checkpointing

from ift_components.models.adapters import added_parameters
from ift_components.models.forward import ResponseLoss


def set_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep trained parameters in fp32 and turn frozen ones into `dtype`; call before optimizer and sharding.

    Args:
        model: the model, with `requires_grad` set as it will be trained.
        dtype: the compute dtype, fp32 or bf16.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def shard_units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what is gathered as one piece, in the order of the forward pass; every piece is of one dtype in every stage."""
    if isinstance(module, DeepFusionModel):
        children: Iterable[nn.Module] = (module.encoder, module.decoder)
    elif isinstance(module, FusionLayer):
        children = (module.fusion_layer, module.layer)
    else:
        children = module.children()
    for child in children:
        if isinstance(child, CheckpointWrapper | TransformerSelfAttentionLayer | TransformerCrossAttentionLayer):
            yield child
        elif isinstance(child, FusionEmbedding):
            yield from (child.embedding, child.fusion_embedding)
        else:
            yield from shard_units(child)


RECOMPUTED = {"none": (), "language": ("decoder",), "encoder": ("encoder",), "all": ("encoder", "decoder")}
"""What `activation_checkpointing` may name, and the submodules of the model whose layers are recomputed under it."""


def checkpoint_activations(model: DeepFusionModel, recomputed: str) -> None:
    """Recompute transformer layers, cross-attention layers included, in the backward pass instead of storing what they keep.

    Args:
        model: the model.
        recomputed: whose layers: a name in `RECOMPUTED`.
    """
    layers = {TransformerSelfAttentionLayer, TransformerCrossAttentionLayer}
    for name in RECOMPUTED[recomputed]:
        set_activation_checkpointing(getattr(model, name), auto_wrap_policy=layers)


def compile_layers(model: DeepFusionModel) -> None:
    """Compile every transformer layer by itself: one compilation serves all layers of a kind."""
    for unit in shard_units(model):
        if not isinstance(unit, nn.Embedding):
            unit.compile()


def shard(
    module: ResponseLoss,
    mesh: DeviceMesh,
    dtype: torch.dtype,
    *,
    cpu_offload: bool = False,
    shard_frozen: bool = False,
    whole: Collection[nn.Parameter] = (),
) -> None:
    """Shard a model over a mesh with FSDP2: parameters are gathered in `dtype`, gradients are reduced in fp32.

    What methods have added to the model is small and stays whole everywhere, in fp32; the training loop averages its gradients.

    Args:
        module: the training forward around the model, its parameters in the dtypes of `set_precision`.
        mesh: all processes in one dimension; or in two, the first of which holds copies and the second the shards of each.
        dtype: the compute dtype.
        cpu_offload: keep shards, their gradients and so the optimizer's state in host memory; frozen weights too.
        shard_frozen: shard frozen weights as well, which are then gathered in every pass; otherwise every process keeps them
            whole, and only gradients and what is trained travel. One process has nothing to share.
        whole: further parameters that every process keeps whole, such as quantised ones.
    """
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    if cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    ignored = {*added_parameters(module), *whole}
    if not cpu_offload and (not shard_frozen or mesh.shape[-1] == 1):
        ignored |= {p for p in module.parameters() if not p.requires_grad}
    options["ignored_params"] = ignored
    encoder = module.model.encoder
    units = [*shard_units(module.model), encoder.clip, encoder.projection, module]
    units = [unit for unit in units if any(p not in ignored for p in unit.parameters())]
    for unit in units:
        fully_shard(unit, **options)
    _prefetch(module.model)


def gets_gradient(model: DeepFusionModel, unit: nn.Module) -> bool:
    """Whether a gradient goes through a unit of sharding, so that its weights are needed in the backward pass too.

    None goes through a frozen encoder, nor to a frozen table of embeddings; one goes through every layer of the decoder, to
    the proxy.
    """
    if any(unit is part for part in model.encoder.modules()):
        return any(parameter.requires_grad for parameter in model.encoder.parameters())
    return not isinstance(unit, nn.Embedding) or unit.weight.requires_grad


def _prefetch(model: DeepFusionModel) -> None:
    """Let every unit ask for the next one's weights before it computes, in the order of the forward pass and back."""
    units = [unit for unit in shard_units(model) if isinstance(unit, FSDPModule)]
    for unit, following in pairwise(units):
        unit.set_modules_to_forward_prefetch([following])
    for unit, following in pairwise([unit for unit in units if gets_gradient(model, cast("nn.Module", unit))]):
        following.set_modules_to_backward_prefetch([unit])
