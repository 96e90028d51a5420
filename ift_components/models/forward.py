"""The training forward: a Llama-3.2-Vision model that sees a proxy instruction and returns the loss of its response tokens."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchtune.modules.model_fusion import DeepFusionModel, FusionLayer


@dataclass
class Batch:
    """A batch of samples, one image each, right-padded.

    Attributes:
        tokens: [b, s] token ids.
        images: [b, 1, tiles, 3, h, w] normalised pixels; None leaves out encoder and cross-attention, as for a text alone.
        aspect_ratio: [b, 1, 2] tiles down and across; stays on the CPU, because torchtune loops over it in Python.
        sees_image: [b, s] True from `<|image|>` on; tokens before it must not see the image.
        slot_index: [b * K] positions of the proxy slots in the flattened [b * s] sequence, row by row.
        response_index: [n] positions in [b * s] whose next token belongs to a response.
        labels: [n] those next tokens.
        ids: the samples' ids.
        positions: [b, s] position of each token, where several responses continue from one prompt; None counts up.
        mask: [b, s, s] which tokens each token sees then; None is causal.
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

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`, except `aspect_ratio`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name != "aspect_ratio":
                moved[field.name] = value.to(device, non_blocking=True)
        return replace(self, **moved)


class ResponseLoss(nn.Module):
    """Wraps a model so that one call embeds the proxy, runs the layers and projects only response positions to the vocabulary.

    torchtune's own forward takes no embeddings, needs a dense cross-attention mask [b, s, image tokens] (which rules out the
    fast attention kernels) only to keep the few tokens before `<|image|>` from seeing it, and computes logits at every
    position. Here cross-attention runs without a mask and its layer's effect on those rows is undone, which is the same thing.

    Args:
        model: the model; its parameters decide what is trained.
        compute_dtype: the dtype that the layers compute in.
    """

    def __init__(self, model: DeepFusionModel, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up embeddings, [b, s] to [b, s, d], without `FusionEmbedding.forward`'s data-dependent shapes."""
        table = self.model.decoder.tok_embeddings
        size = table.embedding.num_embeddings
        extra = tokens >= size
        words = table.embedding(tokens.masked_fill(extra, 0))
        return torch.where(extra.unsqueeze(-1), table.fusion_embedding((tokens - size).clamp(min=0)), words)

    def forward(self, batch: Batch, proxy: Tensor | None) -> Tensor:
        """Return the summed cross-entropy of the batch's response tokens, a scalar in fp32 (Eq. 1 without its mean).

        Args:
            batch: the samples.
            proxy: [K, d] vectors for the slots, or None when the prompt is a text instruction.
        """
        decoder, encoder = self.model.decoder, self.model.encoder
        trains_encoder = any(parameter.requires_grad for parameter in encoder.parameters())
        image = None
        if batch.images is not None:
            with torch.set_grad_enabled(trains_encoder and torch.is_grad_enabled()):
                image = encoder(batch.images.to(self.compute_dtype), batch.aspect_ratio)  # [b, image tokens, d]
        h = self.embed(batch.tokens)
        b, s, d = h.shape
        if proxy is not None:
            slots = proxy.to(h.dtype).expand(b, -1, -1).reshape(-1, d)
            h = h.reshape(-1, d).index_copy(0, batch.slot_index, slots).view(b, s, d)
        sees_image = batch.sees_image.unsqueeze(-1)
        for layer in decoder.layers:
            language_layer = layer
            if isinstance(layer, FusionLayer):
                language_layer = layer.layer
                if image is not None:
                    h = torch.where(sees_image, layer.fusion_layer(h, encoder_input=image), h)
            # Without a mask this is causal; padding comes after every real token.
            h = language_layer(h, mask=batch.mask, input_pos=batch.positions)
        h = h.reshape(-1, d).index_select(0, batch.response_index)
        logits = decoder.output(decoder.norm(h)).float()  # [n, vocabulary]
        return F.cross_entropy(logits, batch.labels, reduction="sum")
