"""The one walk through the model: training, generation and maps all embed, attend to images and run layers here.

torchtune's own forward takes no embeddings, needs a dense cross-attention mask [b, s, image tokens] (which rules out the fast
attention kernels) only to keep the few tokens before `<|image|>` from seeing it, and computes logits at every position. Here
cross-attention runs without a mask and its layer's effect on those rows is undone, which is the same thing. The walk calls the
layer modules themselves, so that whatever is in them (shards, compiled code, adapters) is there in training and in answers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchtune.modules import TransformerCrossAttentionLayer, TransformerDecoder
from torchtune.modules.model_fusion import DeepFusionModel, FusionLayer

from ift_components.models.cache import DecoderCache
from ift_components.models.prompts_by_layer import DecoderInput, with_prefix
from ift_components.models.tile_padding import TileSequence, own_image_tokens
from ift_components.models.torchtune_private import AttentionCall, replaced_attention_calls


class Recorder(Protocol):
    """Is handed what passes through the layers; what it returns from `attention` may take the place of the attended values."""

    def hidden(self, layer: str, h: Tensor) -> None:
        """Take a decoder layer's output.

        Args:
            layer: the layer module's name, `decoder.layers.3.fusion_layer` for a cross-attention layer.
            h: [b, s, d]; of a cross-attention layer with the rows that do not see the image already undone.
        """

    def attention(
        self,
        layer: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        is_causal: bool,
        attend: Callable[[Tensor], Tensor],
    ) -> Tensor | None:
        """Take what an attention module attends with, in the encoder and in the decoder.

        Args:
            layer: the attention module's name, such as `decoder.layers.3.fusion_layer.attn`.
            query: [b, heads, s, head dim]; in cross-attention [m, heads, rows of an image * s, head dim].
            key: [b, heads, keys, head dim]; virtual tokens that tuning has added come first.
            value: likewise.
            mask: [b, s, keys], in cross-attention [m, 1, keys], True where a query attends to a key, or None.
            is_causal: whether a query attends to the keys up to its own place alone.
            attend: the layer's own kernel on these queries and keys; takes values [b, heads, keys, any width]. With unit
                vectors as values it gives the attention weights, whatever mask is built into the kernel.

        Returns:
            The attended values [b, heads, s, head dim] if the recorder has computed them itself, or None: then the usual
            kernel does. With None or `attend(value)` the model's output is the same to the bit as without a recorder.
        """


@contextmanager
def recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Hand the recorder what every attention module of the model attends with while the context lasts."""

    def wrap(name: str, call: AttentionCall) -> AttentionCall:
        def record(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
            def attend(values: Tensor) -> Tensor:
                return call(query, key, values, **options)

            mask, is_causal = options.get("mask"), bool(options.get("is_causal"))
            if isinstance(mask, TileSequence):
                mask = mask.dense(query.shape[2], key.shape[2], query.device)
            attended = recorder.attention(name, query, key, value, mask, is_causal=is_causal, attend=attend)
            return attend(value) if attended is None else attended

        return record

    with replaced_attention_calls(model, wrap):
        yield


@dataclass
class Batch:
    """A batch of samples, one image each, right-padded.

    Attributes:
        tokens: [b, s] token ids.
        images: [b, 1, tiles, 3, h, w] normalised pixels, filled up with zeros to the most tiles of an image; None leaves out
            encoder and cross-attention, as for a text alone, unless there are `features`.
        aspect_ratio: [b, 1, 2] tiles down and across; stays on the CPU, because torchtune loops over it in Python.
        sees_image: [b, s] True from `<|image|>` on; tokens before it must not see the image.
        slot_index: [r * K] positions of the proxy slots in the flattened [b * s] sequence, row by row; r <= b rows have slots.
        response_index: [n] positions in [b * s] whose next token belongs to a response.
        labels: [n] those next tokens.
        ids: the samples' ids.
        positions: [b, s] position of each token, where several responses continue from one prompt; None counts up.
        mask: [b, s, s] which tokens each token sees then; None is causal.
        source_index: [n] number of the source that each label's sample is from; None where there is one source.
        sources: how many sources there are.
        weights: [n] how much each label counts in the loss; None if all count 1.
        features: [b, image tokens, d] what the encoder gives for the images, where that is known; those of an image with fewer
            tiles than others are filled up, with zeros for example.
    """

    tokens: Tensor
    images: Tensor | None
    aspect_ratio: Tensor
    sees_image: Tensor
    slot_index: Tensor
    response_index: Tensor
    labels: Tensor
    ids: list[str]
    positions: Tensor | None = None
    mask: Tensor | None = None
    source_index: Tensor | None = None
    sources: int = 1
    weights: Tensor | None = None
    features: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`, except `aspect_ratio`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name != "aspect_ratio":
                moved[field.name] = value.to(device, non_blocking=True)
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; torch's loader calls this before it hands a batch to a CUDA run."""
        pinned = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)

    def select(self, rows: Sequence[int]) -> Self:
        """Return some of the samples, in the order of the batch; they keep their padding.

        Args:
            rows: their numbers, in ascending order.
        """
        width, chosen = self.tokens.shape[1], torch.tensor(rows)
        place = torch.full((len(self.tokens),), -1)
        place[chosen] = torch.arange(len(rows))
        slot_row, label_row = place[self.slot_index // width], place[self.response_index // width]
        slots, kept = slot_row >= 0, label_row >= 0
        by_row = ("tokens", "images", "aspect_ratio", "sees_image", "positions", "mask")
        by_label = ("labels", "source_index", "weights")
        parts = {name: getattr(self, name)[chosen] for name in by_row if getattr(self, name) is not None}
        parts |= {name: getattr(self, name)[kept] for name in by_label if getattr(self, name) is not None}
        return replace(
            self,
            **parts,
            slot_index=slot_row[slots] * width + self.slot_index[slots] % width,
            response_index=label_row[kept] * width + self.response_index[kept] % width,
            ids=[self.ids[row] for row in rows],
        )

    def labels_by_source(self) -> Tensor:
        """Return how many labels each source has, [sources], each as often as its weight says."""
        if self.source_index is None:
            return torch.tensor([len(self.labels)]) if self.weights is None else self.weights.sum().unsqueeze(0)
        return torch.bincount(self.source_index, self.weights, minlength=self.sources)


class Target(NamedTuple):
    """Next-token distributions that some of a batch's are compared with."""

    places: Tensor
    """[m] numbers of the batch's labels."""

    logits: Tensor
    """[m, vocabulary]."""


def embed_tokens(decoder: TransformerDecoder, tokens: Tensor) -> Tensor:
    """Look up embeddings, [b, s] to [b, s, d], without `FusionEmbedding.forward`'s data-dependent shapes."""
    table = decoder.tok_embeddings
    size = table.embedding.num_embeddings
    extra = tokens >= size
    words = table.embedding(tokens.masked_fill(extra, 0))
    return torch.where(extra.unsqueeze(-1), table.fusion_embedding((tokens - size).clamp(min=0)), words)


def fill_slots(h: Tensor, slot_index: Tensor, proxy: Tensor) -> Tensor:
    """Return embeddings with the proxy's vectors in its slots; rows without slots stay as they are.

    Args:
        h: [b, s, d].
        slot_index: [r * K] as in `Batch`.
        proxy: [K, d], the same in every row, or [r, K, d] for the r rows with slots.

    Raises:
        ValueError: if a row has another number of slots than the proxy has vectors.
    """
    count = proxy.shape[-2]
    rows, remainder = divmod(len(slot_index), count)
    if remainder:
        raise ValueError(f"{len(slot_index)} proxy slots in a batch are no multiple of the proxy's {count} vectors")
    width = h.shape[-1]
    vectors = proxy.to(h.dtype).expand(rows, -1, -1).reshape(-1, width)
    return h.reshape(-1, width).index_copy(0, slot_index, vectors).view(h.shape)


def encode_images(
    model: DeepFusionModel, images: Tensor, aspect_ratio: Tensor, recorder: Recorder | None = None
) -> Tensor:
    """Return images as the decoder sees them, [m, image tokens, d].

    Where the images have different numbers of tiles, `own_image_tokens` tells which of the tokens are each image's own.

    Args:
        model: the model.
        images: [m, 1, tiles, 3, h, w] in the compute dtype.
        aspect_ratio: [m, 1, 2], on the CPU.
        recorder: is handed the encoder's attention.
    """
    with recording(model, recorder) if recorder is not None else nullcontext():
        features: Tensor = model.encoder(images, aspect_ratio)
    return features


def run_decoder(
    model: DeepFusionModel,
    h: Tensor,
    *,
    image: Tensor | None,
    image_mask: Tensor | None = None,
    sees_image: Tensor | None = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    cache: DecoderCache | None = None,
    recorder: Recorder | None = None,
) -> Tensor:
    """Run embeddings through the decoder's layers; the result is what its norm and output take.

    Args:
        model: the model.
        h: [b, s, d] embeddings, slots filled.
        image: [m, image tokens, d] from `encode_images`; the first b / m rows are about the first image, and so on. None leaves
            out cross-attention, unless the cache holds images.
        image_mask: [m, image tokens] from `own_image_tokens`, True for an image's own tokens; None if all are.
        sees_image: [b, s] False for tokens that must not see the image; None if all do.
        mask: [b, s, keys] which tokens each token sees; None is causal.
        positions: [b, s] position of each token; None counts up.
        cache: what has been fed before, and takes what is fed now.
        recorder: is handed what passes through the layers.

    Returns:
        [b, s, d].
    """
    inputs = DecoderInput(h, sees_image, mask, positions)
    inputs = with_prefix(model.decoder, inputs, is_first=cache is None or cache.is_empty)
    h, seen = inputs.h, None if inputs.sees_image is None else inputs.sees_image.unsqueeze(-1)
    image_is_cached = cache is not None and cache.holds_images
    with (
        cache.plugged_in() if cache is not None else nullcontext(),
        recording(model, recorder) if recorder is not None else nullcontext(),
    ):
        for number, layer in enumerate(model.decoder.layers):
            name, language_layer = f"decoder.layers.{number}", layer
            if isinstance(layer, FusionLayer):
                language_layer = layer.layer
                if image is not None or image_is_cached:
                    fused = _attend_to_images(layer.fusion_layer, h, None if image_is_cached else image, image_mask)
                    h = fused if seen is None else torch.where(seen, fused, h)
                    if recorder is not None:
                        recorder.hidden(f"{name}.fusion_layer", h[:, inputs.virtual :])
                name = f"{name}.layer"
            # Without a mask this is causal; padding comes after every real token.
            h = language_layer(h, mask=inputs.mask, input_pos=inputs.positions)
            if recorder is not None:
                recorder.hidden(name, h[:, inputs.virtual :])
    return h[:, inputs.virtual :]


def _attend_to_images(
    layer: TransformerCrossAttentionLayer, h: Tensor, image: Tensor | None, image_mask: Tensor | None
) -> Tensor:
    """Apply a cross-attention layer to [b, s, d]; without an image it is read from the layer's cache.

    The rows about one image are laid end to end, [m, rows * s, d], and attend to one copy of its keys and values: nothing in a
    cross-attention layer mixes the places of a row.
    """
    images = layer.attn.kv_cache.k_cache if image is None else image
    together = h.reshape(len(images), -1, h.shape[-1])
    mask = None if image_mask is None else image_mask.to(h.device).unsqueeze(1)  # [m, 1, image tokens]
    attended: Tensor = layer(together, encoder_input=image, encoder_mask=mask)
    return attended.view(h.shape)


class ResponseLoss(nn.Module):
    """Wraps a model so that one call embeds the proxy, runs the layers and projects only response positions to the vocabulary.

    Args:
        model: the model; its parameters decide what is trained.
        compute_dtype: the dtype that the layers compute in.
    """

    def __init__(self, model: DeepFusionModel, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype

    def forward(
        self, batch: Batch, proxy: Tensor | None, target: Target | None = None, *, logits_only: bool = False
    ) -> Tensor:
        """Return the summed cross-entropy of the response tokens (Eq. 1 without its mean) by source, [sources] in fp32.

        Each token counts as often as its weight says.

        Args:
            batch: the samples.
            proxy: [K, d] or [r, K, d] vectors for the slots (see `fill_slots`), or None when no prompt has any.
            target: distributions p to compare with those of the model, q, at some labels.
            logits_only: return the logits of all labels, [n, vocabulary] in fp32, in place of losses.

        Returns:
            [sources]; with a target [sources + 1], at its end the Kullback-Leibler divergence KL(p || q), summed over places.
        """
        logits = self._logits(batch, proxy)
        if logits_only:
            return logits
        losses = self._losses(batch, logits)
        if target is None:
            return losses
        tuned = F.log_softmax(logits.index_select(0, target.places), dim=-1)
        untuned = F.log_softmax(target.logits, dim=-1)
        divergence = F.kl_div(tuned, untuned, reduction="sum", log_target=True)
        return torch.cat([losses, divergence.unsqueeze(0)])

    def _logits(self, batch: Batch, proxy: Tensor | None) -> Tensor:
        model = self.model
        trains_encoder = any(parameter.requires_grad for parameter in model.encoder.parameters())
        image, image_mask = batch.features, None
        if image is not None:
            image_mask = own_image_tokens(model, batch.aspect_ratio)
        elif batch.images is not None:
            image_mask = own_image_tokens(model, batch.aspect_ratio)
            with torch.set_grad_enabled(trains_encoder and torch.is_grad_enabled()):
                image = encode_images(model, batch.images.to(self.compute_dtype), batch.aspect_ratio)
        h = embed_tokens(model.decoder, batch.tokens)
        if proxy is not None:
            h = fill_slots(h, batch.slot_index, proxy)
        h = run_decoder(
            model,
            h,
            image=image,
            image_mask=image_mask,
            sees_image=batch.sees_image,
            mask=batch.mask,
            positions=batch.positions,
        )
        h = h.reshape(-1, h.shape[-1]).index_select(0, batch.response_index)
        logits: Tensor = model.decoder.output(model.decoder.norm(h)).float()  # [n, vocabulary]
        return logits

    def _losses(self, batch: Batch, logits: Tensor) -> Tensor:
        if batch.source_index is None and batch.weights is None:
            return F.cross_entropy(logits, batch.labels, reduction="sum").unsqueeze(0)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        if batch.weights is not None:
            losses = losses * batch.weights
        if batch.source_index is None:
            return losses.sum().unsqueeze(0)
        of_source = F.one_hot(batch.source_index, batch.sources).to(losses.dtype)  # [n, sources]
        return losses @ of_source
