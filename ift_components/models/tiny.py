"""The miniature: Llama-3.2-Vision's architecture, built from torchtune's own parts, small enough for two CPU cores.

Every shape rule of the 11B model holds: tiled vision encoder with tapped intermediate layers and a gated projection
transformer, language layers with a gated cross-attention layer at every second one, eight extra embedding rows for `<|image|>`.
"""

from importlib.resources import files
from pathlib import Path

import torch
from torch import nn
from torchtune.models.llama3_2_vision import (
    Llama3VisionTransform,
    llama3_2_vision_decoder,
    llama3_2_vision_encoder,
)
from torchtune.modules import TanhGate
from torchtune.modules.model_fusion import DeepFusionModel

_HERE = Path(str(files("ift_components.models")))
TINY_TOKENIZER = _HERE / "tiny_tokenizer"
TINY_CHECKPOINT = (
    _HERE / "tiny_checkpoint"
)  # pretrained on drawn cells; its README.md, the model card, says what it can do
TINY_PROXY = _HERE / "tiny_proxy" / "proxy_instruction.safetensors"  # warmed up on drawn smears by tiny_warmup.yaml
_BASE_VOCABULARY = 1024
_SPECIAL_TOKENS = 256
_PATCH_SIZE = 14


def tiny_vision_transform(
    path: str | None = None,
    special_tokens_path: str | None = None,
    max_seq_len: int = 1024,
    image_size: int = 84,
) -> Llama3VisionTransform:
    """Build the miniature's tokenizer and image transform, of the same class as the 11B model's.

    Args:
        path: a tiktoken file; by default the one in this package (1,024 entries, special tokens after them).
        special_tokens_path: a `tokenizer.json` whose `added_tokens` name the special tokens and their ids.
        max_seq_len: longest sequence in tokens.
        image_size: side of a tile in pixels.
    """
    return Llama3VisionTransform(
        path=path or str(TINY_TOKENIZER / "tokenizer.model"),
        special_tokens_path=special_tokens_path or str(TINY_TOKENIZER / "tokenizer.json"),
        tile_size=image_size,
        patch_size=_PATCH_SIZE,
        max_num_tiles=4,
        max_seq_len=max_seq_len,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )


def _initialise(model: nn.Module, gate: float) -> None:
    """Scale weights by fan-in and open the tanh gates, which torchtune leaves at 0 because it expects trained weights."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, TanhGate):
            nn.init.constant_(module.scale, gate)


def tiny_llama3_2_vision(
    *,
    image_size: int = 84,
    vocab_size: int = _BASE_VOCABULARY + _SPECIAL_TOKENS,
    encoder_dim: int = 96,
    decoder_dim: int = 128,
    num_layers: int = 6,
    max_seq_len: int = 1024,
    init_seed: int = 0,
    init_gate: float = 0.5,
) -> DeepFusionModel:
    """Build the miniature Llama-3.2-Vision, randomly initialised; the pretrained weights are in `TINY_CHECKPOINT`.

    Args:
        image_size: side of a tile in pixels, a multiple of 14.
        vocab_size: entries of the tokenizer, special tokens included.
        encoder_dim: width of the vision encoder.
        decoder_dim: width of the language model.
        num_layers: language layers; every second one has a cross-attention layer before it.
        max_seq_len: longest text sequence in tokens.
        init_seed: seed of the initial weights, apart from the run's seed so that every stage starts from the same model.
        init_gate: value of the tanh gates before training.
    """
    patches = (image_size // _PATCH_SIZE) ** 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        encoder = llama3_2_vision_encoder(
            patch_size=_PATCH_SIZE,
            num_heads=4,
            clip_embed_dim=encoder_dim,
            clip_num_layers=4,
            clip_hidden_states=[1, 2],
            decoder_embed_dim=decoder_dim,
            num_layers_projection=1,
            tile_size=image_size,
            max_num_tiles=4,
        )
        decoder = llama3_2_vision_decoder(
            vocab_size=vocab_size,
            num_layers=num_layers,
            fusion_interval=2,
            num_special_tokens=8,
            num_heads=4,
            num_kv_heads=2,
            embed_dim=decoder_dim,
            max_seq_len=max_seq_len,
            encoder_max_seq_len=4 * (patches + 1),
            rope_base=500_000,
            intermediate_dim=3 * decoder_dim,
        )
        model = DeepFusionModel(decoder, encoder, decoder_trainable=True, encoder_trainable=True)
        if not encoder.clip.conv.weight.is_meta:
            _initialise(model, init_gate)
    return model
