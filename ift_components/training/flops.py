"""What a training step computes: `python -m ift_components.training.flops` counts the 11B model's operations for one image.

Counted by torch's `FlopCounterMode` over the package's own forward and backward pass, on tensors without storage: every matrix
product, convolution and attention, a multiplication and an addition as two; element-wise work is not counted.
"""

from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchtune.models.llama3_2_vision import llama3_2_vision_11b
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.sharding import RECOMPUTED, checkpoint_activations
from ift_components.models.tile_padding import set_tile_padding
from ift_components.models.trainable import FINE_TUNING, WARM_UP, Tuning
from ift_components.training.activations import meta_model

_TILE, _PROMPT, _K = 560, 20, 8


def batch_flops(model: DeepFusionModel, batch: Batch, dtype: torch.dtype) -> int:
    """Return the operations of a batch's forward and backward pass.

    Args:
        model: from `meta_model`.
        batch: a batch of the shapes in question, on any device.
        dtype: the compute dtype, which the model's weights have.
    """
    proxy = nn.Parameter(torch.zeros(_K, model.decoder.output.in_features, device="meta"))
    with FlopCounterMode(display=False) as counter:
        ResponseLoss(model, dtype)(batch.to(torch.device("meta")), proxy).sum().backward()
    return counter.get_total_flops()


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


def image_batch(images: int = 1, response_tokens: int = 60, grid: tuple[int, int] = (1, 1)) -> Batch:
    """Return a batch of images without storage, each with one response, as the 11B model takes it.

    Args:
        images: how many.
        response_tokens: length of a response.
        grid: tiles of 560 px down and across of an image.
    """
    length = _PROMPT + response_tokens
    with torch.device("meta"):
        tokens = torch.zeros(images, length, dtype=torch.long)
        labels = torch.zeros(images * response_tokens, dtype=torch.long)
        pictures = torch.zeros(images, 1, grid[0] * grid[1], 3, _TILE, _TILE)
        slots = torch.zeros(images * _K, dtype=torch.long)
    aspect_ratio = torch.tensor([[grid]] * images, dtype=torch.int)  # with storage: torchtune loops over it in Python
    return Batch(tokens, pictures, aspect_ratio, tokens >= 0, slots, labels, labels, ids=["counted"] * images)


def step_flops(
    tuning: Tuning,
    *,
    response_tokens: int = 60,
    recomputed: str = "none",
    grid: tuple[int, int] = (1, 1),
    tile_padding: str = "none",
) -> int:
    """Return the operations of the 11B model's forward and backward pass for one image and one response.

    Args:
        tuning: what is trained of the model; the proxy is in any case.
        response_tokens: length of the response.
        recomputed: whose layers are recomputed in the backward pass (`activation_checkpointing`).
        grid: tiles down and across of the image.
        tile_padding: `none` or `meta`.
    """
    build = partial(in_layout, grid[0] * grid[1], tile_padding)
    model = meta_model(build, tuning, torch.float32, _PROMPT + response_tokens)
    checkpoint_activations(model, recomputed)
    return batch_flops(model, image_batch(1, response_tokens, grid), torch.float32)


def main() -> None:
    """Print the table of the 11B model as Markdown."""
    print("| 560 px image, 80 text tokens, 60 of them the response | TFLOP |")
    print("|---|---|")
    for name, tuning in (("warm-up", WARM_UP), ("fine-tuning", FINE_TUNING)):
        for recomputed in RECOMPUTED:
            print(f"| {name}, recomputed: {recomputed} | {step_flops(tuning, recomputed=recomputed) / 1e12:.1f} |")
    print("\n| TFLOP, nothing recomputed | warm-up | fine-tuning | x |")
    print("|---|---:|---:|---:|")
    first = step_flops(FINE_TUNING)
    for name, (grid, tile_padding) in LAYOUTS.items():
        warm_up, tuned = (step_flops(t, grid=grid, tile_padding=tile_padding) for t in (WARM_UP, FINE_TUNING))
        print(f"| {name} | {warm_up / 1e12:.1f} | {tuned / 1e12:.1f} | {tuned / first:.1f} |")


if __name__ == "__main__":
    main()
