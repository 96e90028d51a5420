"""One question and its answer through the model that answers, with what its attention modules did kept.

The sequence of prompt and answer is walked by `models.forward` at once, in the layout that training and generation use; the
recorder keeps what each attention module attends with and lets its own kernel compute, so that logits are the same to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.data.prompts import Slots, Text, prompt_tokens, slot_id
from ift_components.errors import ConfigError
from ift_components.models.forward import Recorder, embed_tokens, encode_images, fill_slots, run_decoder


@dataclass
class AttentionPass:
    """What an attention module did in one walk of one sequence about one image.

    Attributes:
        attend: its kernel on the queries and keys of that walk, for values [1, heads, keys, any width].
        value: [1, heads, keys, head dim].
        attended: [1, heads, s, head dim], a part of the graph if gradients are computed.
    """

    attend: Callable[[Tensor], Tensor]
    value: Tensor
    attended: Tensor

    @torch.no_grad()
    def weights(self) -> Tensor:
        """Return the attention weights, [heads, s, keys]: unit vectors as values give them, whatever mask the kernel has."""
        keys = self.value.shape[2]
        unit = torch.eye(keys, dtype=self.value.dtype, device=self.value.device)
        return self.attend(unit.expand(*self.value.shape[:2], -1, -1))[0].float()

    @torch.no_grad()
    def gradient(self, of_attended: Tensor) -> Tensor:
        """Return the gradient of the attention weights, [heads, s, keys], from that of what was attended to: dA = dO V^T."""
        return (of_attended @ self.value.mT)[0].float()


class Trace(Recorder):
    """A recorder that keeps every attention module's pass, by the module's name, in the order of the walk."""

    def __init__(self) -> None:
        self.passes: dict[str, AttentionPass] = {}

    def hidden(self, layer: str, h: Tensor) -> None:
        """Take a layer's output; nothing here needs it."""

    def attention(
        self,
        layer: str,
        query: Tensor,  # noqa: ARG002 (the recorder's signature)
        key: Tensor,  # noqa: ARG002
        value: Tensor,
        mask: Tensor | None,  # noqa: ARG002
        *,
        is_causal: bool,  # noqa: ARG002
        attend: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Keep a pass; the module's own kernel computes."""
        attended = attend(value)
        self.passes[layer] = AttentionPass(attend, value, attended)
        return attended


@dataclass(frozen=True)
class Asked:
    """A prompt and the answer to it as tokens.

    Attributes:
        tokens: of both.
        start: place of the answer's first token.
        pieces: the answer's tokens as texts.
    """

    tokens: tuple[int, ...]
    start: int
    pieces: tuple[str, ...]

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer's tokens."""
        return self.tokens[self.start :]


class Walk:
    """A frozen model, walked over whole sequences.

    Args:
        model: the model, on its device and in its compute dtype.
        transform: its transform.
        proxy: [K, d] vectors that stand in the place of an empty prompt.
    """

    def __init__(self, model: DeepFusionModel, transform: Llama3VisionTransform, proxy: Tensor | None = None) -> None:
        self.model = model.eval()
        self._tokenizer, self._transform = transform.tokenizer, transform
        self.image_id: int = transform.tokenizer.image_id
        self._longest = min(filter(None, (transform.max_seq_len, model.decoder.max_seq_len)))
        weight = model.decoder.output.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._proxy = None if proxy is None else proxy.to(self.device, self.dtype)

    def _prompt(self, prompt: str) -> list[int]:
        if not prompt and self._proxy is None:
            raise ConfigError("prompt: it is empty, and there is no proxy instruction to stand in its place")
        return prompt_tokens(self._transform, Text(prompt) if prompt else Slots(len(self._proxy or ())))

    def ask(self, prompt: str, answer: str) -> Asked:
        """Return a prompt and an answer as tokens, without the answer's end.

        Args:
            prompt: the instruction; empty if it is the proxy instruction.
            answer: the answer's text.

        Raises:
            ConfigError: if the answer is empty, or both do not fit into the model.
        """
        before = self._prompt(prompt)
        tokens = self._tokenizer.encode(answer.strip(), add_bos=False, add_eos=False)
        if not tokens:
            raise ConfigError("answer: it is empty; a map shows where an answer's tokens came from")
        if len(before) + len(tokens) > self._longest:
            raise ConfigError(
                f"answer: prompt and answer have {len(before)} + {len(tokens)} tokens, the model takes {self._longest}; "
                "shorten the answer (max_new_tokens)"
            )
        return Asked((*before, *tokens), len(before), tuple(_pieces(self._tokenizer, tokens)))

    def logits(self, pixels: Tensor, asked: Asked, recorder: Recorder | None = None) -> Tensor:
        """Return the logits at the places that predict the answer's tokens, [m, answer tokens, vocabulary] in fp32.

        Args:
            pixels: [m, down, across, 3, h, w], images of down x across tiles, normalised; each is asked the same.
            asked: prompt and answer.
            recorder: is handed what passes through encoder and decoder.
        """
        image = self._encode(pixels, recorder)
        h = self._decode(image, asked.tokens[:-1], recorder)[:, asked.start - 1 :]
        logits: Tensor = self.model.decoder.unembed(h)
        return logits.float()

    def _encode(self, pixels: Tensor, recorder: Recorder | None = None) -> Tensor:
        ratio = torch.tensor(
            [[pixels.shape[1:3]]] * len(pixels), dtype=torch.int
        )  # torchtune loops over it: on the CPU
        tiles = pixels.flatten(1, 2).unsqueeze(1)  # [m, 1 image, tiles, 3, h, w]
        return encode_images(self.model, tiles.to(self.device, self.dtype), ratio, recorder)

    def _decode(self, image: Tensor, tokens: Sequence[int], recorder: Recorder | None = None) -> Tensor:
        rows = torch.tensor([list(tokens)] * len(image), device=self.device)
        decoder = self.model.decoder
        h = embed_tokens(decoder, rows)
        if self._proxy is not None:
            slots = (rows == slot_id(self._transform)).flatten().nonzero().squeeze(1)
            h = fill_slots(h, slots, self._proxy)
        sees_image = (rows == self.image_id).cumsum(dim=1) > 0
        return run_decoder(self.model, h, image=image, sees_image=sees_image, recorder=recorder)

    @torch.no_grad()
    def answer(self, pixels: Tensor, prompt: str, max_new_tokens: int) -> str:
        """Return the greedy answer about one image, [down, across, 3, h, w]; the whole sequence is walked for each token."""
        tokens, start = self._prompt(prompt), len(self._prompt(prompt))
        image, stops = self._encode(pixels.unsqueeze(0)), set(self._transform.stop_tokens)
        for _ in range(min(max_new_tokens, self._longest - start)):
            h = self._decode(image, tokens)[:, -1:]
            token = int(self.model.decoder.unembed(h).argmax())
            if token in stops:
                break
            tokens.append(token)
        text: str = self._tokenizer.decode(tokens[start:], truncate_at_eos=False, skip_special_tokens=True)
        return text

    @torch.no_grad()
    def probabilities(self, pixels: Tensor, asked: Asked, chosen: Sequence[int], batch_size: int = 64) -> Tensor:
        """Return the probability of the chosen answer tokens under each of m images, [m]: their geometric mean.

        Args:
            pixels: [m, down, across, 3, h, w].
            asked: prompt and answer.
            chosen: the answer tokens.
            batch_size: images a pass.
        """
        logp = torch.cat([_log_probabilities(self.logits(part, asked), asked) for part in pixels.split(batch_size)])
        return logp[:, list(chosen)].mean(dim=1).exp().cpu()


def _pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Return tokens as texts that together are the text: a token may hold a part of a character."""
    pieces, before = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:end]), truncate_at_eos=False).rstrip("\ufffd")
        pieces.append(text[len(before) :])
        before = text
    return pieces


def _log_probabilities(logits: Tensor, asked: Asked) -> Tensor:
    tokens = torch.tensor(asked.answer, device=logits.device)
    return logits.log_softmax(dim=-1).gather(2, tokens.expand(len(logits), -1).unsqueeze(2)).squeeze(2)


def log_odds(logits: Tensor, asked: Asked) -> Tensor:
    """Return the log-odds of each answer token against all others, [m, answer tokens]: what gradients are taken of.

    Unlike the log-probability, its gradient does not vanish where the model is certain; unlike the logit, it does not move when
    all logits do.

    Args:
        logits: [m, answer tokens, vocabulary].
        asked: the answer.
    """
    index = torch.tensor(asked.answer, device=logits.device).expand(len(logits), -1).unsqueeze(2)
    others = logits.scatter(2, index, -torch.inf)
    return logits.gather(2, index).squeeze(2) - others.logsumexp(dim=-1)
