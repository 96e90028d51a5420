"""Keys and values kept between passes of the decoder: each row's text, and each image once for all rows about it.

The caches take the place of torchtune's `KVCache` in the attention modules, so that a cached pass runs through the same layer
modules as training does. torchtune's own are made for one batch size and hold an image once a row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from torchtune.modules import MultiHeadAttention, TransformerDecoder
from torchtune.modules.model_fusion import FusionLayer

from ift_components.models.prompts_by_layer import prefix_of


class ImageKeysValues:
    """The keys and values of m images in one cross-attention layer; filled by the first pass, then read.

    Attributes:
        k_cache: [m, kv heads, image tokens, head dim]; empty before the first pass.
        v_cache: likewise.
    """

    def __init__(self) -> None:
        self.k_cache = self.v_cache = torch.empty(0)

    @property
    def size(self) -> int:
        """Image tokens held."""
        return self.k_cache.shape[2] if self.k_cache.ndim > 1 else 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep and return keys and values."""
        self.k_cache, self.v_cache = keys, values
        return keys, values

    def select(self, images: Sequence[int], tokens: int | None = None) -> "ImageKeysValues":
        """Return those of the images with these numbers, or of their first tokens; empty if these are."""
        chosen = ImageKeysValues()
        if self.size:
            chosen.update(self.k_cache[list(images), :, :tokens], self.v_cache[list(images), :, :tokens])
        return chosen

    @staticmethod
    def join(parts: "Sequence[ImageKeysValues]") -> "ImageKeysValues":
        """Return those of several sets of images in one, filled up to the most tokens; empty if one of them is."""
        joined = ImageKeysValues()
        if all(part.size for part in parts):
            longest = max(part.size for part in parts)

            def together(held: Sequence[Tensor]) -> Tensor:
                return torch.cat([F.pad(tensor, (0, 0, 0, longest - tensor.shape[2])) for tensor in held])

            joined.update(together([part.k_cache for part in parts]), together([part.v_cache for part in parts]))
        return joined


class TextKeysValues:
    """The keys and values of a batch's tokens in one self-attention layer.

    Args:
        rows: b.
        capacity: tokens a row can hold.
        attention: the layer's attention, for its heads.
        like: a tensor of the dtype and on the device that are wanted.
    """

    def __init__(self, rows: int, capacity: int, attention: MultiHeadAttention, like: Tensor) -> None:
        shape = (rows, attention.num_kv_heads, capacity, attention.head_dim)
        self._keys, self._values = like.new_empty(shape), like.new_empty(shape)
        self.size = 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [b, kv heads, n, head dim] and return all that is held."""
        end = self.size + keys.shape[2]
        self._keys[:, :, self.size : end] = keys
        self._values[:, :, self.size : end] = values
        self.size = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._keys, self._values = self._keys[list(rows)], self._values[list(rows)]


class DecoderCache:
    """What a batch of rows has fed to a decoder so far.

    Args:
        decoder: the decoder.
        images: one for each of its cross-attention layers; shared by every batch about the same images.
        rows: b, a multiple of the number of images: the first b / m are about the first image, and so on.
        capacity: tokens a row can hold.
        like: a tensor of the compute dtype on the device.
    """

    def __init__(
        self, decoder: TransformerDecoder, images: Sequence[ImageKeysValues], rows: int, capacity: int, like: Tensor
    ) -> None:
        prefix = prefix_of(decoder)
        self._virtual = 0 if prefix is None else prefix.tokens
        self._text: list[tuple[MultiHeadAttention, TextKeysValues]] = []
        self._images: list[tuple[MultiHeadAttention, ImageKeysValues]] = []
        waiting = iter(images)
        for layer in decoder.layers:
            language_layer = layer
            if isinstance(layer, FusionLayer):
                language_layer = layer.layer
                self._images.append((layer.fusion_layer.attn, next(waiting)))
            attention = language_layer.attn
            self._text.append((attention, TextKeysValues(rows, self._virtual + capacity, attention, like)))

    @property
    def length(self) -> int:
        """Tokens fed to every row, padding included, virtual tokens of the decoder's prefix not."""
        return max(0, self._text[0][1].size - self._virtual)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been fed yet."""
        return self._text[0][1].size == 0

    @property
    def holds_images(self) -> bool:
        """Whether the images' keys and values are there already."""
        return all(held.size for _, held in self._images)

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length` of each row."""
        for _, held in self._text:
            held.size = min(held.size, self._virtual + length)

    def keep(self, rows: Sequence[int], images: Sequence[ImageKeysValues]) -> None:
        """Forget all rows but these.

        Args:
            rows: their numbers.
            images: of each cross-attention layer, the images that they are about.
        """
        for _, held in self._text:
            held.keep(rows)
        self._images = [(attention, kept) for (attention, _), kept in zip(self._images, images, strict=True)]

    @contextmanager
    def plugged_in(self) -> Iterator[None]:
        """Let the decoder's attention modules read and extend this cache while the context lasts."""
        pairs = [*self._text, *self._images]
        try:
            for attention, held in pairs:
                attention.kv_cache, attention.cache_enabled = held, True
            yield
        finally:
            for attention, _ in pairs:
                attention.kv_cache, attention.cache_enabled = None, False


def image_caches(decoder: TransformerDecoder) -> list[ImageKeysValues]:
    """Return an empty cache for each cross-attention layer of a decoder."""
    return [ImageKeysValues() for layer in decoder.layers if isinstance(layer, FusionLayer)]
