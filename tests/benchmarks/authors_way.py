"""The authors' way to train, for the benchmarks: torchtune's own forward with the proxy swapped in by a hook."""

import torch
from torch import nn
from torch.nn import functional as F
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.proxy import random_theta


class AuthorsModel(nn.Module):
    """torchtune's forward with a learnable proxy swapped in by a hook; the loss over all positions, a dense image mask.

    Args:
        model: the model in the dtype of everything.
        num_vectors: K.
        image_tokens: tokens of an image.
    """

    def __init__(self, model: DeepFusionModel, num_vectors: int, image_tokens: int = 1601) -> None:
        super().__init__()
        self.model = model
        weight = model.decoder.output.weight
        self.proxy = nn.Parameter(random_theta(num_vectors, weight.shape[1], 0).to(weight))
        self.image_tokens = image_tokens
        self._slots = None
        model.decoder.tok_embeddings.register_forward_hook(self._insert)

    def _insert(self, module, inputs, output):
        flat = output.reshape(-1, output.shape[-1])
        return flat.index_copy(0, self._slots, self.proxy.repeat(output.shape[0], 1)).view_as(output)

    def forward(self, batch):
        """Return the mean cross-entropy of a batch of `ift_components.models.forward.Batch`."""
        self._slots = batch.slot_index
        mask = batch.sees_image.unsqueeze(-1).expand(-1, -1, self.image_tokens).contiguous()
        encoder_input = {"images": batch.images.to(self.proxy.dtype), "aspect_ratio": batch.aspect_ratio}
        logits = self.model(batch.tokens, encoder_input=encoder_input, encoder_mask=mask)
        labels = torch.full((batch.tokens.numel(),), -100, device=logits.device)
        labels[batch.response_index] = batch.labels
        return F.cross_entropy(logits.flatten(0, 1).float(), labels)
