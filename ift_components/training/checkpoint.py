"""Checkpoints to resume from: sharded, written in the background, complete or not there, checked before they are used.

A run's `resume/step_00000120/` holds what torch's distributed checkpoint writes (each process its own shards), `state.json`
(where the run stands) and `files.json` (a SHA-256 for every file). It is written under a temporary name, synced and renamed.
Loading reshards, so that a run may continue on another number of processes.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from ift_components.distributed import World
from ift_components.errors import UserError
from ift_components.files import sha256, write_json
from ift_components.training.loop import Trainer

_log = logging.getLogger(__name__)
_STATE, _FILES = "state.json", "files.json"


def _named_parameters(trainer: Trainer) -> dict[str, nn.Parameter]:
    named = {name: p for name, p in trainer.module.model.named_parameters() if p.requires_grad}
    if trainer.proxy is not None and trainer.proxy.theta.requires_grad:
        named["proxy"] = trainer.proxy.theta
    return named


def tensors(trainer: Trainer, rank: int) -> dict[str, Tensor]:
    """Return everything a run needs to go on, as flat names to (sharded) tensors: trained weights, proxy, optimizer, RNG.

    Args:
        trainer: the run.
        rank: this process, for its own random state.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in _named_parameters(trainer).items():
        state[f"model/{name}"] = parameter.detach()
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            state[f"optimizer/{name}/{key}"] = value
    if trainer.proxy is not None:
        state["momentum"] = trainer.proxy.momentum.detach()
    state[f"rng/{rank}"] = torch.get_rng_state()
    return state


def _prepare_optimizer(trainer: Trainer, stored: Mapping[str, Any]) -> None:
    """Give the optimizer empty state of the stored shapes, for loading to fill."""
    optimizer: Optimizer = trainer.optimizer
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in _named_parameters(trainer).items():
        prefix = f"optimizer/{name}/"
        # A fused optimizer counts its steps where the parameter lies, any other on the host.
        counts_there = groups[parameter].get("fused") or groups[parameter].get("capturable")
        scalars = parameter.device if counts_there else torch.device("cpu")
        for full, entry in stored.items():
            if full.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
                kind = entry.properties.dtype
                if entry.size == parameter.shape:
                    empty = torch.zeros_like(parameter, dtype=kind)
                else:
                    empty = torch.zeros(entry.size, dtype=kind, device=scalars)
                optimizer.state[parameter][full.removeprefix(prefix)] = empty.detach()


class Checkpointer:
    """Writes, checks and loads a run's checkpoints.

    Args:
        folder: where they go.
        world: the processes; all call every method together.
        keep_last: how many to keep.
    """

    def __init__(self, folder: Path, world: World, keep_last: int) -> None:
        self._folder, self._world, self._keep_last = folder, world, keep_last
        # The writer's threads talk to each other while training does: they need a group of their own.
        self._group = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: tuple[int, Future[None]] | None = None

    def save(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        """Start writing a checkpoint; the state is copied at once, the writing goes on in the background.

        Args:
            trainer: the run.
            state: where it stands, as JSON values.

        Raises:
            UserError: if the previous checkpoint could not be written.
        """
        self.wait()
        temporary = self._folder / f".step_{trainer.steps:08d}.tmp"
        if self._world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
            temporary.mkdir(parents=True)
        self._world.barrier()
        written = cast(
            "Future[Any]",
            dcp.async_save(tensors(trainer, self._world.rank), checkpoint_id=temporary, process_group=self._group),
        )
        self._pending = (trainer.steps, self._thread.submit(self._finish, written, temporary, dict(state)))

    def _finish(self, written: Future[Any], temporary: Path, state: dict[str, Any]) -> None:
        written.result()  # on the main process this comes after every process has written
        if not self._world.is_main:
            return
        write_json(temporary / _STATE, state)
        write_json(temporary / _FILES, {path.name: sha256(path) for path in sorted(temporary.iterdir())})
        final = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".tmp"))
        shutil.rmtree(final, ignore_errors=True)  # one that was found damaged
        temporary.rename(final)
        _sync_folder(self._folder)
        for old in self._complete()[: -self._keep_last]:
            shutil.rmtree(old)

    def wait(self) -> None:
        """Wait until the checkpoint being written is complete.

        Raises:
            UserError: if it could not be written; earlier checkpoints are untouched.
        """
        if self._pending is None:
            return
        step, future = self._pending
        self._pending = None
        error = future.exception()
        failures = self._world.sum(torch.tensor(float(error is not None), device=self._world.device))
        if not failures:
            return
        if self._world.is_main:
            shutil.rmtree(self._folder / f".step_{step:08d}.tmp", ignore_errors=True)
            names = [path.name for path in self._complete()]
            last = f"the last good one is {names[-1]}" if names else "there is none before it"
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self._folder}: {_cause(error)}; {last}"
            )
        raise UserError(f"the checkpoint of step {step} could not be written: {_cause(error)}")

    def _complete(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step_*") if (path / _FILES).is_file())

    def latest(self) -> Path | None:
        """Return the newest checkpoint whose files are whole, warning of every damaged one; None if there is none."""
        step = -1
        if self._world.is_main:
            for path in reversed(self._complete()):
                damage = _damage(path)
                if damage is None:
                    step = int(path.name.removeprefix("step_"))
                    break
                _log.warning("%s is damaged (%s); the checkpoint before it is used", path, damage)
        step = self._world.broadcast(step)
        return None if step < 0 else self._folder / f"step_{step:08d}"

    def load(self, path: Path, trainer: Trainer) -> dict[str, Any]:
        """Load a checkpoint into a run's weights, proxy, optimizer and random state, and return its `state.json`.

        Args:
            path: from `latest`.
            trainer: the run, built from the same config.
        """
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
        _prepare_optimizer(trainer, stored)
        state = tensors(trainer, self._world.rank)
        rng = f"rng/{self._world.rank}"
        if rng not in stored:  # a process that the interrupted run did not have
            del state[rng]
        dcp.load(state, checkpoint_id=path, process_group=self._group)
        if rng in state:
            torch.set_rng_state(state[rng])
        return json.loads((path / _STATE).read_text(encoding="utf-8"))


def _damage(path: Path) -> str | None:
    expected = json.loads((path / _FILES).read_text(encoding="utf-8"))
    for name, digest in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != digest:
            return f"{name} has changed"
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException | None) -> str:
    """Return the innermost message of an error of torch's distributed checkpoint, which wraps those of all processes."""
    while True:
        inner = getattr(error, "failures", None)
        deeper = next(iter(inner.values()))[0] if inner else (error.__cause__ if error is not None else None)
        if deeper is None:
            return str(error) if error is not None else "another process failed"
        error = deeper
