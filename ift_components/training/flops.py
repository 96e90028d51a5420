"""What a training step computes: `python -m ift_components.training.flops` counts the 11B model's operations for one image.

Counted by torch's `FlopCounterMode` over the package's own forward and backward pass, on tensors without storage: every matrix
product, convolution and attention, a multiplication and an addition as two; element-wise work is not counted.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchtune.models.llama3_2_vision import llama3_2_vision_11b

from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.sharding import checkpoint_activations
from ift_components.models.trainable import FINE_TUNING, WARM_UP, Tuning, apply_tuning

_TILE, _PROMPT, _K = 560, 20, 8


def step_flops(tuning: Tuning, *, response_tokens: int = 60, recompute: bool = False) -> int:
    """Return the operations of the 11B model's forward and backward pass for one image and one response.

    Args:
        tuning: what is trained of the model; the proxy is in any case.
        response_tokens: length of the response.
        recompute: whether activations are recomputed in the backward pass (`activation_checkpointing`).
    """
    with torch.device("meta"):
        model = llama3_2_vision_11b()
        for module in model.modules():
            if hasattr(
                module, "rope_init"
            ):  # it computes its table from numbers, which a tensor without storage has not
                module.register_buffer(
                    "cache", torch.zeros(_PROMPT + response_tokens, module.dim // 2, 2), persistent=False
                )
                module.is_cache_built = True
        apply_tuning(model, tuning)
        if recompute:
            checkpoint_activations(model)
        proxy = nn.Parameter(torch.zeros(_K, model.decoder.output.in_features))
        tokens = torch.zeros(1, _PROMPT + response_tokens, dtype=torch.long)
        labels = torch.zeros(response_tokens, dtype=torch.long)
        slots = torch.zeros(_K, dtype=torch.long)
        images = torch.zeros(1, 1, 1, 3, _TILE, _TILE)
        batch = Batch(tokens, images, torch.empty(0), tokens >= 0, slots, labels, labels, ids=["counted"])
    batch = replace(batch, aspect_ratio=torch.ones(1, 1, 2, dtype=torch.int))  # torchtune loops over it in Python
    with FlopCounterMode(display=False) as counter:
        ResponseLoss(model)(batch, proxy).backward()
    return counter.get_total_flops()


def main() -> None:
    """Print the table of the 11B model as Markdown."""
    print("| 560 px image, 80 text tokens, 60 of them the response | TFLOP |")
    print("|---|---|")
    for name, tuning in (("warm-up", WARM_UP), ("fine-tuning", FINE_TUNING)):
        print(f"| {name} | {step_flops(tuning) / 1e12:.1f} |")
        print(f"| {name}, activations recomputed | {step_flops(tuning, recompute=True) / 1e12:.1f} |")


if __name__ == "__main__":
    main()
