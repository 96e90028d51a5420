"""Sanity under random weights (Adebayo et al. 2018): a map that does not change when the model is destroyed says nothing of it.

Weights are made random from the top of the model down, more at each stage; the entries of each tensor change places: their size
stays and their order is lost. Reported is the rank correlation (Spearman) of each stage's map with the whole model's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.saliency.mapper import Grid

_DECODER_STAGES = 3


def stages(model: DeepFusionModel) -> dict[str, list[nn.Module]]:
    """Return what is made random at each stage, top first; stages add up."""
    decoder, encoder = model.decoder, model.encoder
    layers = list(decoder.layers)
    bounds = np.rint(np.linspace(len(layers), 0, min(_DECODER_STAGES, len(layers)) + 1)).astype(int)
    named: dict[str, list[nn.Module]] = {"output": [decoder.norm, decoder.output]}
    for high, low in pairwise(bounds):
        named[f"decoder layers {low} to {high - 1}"] = layers[low:high]
    return named | {"projection": [encoder.projection], "vision encoder": [encoder.clip]}


def correlation(first: Grid, second: Grid) -> float:
    """Return the rank correlation of two maps; 0 where one of them is the same everywhere."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first.reshape(-1), second.reshape(-1)).statistic)


@contextmanager
def _restored(model: DeepFusionModel) -> Iterator[None]:
    """Give a model its weights back at the end."""
    kept = {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])


def _shuffle(parameter: Tensor, generator: torch.Generator) -> None:
    order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
    parameter.copy_(parameter.flatten()[order].view_as(parameter))


def check_weights(model: DeepFusionModel) -> None:
    """Check that a model's weights can be made random.

    Raises:
        ConfigError: if they are quantised.
    """
    for name, parameter in model.named_parameters():
        if type(parameter.data) is not Tensor:
            raise ConfigError(
                f"checks.sanity_samples: {name} is quantised and its entries cannot change places; "
                "set checks.sanity_samples=0, or frozen_dtype=null"
            )


def randomised_maps(
    model: DeepFusionModel, maps: Callable[[], list[Grid]], seed: int = 0
) -> Iterator[tuple[str, list[Grid]]]:
    """Yield the maps of each stage; the model has its own weights again afterwards.

    Args:
        model: the model.
        maps: makes the maps with the model as it is at that moment.
        seed: seed of the new places.
    """
    check_weights(model)
    generator = torch.Generator().manual_seed(seed)
    with _restored(model):
        for name, modules in stages(model).items():
            with torch.no_grad():
                for module in modules:
                    for parameter in module.parameters():
                        _shuffle(parameter, generator)
            yield name, maps()
