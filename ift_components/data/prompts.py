"""Llama 3's chat format with one image and, in place of the instruction, either text or proxy slots."""

from dataclasses import dataclass

from torchtune.data import Message
from torchtune.models.llama3_2_vision import Llama3VisionTransform

# A token that no text encodes to, so that an instruction can never be mistaken for a slot.
SLOT_TOKEN = "<|reserved_special_token_0|>"  # noqa: S105 (a token of the vocabulary, not a secret)


@dataclass(frozen=True)
class Text:
    """An instruction in words."""

    text: str


@dataclass(frozen=True)
class Slots:
    """Places for the proxy instruction's vectors."""

    count: int
    """K, the number of vectors."""


Prompt = Text | Slots


def slot_id(transform: Llama3VisionTransform) -> int:
    """Return the id of the reserved special token that marks a proxy slot."""
    return transform.tokenizer.special_tokens[SLOT_TOKEN]


def prompt_tokens(transform: Llama3VisionTransform, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt, up to and including the assistant's header.

    Args:
        transform: the model's transform, whose tokenizer is used.
        prompt: what stands after the image.
    """
    tokenizer = transform.tokenizer
    content: list[dict[str, object]] = [{"type": "image", "content": None}]
    if isinstance(prompt, Text):
        content.append({"type": "text", "content": prompt.text})
    user = tokenizer.tokenize_message(Message(role="user", content=content))
    if isinstance(prompt, Slots):
        user[-1:-1] = [slot_id(transform)] * prompt.count  # before <|eot_id|>
    return [tokenizer.bos_id, *user, *header_tokens(transform)]


def header_tokens(transform: Llama3VisionTransform) -> list[int]:
    """Return the tokens of the assistant's header, which end every prompt."""
    tokens: list[int] = transform.tokenizer.tokenize_message(
        Message(role="assistant", content=""), add_end_tokens=False
    )
    return tokens


def response_tokens(transform: Llama3VisionTransform, response: str) -> list[int]:
    """Return the tokens of a response and the end-of-turn token."""
    tokenizer = transform.tokenizer
    return [*tokenizer.encode(response.strip(), add_bos=False, add_eos=False), tokenizer.eot_id]
