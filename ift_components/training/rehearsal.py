"""Keeping to the untuned model on general prompts: a KL divergence on the response tokens of one source of a mixture.

The untuned model is the run's own with its start weights put in for a pass without gradients, so that it costs no second model
and is sharded as the run is. Adapters begin by changing nothing: with their start put in they are switched off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ift_components.errors import ConfigError
from ift_components.models.forward import Batch, ResponseLoss, Target
from ift_components.training.averaging import OtherWeights


@dataclass(frozen=True)
class Rehearsal:
    """What the divergence is measured on, and against.

    Attributes:
        start: the weights that the run started from.
        source: number of the source among the data's.
        name: its name, for messages.
        weight: how much the mean divergence of its response tokens counts in the loss.
    """

    start: OtherWeights
    source: int
    name: str
    weight: float

    def count(self, batch: Batch) -> int:
        """Return how many response tokens of the source a batch holds."""
        return len(self._places(batch))

    def _places(self, batch: Batch) -> Tensor:
        if batch.source_index is None:
            raise ConfigError(
                f"rehearsal.source: there is no '{self.name}' among one source; set rehearsal.kl_weight=0"
            )
        return (batch.source_index == self.source).nonzero().squeeze(1)

    @torch.no_grad()
    def targets(self, module: ResponseLoss, batches: Sequence[Batch], device: torch.device) -> list[Target]:
        """Return what the untuned model says at the source's response tokens, for each of some batches.

        Args:
            module: the training forward.
            batches: on the CPU.
            device: where the model computes.

        Raises:
            ConfigError: if the source's prompts are the proxy's, which the untuned model does not know.
        """
        targets = []
        with self.start.standing_in():
            for batch in batches:
                places = self._places(batch)
                rows = (batch.response_index[places] // batch.tokens.shape[1]).unique().tolist()
                # All processes pass through the sharded model together: one without such a row takes any other for nothing.
                samples = batch.select(rows or [0])
                if rows and len(samples.slot_index):
                    raise ConfigError(
                        f"rehearsal.source: the prompts of '{self.name}' are the proxy's; name a source under instructions"
                    )
                logits = module(samples.to(device), None, logits_only=True)
                targets.append(Target(places.to(device), logits if rows else logits[:0]))
        return targets
