"""Generation with torchtune's model: one encoder pass an image, whose cross-attention keys and values all its prompts share.

torchtune's own caches hold the image's keys and values once a prompt and are made for one batch size. Here the rows of a
batch are grouped by image: a group's queries attend together to one copy, and caches are as large as the batch at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules import MultiHeadAttention, TransformerCrossAttentionLayer, TransformerSelfAttentionLayer
from torchtune.modules.model_fusion import DeepFusionModel, FusionLayer

from ift_components.data.prompts import slot_id
from ift_components.models.forward import ResponseLoss

KeysValues = tuple[Tensor, Tensor]


@dataclass
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: only the most probable tokens that together reach this probability are drawn.
        seeds: one seed a row; a row's draws depend on its seed alone, not on the batch it is in.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seeds: Sequence[int] = ()


@dataclass
class State:
    """A batch of prompts that has gone through the model.

    Attributes:
        logits: [b, vocabulary] of the token after what was fed last, fp32.
        padding: [b] left padding of each row.
        length: positions filled, padding included.
        prompt_length: positions of the prompts.
        image: for each cross-attention layer the keys and values, [images, kv heads, image tokens, head dim].
        cache: for each layer the keys and values, [b, kv heads, capacity, head dim].
    """

    logits: Tensor
    padding: Tensor
    length: int
    prompt_length: int
    image: list[KeysValues]
    cache: list[KeysValues] = field(default_factory=list)


class Engine:
    """Runs prompts through a frozen model.

    Args:
        model: the model, on its device and in its compute dtype, without torchtune's caches.
        transform: the model's transform.
        proxy: [K, d] vectors for the proxy slots of prompts that have them.
    """

    def __init__(self, model: DeepFusionModel, transform: Llama3VisionTransform, proxy: Tensor | None = None) -> None:
        self._model = model.eval()
        self._transform = transform
        weight = model.decoder.output.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._embed = ResponseLoss(model, self.dtype).embed
        self._proxy = None if proxy is None else proxy.to(self.device, self.dtype)
        self._stops = torch.tensor(transform.stop_tokens, device=self.device)
        self._layers: list[tuple[TransformerCrossAttentionLayer | None, TransformerSelfAttentionLayer]] = [
            (layer.fusion_layer, layer.layer) if isinstance(layer, FusionLayer) else (None, layer)
            for layer in model.decoder.layers
        ]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> list[KeysValues]:
        """Return the keys and values of each cross-attention layer, [m, kv heads, image tokens, head dim] each.

        Args:
            images: [m, 1 tile, 3, h, w], different images.
        """
        aspect_ratio = torch.ones(len(images), 1, 2, dtype=torch.int)  # torchtune loops over it: on the CPU
        encoded = self._model.encoder(images.unsqueeze(1).to(self.device, self.dtype), aspect_ratio)
        pairs = []
        for cross, _ in self._layers:
            if cross is not None:
                attention = cross.attn
                keys, values = (_heads(attention, part(encoded)) for part in (attention.k_proj, attention.v_proj))
                pairs.append((attention.k_norm(keys), values))
        return pairs

    @torch.inference_mode()
    def start(self, image: list[KeysValues], prompts: Sequence[Sequence[int]], room: int) -> State:
        """Feed prompts and return the state after them.

        Args:
            image: what `encode` returned for m images.
            prompts: m * q token sequences, each with one `<|image|>`: the first q are about the first image, and so on.
            room: tokens that will be fed after the prompts at most.
        """
        width = max(map(len, prompts))
        pad = self._transform.pad_id
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=self.device)
        padding = torch.tensor([width - len(row) for row in prompts], device=self.device)
        state = State(torch.empty(0), padding, 0, width, image)
        for _, layer in self._layers:
            shape = (len(prompts), layer.attn.num_kv_heads, width + room, layer.attn.head_dim)
            keys, values = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
            state.cache.append((keys, values))
        sees_image = ((tokens == self._transform.tokenizer.image_id).cumsum(dim=1) > 0).unsqueeze(-1)
        self._feed(state, self._with_proxy(tokens), sees_image)
        return state

    def _with_proxy(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of prompts, [b, s, d], with the proxy in its slots."""
        h = self._embed(tokens)
        if self._proxy is not None:
            slots = tokens == slot_id(self._transform)
            rows = slots.any(dim=1)
            h[slots] = self._proxy.repeat(int(rows.sum()), 1)
        return h

    @torch.inference_mode()
    def feed(self, state: State, tokens: Tensor) -> None:
        """Feed further tokens, [b, n], the same number to every row; updates the state."""
        self._feed(state, self._embed(tokens), None)

    @torch.inference_mode()
    def rewind(self, state: State) -> None:
        """Forget everything after the prompts but keep their cache; the logits are those of the next `feed`."""
        state.length = state.prompt_length

    @torch.inference_mode()
    def generate(self, state: State, max_new_tokens: int, sampling: Sampling | None = None) -> list[str]:
        """Return the text generated after each prompt, up to a stop token or `max_new_tokens`.

        Args:
            state: fresh from `start` with at least this much room.
            max_new_tokens: longest text in tokens; a model that never stops ends here.
            sampling: how tokens are chosen; None is greedy.
        """
        generated: list[Tensor] = []
        finished = torch.zeros(len(state.padding), dtype=torch.bool, device=self.device)
        sampling = sampling or Sampling()
        uniform = None
        if sampling.temperature > 0:
            uniform = _uniform(sampling.seeds, max_new_tokens).to(self.device)
        for step in range(max_new_tokens):
            token = state.logits.argmax(dim=-1) if uniform is None else _draw(state.logits, sampling, uniform[:, step])
            generated.append(token)
            finished |= torch.isin(token, self._stops)
            if step == max_new_tokens - 1 or bool(finished.all()):
                break
            self.feed(state, token.unsqueeze(1))
        return [self._text(row) for row in torch.stack(generated, dim=1).tolist()]

    @torch.inference_mode()
    def choose(
        self, state: State, prefix: Sequence[int], choices: Sequence[Sequence[tuple[int, Sequence[int]]]]
    ) -> list[int]:
        """Force an answer's beginning and let the model choose how it goes on: greedy decoding among given continuations.

        Every step takes the most probable token of those that continue one of the row's remaining choices, until the rest agree
        on the label. So wherever free greedy decoding yields one of the choices, this yields the same label.

        Args:
            state: a state; what was fed after the prompts is forgotten.
            prefix: tokens of the answer's beginning.
            choices: for each row, pairs of a label and the tokens that follow the prefix.

        Returns:
            The label chosen for each row.
        """
        self.rewind(state)
        rows = len(state.padding)
        self.feed(state, torch.tensor([list(prefix)] * rows, device=self.device))
        left = [[(label, list(tokens)) for label, tokens in row] for row in choices]
        for depth in range(max(len(tokens) for row in left for _, tokens in row)):
            logits = state.logits.cpu()
            chosen = []
            for row, options in enumerate(left):
                allowed = sorted({tokens[depth] for _, tokens in options if len(tokens) > depth})
                if len({label for label, _ in options}) > 1:
                    token = allowed[int(logits[row, allowed].argmax())]
                    left[row] = [option for option in options if option[1][depth : depth + 1] == [token]]
                    chosen.append(token)
                else:
                    chosen.append(int(self._stops[0]))  # already settled: anything will do
            if all(len({label for label, _ in options}) == 1 for options in left):
                break
            self.feed(state, torch.tensor(chosen, device=self.device).unsqueeze(1))
        return [options[0][0] for options in left]

    def _feed(self, state: State, h: Tensor, sees_image: Tensor | None) -> None:
        """Run embeddings [b, n, d] through the layers at the state's position; project only the last to the vocabulary."""
        start, n = state.length, h.shape[1]
        end = state.length = start + n
        query = torch.arange(start, end, device=self.device).unsqueeze(1)
        key = torch.arange(end, device=self.device)
        allowed = (key <= query) & (key >= state.padding.view(-1, 1, 1))
        mask = (allowed | (key == query)).unsqueeze(1)  # a padding query sees itself: an empty softmax is NaN
        positions = (query.T - state.padding.unsqueeze(1)).clamp(min=0)
        images = iter(state.image)
        for (cross, layer), (keys, values) in zip(self._layers, state.cache, strict=True):
            if cross is not None:
                fused = _cross_attend(cross, h, next(images))
                # Tokens before <|image|> must not see it: the layer's effect on them is undone.
                h = fused if sees_image is None else torch.where(sees_image, fused, h)
            h = _self_attend(layer, h, (keys, values), start=start, mask=mask, positions=positions)
        state.logits = self._model.decoder.unembed(h[:, -1:]).squeeze(1)

    def _text(self, tokens: list[int]) -> str:
        stops = set(self._transform.stop_tokens)
        end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        return self._transform.tokenizer.decode(tokens[:end], truncate_at_eos=False, skip_special_tokens=True)


def _heads(attention: MultiHeadAttention, x: Tensor) -> Tensor:
    """Split [b, s, heads * head dim] into [b, heads, s, head dim]."""
    return x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _self_attend(
    layer: TransformerSelfAttentionLayer, x: Tensor, cache: KeysValues, *, start: int, mask: Tensor, positions: Tensor
) -> Tensor:
    """Apply a self-attention layer to [b, n, d], reading and extending its cache."""
    attention, h = layer.attn, layer.sa_norm(x)
    end = start + x.shape[1]
    split = (-1, attention.head_dim)
    query = attention.pos_embeddings(attention.q_proj(h).unflatten(-1, split), input_pos=positions).transpose(1, 2)
    key = attention.pos_embeddings(attention.k_proj(h).unflatten(-1, split), input_pos=positions).transpose(1, 2)
    keys, values = cache
    keys[:, :, start:end] = key
    values[:, :, start:end] = _heads(attention, attention.v_proj(h))
    attended = F.scaled_dot_product_attention(
        query, keys[:, :, :end], values[:, :, :end], attn_mask=mask, enable_gqa=True
    )
    h = layer.sa_scale(attention.output_proj(attended.transpose(1, 2).flatten(2))) + x
    out: Tensor = h + layer.mlp_scale(layer.mlp(layer.mlp_norm(h)))
    return out


def _cross_attend(layer: TransformerCrossAttentionLayer, x: Tensor, image: KeysValues) -> Tensor:
    """Apply a cross-attention layer to [m * q, n, d]: the q rows of each image attend to its keys and values together."""
    attention = layer.attn
    keys, values = image
    b, n, _ = x.shape
    query = attention.q_norm(
        _heads(attention, attention.q_proj(layer.ca_norm(x)).reshape(len(keys), b * n // len(keys), -1))
    )
    attended = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
    attended = attended.transpose(1, 2).flatten(2).reshape(b, n, -1)
    h = layer.ca_scale(attention.output_proj(attended)) + x
    out: Tensor = h + layer.mlp_scale(layer.mlp(layer.mlp_norm(h)))
    return out


def _uniform(seeds: Sequence[int], count: int) -> Tensor:
    """Return [rows, count] uniform numbers, each row from a generator of its own seed."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Draw the next token of each row, [b], by inverting the cumulative distribution at `uniform`."""
    probabilities, order = torch.softmax(logits / sampling.temperature, dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    cumulative = probabilities.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, uniform.unsqueeze(1).to(cumulative) * cumulative[:, -1:], right=True)
    return order.gather(1, place.clamp(max=order.shape[1] - 1)).squeeze(1)
