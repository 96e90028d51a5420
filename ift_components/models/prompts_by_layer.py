"""Learned vectors in front of what attention reads: P-tuning v2 (Liu et al. 2021) and prefix tuning (Li and Liang 2021).

P-tuning v2 puts learned keys and values in front of a layer's own, inside the attention module's call: so training, cached
generation and maps all have them. Prefix tuning puts virtual tokens in front of the decoder's input, in `forward.run_decoder`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchtune.modules import MultiHeadAttention, TransformerDecoder
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.models.adapters import check_count, freeze, refuse_unknown
from ift_components.models.parts import part_of
from ift_components.models.torchtune_private import AttentionCall, PromptedCall, attention_call, set_attention_call

_TOKENS, _HIDDEN = 16, 512
_STD = 0.02  # of embeddings in language models


class LayerPrompt(nn.Module):
    """Keys and values of virtual tokens in one attention layer.

    Args:
        attention: the layer's attention.
        tokens: p, virtual tokens.
    """

    def __init__(self, attention: MultiHeadAttention, tokens: int) -> None:
        super().__init__()
        shape = (tokens, attention.num_kv_heads, attention.head_dim)
        device = attention.k_proj.weight.device
        self.keys = nn.Parameter(torch.empty(shape, device=device))
        self.values = nn.Parameter(torch.empty(shape, device=device))

    @torch.no_grad()
    def initialise(self, weight: Tensor | None, generator: torch.Generator) -> None:  # noqa: ARG002 (of the attention: none)
        """Draw keys and values from a normal distribution of deviation 0.02."""
        for parameter in (self.keys, self.values):
            parameter.copy_(torch.empty(parameter.shape).normal_(std=_STD, generator=generator))

    def attend(
        self,
        call: AttentionCall,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None,
        options: Mapping[str, Any],
    ) -> Tensor:
        """Attend to the virtual tokens and to what the layer attends to anyway; every query sees all of them.

        Args:
            call: the layer's own way to attend.
            query: [b, heads, s, head dim].
            key: [b, heads, keys, head dim].
            value: likewise.
            mask: [b, s, keys], in the vision encoder also `TileSequence`, or None.
            options: what else the layer's own call takes.
        """
        causal = bool(options.get("is_causal"))
        count, b = len(self.keys), len(key)
        if causal:  # causal kernels count from the first key, which is a virtual token now
            mask = torch.ones(1, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
        if isinstance(mask, Tensor):  # the vision encoder's TileSequence allow for what is put in front
            mask = F.pad(mask, (count, 0), value=True)

        def in_front(virtual: Tensor, real: Tensor) -> Tensor:
            by_head = virtual.to(real.dtype).transpose(0, 1)  # [kv heads, p, head dim]
            by_head = by_head.repeat_interleave(real.shape[1] // len(by_head), dim=0)
            return torch.cat([by_head.expand(b, -1, -1, -1), real], dim=2)

        keys, values = in_front(self.keys, key), in_front(self.values, value)
        return call(query, keys, values, **{**options, "mask": mask, "is_causal": False})


class Prefix(nn.Module):
    """Virtual tokens in front of the decoder's input, [p, d], as they are kept for answering.

    Args:
        vectors: [p, d].
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    @property
    def tokens(self) -> int:
        """p, how many there are."""
        return len(self.vectors)

    def forward(self) -> Tensor:
        """Return the virtual tokens, [p, d]."""
        return self.vectors


class TrainedPrefix(nn.Module):
    """Virtual tokens while they are trained: an embedding through a two-layer network (Li and Liang 2021, section 4.3).

    Args:
        tokens: p.
        dim: d, the decoder's width.
        hidden: width of the network's inner layer.
        device: where its parameters are.
    """

    def __init__(self, tokens: int, dim: int, hidden: int, device: torch.device) -> None:
        super().__init__()
        self.tokens = tokens
        self.embedding = nn.Parameter(torch.empty(tokens, dim, device=device))
        self.inner = nn.Parameter(torch.empty(hidden, dim, device=device))
        self.outer = nn.Parameter(torch.empty(dim, hidden, device=device))

    @torch.no_grad()
    def initialise(self, weight: Tensor | None, generator: torch.Generator) -> None:  # noqa: ARG002 (of the decoder: none)
        """Draw the embedding from a normal distribution and both layers uniformly within their fan-in's bound."""
        self.embedding.copy_(torch.empty(self.embedding.shape).normal_(generator=generator))
        for layer in (self.inner, self.outer):
            bound = layer.shape[1] ** -0.5
            layer.copy_(torch.empty(layer.shape).uniform_(-bound, bound, generator=generator))

    def forward(self) -> Tensor:
        """Return the virtual tokens, [p, d]."""
        return F.linear(torch.tanh(F.linear(self.embedding, self.inner)), self.outer)


def prefix_of(decoder: TransformerDecoder) -> Prefix | TrainedPrefix | None:
    """Return the virtual tokens in front of a decoder's input, if it has any."""
    prefix = getattr(decoder, "adapter", None)
    return prefix if isinstance(prefix, Prefix | TrainedPrefix) else None


@dataclass
class DecoderInput:
    """What goes through the decoder's layers.

    Attributes:
        h: [b, s, d].
        sees_image: [b, s] or None.
        mask: [b, s, keys] or None, which is causal.
        positions: [b, s] or None, which counts up.
        virtual: how many of the s are virtual tokens, first in every row.
    """

    h: Tensor
    sees_image: Tensor | None
    mask: Tensor | None
    positions: Tensor | None
    virtual: int = 0


def with_prefix(decoder: TransformerDecoder, inputs: DecoderInput, *, is_first: bool) -> DecoderInput:
    """Return a decoder's input with its virtual tokens, if it has any, in front.

    They take the first positions, see no image and, of the row, only each other; every token sees them.

    Args:
        decoder: the decoder.
        inputs: the real tokens.
        is_first: whether nothing has been fed before; later the cache holds the virtual tokens' keys and values.
    """
    prefix = prefix_of(decoder)
    if prefix is None:
        return inputs
    p, b, device = prefix.tokens, len(inputs.h), inputs.h.device
    mask = None if inputs.mask is None else F.pad(inputs.mask, (p, 0), value=True)
    positions = None if inputs.positions is None else inputs.positions + p
    if not is_first:
        return DecoderInput(inputs.h, inputs.sees_image, mask, positions)
    if mask is not None:
        among = torch.ones(p, p, dtype=torch.bool, device=device).tril()
        mask = torch.cat([F.pad(among, (0, mask.shape[2] - p)).expand(len(mask), -1, -1), mask], dim=1)
    if positions is not None:
        positions = torch.cat([torch.arange(p, device=device).expand(len(positions), -1), positions], dim=1)
    sees = inputs.sees_image
    if sees is None:
        sees = torch.ones(inputs.h.shape[:2], dtype=torch.bool, device=device)
    h = torch.cat([prefix().to(inputs.h.dtype).expand(b, -1, -1), inputs.h], dim=1)
    return DecoderInput(h, F.pad(sees, (p, 0), value=False), mask, positions, p)


def prompt_attention(attention: MultiHeadAttention, prompt: LayerPrompt) -> None:
    """Put virtual tokens in front of an attention layer's keys and values."""
    attention.adapter = prompt
    set_attention_call(attention, PromptedCall(attention_call(attention), prompt.attend))


def prompted_layers(model: DeepFusionModel, part: str) -> dict[str, MultiHeadAttention]:
    """Return the attention modules of a part that take virtual tokens: of the fusion those that attend to the image."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MultiHeadAttention)
        and part_of(f"{name}.") == part
        and not name.startswith("encoder.projection")
    }


def add_ptuning_v2(model: DeepFusionModel, part: str, arguments: Mapping[str, Any]) -> None:
    """Freeze a part and put `tokens` learned keys and values in front of those of each of its attention layers."""
    freeze(model, part)
    for attention in prompted_layers(model, part).values():
        prompt_attention(attention, LayerPrompt(attention, int(arguments.get("tokens", _TOKENS))))


def add_prefix(model: DeepFusionModel, part: str, arguments: Mapping[str, Any]) -> None:
    """Freeze the decoder and put `tokens` virtual tokens, out of a network of width `hidden`, in front of its input."""
    freeze(model, part)
    output = model.decoder.output
    tokens, hidden = int(arguments.get("tokens", _TOKENS)), int(arguments.get("hidden", _HIDDEN))
    if tokens >= model.decoder.max_seq_len:
        raise ConfigError(
            f"tuning.{part}.tokens: {tokens} leave no room in the decoder's {model.decoder.max_seq_len} positions"
        )
    model.decoder.adapter = TrainedPrefix(tokens, output.in_features, hidden, output.weight.device)


def check_ptuning_v2(arguments: Mapping[str, Any], key: str) -> None:
    """Check the arguments of P-tuning v2."""
    refuse_unknown(arguments, key, "tokens")
    check_count(arguments.get("tokens", _TOKENS), f"{key}.tokens")


def check_prefix(arguments: Mapping[str, Any], key: str) -> None:
    """Check the part and the arguments of prefix tuning."""
    if not key.endswith("decoder"):
        raise ConfigError(
            f"{key}: 'prefix' puts virtual tokens before the decoder's text and has no meaning here; use ptuning_v2, lora, "
            "dora, ia3, full or frozen"
        )
    refuse_unknown(arguments, key, "tokens", "hidden")
    check_count(arguments.get("tokens", _TOKENS), f"{key}.tokens")
    check_count(arguments.get("hidden", _HIDDEN), f"{key}.hidden")
