"""What a training step computes: `python -m ift_components.training.flops` counts the 11B model's operations for one image.

Counted by torch's `FlopCounterMode` over the package's own forward and backward pass, on tensors without storage: every matrix
product, convolution and attention, a multiplication and an addition as two; element-wise work is not counted.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchtune.models.llama3_2_vision import llama3_2_vision_11b
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.sharding import RECOMPUTED, checkpoint_activations
from ift_components.models.trainable import FINE_TUNING, WARM_UP, Tuning
from ift_components.training.activations import meta_model

_TILE, _PROMPT, _K = 560, 20, 8


def batch_flops(model: DeepFusionModel, batch: Batch, dtype: torch.dtype = torch.float32) -> int:
    """Return the operations of a batch's forward and backward pass.

    Args:
        model: from `meta_model`.
        batch: a batch of the shapes in question, on any device.
        dtype: the compute dtype.
    """
    proxy = nn.Parameter(torch.zeros(_K, model.decoder.output.in_features, device="meta"))
    with FlopCounterMode(display=False) as counter:
        ResponseLoss(model, dtype)(batch.to(torch.device("meta")), proxy).sum().backward()
    return counter.get_total_flops()


def image_batch(images: int = 1, response_tokens: int = 60) -> Batch:
    """Return a batch of 560 px images without storage, each with one response, as the 11B model takes it."""
    length = _PROMPT + response_tokens
    with torch.device("meta"):
        tokens = torch.zeros(images, length, dtype=torch.long)
        labels = torch.zeros(images * response_tokens, dtype=torch.long)
        pictures = torch.zeros(images, 1, 1, 3, _TILE, _TILE)
        slots = torch.zeros(images * _K, dtype=torch.long)
    aspect_ratio = torch.ones(images, 1, 2, dtype=torch.int)  # torchtune loops over it in Python
    return Batch(tokens, pictures, aspect_ratio, tokens >= 0, slots, labels, labels, ids=["counted"] * images)


def step_flops(tuning: Tuning, *, response_tokens: int = 60, recomputed: str = "none") -> int:
    """Return the operations of the 11B model's forward and backward pass for one image and one response.

    Args:
        tuning: what is trained of the model; the proxy is in any case.
        response_tokens: length of the response.
        recomputed: whose layers are recomputed in the backward pass (`activation_checkpointing`).
    """
    model = meta_model(llama3_2_vision_11b, tuning, torch.float32, _PROMPT + response_tokens)
    checkpoint_activations(model, recomputed)
    return batch_flops(model, image_batch(1, response_tokens))


def main() -> None:
    """Print the table of the 11B model as Markdown."""
    print("| 560 px image, 80 text tokens, 60 of them the response | TFLOP |")
    print("|---|---|")
    for name, tuning in (("warm-up", WARM_UP), ("fine-tuning", FINE_TUNING)):
        for recomputed in RECOMPUTED:
            print(f"| {name}, recomputed: {recomputed} | {step_flops(tuning, recomputed=recomputed) / 1e12:.1f} |")


if __name__ == "__main__":
    main()
