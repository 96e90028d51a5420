"""What a training step holds beyond its state: the package's own forward and backward pass, traced on tensors without storage.

Every tensor that an operation returns is counted from then until nothing refers to it any more, autograd's graph included; what
kernels use inside an operation is not seen. Attention is counted as the fused kernels hold it: they keep query, key, value,
output and one number a row, and never the scores.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.adapters import is_added
from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.prompts_by_layer import prefix_of
from ift_components.models.torchtune_private import AttentionCall, replaced_attention_calls
from ift_components.models.trainable import Tuning, apply_tuning

_GRADIENT_BYTES = 4


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations have made and that are still alive, and their peak.

    Attributes:
        live: bytes now.
        peak: the most there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._counted: set[int] = set()

    def add(self, size: int) -> None:
        """Count further bytes, or fewer."""
        self.live += size
        self.peak = max(self.peak, self.live)

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave these tensors out: they were there before."""
        self._counted.update(tensor.untyped_storage()._cdata for tensor in tensors)  # noqa: SLF001

    def _remove(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.live -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or is_traceable_wrapper_subclass(tensor):  # sharded ones have no storage
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()  # noqa: SLF001
            if key not in self._counted:
                self._counted.add(key)
                weakref.finalize(storage, self._remove, key, size)
                self.add(size)
        return result


class _Fused(torch.autograd.Function):
    """Attention that keeps what the fused kernels keep, of the right shapes and without values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        attended = torch.empty_like(query)
        added = None if mask is None else query.new_empty(mask.shape)  # a mask of truth values becomes one to be added
        ctx.save_for_backward(
            query, key, value, attended, query.new_empty(query.shape[:-1], dtype=torch.float32), added
        )
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ARG004
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _as_fused(name: str, call: AttentionCall) -> AttentionCall:  # noqa: ARG001
    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        mask = options.get("mask")  # the vision encoder's says what stands where and is no tensor
        attended: Tensor = _Fused.apply(query, key, value, mask if isinstance(mask, Tensor) else None)
        return attended

    return attend


def meta_model(
    build: Callable[[], DeepFusionModel], tuning: Tuning, dtype: torch.dtype, positions: int
) -> DeepFusionModel:
    """Build a model on tensors without storage as its forward pass sees it: every weight in the compute dtype.

    Args:
        build: builds it on the current device.
        tuning: what is trained.
        dtype: the compute dtype; what methods have added stays in fp32.
        positions: longest row in tokens, without virtual ones; the tables of rotary embeddings are computed from numbers, which
            such tensors lack.
    """
    with torch.device("meta"):
        model = build()
        apply_tuning(model, tuning)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if is_added(name) else dtype)
        prefix = prefix_of(model.decoder)
        positions += 0 if prefix is None else prefix.tokens
        for module in model.modules():
            if hasattr(module, "rope_init"):
                module.register_buffer("cache", torch.zeros(positions, module.dim // 2, 2), persistent=False)
                module.is_cache_built = True
    return model


def traced_bytes(
    model: DeepFusionModel, batch: Batch, dtype: torch.dtype, *, num_vectors: int = 8, shards: int = 1
) -> int:
    """Return the most bytes that a batch's forward and backward pass hold: activations, temporaries and fp32 gradients so far.

    Args:
        model: from `meta_model`, its activation checkpointing applied.
        batch: a batch of the shapes in question, on any device.
        dtype: the compute dtype.
        num_vectors: K of the proxy.
        shards: processes that share a gradient.
    """
    proxy = nn.Parameter(torch.zeros(num_vectors, model.decoder.output.in_features, device="meta"))
    module = ResponseLoss(model, dtype)
    meta = batch.to(torch.device("meta"))
    with replaced_attention_calls(model, _as_fused), LiveBytes() as live:
        live.ignore([*model.parameters(), *model.buffers(), proxy])

        def keep_share(processes: int, parameter: Tensor) -> None:
            # What remains of a gradient is its fp32 share; FSDP frees the compute dtype's.
            parameter.grad = None
            live.add(parameter.numel() * _GRADIENT_BYTES // processes)

        handles = [
            parameter.register_post_accumulate_grad_hook(partial(keep_share, 1 if is_added(name) else shards))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        try:
            module(meta, proxy).sum().backward()
        finally:
            for handle in handles:
                handle.remove()
    return live.peak
