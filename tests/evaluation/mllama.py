"""The same weights in transformers, with what this package puts right there, and the inputs of a question."""

import torch
from transformers import MllamaForConditionalGeneration

from ift_components.models.tile_padding import TILES
from ift_components.models.transformers_patch import correct_rows, correct_taps

RATIOS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
"""Tiles down and across, in the order in which Hugging Face numbers them from 1 on."""


def load(folder, *, taps=True, rows=True):
    """Load a checkpoint into transformers in fp32.

    Args:
        folder: the checkpoint.
        taps: put the vision encoder's tapped states right.
        rows: keep tokens before the image from seeing it.
    """
    model = MllamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    if taps:
        correct_taps(model)
    if rows:
        correct_rows(model)
    return model


def inputs(transform, picture, tokens):
    """What Meta's processor gives for one image, [down, across, 3, h, w], and a prompt."""
    down, across = picture.shape[:2]
    own = down * across
    pixels = torch.zeros(1, 1, TILES, *picture.shape[2:])
    pixels[0, 0, :own] = picture.flatten(0, 1)
    tile_mask = torch.zeros(1, 1, TILES, dtype=torch.long)
    tile_mask[..., :own] = 1
    rows = torch.tensor([tokens])
    cross = torch.zeros(1, len(tokens), 1, TILES, dtype=torch.long)
    cross[0, tokens.index(transform.tokenizer.image_id) :, 0, :own] = 1
    return {
        "input_ids": rows,
        "attention_mask": torch.ones_like(rows),
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[RATIOS.index((down, across)) + 1]]),
        "aspect_ratio_mask": tile_mask,
        "cross_attention_mask": cross,
    }
