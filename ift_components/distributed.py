"""One process or many: the same calls serve a laptop, one GPU and a cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ift_components.errors import ConfigError


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: this process, from 0.
        size: number of processes.
        device: this process's device.
        mesh: one-dimensional mesh over all processes.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sharding_mesh(self, copies: int) -> DeviceMesh:
        """Return the mesh to shard over: all processes, or `copies` groups of them that hold the model each.

        Raises:
            ConfigError: if the processes cannot be divided so.
        """
        if copies == 1:
            return self.mesh
        if self.size % copies:
            raise ConfigError(
                f"data_parallel_replicate_dim: {copies} copies of the model cannot be shared evenly by {self.size} processes"
            )
        shape, names = (copies, self.size // copies), ("replicate", "shard")
        return init_device_mesh(self.device.type, shape, mesh_dim_names=names)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def smallest(self, value: int) -> int:
        """Return the smallest `value` over all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return int(shared)

    def free_memory(self) -> int:
        """Return the bytes this process may still take: free ones of its GPU, or its share of the host's available ones."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return self.host_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def host_memory(self) -> int:
        """Return the bytes that are available on this host, to all its processes together."""
        return int(psutil.virtual_memory().available)

    def broadcast(self, value: int) -> int:
        """Return the main process's `value` on every process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared)

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()


def choose_device(name: str) -> torch.device:
    """Return the device a config asks for; `auto` is CUDA where there is one.

    Raises:
        ConfigError: if it is unknown or not available.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: '{name}' is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' was asked for, but PyTorch sees no CUDA device; use device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def distributed(device_name: str) -> Iterator[World]:
    """Join the processes that torchrun started, or make a group of one.

    Args:
        device_name: `cpu` (gloo), `cuda` (nccl) or `auto`.

    Raises:
        ConfigError: if the device is unknown or not available.
    """
    device = choose_device(device_name)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Gathering and writing an 11B checkpoint outlasts the default ten minutes.
    timeout = timedelta(minutes=60)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        yield World(dist.get_rank(), dist.get_world_size(), device, mesh)
    finally:
        dist.destroy_process_group()
