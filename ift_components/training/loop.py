"""The training loop that warm-up and fine-tuning share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ift_components.distributed import World
from ift_components.errors import UserError
from ift_components.models.forward import Batch, ResponseLoss, Target
from ift_components.proxy import ProxyInstruction
from ift_components.training.averaging import WeightAverage
from ift_components.training.encoded import KeptEncodings
from ift_components.training.rehearsal import Rehearsal
from ift_components.training.variation import ProxyVariation


@dataclass(kw_only=True)
class Trainer:
    """Everything one optimizer step touches.

    Attributes:
        module: the training forward around the model.
        proxy: the proxy instruction, or None under a text instruction.
        groups: trained parameters by part of the model.
        optimizer: over those groups.
        sources: names of the data's sources; with several, losses are given for each too.
        world: the processes.
        clip_grad_norm: largest norm of the whole gradient; None does not clip.
        scheduler: learning-rate schedule, stepped once an optimizer step.
        pulls: by part, how strongly and to which tensors every step pulls its parameters (L2-SP).
        variation: what varies the proxy's vectors in training; None leaves them as they are.
        rehearsal: what keeps to the untuned model on one source; None does not.
        average: moving average of the trained weights, which is validated and saved in their place; None has none.
        kept: gives what the frozen encoder makes of pictures; None lets it compute them in every pass.
        saved_activations: entered around every forward pass; decides where activations wait for the backward pass.
        steps: optimizer steps taken.
        stop: set when this process has been asked to stop.
        stop_agreed: whether any process had been at the last step; the same on all.
    """

    module: ResponseLoss
    proxy: ProxyInstruction | None
    groups: Mapping[str, Sequence[nn.Parameter]]
    optimizer: Optimizer
    world: World
    sources: Sequence[str] = ("reports",)
    clip_grad_norm: float | None = None
    scheduler: LRScheduler | None = None
    pulls: Mapping[str, tuple[float, Sequence[Tensor]]] = field(default_factory=dict)
    variation: ProxyVariation | None = None
    rehearsal: Rehearsal | None = None
    average: WeightAverage | None = None
    kept: KeptEncodings | None = None
    saved_activations: AbstractContextManager[object] = field(default_factory=nullcontext)
    steps: int = 0
    stop: bool = False
    stop_agreed: bool = False

    def loss(self, batch: Batch, *, training: bool = False, target: Target | None = None) -> Tensor:
        """Return a batch's summed losses by source under the proxy's current vectors, [sources].

        Args:
            batch: this process's samples.
            training: whether the vectors are varied as in training.
            target: the untuned model's distributions; with them the summed divergence follows, [sources + 1].
        """
        if self.kept is not None:
            batch = self.kept.fill(batch, self.world.device)
        proxy = self.proxy.seen if self.proxy is not None else None
        if proxy is not None and training and self.variation is not None:
            proxy = self.variation(proxy, batch, self.steps)
        with self.saved_activations:
            return self.module(batch.to(self.world.device), proxy, target)

    def _targets(self, batches: Sequence[Batch]) -> Sequence[Target | None]:
        """Return for each batch what the untuned model says, if the run keeps to it."""
        if self.rehearsal is None:
            return [None] * len(batches)
        return self.rehearsal.targets(self.module, batches, self.world.device)

    def saved_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model holds the weights that are validated and saved: the average, if there is one."""
        return nullcontext() if self.average is None else self.average.standing_in()

    def step(self, batches: Sequence[Batch]) -> dict[str, float | int]:
        """Take one optimizer step.

        The loss is normalised by the response tokens of the global batch: all processes, all accumulated batches (Eq. 1).
        The host waits for the device once, after the backward pass, because a bad step must be seen before it is taken.

        Args:
            batches: this process's share of the global batch, one forward pass each.

        Returns:
            `step`, `loss` (nats per response token of the global batch, by their weights if they have any), with several
            sources `loss_<source>` of those that the step holds, `tokens`, `samples`, `lr` by part and the gradient's norm,
            whole and by part; where the run keeps to the untuned model `kl` (nats per response token of that source).

        Raises:
            UserError: if the loss or the gradient is not finite; no parameter has been changed by this step then.
        """
        world, proxy = self.world, self.proxy
        counts = self._count(batches)
        if proxy is not None:
            proxy.begin_step()
        sums = self._backward(batches, counts)
        if proxy is not None:
            proxy.collect_gradient()
        self._average_whole_gradients()
        norms = {part: gradient_norm(parameters) for part, parameters in self.groups.items()}
        by_part = torch.stack([norm.to(world.device, torch.float64) for norm in norms.values()])
        # Everything the host needs travels at once, because each `tolist` waits for the device; whether to stop is asked as
        # late as can be, so that a signal during the passes ends the run after this step and not after the next.
        reduced = world.sum(torch.cat([sums, torch.full_like(sums[:1], self.stop)]))
        sources = len(self.sources)
        values = torch.cat([reduced, counts, by_part]).cpu().split([sources, 2, 3, sources, len(norms)])
        summed, (diverged, stop), (samples, labelled, kept), counted, norm_by_part = (v.tolist() for v in values)
        self.stop_agreed = stop > 0
        clipped = [part for part in self.groups if not (part == "proxy" and proxy is not None and proxy.raw_gradient)]
        mean_loss = sum(summed) / (sum(counted) or 1.0)
        norm = math.hypot(*(size for part, size in zip(norms, norm_by_part, strict=True) if part in clipped))
        if not (math.isfinite(mean_loss + diverged) and math.isfinite(math.hypot(*norm_by_part))):
            self._refuse(batches, mean_loss, math.hypot(*norm_by_part))
        if self.clip_grad_norm is not None and norm > self.clip_grad_norm:
            scale_gradients({part: self.groups[part] for part in clipped}, self.clip_grad_norm / (norm + 1e-6))
        if proxy is not None and proxy.raw_gradient and proxy.theta.grad is not None:
            proxy.theta.grad *= sum(counted)
        groups = zip(self.groups, self.optimizer.param_groups, strict=True)
        rates = {f"lr_{part}": float(group["lr"]) for part, group in groups}
        self.optimizer.step()
        self._pull()
        if self.average is not None:
            self.average.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        if proxy is not None:
            proxy.end_step(first=self.steps == 0)
        self.steps += 1
        metrics = {"step": self.steps, "loss": mean_loss, "tokens": int(labelled), "samples": int(samples)}
        metrics |= _by_source("loss", self.sources, summed, counted) | ({"kl": diverged / kept} if kept else {})
        by_part_name = {f"grad_norm_{part}": size for part, size in zip(norms, norm_by_part, strict=True)}
        return metrics | rates | {"grad_norm": norm} | by_part_name

    def _count(self, batches: Sequence[Batch]) -> Tensor:
        """Return the global batch's samples, response tokens and those to keep to, then its labels by source, [3 + sources]."""
        labels = torch.stack([batch.labels_by_source().double() for batch in batches]).sum(dim=0)
        kept = sum(0 if self.rehearsal is None else self.rehearsal.count(batch) for batch in batches)
        sizes = torch.tensor([sum(len(b.ids) for b in batches), sum(len(b.labels) for b in batches), kept])
        counts = torch.cat([sizes, labels.cpu()])
        return self.world.sum(counts.to(self.world.device, torch.float64, non_blocking=True))

    def _backward(self, batches: Sequence[Batch], counts: Tensor) -> Tensor:
        """Run batches forward and backward; return their losses summed by source, and the divergence, [sources + 1].

        Args:
            batches: this process's.
            counts: from `_count`, which the loss is normalised by.
        """
        world, sources = self.world, len(self.sources)
        tokens = counts[3:].sum().clamp(min=1e-9)  # of a step whose weights are all 0 the loss is 0
        sums = torch.zeros(sources + 1, device=world.device, dtype=torch.float64)
        for batch, target in zip(batches, self._targets(batches), strict=True):
            losses = self.loss(batch, training=True, target=target)
            # FSDP averages gradients over the processes; the factor turns that into their sum.
            objective = losses[:sources].sum() * (world.size / tokens).float()
            if self.rehearsal is not None:
                factor = self.rehearsal.weight * world.size / counts[2].clamp(min=1)
                objective = objective + losses[sources] * factor.float()
            objective.backward()
            sums[: len(losses)] += losses.detach()
        return sums

    @torch.no_grad()
    def _pull(self) -> None:
        """Move the parts' weights back towards their start by lr * pull of the way.

        This is L2-SP (Li et al. 2018) decoupled from the gradient, as AdamW's weight decay is, with the start in place of 0.
        """
        for group in self.optimizer.param_groups:
            strength, starts = self.pulls.get(group.get("name", ""), (0.0, ()))
            for parameter, start in zip(group["params"], starts, strict=bool(starts)):
                parameter.lerp_(start, float(group["lr"]) * strength)

    def _average_whole_gradients(self) -> None:
        """Average over the processes the gradients of what each holds whole: proxy and adapters; FSDP has done the others."""
        if self.world.size == 1:
            return
        parameters = [p for group in self.groups.values() for p in group if not isinstance(p, DTensor)]
        if not parameters:
            return
        # One message for all of them; where a process's batch left one without a gradient, that is a gradient of 0.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        averages = self.world.sum(torch.cat([g.flatten() for g in gradients])) / self.world.size
        for parameter, average in zip(parameters, averages.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = average.view_as(parameter)

    def _refuse(self, batches: Sequence[Batch], loss: float, norm: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        ids = ", ".join(id_ for batch in batches for id_ in batch.ids)
        raise UserError(
            f"step {self.steps + 1}: loss {loss} and gradient norm {norm} are not both finite; stopped before the optimizer "
            f"step. Samples of process {self.world.rank}: {ids}. Lower the learning rate, or look at these samples"
        )

    def try_out(self, batches: Sequence[Batch]) -> None:
        """Run batches forward and backward without a step, so that what cannot work fails before the first one.

        Raises:
            UserError: if a loss is not finite.
        """
        for batch, target in zip(batches, self._targets(batches), strict=True):
            loss = self.loss(batch, training=True, target=target).sum()
            loss.backward()
            value = float(self.world.sum(loss.detach()))
            if not math.isfinite(value):
                self._refuse([batch], value, math.nan)
        self.optimizer.zero_grad(set_to_none=True)
        if self.proxy is not None:
            self.proxy.seen.grad = None

    @torch.no_grad()
    def validation_losses(self, batches: Iterable[Batch], sources: Sequence[str] = ("reports",)) -> dict[str, float]:
        """Return `val_loss`, the mean loss over the response tokens of a validation set in nats, and `val_loss_<source>`.

        Args:
            batches: every sample once over all processes; batches that only fill up a process's share have no labels.
            sources: names of its data's sources; with several, losses are given for each too.
        """
        device = self.world.device
        sums = torch.zeros(2, len(sources), device=device, dtype=torch.float64)
        for batch in batches:
            sums += torch.stack([self.loss(batch), batch.labels_by_source().to(device)])
        totals, counts = self.world.sum(sums).tolist()
        return {"val_loss": sum(totals) / sum(counts)} | _by_source("val_loss", sources, totals, counts)


def _by_source(name: str, sources: Sequence[str], sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """Return the mean loss of every source that has tokens, where there are several sources."""
    if len(sources) == 1:
        return {}
    rows = zip(sources, sums, counts, strict=True)
    return {f"{name}_{source}": total / count for source, total, count in rows if count}


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the 2-norm of the parameters' gradients over all shards, a scalar; all are sharded or all are whole."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def scale_gradients(groups: Mapping[str, Sequence[nn.Parameter]], factor: float) -> None:
    """Multiply every gradient by `factor`, shard by shard (torch's own clipping refuses a mix of sharded and whole ones)."""
    gradients = [_local(p.grad) for parameters in groups.values() for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor)
