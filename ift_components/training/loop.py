"""The training loop that warm-up and fine-tuning share."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ift_components.errors import UserError
from ift_components.models.forward import Batch, ResponseLoss
from ift_components.proxy import ProxyInstruction
from ift_components.training.distributed import World


@dataclass
class Trainer:
    """Everything one optimizer step touches.

    Attributes:
        module: the training forward around the model.
        proxy: the proxy instruction, or None under a text instruction.
        groups: trained parameters by part of the model.
        optimizer: over those groups.
        world: the processes.
        clip_grad_norm: largest norm of the whole gradient; None does not clip.
        scheduler: learning-rate schedule, stepped once an optimizer step.
        steps: optimizer steps taken.
    """

    module: ResponseLoss
    proxy: ProxyInstruction | None
    groups: Mapping[str, Sequence[nn.Parameter]]
    optimizer: Optimizer
    world: World
    clip_grad_norm: float | None = None
    scheduler: LRScheduler | None = None
    steps: int = field(default=0, init=False)

    def step(self, batches: Sequence[Batch]) -> dict[str, float | int]:
        """Take one optimizer step.

        The loss is normalised by the response tokens of the global batch: all processes, all accumulated batches (Eq. 1).

        Args:
            batches: this process's share of the global batch, one forward pass each.

        Returns:
            `step`, `loss` (nats per response token of the global batch), `tokens`, `samples`, `lr` and the gradient's norm,
            whole and by part.

        Raises:
            UserError: if the loss or the gradient is not finite; no parameter has been changed by this step then.
        """
        world, proxy = self.world, self.proxy
        counts = torch.tensor(
            [sum(len(b.labels) for b in batches), sum(len(b.ids) for b in batches)], device=world.device
        )
        tokens, samples = world.sum(counts).tolist()
        if proxy is not None:
            proxy.begin_step()
        total = torch.zeros((), device=world.device)
        for batch in batches:
            loss = self.module(batch.to(world.device), proxy.seen if proxy is not None else None)
            # FSDP averages gradients over the processes; the factor turns that into their sum.
            (loss * (world.size / tokens)).backward()
            total += loss.detach()
        if proxy is not None:
            proxy.collect_gradient()
            if proxy.theta.grad is not None:
                proxy.theta.grad = world.sum(proxy.theta.grad) / world.size
        mean_loss = float(world.sum(total)) / tokens
        norms = {part: gradient_norm(parameters) for part, parameters in self.groups.items()}
        norm = math.hypot(*norms.values())
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            ids = [id_ for batch in batches for id_ in batch.ids]
            raise UserError(
                f"step {self.steps + 1}: loss {mean_loss} and gradient norm {norm} are not both finite; stopped before the "
                f"optimizer step. Samples of process {world.rank}: {', '.join(ids)}. Lower the learning rate or look at these"
            )
        if self.clip_grad_norm is not None and norm > self.clip_grad_norm:
            scale_gradients(self.groups, self.clip_grad_norm / (norm + 1e-6))
        lr = self.optimizer.param_groups[-1]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        if proxy is not None:
            proxy.end_step()
        self.steps += 1
        metrics = {
            "step": self.steps,
            "loss": mean_loss,
            "tokens": tokens,
            "samples": samples,
            "lr": lr,
            "grad_norm": norm,
        }
        return metrics | {f"grad_norm_{part}": value for part, value in norms.items()}


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Return the 2-norm of the parameters' gradients, over all shards; they are either all sharded or all whole."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def scale_gradients(groups: Mapping[str, Sequence[nn.Parameter]], factor: float) -> None:
    """Multiply every gradient by `factor`, shard by shard (torch's own clipping refuses a mix of sharded and whole ones)."""
    gradients = [_local(p.grad) for parameters in groups.values() for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor)


def steps_per_epoch(loader: DataLoader[Batch], accumulation: int) -> int:
    """Return the optimizer steps of one epoch; batches that do not fill a step are left out."""
    return len(loader) // accumulation


def epoch_batches(loader: DataLoader[Batch], epoch: int, accumulation: int) -> Iterator[list[Batch]]:
    """Yield the batches of every optimizer step of an epoch (from 0), in the order of (seed, epoch).

    Args:
        loader: from `build_loader`.
        epoch: sets the data order and the response shuffling.
        accumulation: batches an optimizer step.
    """
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
    iterator = iter(loader)
    for _ in range(steps_per_epoch(loader, accumulation)):
        yield [next(iterator) for _ in range(accumulation)]
