"""A second set of the trained weights beside a run's own: their moving average, or the weights that the run started from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ift_components.models.forward import ResponseLoss
from ift_components.models.hf_names import state_name


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's trained parameters (this process's shards of them) by the names that checkpoints use."""
    return {state_name(name): p for name, p in model.named_parameters() if p.requires_grad}


class OtherWeights:
    """A copy of a model's trained weights as they are now, in fp32 and sharded as they are, that can stand in for them.

    Args:
        module: the training forward around the model, sharded or not.
    """

    def __init__(self, module: ResponseLoss) -> None:
        self._module = module
        self._weights = trained_weights(module.model)
        self.tensors = {name: parameter.detach().clone() for name, parameter in self._weights.items()}

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Let the model compute with these weights while the context lasts; its own come back to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # After a forward pass without gradients FSDP may still hold gathered weights, which would hide what is put in here.
        for unit in self._module.modules():
            if isinstance(unit, FSDPModule):
                unit.reshard()
        for name, parameter in self._weights.items():
            own = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(own)


class WeightAverage(OtherWeights):
    """The exponential moving average of a model's trained weights; it starts from the weights at the start.

    Args:
        module: the training forward around the model.
        decay: d of a <- d a + (1 - d) w after every optimizer step; looks back over about 1 / (1 - d) steps.
    """

    def __init__(self, module: ResponseLoss, decay: float) -> None:
        super().__init__(module)
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights that an optimizer step has led to into the average."""
        for name, parameter in self._weights.items():
            self.tensors[name].lerp_(parameter, 1 - self._decay)

    def state(self) -> Mapping[str, Tensor]:
        """Return what resuming needs, by name."""
        return {f"average/{name}": tensor for name, tensor in self.tensors.items()}
