"""Generation: one encoder pass an image, whose cross-attention keys and values all its prompts share.

The layers are walked by `models.forward.run_decoder`, as in training. The rows of a batch are grouped by image: a group's
queries attend together to one copy of its keys and values, and caches are as large as the batch at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.data.images import stack_images
from ift_components.data.prompts import slot_id
from ift_components.models.cache import DecoderCache, ImageKeysValues, image_caches
from ift_components.models.forward import Recorder, embed_tokens, encode_images, fill_slots, run_decoder
from ift_components.models.tile_padding import own_image_tokens


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
class EncodedImages:
    """Images that have gone through the encoder.

    Attributes:
        features: what the encoder made of them, [m, image tokens, d].
        mask: [m, image tokens], True for an image's own tokens; None if all are, because all have the same number of tiles.
        keys_values: of each cross-attention layer; filled by the first batch of prompts about them, read by later ones.
    """

    features: Tensor
    mask: Tensor | None
    keys_values: list[ImageKeysValues]

    def select(self, images: Sequence[int]) -> "EncodedImages":
        """Return the images with these numbers, an image as often as it is named, without what filled them all up."""
        mask, tokens = None, self.features.shape[1]
        if self.mask is not None:
            mask = self.mask[list(images)]
            tokens = int(mask.sum(dim=1).max())  # an image's own come first
            mask = None if bool(mask[:, :tokens].all()) else mask[:, :tokens]
        layers = [layer.select(images, tokens) for layer in self.keys_values]
        return EncodedImages(self.features[list(images), :tokens], mask, layers)

    @staticmethod
    def join(parts: "Sequence[EncodedImages]") -> "EncodedImages":
        """Return images that were encoded apart as one set, filled up to the most tokens of an image."""
        longest = max(part.features.shape[1] for part in parts)
        features, masks = [], []
        for part in parts:
            rows, tokens = part.features.shape[:2]
            own = part.mask
            if own is None:
                own = torch.ones(rows, tokens, dtype=torch.bool, device=part.features.device)
            features.append(F.pad(part.features, (0, 0, 0, longest - tokens)))
            masks.append(F.pad(own, (0, longest - tokens), value=False))
        mask = torch.cat(masks)
        layers = zip(*(part.keys_values for part in parts), strict=True)
        joined = [ImageKeysValues.join(layer) for layer in layers]
        return EncodedImages(torch.cat(features), None if bool(mask.all()) else mask, joined)


@dataclass
class State:
    """A batch of prompts that has gone through the model.

    Attributes:
        logits: [b, vocabulary] of the token after what was fed last, fp32.
        padding: [b] left padding of each row.
        prompt_length: positions of the prompts, padding included.
        image: what the prompts are about.
        cache: the keys and values of everything fed.
    """

    logits: Tensor
    padding: Tensor
    prompt_length: int
    image: EncodedImages
    cache: DecoderCache

    @property
    def length(self) -> int:
        """Positions filled, padding included."""
        return self.cache.length


class Engine:
    """Runs prompts through a frozen model.

    Args:
        model: the model, on its device and in its compute dtype, without torchtune's caches.
        transform: the model's transform.
        proxy: [K, d] vectors for the proxy slots of prompts that have them.
        recorder: is handed what passes through encoder and decoder.
    """

    def __init__(
        self,
        model: DeepFusionModel,
        transform: Llama3VisionTransform,
        proxy: Tensor | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._model = model.eval()
        self._recorder = recorder
        self._transform = transform
        weight = model.decoder.output.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._proxy = None if proxy is None else proxy.to(self.device, self.dtype)
        self._stops = torch.tensor(transform.stop_tokens, device=self.device)

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor] | Tensor) -> EncodedImages:
        """Run images through the encoder.

        Args:
            images: m different images as `ImageTransform` gives them, [down, across, 3, h, w] each, of any number of tiles.
        """
        pixels, aspect_ratio = stack_images(images)
        features = encode_images(self._model, pixels.to(self.device, self.dtype), aspect_ratio, self._recorder)
        mask = own_image_tokens(self._model, aspect_ratio)
        mask = None if mask is None else mask.to(self.device)
        return EncodedImages(features, mask, image_caches(self._model.decoder))

    @torch.inference_mode()
    def start(self, image: EncodedImages, prompts: Sequence[Sequence[int]], room: int) -> State:
        """Feed prompts and return the state after them.

        Args:
            image: what `encode` returned for m images.
            prompts: m * q token sequences, each with one `<|image|>`: the first q are about the first image, and so on.
            room: tokens that will be fed after the prompts at most.
        """
        width = max(map(len, prompts))
        pad = self._transform.pad_id
        # Padding stands on the left, so that all rows end together and their next tokens share a position of the cache.
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=self.device)
        padding = torch.tensor([width - len(row) for row in prompts], device=self.device)
        decoder = self._model.decoder
        cache = DecoderCache(decoder, image.keys_values, len(prompts), width + room, image.features)
        state = State(torch.empty(0), padding, width, image, cache)
        sees_image = (tokens == self._transform.tokenizer.image_id).cumsum(dim=1) > 0
        h = embed_tokens(decoder, tokens)
        if self._proxy is not None:
            slots = (tokens == slot_id(self._transform)).flatten().nonzero().squeeze(1)
            h = fill_slots(h, slots, self._proxy)
        self._feed(state, h, sees_image)
        return state

    @torch.inference_mode()
    def feed(self, state: State, tokens: Tensor) -> None:
        """Feed further tokens, [b, n], the same number to every row; updates the state."""
        self._feed(state, embed_tokens(self._model.decoder, tokens), None)

    @torch.inference_mode()
    def rewind(self, state: State) -> None:
        """Forget everything after the prompts but keep their cache; the logits are those of the next `feed`."""
        state.cache.rewind(state.prompt_length)

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
            uniform = uniform_numbers(sampling.seeds, max_new_tokens).to(self.device)
        for step in range(max_new_tokens):
            token = next_tokens(state.logits, sampling, None if uniform is None else uniform[:, step])
            generated.append(token)
            finished |= torch.isin(token, self._stops)
            if step == max_new_tokens - 1 or bool(finished.all()):
                break
            self.feed(state, token.unsqueeze(1))
        return [self.text(row) for row in torch.stack(generated, dim=1).tolist()]

    @torch.inference_mode()
    def narrow(self, state: State, rows: Sequence[int]) -> None:
        """Go on with some of the rows alone; what the others held is freed.

        Args:
            state: a state, which is changed.
            rows: numbers of the rows that stay, ascending.
        """
        each = len(state.padding) // len(state.image.features)
        images = [row // each for row in rows]
        named = sorted(set(images))
        # Rows are laid out as m images with the same number of rows; where that no longer holds, each row has its own copy.
        is_even = len(rows) % len(named) == 0 and images == [i for i in named for _ in range(len(rows) // len(named))]
        state.image = state.image.select(named if is_even else images)
        state.cache.keep(rows, state.image.keys_values)
        state.logits, state.padding = state.logits[list(rows)], state.padding[list(rows)]

    @torch.inference_mode()
    def probabilities(
        self, state: State, prefix: Sequence[int], choices: Sequence[Sequence[tuple[int, Sequence[int]]]]
    ) -> list[dict[int, float]]:
        """Force an answer's beginning and return how probable each way to go on is, summed by label.

        A way counts up to the token after which only ways of its own label remain: " B" and " B." are one, " [B" another.

        Args:
            state: a state; what was fed after the prompts is forgotten.
            prefix: tokens of the answer's beginning.
            choices: as in `choose`.

        Returns:
            For each row the probability of every label; what they lack to 1 went to continuations that are no choice.
        """
        sums: list[dict[int, float]] = [dict.fromkeys((label for label, _ in row), 0.0) for row in choices]
        paths: list[tuple[tuple[int, ...], list[float]]] = [((), [1.0] * len(choices))]
        while paths:
            path, reached = paths.pop()
            self.rewind(state)
            self.feed(state, torch.tensor([[*prefix, *path]] * len(choices), device=self.device))
            distribution = state.logits.softmax(dim=-1).cpu()
            further: dict[tuple[int, ...], list[float]] = {}
            for row, ways in enumerate(choices):
                open_ways = [(label, tuple(tokens)) for label, tokens in ways if tuple(tokens[: len(path)]) == path]
                for token in {tokens[len(path)] for _, tokens in open_ways if len(tokens) > len(path)}:
                    longer = (*path, token)
                    labels = {label for label, tokens in open_ways if tokens[: len(longer)] == longer}
                    probability = reached[row] * float(distribution[row, token])
                    if len(labels) == 1:
                        sums[row][labels.pop()] += probability
                    else:
                        further.setdefault(longer, [0.0] * len(choices))[row] = probability
            paths += further.items()
        return sums

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
        remaining = [[(label, list(tokens)) for label, tokens in row] for row in choices]
        for depth in range(max(len(tokens) for row in remaining for _, tokens in row)):
            logits = state.logits.cpu()
            chosen = []
            for row, options in enumerate(remaining):
                allowed = sorted({tokens[depth] for _, tokens in options if len(tokens) > depth})
                if len({label for label, _ in options}) > 1:
                    token = allowed[int(logits[row, allowed].argmax())]
                    remaining[row] = [option for option in options if option[1][depth : depth + 1] == [token]]
                    chosen.append(token)
                else:
                    chosen.append(int(self._stops[0]))  # already settled: anything will do
            if all(len({label for label, _ in options}) == 1 for options in remaining):
                break
            self.feed(state, torch.tensor(chosen, device=self.device).unsqueeze(1))
        return [options[0][0] for options in remaining]

    def _feed(self, state: State, h: Tensor, sees_image: Tensor | None) -> None:
        """Run embeddings [b, n, d] through the layers at the state's position; project only the last to the vocabulary."""
        start, end = state.length, state.length + h.shape[1]
        query = torch.arange(start, end, device=self.device).unsqueeze(1)
        key = torch.arange(end, device=self.device)
        allowed = (key <= query) & (key >= state.padding.view(-1, 1, 1))
        h = run_decoder(
            self._model,
            h,
            image=state.image.features,
            image_mask=state.image.mask,
            sees_image=sees_image,
            mask=allowed | (key == query),  # [b, n, end]; a padding query sees itself: an empty softmax is NaN
            positions=(query.T - state.padding.unsqueeze(1)).clamp(min=0),
            cache=state.cache,
            recorder=self._recorder,
        )
        state.logits = self._model.decoder.unembed(h[:, -1:]).squeeze(1)

    def text(self, tokens: Sequence[int]) -> str:
        """Return generated tokens as text, up to the first stop token."""
        stops = set(self._transform.stop_tokens)
        end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        return self._transform.tokenizer.decode(list(tokens[:end]), truncate_at_eos=False, skip_special_tokens=True)


def uniform_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """Return [rows, count] uniform numbers, each row from a generator of its own seed."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def next_tokens(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """Return the next token of each row, [b].

    Args:
        logits: [b, vocabulary].
        sampling: how it is chosen.
        uniform: [b] uniform numbers of this step; None is greedy.
    """
    return logits.argmax(dim=-1) if uniform is None else _draw(logits, sampling, uniform)


def _draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Draw the next token of each row, [b], by inverting the cumulative distribution at `uniform`."""
    probabilities, order = torch.softmax(logits / sampling.temperature, dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    cumulative = probabilities.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, uniform.unsqueeze(1).to(cumulative) * cumulative[:, -1:], right=True)
    return order.gather(1, place.clamp(max=order.shape[1] - 1)).squeeze(1)
