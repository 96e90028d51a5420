"""Llama 3's chat format with one image and, in place of the instruction's text, either text or proxy slots."""

from torchtune.data import Message
from torchtune.models.llama3_2_vision import Llama3VisionTransform

# A token that no text encodes to, so that an instruction can never be mistaken for a slot.
SLOT_TOKEN = "<|reserved_special_token_0|>"  # noqa: S105 (a token of the vocabulary, not a secret)


def slot_id(transform: Llama3VisionTransform) -> int:
    """Return the id of the reserved special token that marks a proxy slot."""
    return transform.tokenizer.special_tokens[SLOT_TOKEN]


def prompt_tokens(transform: Llama3VisionTransform, instruction: str | int) -> list[int]:
    """Return the tokens of a prompt, up to and including the assistant's header.

    Args:
        transform: the model's transform, whose tokenizer is used.
        instruction: the instruction's text, or the number of proxy slots that stand where it would.
    """
    tokenizer = transform.tokenizer
    content: list[dict[str, object]] = [{"type": "image", "content": None}]
    if isinstance(instruction, str):
        content.append({"type": "text", "content": instruction})
    user = tokenizer.tokenize_message(Message(role="user", content=content))
    if isinstance(instruction, int):
        user[-1:-1] = [slot_id(transform)] * instruction  # before <|eot_id|>
    header = tokenizer.tokenize_message(Message(role="assistant", content=""), add_end_tokens=False)
    return [tokenizer.bos_id, *user, *header]


def response_tokens(transform: Llama3VisionTransform, response: str) -> list[int]:
    """Return the tokens of a response and the end-of-turn token."""
    tokenizer = transform.tokenizer
    return [*tokenizer.encode(response.strip(), add_bos=False, add_eos=False), tokenizer.eot_id]
