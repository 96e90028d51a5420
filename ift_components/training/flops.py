"""What a training step computes: `python -m ift_components.training.flops` counts the 11B model's operations for one image.

Counted by torch's `FlopCounterMode` over the package's own forward and backward pass, on tensors without storage: every matrix
product, convolution and attention, a multiplication and an addition as two; element-wise work is not counted.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchtune.models.llama3_2_vision import llama3_2_vision_11b
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.sharding import checkpoint_activations
from ift_components.models.tile_padding import set_tile_padding
from ift_components.models.trainable import FINE_TUNING, WARM_UP, Tuning
from ift_components.training.activations import meta_model

_TILE, _PROMPT = 560, 20
RESPONSE, K = 60, 8
LONGEST = _PROMPT + RESPONSE
"""Tokens of the counted row, of its response and of the proxy."""


LAYOUTS: dict[str, tuple[tuple[int, int], str]] = {
    "one tile": ((1, 1), "none"),
    "one tile, padded": ((1, 1), "meta"),
    "two tiles": ((1, 2), "none"),
    "two tiles, padded": ((1, 2), "meta"),
    "four tiles": ((2, 2), "none"),
    "four tiles, padded": ((2, 2), "meta"),
}
"""What tables list: a name, the tiles down and across of an image, and `tile_padding`."""


def in_layout(tiles: int, tile_padding: str) -> DeepFusionModel:
    """Build the 11B model in a layout of pictures, on the current device."""
    return set_tile_padding(llama3_2_vision_11b(), tile_padding, tiles)


def meta_batch(grid: tuple[int, int], response_tokens: int) -> Batch:
    """Return a batch of one image of so many tiles down and across and one response, without storage."""
    down, across = grid
    with torch.device("meta"):
        tokens = torch.zeros(1, _PROMPT + response_tokens, dtype=torch.long)
        labels = torch.zeros(response_tokens, dtype=torch.long)
        slots = torch.zeros(K, dtype=torch.long)
        images = torch.zeros(1, 1, down * across, 3, _TILE, _TILE)
    ratio = torch.tensor([[grid]], dtype=torch.int)  # with storage: torchtune loops over it in Python
    return Batch(tokens, images, ratio, tokens >= 0, slots, labels, labels, ids=["counted"])


def step_flops(
    tuning: Tuning,
    *,
    response_tokens: int = RESPONSE,
    recompute: bool = False,
    grid: tuple[int, int] = (1, 1),
    tile_padding: str = "none",
) -> int:
    """Return the operations of the 11B model's forward and backward pass for one image and one response.

    Args:
        tuning: what is trained of the model; the proxy is in any case.
        response_tokens: length of the response.
        recompute: whether activations are recomputed in the backward pass (`activation_checkpointing`).
        grid: tiles down and across of the image.
        tile_padding: `none` or `meta`.
    """
    build = partial(in_layout, grid[0] * grid[1], tile_padding)
    model = meta_model(build, tuning, torch.float32, _PROMPT + response_tokens)
    if recompute:
        checkpoint_activations(model, "all")
    proxy = nn.Parameter(torch.zeros(K, model.decoder.output.in_features, device="meta"))
    batch = meta_batch(grid, response_tokens)
    with FlopCounterMode(display=False) as counter:
        ResponseLoss(model)(batch, proxy).backward()
    return counter.get_total_flops()


def main() -> None:
    """Print the table of the 11B model as Markdown."""
    print(
        "| TFLOP an image, 80 text tokens, 60 of them the response | warm-up | fine-tuning | x | fine-tuning, recomputed |"
    )
    print("|---|---:|---:|---:|---:|")
    first = step_flops(FINE_TUNING)
    for name, (grid, tile_padding) in LAYOUTS.items():
        layout: dict[str, Any] = {"grid": grid, "tile_padding": tile_padding}
        plain = step_flops(FINE_TUNING, **layout)
        figures = [step_flops(WARM_UP, **layout), plain, step_flops(FINE_TUNING, recompute=True, **layout)]
        warm_up, tuned, recomputed = (figure / 1e12 for figure in figures)
        print(f"| {name} | {warm_up:.1f} | {tuned:.1f} | {plain / first:.1f} | {recomputed:.1f} |")


if __name__ == "__main__":
    main()
