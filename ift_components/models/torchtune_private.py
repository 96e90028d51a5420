"""Everything of torchtune's that is private or undocumented and used here, in one place; a test guards each.

torchtune 0.6.1 is its last release and pinned, so that these names cannot change unseen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torchtune.models.llama3._tokenizer import CL100K_PATTERN
from torchtune.models.llama3_2_vision._convert_weights import llama3_vision_hf_to_tune, llama3_vision_tune_to_hf
from torchtune.models.llama3_2_vision._encoder import Llama3VisionProjectionHead
from torchtune.modules import MultiHeadAttention

__all__ = [
    "CL100K_PATTERN",
    "AttentionCall",
    "Llama3VisionProjectionHead",
    "PromptedCall",
    "attention_call",
    "llama3_vision_hf_to_tune",
    "llama3_vision_tune_to_hf",
    "replaced_attention_calls",
    "set_attention_call",
]

AttentionCall = Callable[..., Tensor]
"""Called as `(query, key, value, mask=, dropout_p=, is_causal=)` on [b, heads, s, head dim], mask [b, s, s] or None."""


@dataclass(frozen=True)
class PromptedCall:
    """An attention function that puts virtual tokens in front of what another one attends to.

    Attributes:
        call: the other one.
        attend: takes it, query, key, value, mask and its further options.
    """

    call: AttentionCall
    attend: Callable[..., Tensor]

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Attend as `AttentionCall` does."""
        return self.attend(self.call, query, key, value, mask=mask, options=options)


def attention_call(attention: MultiHeadAttention) -> AttentionCall:
    """Return the function by which an attention module attends."""
    call: AttentionCall = attention._attention_call  # noqa: SLF001
    return call


def set_attention_call(attention: MultiHeadAttention, call: AttentionCall) -> None:
    """Let an attention module attend by another function.

    Raises:
        ValueError: if that would take virtual tokens away.
    """
    if isinstance(attention_call(attention), PromptedCall) and not isinstance(call, PromptedCall):
        raise ValueError("the attention has virtual tokens, which another function would leave out")  # noqa: TRY004
    attention._attention_call = call  # noqa: SLF001


@contextmanager
def replaced_attention_calls(model: nn.Module, wrap: Callable[[str, AttentionCall], AttentionCall]) -> Iterator[None]:
    """Wrap the attention function of every attention module while the context lasts; virtual tokens stay outside of it.

    Args:
        model: the model.
        wrap: takes the module's name and its function and returns the function that stands in for it.
    """
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, MultiHeadAttention)]
    before = [(module, attention_call(module)) for _, module in modules]
    try:
        for (name, module), (_, call) in zip(modules, before, strict=True):
            if isinstance(call, PromptedCall):
                set_attention_call(module, replace(call, call=wrap(name, call.call)))
            else:
                set_attention_call(module, wrap(name, call))
        yield
    finally:
        for module, call in before:
            set_attention_call(module, call)
