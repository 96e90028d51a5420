"""The same weights in transformers, put right where its Mllama differs from Meta's and torchtune's model."""

import types

import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ift_components.models.tile_padding import TILES


def _tap_before(encoder):
    """Give the states before each layer. transformers 4.55 to at least 5.23 gives those after it; Meta's model does not."""
    forward = encoder.forward

    def patched(self, hidden_states, attention_mask=None):
        output = forward(hidden_states, attention_mask)
        if torch.equal(output.hidden_states[0], hidden_states):
            return output  # a version that is right
        states = (hidden_states, *output.hidden_states[:-1])
        return BaseModelOutput(last_hidden_state=output.last_hidden_state, hidden_states=states)

    encoder.forward = types.MethodType(patched, encoder)


def _skip_attention(layer):
    """Undo cross-attention too, not only the MLP after it, on tokens before the image; they see it in transformers."""
    inner, attention = layer.forward, layer.cross_attn.forward
    rows = {}

    def remember(self, *args, full_text_row_masked_out_mask=None, **kwargs):
        rows["mask"] = full_text_row_masked_out_mask
        return inner(*args, full_text_row_masked_out_mask=full_text_row_masked_out_mask, **kwargs)

    def masked(self, *args, **kwargs):
        attended, weights = attention(*args, **kwargs)
        return (attended if rows["mask"] is None else rows["mask"][:, 0] * attended), weights

    layer.forward = types.MethodType(remember, layer)
    layer.cross_attn.forward = types.MethodType(masked, layer.cross_attn)


def load(folder, *, taps=True, rows=True):
    """Load a checkpoint into transformers in fp32.

    Args:
        folder: the checkpoint.
        taps: put the vision encoder's tapped states right.
        rows: keep tokens before the image from seeing it.
    """
    config = MllamaConfig.from_pretrained(folder)
    config.text_config.pad_token_id = None  # the default, 128004, is beyond the miniature's vocabulary
    model = MllamaForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    if taps:
        _tap_before(model.model.vision_model.transformer)
    for layer in model.model.language_model.layers if rows else []:
        if hasattr(layer, "cross_attn"):
            _skip_attention(layer)
    return model


def inputs(transform, picture, tokens):
    """What Meta's processor gives for one image of one tile [1, 3, h, w] and a prompt."""
    pixels = torch.zeros(1, 1, TILES, *picture.shape[1:])
    pixels[0, 0, 0] = picture[0]
    tile_mask = torch.zeros(1, 1, TILES, dtype=torch.long)
    tile_mask[..., 0] = 1
    rows = torch.tensor([tokens])
    cross = torch.zeros(1, len(tokens), 1, TILES, dtype=torch.long)
    cross[0, tokens.index(transform.tokenizer.image_id) :, 0, 0] = 1
    return {
        "input_ids": rows,
        "attention_mask": torch.ones_like(rows),
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": tile_mask,
        "cross_attention_mask": cross,
    }
