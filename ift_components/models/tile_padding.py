"""The vision encoder on pictures of one or more tiles: real tiles alone, or padded to four as Meta trained Llama-3.2-Vision.

Meta's weights saw every image as four tiles (missing ones empty) of 1601 tokens padded to 1608. Only attention from padding to
padding is masked, so real tokens attend to the padding: transformers reproduces this, torchtune does not. `none` is torchtune's
layout, in which the authors fine-tuned: an image's own tiles alone; `meta` gives what transformers and every server built on it
computes.

Images of one batch may have different numbers of tiles. torchtune's own encoder lets the tokens of an image attend to the tiles
that fill it up to its batch mates; here they do not, so that what becomes of an image does not depend on the batch.
"""

from functools import partial
from typing import NamedTuple

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


class RealTokens(NamedTuple):
    """Which tokens of the encoder's sequences are real; takes the place of an attention mask.

    Attributes:
        counts: for each image how many tokens are real; they come first.
        padding_is_seen: whether real tokens attend to the padding, as in Meta's layout. Padding attends to real tokens alone.
    """

    counts: tuple[int, ...]
    padding_is_seen: bool

    def dense(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Return the mask as a tensor, [b, queries, keys], True where a query attends to a key.

        Args:
            queries: tokens of a sequence.
            keys: as many, and virtual tokens before them, which all attend to.
            device: where to.
        """
        ends = torch.tensor(self.counts, device=device).view(-1, 1, 1)
        real_key = torch.arange(keys, device=device) < ends + (keys - queries)
        if not self.padding_is_seen:
            return real_key.expand(-1, queries, -1)
        return real_key | (torch.arange(queries, device=device).view(-1, 1) < ends)


def _attend_alike(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float, real: int, *, padding_is_seen: bool
) -> Tensor:
    """Attend without a mask in images that have the same number of real tokens."""
    # Virtual tokens that a method of tuning has put in front count as real ones.
    seen = key.shape[2] - query.shape[2] + real
    of_real = F.scaled_dot_product_attention(
        query[:, :, :real],
        key if padding_is_seen else key[:, :, :seen],
        value if padding_is_seen else value[:, :, :seen],
        dropout_p=dropout_p,
    )
    if real == query.shape[2]:
        return of_real
    if not padding_is_seen:  # nobody reads what becomes of it
        return F.pad(of_real, (0, 0, 0, query.shape[2] - real))
    of_padding = F.scaled_dot_product_attention(
        query[:, :, real:], key[:, :, :seen], value[:, :, :seen], dropout_p=dropout_p
    )
    return torch.cat([of_real, of_padding], dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: RealTokens | None, dropout_p: float, *, is_causal: bool
) -> Tensor:
    """Attend as `RealTokens` says, image by image of one length: the same as one call with a dense mask.

    The fast kernels take it so, and no mask over pairs of tokens is stored.
    """
    if not isinstance(mask, RealTokens) or is_causal:
        raise ValueError("the vision encoder's attention takes the real tokens of its images and no other mask")
    alike = partial(_attend_alike, dropout_p=dropout_p, padding_is_seen=mask.padding_is_seen)
    lengths = sorted(set(mask.counts))
    if len(lengths) == 1:
        return alike(query, key, value, real=lengths[0])
    groups = [[row for row, count in enumerate(mask.counts) if count == length] for length in lengths]
    parts = [
        alike(query[rows], key[rows], value[rows], real=length) for rows, length in zip(groups, lengths, strict=True)
    ]
    place = {row: number for number, row in enumerate(row for rows in groups for row in rows)}
    return torch.cat(parts)[[place[row] for row in range(len(query))]]


class Taps(NamedTuple):
    """What `TiledClip` hands on to `TiledProjection` beside its last state.

    Attributes:
        states: the tapped hidden states, [b, image tokens, d] each.
        real: which tokens are real.
        image_tokens: tiles in the batch's largest image times a tile's tokens; they come first.
    """

    states: list[Tensor]
    real: RealTokens
    image_tokens: int


class TiledClip(nn.Module):
    """torchtune's vision transformer on images of several tiles, with the same modules under the same names.

    Args:
        clip: the transformer whose modules it takes over.
        layout: `none` or `meta`.
    """

    def __init__(self, clip: VisionTransformer, layout: str) -> None:
        super().__init__()
        # In torchtune's order: checkpoints and optimizers list parameters by it.
        self.pre_tile_pos_embed, self.post_tile_pos_embed = clip.pre_tile_pos_embed, clip.post_tile_pos_embed
        self.token_pos_embedding = clip.token_pos_embedding
        self.layers, self.conv = clip.layers, clip.conv
        self.ln_post, self.ln_pre, self.cls_token_embedding = clip.ln_post, clip.ln_pre, clip.cls_token_embedding
        self.out_indices, self.patches_per_tile = clip.out_indices, clip.patches_per_tile
        self._is_padded = layout == "meta"

    def get_image_tokens_per_tile(self) -> int:
        """Return the real tokens of a tile, as torchtune's transformer does."""
        return int(self.patches_per_tile) + 1

    def forward(self, images: Tensor, aspect_ratio: Tensor | None = None) -> tuple[Tensor, Taps]:
        """Return the tokens of all tiles, with the padding behind them, and what was tapped.

        Args:
            images: [b, 1 image, tiles, 3, h, w]; an image's own tiles come first, those that fill it up are zeros.
            aspect_ratio: [b, 1, 2] tiles down and across of each image, on the CPU; None for single tiles.

        Returns:
            [b, sequence, d], and the tapped states. In Meta's layout a sequence is that of four tiles and the tokens that pad
            each to a multiple of eight.

        Raises:
            ValueError: if a sample has several images, or an image more than four tiles or none for its aspect ratio.
        """
        b, n_images, tiles = images.shape[:3]
        ratio = torch.ones(b, 2, dtype=torch.int) if aspect_ratio is None else aspect_ratio.reshape(-1, 2)
        own = [int(down) * int(across) for down, across in ratio]
        if n_images != 1 or len(own) != b or max(own) != tiles or tiles > TILES:
            raise ValueError(
                f"expected one image a sample and as many tiles as the largest aspect ratio asks for, at most {TILES}; got "
                f"{n_images} images of {tiles} tiles and ratios {ratio.tolist()}"
            )
        # Missing tiles are zeros after normalisation, and the patch embedding has no bias: their patches are zeros too.
        patches = self.conv(images.flatten(0, 2)).flatten(2).transpose(1, 2)  # [b * tiles, patches, d]
        x = patches.reshape(b, tiles, *patches.shape[1:])
        if self._is_padded:
            x = F.pad(x, (0, 0, 0, 0, 0, TILES - tiles))
        if self.pre_tile_pos_embed is not None:
            x = self.pre_tile_pos_embed(x, ratio)
        x = self.ln_pre(self.token_pos_embedding(self.cls_token_embedding(x), ratio))
        tokens = x.shape[2]
        # What pads each tile stands behind all tiles: so the real tokens come first, however many tiles an image has.
        # Nothing in the layers depends on a token's place in the sequence.
        filling = _padded(tokens) - tokens if self._is_padded else 0
        shape = x.shape
        real = RealTokens(tuple(count * tokens for count in own), self._is_padded)
        x = F.pad(x.flatten(1, 2), (0, 0, 0, shape[1] * filling))
        states = []
        for index, layer in enumerate(self.layers):
            if index in self.out_indices:
                states.append(x[:, : tiles * tokens])
            x = layer(x, mask=real)
        x = self.ln_post(x)
        if self.post_tile_pos_embed is not None:
            x = self._add_to_tiles(x, shape, ratio)
        return x, Taps(states, real, tiles * tokens)

    def _add_to_tiles(self, x: Tensor, shape: torch.Size, ratio: Tensor) -> Tensor:
        """Add each tile's embedding to its tokens and to what pads them."""
        b, tiles, tokens, d = shape
        by_tile = [
            part.reshape(b, tiles, -1, d) for part in x.split([tiles * tokens, x.shape[1] - tiles * tokens], dim=1)
        ]
        together = self.post_tile_pos_embed(torch.cat(by_tile, dim=2), ratio)
        return torch.cat([together[:, :, :tokens].flatten(1, 2), together[:, :, tokens:].flatten(1, 2)], dim=1)


class TiledProjection(nn.Module):
    """torchtune's projection head on what `TiledClip` returns, with the same modules under the same names.

    Args:
        projection: the head whose modules it takes over.
    """

    def __init__(self, projection: Llama3VisionProjectionHead) -> None:
        super().__init__()
        self.layers, self.output = projection.layers, projection.output

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Return the tiles' tokens in the decoder's width, [b, tiles * tokens, d]; text attends to an image's own alone.

        Args:
            x: [b, sequence, d].
            taps: what `TiledClip` tapped.
        """
        for layer in self.layers:
            x = layer(x, mask=taps.real)
        x = x[:, : taps.image_tokens]
        if taps.states:  # torchtune interleaves them channel by channel
            x = torch.cat([x, torch.stack(taps.states, dim=-1).flatten(2)], dim=-1)
        out: Tensor = self.output(x)
        return out


def own_image_tokens(model: DeepFusionModel, aspect_ratio: Tensor) -> Tensor | None:
    """Return which of the image tokens that the encoder gives are an image's own, where its batch mates have more tiles.

    Args:
        model: the model.
        aspect_ratio: [b, 1, 2] tiles down and across of each image.

    Returns:
        [b, image tokens], True for an image's own; None where all images have the same number of tiles.
    """
    counts = aspect_ratio.reshape(-1, 2).prod(dim=1)
    if bool((counts == counts[0]).all()):
        return None
    ends = counts * model.encoder.clip.get_image_tokens_per_tile()
    return torch.arange(int(ends.max())) < ends.unsqueeze(1)


def set_tile_padding(model: DeepFusionModel, layout: str, tiles: int = 1) -> DeepFusionModel:
    """Set the layout of a model's vision input; parameters and their names stay as they are.

    Call it before sharding and activation checkpointing.

    Args:
        model: a Llama-3.2-Vision model fresh from its builder.
        layout: `none` or `meta`.
        tiles: most tiles of an image.

    Returns:
        The same model.

    Raises:
        ConfigError: if the layout is unknown, or the encoder does not take four tiles.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"tile_padding: '{layout}' is not one of {', '.join(LAYOUTS)}")
    if layout == "none" and tiles == 1:
        return model
    key, value = ("tile_padding", "'meta'") if layout == "meta" else ("tiles", tiles)
    clip, projection = model.encoder.clip, model.encoder.projection
    if type(clip) is not VisionTransformer or type(projection) is not Llama3VisionProjectionHead:
        raise ConfigError(f"{key}: {value} needs torchtune's own encoder, fresh; got {type(clip).__name__}")
    if clip.pre_tile_pos_embed is None or clip.pre_tile_pos_embed.embedding.shape[0] != TILES:
        raise ConfigError(f"{key}: {value} needs an encoder built for {TILES} tiles (max_num_tiles: {TILES})")
    model.encoder.clip = TiledClip(clip, layout)
    model.encoder.projection = TiledProjection(projection)
    for layer in [*clip.layers, *projection.layers]:
        set_attention_call(layer.attn, _attend)
    return model
