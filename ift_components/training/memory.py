"""What a run keeps in memory: `python -m ift_components.training.memory` prints the table for the 11B model.

Counted exactly: weights, gradients, optimizer state, sharded over all processes. Not counted: activations, which depend on the
batch, and the one or two layers that are gathered whole at a time.
"""

import torch
from torch import nn
from torchtune.models.llama3_2_vision import llama3_2_vision_11b

from ift_components.models.trainable import FINE_TUNING, apply_tuning

_FP32, _BF16 = 4, 2
_ADAMW_MOMENTS = 2


def static_bytes(frozen: int, trained: int, processes: int, frozen_bytes: int = _BF16) -> float:
    """Return the bytes that each process holds from the first optimizer step on.

    A trained parameter costs 16 bytes: its fp32 master, its fp32 gradient and AdamW's two fp32 moments; a frozen one only
    itself. All are sharded evenly.

    Args:
        frozen: frozen parameters of the whole model.
        trained: trained parameters of the whole model.
        processes: processes that share them.
        frozen_bytes: bytes of a frozen parameter: 2 in bf16, 4 in fp32.
    """
    return (frozen * frozen_bytes + trained * _FP32 * (2 + _ADAMW_MOMENTS)) / processes


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the frozen and the trained parameters of a model, in numbers."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters) - trained, trained


def main() -> None:
    """Print the table of the 11B model as Markdown."""
    with torch.device("meta"):
        model = llama3_2_vision_11b()
    apply_tuning(model, FINE_TUNING)
    frozen, trained = parameter_counts(model)
    print("| GPUs | warm-up, GiB each | fine-tuning, GiB each |")
    print("|---|---|---|")
    for processes in (1, 2, 4, 8, 16):
        warm_up = static_bytes(frozen + trained, 0, processes) / 2**30
        fine_tuning = static_bytes(frozen, trained, processes) / 2**30
        print(f"| {processes} | {warm_up:.1f} | {fine_tuning:.1f} |")


if __name__ == "__main__":
    main()
