"""The optimizer's step on each process's own shards.

AdamW, norms and clipping work element by element and need no sharded tensors. On DTensors each of a step's thousands of small
operations costs the host tens of microseconds more, and AdamW does not use its kernels over many tensors at once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def own_shards(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return, for an optimizer to hold, a parameter over each one's shard here; one that is whole stays itself."""
    return [nn.Parameter(p.to_local().detach()) if isinstance(p, DTensor) else p for p in parameters]


@torch.no_grad()
def lend(parameters: Iterable[nn.Parameter], shards: Iterable[nn.Parameter]) -> None:
    """Let shards from `own_shards` stand for their parameters' memory and gradients as they are now.

    FSDP may give a parameter other memory, for example when it pins it before the first pass.
    """
    for parameter, shard in zip(parameters, shards, strict=True):
        if isinstance(parameter, DTensor) and shard is not parameter:
            shard.data = parameter.to_local()
            shard.grad = None if parameter.grad is None else _local(parameter.grad)


def as_sharded(value: Tensor, parameter: Tensor) -> Tensor:
    """Return an optimizer's state for a parameter's shard as a DTensor over the same memory, laid out as the parameter is.

    What has not the shard's shape, such as a count of steps, is returned as it is.
    """
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor) or value.shape != parameter.to_local().shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(
        value, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def squared_norms(groups: Mapping[str, Sequence[nn.Parameter]], processes: int, device: torch.device) -> Tensor:
    """Return this process's share of the squared 2-norm of each part's gradient, [parts] in fp64 on `device`.

    The sum over all processes is the whole one, so that it travels with whatever else a step sums.

    Args:
        groups: parameters by part.
        processes: how many there are; what each of them holds counts by that share.
        device: where to; under `cpu_offload` gradients lie on two devices.
    """
    return torch.stack([_squared_norm(parameters, processes, device) for parameters in groups.values()])


def _squared_norm(parameters: Sequence[nn.Parameter], processes: int, device: torch.device) -> Tensor:
    by_copies: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_copies.setdefault(_copies(parameter, processes), []).append(_local(parameter.grad))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for copies, gradients in by_copies.items():
        total += torch.nn.utils.get_total_norm(gradients).to(device, torch.float64).square() / copies
    return total


def _copies(parameter: Tensor, processes: int) -> int:
    """Return how many processes hold the same as this one."""
    if not isinstance(parameter, DTensor):
        return processes
    mesh, placements = parameter.device_mesh, parameter.placements
    return processes // math.prod(mesh.size(dim) for dim, where in enumerate(placements) if where.is_shard())


@torch.no_grad()
def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def scale_gradients(groups: Mapping[str, Sequence[nn.Parameter]], factor: float) -> None:
    """Multiply every gradient by `factor`, shard by shard (torch's own clipping refuses a mix of sharded and whole ones)."""
    gradients = [_local(p.grad) for parameters in groups.values() for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor)
