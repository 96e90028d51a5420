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
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ift_components.distributed import World
from ift_components.errors import UserError
from ift_components.files import sha256, write_json
from ift_components.training.averaging import trained_weights
from ift_components.training.loop import Trainer

_log = logging.getLogger(__name__)
_STATE, _FILES = "state.json", "files.json"


def _named_parameters(trainer: Trainer) -> dict[str, nn.Parameter]:
    named = trained_weights(trainer.module.model)
    if trainer.proxy is not None and trainer.proxy.theta.requires_grad:
        named["proxy"] = trainer.proxy.theta
    return named


def tensors(trainer: Trainer, rank: int) -> dict[str, Tensor]:
    """Return everything a run needs to go on, by flat names: trained weights, their average, proxy, optimizer, RNG.

    Args:
        trainer: the run.
        rank: this process, for its own random state.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in _named_parameters(trainer).items():
        state[f"model/{name}"] = parameter.detach()
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            state |= _plain_tensors(f"optimizer/{name}/{key}", value, rank)
    if trainer.average is not None:
        state |= trainer.average.state()
    if trainer.proxy is not None:
        state["momentum"] = trainer.proxy.momentum.detach()
    state[f"rng/{rank}"] = torch.get_rng_state()
    return state


def _fill_optimizer_state(trainer: Trainer) -> None:
    """Let the optimizer make its state, in whatever types and places it keeps it, for loading to overwrite.

    It takes one step with gradients of zero at a rate of zero, as torch's own distributed state dict does.
    """
    optimizer = trainer.optimizer
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _plain_tensors(name: str, value: Any, rank: int) -> dict[str, Any]:
    """Return a value of the optimizer's state as plain or sharded tensors that a checkpoint can hold.

    Quantised state (torchao's 8-bit optimizers) is a tensor made of others, quantised in blocks of each process's own shard:
    its tensors are kept process by process, and go back to as many processes alone.
    """
    local = value.to_local() if isinstance(value, DTensor) else value
    if not is_traceable_wrapper_subclass(local):
        return {name: value}
    inner, _ = local.__tensor_flatten__()
    return {f"{name}/{rank}/{attribute}": getattr(local, attribute) for attribute in inner}


class Checkpointer:
    """Writes, checks and loads a run's checkpoints.

    Args:
        folder: where they go.
        world: the processes; all call every method together.
        keep_last: how many to keep.
        spare: another folder, for a checkpoint that `folder` has no room for; None if there is none.
    """

    def __init__(self, folder: Path, world: World, keep_last: int, spare: Path | None = None) -> None:
        self._folder, self._world, self._keep_last, self._spare = folder, world, keep_last, spare
        # The writer's threads talk to each other while training does: they need a group of their own.
        self._group = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: tuple[Path, Future[None]] | None = None
        self._whole: dict[Path, bool] = {}  # what is known of the checkpoints that are there: hashing takes long

    def clean(self) -> None:
        """Remove what killed runs have left half-written."""
        if self._world.is_main:
            for folder in self._folders():
                for path in folder.glob(".step_*.tmp"):
                    shutil.rmtree(path)
        self._world.barrier()

    def save(self, trainer: Trainer, state: Mapping[str, Any], *, in_spare: bool = False) -> Path:
        """Start writing a checkpoint; the state is copied at once, the writing goes on in the background.

        Args:
            trainer: the run.
            state: where it stands, as JSON values.
            in_spare: whether to write it to the spare folder.

        Returns:
            The folder that it will be.

        Raises:
            UserError: if the previous checkpoint could not be written, or there is no place for a folder.
        """
        self.wait()
        folder = self._spare if in_spare and self._spare is not None else self._folder
        final = folder / f"step_{trainer.steps:08d}"
        temporary = folder / f".{final.name}.tmp"
        problem = ""
        if self._world.is_main:
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            except OSError as error:
                problem = str(error)
        if self._world.broadcast(int(bool(problem))):
            raise UserError(f"the checkpoint of step {trainer.steps} could not be written to {folder}: {problem}")
        # The state is copied to host memory before this returns, so that training may change it while it is being written.
        written = cast(
            "Future[Any]",
            dcp.async_save(tensors(trainer, self._world.rank), checkpoint_id=temporary, process_group=self._group),
        )
        self._pending = (final, self._thread.submit(self._finish, written, temporary, final, dict(state)))
        return final

    def _finish(self, written: Future[Any], temporary: Path, final: Path, state: dict[str, Any]) -> None:
        written.result()  # on the main process this comes after every process has written
        if not self._world.is_main:
            return
        # The order is what makes a checkpoint whole or not there: first the state, then the hashes of every file, then the
        # name that is looked for, synced; only then are older ones removed.
        write_json(temporary / _STATE, state)
        write_json(temporary / _FILES, {path.name: sha256(path) for path in sorted(temporary.iterdir())})
        shutil.rmtree(final, ignore_errors=True)  # one that was found damaged
        temporary.rename(final)
        _sync_folder(final.parent)
        self._whole[final] = True
        self._remove_old(final.parent)

    def _remove_old(self, folder: Path) -> None:
        """Keep the newest whole checkpoints; damaged ones do not count and go."""
        whole = 0
        for path in sorted(folder.glob("step_*"), reverse=True):
            if whole < self._keep_last and self._damage_of(path) is None:
                whole += 1
            else:
                self._whole.pop(path, None)
                shutil.rmtree(path)

    def wait(self) -> None:
        """Wait until the checkpoint being written is complete.

        Raises:
            UserError: if it could not be written; earlier checkpoints are untouched.
        """
        if self._pending is None:
            return
        final, future = self._pending
        self._pending = None
        error = future.exception()
        failures = self._world.sum(torch.tensor(float(error is not None), device=self._world.device))
        if not failures:
            return
        step = _step_of(final)
        if self._world.is_main:
            shutil.rmtree(final.parent / f".{final.name}.tmp", ignore_errors=True)
            names = [path.name for path in sorted(self._folder.glob("step_*")) if self._damage_of(path) is None]
            last = f"the last good one is {names[-1]}" if names else "there is none before it"
            raise UserError(
                f"the checkpoint of step {step} could not be written to {final.parent}: {_cause(error)}; {last}"
            )
        raise UserError(f"the checkpoint of step {step} could not be written: {_cause(error)}")

    def latest(self) -> Path | None:
        """Return the newest checkpoint whose files are whole, warning of every damaged one; None if there is none."""
        step, place = -1, 0
        if self._world.is_main:
            folders = self._folders()
            paths = [path for folder in folders for path in folder.glob("step_*")]
            for path in sorted(paths, key=_step_of, reverse=True):
                damage = self._damage_of(path)
                if damage is None:
                    step, place = _step_of(path), folders.index(path.parent)
                    break
                _log.warning("%s is damaged (%s); the checkpoint before it is used", path, damage)
        step, place = self._world.broadcast(step), self._world.broadcast(place)
        return None if step < 0 else self._folders()[place] / f"step_{step:08d}"

    def _folders(self) -> list[Path]:
        return [self._folder, *([self._spare] if self._spare is not None else [])]

    def _damage_of(self, path: Path) -> str | None:
        """Return what is wrong with a checkpoint, or None; one that has been found whole is not hashed again."""
        damage = None if self._whole.get(path) else _damage(path)
        self._whole[path] = damage is None
        return damage

    def load(self, path: Path, trainer: Trainer) -> dict[str, Any]:
        """Load a checkpoint into a run's weights, proxy, optimizer and random state, and return its `state.json`.

        Args:
            path: from `latest`.
            trainer: the run, built from the same config.

        Raises:
            UserError: if the optimizer's state is quantised and was written by another number of processes.
        """
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
        _fill_optimizer_state(trainer)
        for name, parameter in _named_parameters(trainer).items():
            if not any(key.startswith(f"optimizer/{name}/") for key in stored):
                trainer.optimizer.state.pop(parameter, None)  # it had no gradient yet
        state = tensors(trainer, self._world.rank)
        rng = f"rng/{self._world.rank}"
        if rng not in stored:  # a process that the interrupted run did not have
            del state[rng]
        missing = sorted(set(state) - set(stored))
        if missing:
            raise UserError(
                f"resume: {path} does not hold {missing[0]}; resume with the same optimizer, and a quantised one on as many "
                "processes as before"
            )
        dcp.load(state, checkpoint_id=path, process_group=self._group)
        if rng in state:
            torch.set_rng_state(state[rng])
        return json.loads((path / _STATE).read_text(encoding="utf-8"))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _damage(path: Path) -> str | None:
    try:
        expected = dict(json.loads((path / _FILES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{_FILES} cannot be read"
    for name, digest in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != digest:
            return f"{name} has changed"
    return None if _STATE in expected else f"{_FILES} does not name {_STATE}"


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
