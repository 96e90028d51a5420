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


class TileSequence(NamedTuple):
    """What stands where in the encoder's sequences, each an image; takes the place of an attention mask.

    A sequence holds the tokens of `slots` tiles, an image's own first, and, in Meta's layout, behind them one token for each
    slot that stands for all those which pad the tile. The slots behind an image's own are empty tiles. All of them are alike in
    every layer, as are the tokens that pad a tile: nothing tells them apart. So one empty tile stands for all that Meta's
    layout has, and real tokens attend to it as often: the same function and gradients as four tiles, for half the tokens.

    Attributes:
        own: how many tiles each image has.
        tokens: real tokens of a tile.
        slots: tiles in a sequence.
        filling: tokens that pad a tile to a multiple of eight; 0 without padding.
        padding_is_seen: whether real tokens attend to the padding, as in Meta's layout. Padding attends to real tokens alone.
    """

    own: tuple[int, ...]
    tokens: int
    slots: int
    filling: int
    padding_is_seen: bool

    def dense(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Return which query attends to which key as a tensor, [b, queries, keys]; not how often.

        Args:
            queries: tokens of a sequence.
            keys: as many, and virtual tokens before them, which all attend to.
            device: where to.
        """
        own = torch.tensor(self.own, device=device).view(-1, 1, 1)
        ends, first = own * self.tokens, self.slots * self.tokens
        place = torch.arange(keys, device=device) - (keys - queries)
        real_key = place < ends
        if not self.padding_is_seen:
            return real_key.expand(-1, queries, -1)
        # Of an image's own slots the padding, and of the others the last.
        last = (own < TILES) & ((place >= first - self.tokens) & (place < first) | (place == first + self.slots - 1))
        filling = (place >= first) & (place < first + own)
        real_query = torch.arange(queries, device=device).view(-1, 1) < ends
        return torch.where(real_query, real_key | filling | last, real_key)

    def seen_by_real(self, x: Tensor, own: int) -> Tensor:
        """Return the keys or values that real tokens attend to, each as often as Meta's layout has it.

        Args:
            x: [b, heads, keys, head dim]; virtual tokens that a method of tuning has put in front count as real.
            own: how many tiles the images have.
        """
        behind = x.shape[2] - self.slots * (self.tokens + (self.filling > 0))  # virtual tokens
        front = x[:, :, : behind + own * self.tokens]
        if not self.padding_is_seen:
            return front
        tiles, fillings = x[:, :, behind:].split(
            [self.slots * self.tokens, x.shape[2] - behind - self.slots * self.tokens], 2
        )
        parts = [front, *[tiles[:, :, -self.tokens :]] * (TILES - own)]
        if self.filling:
            parts.append(fillings[:, :, :own].repeat(1, 1, self.filling, 1))
            parts.append(fillings[:, :, -1:].expand(-1, -1, (TILES - own) * self.filling, -1))
        return torch.cat(parts, dim=2)


def _attend_alike(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float, own: int, *, sequence: TileSequence
) -> Tensor:
    """Attend without a mask in images that have the same number of tiles."""
    real = own * sequence.tokens
    of_real = F.scaled_dot_product_attention(
        query[:, :, :real], sequence.seen_by_real(key, own), sequence.seen_by_real(value, own), dropout_p=dropout_p
    )
    if real == query.shape[2]:
        return of_real
    if not sequence.padding_is_seen:  # nobody reads what becomes of it
        return F.pad(of_real, (0, 0, 0, query.shape[2] - real))
    seen = key.shape[2] - query.shape[2] + real
    of_padding = F.scaled_dot_product_attention(
        query[:, :, real:], key[:, :, :seen], value[:, :, :seen], dropout_p=dropout_p
    )
    return torch.cat([of_real, of_padding], dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: TileSequence | None, dropout_p: float, *, is_causal: bool
) -> Tensor:
    """Attend as `TileSequence` says, images of one number of tiles together.

    The same as one call over four whole tiles with a dense mask, but the fast kernels take it and no mask is stored.
    """
    if not isinstance(mask, TileSequence) or is_causal:
        raise ValueError("the vision encoder's attention takes the tiles of its images and no other mask")
    alike = partial(_attend_alike, dropout_p=dropout_p, sequence=mask)
    numbers = sorted(set(mask.own))
    if len(numbers) == 1:
        return alike(query, key, value, own=numbers[0])
    groups = [[row for row, own in enumerate(mask.own) if own == number] for number in numbers]
    parts = [
        alike(query[rows], key[rows], value[rows], own=number) for rows, number in zip(groups, numbers, strict=True)
    ]
    place = {row: number for number, row in enumerate(row for rows in groups for row in rows)}
    return torch.cat(parts)[[place[row] for row in range(len(query))]]


class Taps(NamedTuple):
    """What `TiledClip` hands on to `TiledProjection` beside its last state.

    Attributes:
        states: the tapped hidden states, [b, image tokens, d] each.
        sequence: what stands where.
        image_tokens: tiles in the batch's largest image times a tile's tokens; they come first.
    """

    states: list[Tensor]
    sequence: TileSequence
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
            [b, sequence, d] as `TileSequence` describes, and what was tapped.

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
        if self._is_padded and min(own) < TILES:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))  # the tile that stands for all empty ones
        if self.pre_tile_pos_embed is not None:
            x = self.pre_tile_pos_embed(x, ratio)
        x = self.ln_pre(self.token_pos_embedding(self.cls_token_embedding(x), ratio))
        tokens = x.shape[2]
        shape, slots = x.shape, x.shape[1]
        filling = _padded(tokens) - tokens if self._is_padded else 0
        sequence = TileSequence(tuple(own), tokens, slots, filling, self._is_padded)
        # Nothing in the layers depends on a token's place: the tokens that pad tiles can stand behind them all.
        x = F.pad(x.flatten(1, 2), (0, 0, 0, slots if filling else 0))
        states = []
        for index, layer in enumerate(self.layers):
            if index in self.out_indices:
                states.append(x[:, : tiles * tokens])
            x = layer(x, mask=sequence)
        x = self.ln_post(x)
        if self.post_tile_pos_embed is not None:
            x = self._add_to_tiles(x, shape, ratio)
        return x, Taps(states, sequence, tiles * tokens)

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
            x = layer(x, mask=taps.sequence)
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
