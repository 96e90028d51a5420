"""The vision encoder's input layout: one tile alone, or padded to four tiles as Meta trained Llama-3.2-Vision.

Meta's weights saw every image as four tiles (missing ones empty) of 1601 tokens padded to 1608. Only attention from padding to
padding is masked, so real tokens attend to the padding: transformers reproduces this, torchtune does not. `none` is torchtune's
layout for a one-tile image, in which the authors fine-tuned; `meta` gives what transformers and every server built on it
computes.

Which to use: evaluate a checkpoint in the layout that it was trained in. Train in `meta` if the checkpoint will be served by
transformers or another implementation of Meta's layout; `none` costs about a quarter of the encoder's time.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchtune.modules.model_fusion import DeepFusionModel
from torchtune.modules.vision_transformer import VisionTransformer

from ift_components.errors import ConfigError
from ift_components.models.torchtune_private import Llama3VisionProjectionHead, set_attention_call

LAYOUTS = ("none", "meta")
TILES = 4
_MULTIPLE = 8  # tokens of a tile are padded to a multiple of this


def _padded(tokens: int) -> int:
    return -(-tokens // _MULTIPLE) * _MULTIPLE


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, *, is_causal: bool, real: int
) -> Tensor:
    """Attend without a mask: the first `real` queries to all keys, the others (padding) to the first `real` keys.

    The same as one call with a dense mask over pairs of padding, but the fast kernels take it and no mask is stored.
    """
    if mask is not None or is_causal:
        raise ValueError("the vision encoder's attention takes no mask")
    if real == query.shape[2]:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    of_real = F.scaled_dot_product_attention(query[:, :, :real], key, value, dropout_p=dropout_p)
    seen = (
        key.shape[2] - query.shape[2] + real
    )  # virtual tokens that a method of tuning has put in front count as real ones
    of_padding = F.scaled_dot_product_attention(
        query[:, :, real:], key[:, :, :seen], value[:, :, :seen], dropout_p=dropout_p
    )
    return torch.cat([of_real, of_padding], dim=2)


class MetaPaddedClip(nn.Module):
    """torchtune's vision transformer on one-tile images in Meta's layout, with the same modules under the same names.

    Args:
        clip: the transformer whose modules it takes over.
    """

    def __init__(self, clip: VisionTransformer) -> None:
        super().__init__()
        # In torchtune's order: checkpoints and optimizers list parameters by it.
        self.pre_tile_pos_embed, self.post_tile_pos_embed = clip.pre_tile_pos_embed, clip.post_tile_pos_embed
        self.token_pos_embedding = clip.token_pos_embedding
        self.layers, self.conv = clip.layers, clip.conv
        self.ln_post, self.ln_pre, self.cls_token_embedding = clip.ln_post, clip.ln_pre, clip.cls_token_embedding
        self.out_indices, self.patches_per_tile = clip.out_indices, clip.patches_per_tile

    def forward(
        self,
        images: Tensor,
        aspect_ratio: Tensor | None = None,  # noqa: ARG002 (torchtune's signature; one tile has one ratio)
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the tokens of all four tiles, padding included, and the tapped hidden states.

        Args:
            images: [b, 1 image, 1 tile, 3, h, w].
            aspect_ratio: [b, 1, 2], all ones, or None.

        Returns:
            [b, 1, 4, padded tokens, d] and a list of tensors of that shape.

        Raises:
            ValueError: if an image has more than one tile.
        """
        b, n_images, tiles = images.shape[:3]
        if n_images * tiles != 1:
            raise ValueError(f"tile_padding 'meta' takes one image of one tile a sample, got {n_images} of {tiles}")
        # What torchtune's embeddings add to a real tile is the same whatever the batch: they loop over the ratios in Python.
        ratio = torch.ones(b, 2, dtype=torch.int)
        # Missing tiles are zeros after normalisation, and the patch embedding has no bias: their patches are zeros too.
        patches = self.conv(images.flatten(0, 2)).flatten(2).transpose(1, 2).unsqueeze(1)  # [b, 1, patches, d]
        x = F.pad(patches, (0, 0, 0, 0, 0, TILES - 1))
        if self.pre_tile_pos_embed is not None:
            x = self.pre_tile_pos_embed(x, ratio)
        x = self.ln_pre(self.token_pos_embedding(self.cls_token_embedding(x), ratio))
        tokens = x.shape[2]
        x = F.pad(x, (0, 0, 0, _padded(tokens) - tokens))
        shape = (b, 1, *x.shape[1:])
        x = x.flatten(1, 2)
        hidden = []
        for index, layer in enumerate(self.layers):
            if index in self.out_indices:
                hidden.append(x.view(shape))
            x = layer(x)
        x = self.ln_post(x)
        if self.post_tile_pos_embed is not None:
            x = self.post_tile_pos_embed(x.view(shape[0], *shape[2:]), ratio)
        return x.view(shape), hidden


class MetaPaddedProjection(nn.Module):
    """torchtune's projection head on what `MetaPaddedClip` returns, with the same modules under the same names.

    Args:
        projection: the head whose modules it takes over.
        tokens_per_tile: a tile's real tokens.
    """

    def __init__(self, projection: Llama3VisionProjectionHead, tokens_per_tile: int) -> None:
        super().__init__()
        self.layers, self.output = projection.layers, projection.output
        self.tokens_per_tile = tokens_per_tile

    def forward(self, x: Tensor, hidden_states: list[Tensor] | None = None) -> Tensor:
        """Return the real tile's tokens in the decoder's width, [b, tokens, d]: text attends to no padding.

        Args:
            x: [b, 1, 4, padded tokens, d].
            hidden_states: tapped states of the same shape.
        """
        shape = x.shape
        x = x.flatten(1, 3)
        for layer in self.layers:
            x = layer(x)
        x = x.view(shape)[:, 0, 0, : self.tokens_per_tile]
        if hidden_states:
            taps = torch.stack([state[:, 0, 0, : self.tokens_per_tile] for state in hidden_states], dim=-1).flatten(2)
            x = torch.cat([x, taps], dim=-1)
        out: Tensor = self.output(x)
        return out


def set_tile_padding(model: DeepFusionModel, layout: str) -> DeepFusionModel:
    """Set the layout of a model's vision input; parameters and their names stay as they are.

    Call it before sharding and activation checkpointing.

    Args:
        model: a Llama-3.2-Vision model fresh from its builder.
        layout: `none` or `meta`.

    Returns:
        The same model.

    Raises:
        ConfigError: if the layout is unknown, or the encoder does not take four tiles.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"tile_padding: '{layout}' is not one of {', '.join(LAYOUTS)}")
    if layout == "none":
        return model
    clip, projection = model.encoder.clip, model.encoder.projection
    if type(clip) is not VisionTransformer or type(projection) is not Llama3VisionProjectionHead:
        raise ConfigError(f"tile_padding: 'meta' needs torchtune's own encoder, fresh; got {type(clip).__name__}")
    if clip.pre_tile_pos_embed is None or clip.pre_tile_pos_embed.embedding.shape[0] != TILES:
        raise ConfigError("tile_padding: 'meta' needs an encoder built for 4 tiles (max_num_tiles: 4)")
    real = clip.patches_per_tile + 1
    model.encoder.clip = MetaPaddedClip(clip)
    model.encoder.projection = MetaPaddedProjection(projection, real)
    for layer in [*clip.layers, *projection.layers]:
        set_attention_call(layer.attn, partial(_attend, real=real))
    return model
