"""Where an image's patches stand among the encoder's tokens, and how the encoder mixes them.

Tokens of a tile: the class token, then its patches by row. Tiles come row by row; in Meta's layout padding follows.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchtune.modules import TanhGate
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.saliency.walk import Trace


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of an image that are its own; they come first in the encoder's sequence and are all that the decoder sees.

    Attributes:
        count: how many there are.
        rows: patches down, of all tiles.
        columns: patches across.
        patches: places of the patches, by row over all tiles, [rows * columns].
    """

    count: int
    rows: int
    columns: int
    patches: Tensor

    @classmethod
    def of(cls, model: DeepFusionModel, pixels: Tensor) -> "ImageTokens":
        """Return those of an image, [down, across, 3, h, w]."""
        down, across = pixels.shape[:2]
        of_tile = model.encoder.clip.patches_per_tile
        side = math.isqrt(of_tile)
        places = torch.arange(down * across * (of_tile + 1)).view(down, across, of_tile + 1)[..., 1:]
        by_row = places.unflatten(2, (side, side)).transpose(1, 2)  # [down, side, across, side]
        return cls(down * across * (of_tile + 1), down * side, across * side, by_row.flatten())


def canvas_of(tiles: Tensor) -> Tensor:
    """Put tiles together: [.., down, across, 3, h, w] to [.., 3, down * h, across * w]."""
    down, across, channels, height, width = tiles.shape[-5:]
    together = tiles.movedim(-3, -5).transpose(-3, -2)  # [.., 3, down, h, across, w]
    return together.reshape(*tiles.shape[:-5], channels, down * height, across * width)


def tiles_of(canvas: Tensor, down: int, across: int) -> Tensor:
    """Cut a canvas into tiles, `canvas_of` the other way round."""
    parts = canvas.unflatten(-2, (down, -1)).unflatten(-1, (across, -1))  # [.., 3, down, h, across, w]
    return parts.transpose(-3, -2).movedim(-5, -3)


def gate(module: nn.Module) -> float:
    """Return by how much a layer scales what its attention adds to the residual stream: |tanh| of a gate, or else 1."""
    return abs(float(module.scale.detach().float().tanh())) if isinstance(module, TanhGate) else 1.0


@dataclass
class Taps:
    """What went into the encoder's last linear layer: its last states and, beside them, those tapped on the way.

    Attributes:
        shares: [tokens, 1 + taps] each source's share of the norms of what the sources add to an output token.
    """

    shares: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def tapped(model: DeepFusionModel) -> Iterator[Taps]:
    """Note, while the context lasts, how much of each output token of one image comes from each tapped layer.

    The last linear layer adds up one linear map of each source, so that a source's share is known: the norm of its summand over
    the sum of all norms (in the sense of Kobayashi et al. 2020, "Attention is not only a weight").
    """
    output, taps = model.encoder.projection.output, Taps()
    number = len(model.encoder.clip.out_indices)

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            x = inputs[0].detach().flatten(0, -2)  # [tokens, (1 + taps) * d]
            width = x.shape[-1] // (1 + number)
            # The last states come first, then the taps, feature by feature: [d * taps].
            source = torch.arange(width * number, device=x.device) % max(1, number) + 1
            source = torch.cat([torch.zeros(width, dtype=source.dtype, device=x.device), source])
            forward = output.forward  # not the module's call: this hook would run again
            nothing = forward(torch.zeros_like(x[:1]))
            norms = [(forward(x * (source == i)) - nothing).float().norm(dim=-1) for i in range(1 + number)]
            shares = torch.stack(norms, dim=-1)
            taps.shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)

    handle = output.register_forward_pre_hook(note)
    try:
        yield taps
    finally:
        handle.remove()


Step = Callable[[Tensor, Tensor, float], Tensor]
"""Takes the mixing of the layers before [n, n], a layer's attention [n, n] and its gate; returns the mixing after it."""


def encoder_mixing(
    model: DeepFusionModel,
    tokens: ImageTokens,
    trace: Trace,
    taps: Taps,
    *,
    attention: Callable[[str], Tensor],
    step: Step,
    finish: Callable[[Tensor], Tensor] = lambda mixing: mixing,
) -> Tensor:
    """Follow the patches through the vision encoder, its tapped layers and the projection's layers.

    Args:
        model: the model.
        tokens: of the image.
        trace: of a walk about one image.
        taps: of the same walk.
        attention: gives a module's attention from encoder token to encoder token, [n, n], by name.
        step: adds a layer to the mixing.
        finish: is applied to a mixing [n, n] before sources are added up by their shares.

    Returns:
        [tokens that the decoder sees, patches]: what each holds of each patch.
    """
    clip = model.encoder.clip
    size = trace.passes["encoder.clip.layers.0.attn"].attended.shape[2]
    mixing = torch.eye(size, device=model.decoder.output.weight.device)
    patches = tokens.patches.to(mixing.device)

    def seen(state: Tensor) -> Tensor:
        return finish(state)[: tokens.count, patches]

    sources = []
    for index, layer in enumerate(clip.layers):
        if index in clip.out_indices:
            sources.append(seen(mixing))
        mixing = step(mixing, attention(f"encoder.clip.layers.{index}.attn"), gate(layer.sa_scale))
    for index, layer in enumerate(model.encoder.projection.layers):
        mixing = step(mixing, attention(f"encoder.projection.layers.{index}.attn"), gate(layer.sa_scale))
    sources.insert(0, seen(mixing))
    return torch.einsum("ns,snp->np", taps.shares, torch.stack(sources))
