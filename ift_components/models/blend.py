"""Weights between two checkpoints of one model: `start + a * (tuned - start)`, with a share `a` for each part.

Interpolating fine-tuned weights with those they started from keeps more of what the model could do before (Wortsman et al.
2022, "Robust fine-tuning of zero-shot models").
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ift_components.models.trainable import part_of


def blend_tensor(start: Tensor, tuned: Tensor, share: float) -> Tensor:
    """Return `start + share * (tuned - start)` in fp32; 0 and 1 give the one and the other to the bit.

    Args:
        start: weights before tuning, of any dtype.
        tuned: weights after tuning, of the same shape.
        share: how far to go, usually from 0 to 1.
    """
    return torch.lerp(start.float(), tuned.float(), share)


def blend(
    start: Iterable[tuple[str, Tensor]], tuned: Mapping[str, Tensor], shares: Mapping[str, float]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, blended tensor) of the parts whose share is not 1, one at a time.

    Args:
        start: names and weights before tuning; may be read as they are asked for.
        tuned: weights after tuning, by name.
        shares: for each part of the model how far to go from `start` to `tuned`.
    """
    for name, tensor in start:
        if shares[part_of(name)] != 1:
            yield name, blend_tensor(tensor, tuned[name], shares[part_of(name)])
