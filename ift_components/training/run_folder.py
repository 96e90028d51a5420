"""A run's output folder: who may write there, what the run was started from, and whether there is room.

`origin.json` holds the SHA-256 of everything that the run reads, so that it is not gone on with from other data or weights, and
the names of the checkpoints it has begun to write, so that it never takes another's for its own.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from omegaconf import OmegaConf
from safetensors import SafetensorError

from ift_components.config import config_to_dict
from ift_components.distributed import World
from ift_components.errors import ConfigError, UserError
from ift_components.files import locked, require_new_folder, sha256, write_json
from ift_components.models.hf_layout import checkpoint_files
from ift_components.training.settings import TrainSettings

_ORIGIN = "origin.json"
# What may differ when a run is resumed: where and how fast it computes, not what.
_MAY_CHANGE = {
    "resume", "device", "num_workers", "batch_size", "gradient_accumulation_steps", "data_parallel_replicate_dim",
    "activation_checkpointing", "activation_offloading", "frozen_weights",
    "checkpoint_every_steps", "keep_last", "save_every_epochs", "metric_logger", "val_every_steps", "output_dir",
    "spare_dir", "keep_encoded",
}  # fmt: skip


def on_main(world: World, action: Callable[[], None]) -> None:
    """Do something on the main process, and let a user's mistake or a full disk stop all processes with the same message.

    Raises:
        UserError: on every process, if the action raises it, or cannot write.
    """
    error: UserError | None = None
    if world.is_main:
        try:
            action()
        except UserError as raised:
            error = raised
        except (OSError, SafetensorError) as raised:
            error = UserError(f"output_dir: {raised}")
    if world.size > 1:
        shared = [error]
        dist.broadcast_object_list(shared, src=0)
        error = shared[0]
    if error is not None:
        raise error


def input_hashes(cfg: TrainSettings) -> dict[str, str]:
    """Return the SHA-256 of the files that a run reads: prepared folders, checkpoint, proxies; what is missing is left out."""
    files: list[Path] = []
    for name in sorted(set(prepared_folders([cfg.data, cfg.dataset, cfg.val_dataset, cfg.val_questions]))):
        folder = Path(name)
        files += [folder / "manifest.json", *sorted(folder.rglob("*.parquet"))]
    if cfg.checkpoint_dir and Path(cfg.checkpoint_dir).is_dir():
        files += checkpoint_files(Path(cfg.checkpoint_dir))
    if isinstance(cfg.instruction, str) and cfg.instruction.endswith(".txt"):
        files.append(Path(cfg.instruction))
    if cfg.instruction is None:
        files += [path for path in map(Path, cfg.proxy.paths) if path.is_file()]
    return {str(path): sha256(path) for path in files}


def prepared_folders(node: Any) -> Iterator[str]:
    """Yield the prepared folders that a config's values name, however deep."""
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            yield from prepared_folders(value)
    elif isinstance(node, str) and (Path(node) / "manifest.json").is_file():
        yield node


class RunFolder:
    """The output folder of a run.

    Args:
        cfg: a config of `TrainSettings`.
        world: the processes; all call every method together.
    """

    def __init__(self, cfg: TrainSettings, world: World) -> None:
        self._cfg, self._world = cfg, world
        self.path = Path(cfg.output_dir)
        self._origin: dict[str, Any] = {"inputs": {}, "saves": []}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out while the context lasts.

        Raises:
            UserError: if another process is writing there.
        """
        busy = f"output_dir: another run is writing {self.path}; give another folder, or wait for it"
        lock = locked(self.path, busy) if self._world.is_main else nullcontext()
        on_main(self._world, lock.__enter__)
        try:
            yield
        finally:
            if self._world.is_main:
                lock.__exit__(None, None, None)

    def check(self) -> None:
        """Check that the folder is new, or under `resume` this run's own and not finished.

        Raises:
            UserError: if it holds anything else, or the run's config or inputs have changed.
        """
        on_main(self._world, self._check)

    def is_finished(self) -> bool:
        """Return whether this run has ended before.

        Raises:
            ConfigError: if it has, under another config.
        """
        finished = (self.path / "run.json").is_file()
        if finished:
            self._check_config()
        return finished

    def _check(self) -> None:
        if not self._cfg.resume or not self.path.exists() or not any(self.path.iterdir()):
            require_new_folder(self.path)
            self._origin["inputs"] = input_hashes(self._cfg)
            return
        if (self.path / "run.json").is_file():
            raise ConfigError(f"resume: the run in {self.path} is finished; give another output_dir for a new one")
        if not (self.path / "config.yaml").is_file():
            raise ConfigError(
                f"resume: {self.path} holds files that are no run's; give another output_dir, or remove them"
            )
        self._check_config()
        self._check_origin()

    def _check_config(self) -> None:
        before = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml")))
        now = config_to_dict(self._cfg)
        changed = sorted(
            str(k) for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in _MAY_CHANGE
        )
        if changed:
            key = changed[0]
            raise ConfigError(
                f"resume: {', '.join(changed)} differ from the run in {self.path}; {key} was {before.get(key)} and is now "
                f"{now.get(key)}. Resume with the same config, or give another output_dir for a new run"
            )

    def _check_origin(self) -> None:
        inputs, path = input_hashes(self._cfg), self.path / _ORIGIN
        if path.is_file():  # runs of earlier versions have none
            try:
                self._origin = dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise ConfigError(f"resume: {path} is damaged ({error}); give another output_dir") from error
        before = self._origin["inputs"] or inputs
        changed = sorted(name for name in before.keys() | inputs.keys() if before.get(name) != inputs.get(name))
        if changed:
            raise ConfigError(
                f"resume: {changed[0]} is not what the run in {self.path} was started from"
                f"{f' (nor are {len(changed) - 1} other files)' if len(changed) > 1 else ''}; put it back, or give another "
                "output_dir for a new run"
            )
        self._origin["inputs"] = inputs
        saves = {
            path.name
            for path in self.path.iterdir()
            if path.name in ("checkpoint", "adapter") or path.name.startswith(("epoch_", "best_"))
        }
        foreign = sorted(saves - set(self._origin["saves"]))
        if foreign:
            raise ConfigError(
                f"resume: {self.path / foreign[0]} was not written by this run; move it away, or give another output_dir"
            )

    def check_room(self, needed: int, what: str = "the final checkpoint") -> None:
        """Check that what the run will write fits.

        Args:
            needed: its bytes.
            what: its name, for the message.

        Raises:
            UserError: if the disk has less room than that.
        """

        def check() -> None:
            existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
            free = shutil.disk_usage(existing).free
            if free < needed:
                raise UserError(
                    f"output_dir: {self.path} has room for {free / 1e9:.3g} GB, and {what} takes "
                    f"{needed / 1e9:.3g}; make room or give another folder"
                )

        on_main(self._world, check)

    def start(self) -> None:
        """Create the folder, note the run's origin, and remove what a killed run has left half-written."""
        if self._world.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in (*self.path.glob(".*.partial"), *self.path.glob(".*.tmp")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_json(self.path / _ORIGIN, self._origin)

    def begin_save(self, name: str) -> None:
        """Note on the main process, before it is written, that a checkpoint of this name is the run's own."""
        if name not in self._origin["saves"]:
            self._origin["saves"].append(name)
            write_json(self.path / _ORIGIN, self._origin)
