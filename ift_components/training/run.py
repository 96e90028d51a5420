"""One training run from its config: what `ift_warmup_recipe` and `ift_recipe` both do."""

import json
import signal
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from ift_components.config import config_to_dict, instantiate
from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.files import sha256
from ift_components.models.forward import Batch
from ift_components.models.model_card import model_card
from ift_components.proxy import PROXY_FILE, save_proxy
from ift_components.smears.dataset import draw_if_missing
from ift_components.training.card import run_facts
from ift_components.training.checkpoint import Checkpointer
from ift_components.training.data import (
    build_loader,
    build_validation_loader,
    data_sources,
    epoch_batches,
    global_batch_size,
    print_notes,
    steps_per_epoch,
)
from ift_components.training.loop import Trainer
from ift_components.training.recorder import Recorder
from ift_components.training.settings import Stage, TrainSettings
from ift_components.training.setup import (
    build_module,
    build_optimizer,
    build_proxy,
    offload_activations,
    parameter_groups,
    write_checkpoint,
)

STOPPED = 75  # exit status after SIGTERM: everything is saved, run again with resume=true
_TRIED_OUT = 2
# What may differ when a run is resumed: where and how fast it computes, not what.
_MAY_CHANGE = {
    "resume", "device", "num_workers", "batch_size", "gradient_accumulation_steps", "data_parallel_replicate_dim",
    "checkpoint_every_steps", "keep_last", "save_every_epochs", "metric_logger", "val_every_steps", "output_dir",
}  # fmt: skip


class TrainingRun:
    """A stage's run: `prepare` builds and checks everything, `train` trains and saves what the stage leaves behind.

    Args:
        cfg: a config of `TrainSettings`.
        world: the processes.
        stage: what `check_settings` made of the config.
    """

    trainer: Trainer
    """What takes the steps; there after `prepare`, as are the loaders."""

    loader: DataLoader[Batch]
    val_loader: DataLoader[Batch] | None
    checkpointer: Checkpointer
    steps_per_epoch: int
    total_steps: int
    card: str
    """Text of the checkpoint's model card; gathered before training, so that nothing about it can fail after."""

    def __init__(self, cfg: TrainSettings, world: World, stage: Stage) -> None:
        self.cfg, self.world, self.stage = cfg, world, stage
        self.recorder = Recorder(cfg, world, stage.name)

    def run(self) -> None:
        """Prepare and train."""
        self.prepare()
        self.train()

    def prepare(self) -> None:
        """Build data, model, proxy and optimizer, load the checkpoint to resume from, and run two batches on trial.

        Raises:
            UserError: for everything wrong with the config, the data or the checkpoint; nothing has been written then.
        """
        cfg, world = self.cfg, self.world
        torch.manual_seed(cfg.seed)
        self.recorder.check()
        draw_if_missing(cfg.data)
        if cfg.resume:
            self._check_unchanged()
        self.loader = build_loader(cfg, world)
        self.val_loader = build_validation_loader(cfg, world)
        self.steps_per_epoch = steps_per_epoch(self.loader, cfg.gradient_accumulation_steps)
        steps = cfg.epochs * self.steps_per_epoch
        self.total_steps = min(steps, cfg.max_steps) if cfg.max_steps else steps
        self.trainer = self._build_trainer()
        self.checkpointer = Checkpointer(self.recorder.folder / "resume", world, cfg.keep_last)
        if cfg.resume:
            self._resume()
        self.card = "" if self.stage.is_warm_up else model_card(run_facts(cfg, self.world))
        self._try_out()
        print_notes(self.loader, world)

    def _build_trainer(self) -> Trainer:
        cfg, world, tuning = self.cfg, self.world, self.stage.tuning
        module = build_module(cfg, world, tuning)
        proxy = build_proxy(cfg, world, self.stage.rule, module.model.decoder.output.in_features)
        groups = parameter_groups(module, proxy)
        optimizer = build_optimizer(cfg, tuning, groups)
        scheduler = None
        if cfg.lr_scheduler is not None:
            scheduler = instantiate(cfg.lr_scheduler, "lr_scheduler", optimizer, num_training_steps=self.total_steps)
        return Trainer(
            module=module,
            proxy=proxy,
            groups=groups,
            optimizer=optimizer,
            world=world,
            sources=data_sources(self.loader),
            clip_grad_norm=cfg.clip_grad_norm,
            scheduler=scheduler,
            saved_activations=offload_activations(world) if cfg.activation_offloading else nullcontext(),
        )

    def _check_unchanged(self) -> None:
        """Compare the config with that of the run to be resumed."""
        folder = self.recorder.folder
        if (folder / "run.json").is_file():
            raise ConfigError(f"resume: the run in {folder} is finished; give another output_dir for a new one")
        if not (folder / "config.yaml").is_file():
            return
        before = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
        now = config_to_dict(self.cfg)
        changed = sorted(
            str(k) for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in _MAY_CHANGE
        )
        if changed:
            key = changed[0]
            raise ConfigError(
                f"resume: {', '.join(changed)} differ from the run in {folder}; {key} was {before.get(key)} and is now "
                f"{now.get(key)}. Resume with the same config, or give another output_dir for a new run"
            )

    def _resume(self) -> None:
        path = self.checkpointer.latest()
        if path is None:
            return
        state = self.checkpointer.load(path, self.trainer)
        size = global_batch_size(self.cfg, self.world)
        if state["global_batch_size"] != size:
            raise ConfigError(
                f"resume: one step took {state['global_batch_size']} samples and would now take {size}; choose batch_size and "
                "gradient_accumulation_steps so that their product with the number of processes stays the same"
            )
        self.trainer.steps = state["step"]
        for group, saved in zip(self.trainer.optimizer.param_groups, state["param_groups"], strict=True):
            group.update(saved)
        if self.trainer.scheduler is not None:
            self.trainer.scheduler.load_state_dict(state["scheduler"])

    def _state(self) -> dict[str, Any]:
        """Return where the run stands, as JSON values."""
        trainer = self.trainer
        groups = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
        return {
            "step": trainer.steps,
            "global_batch_size": global_batch_size(self.cfg, self.world),
            "param_groups": groups,
            "scheduler": trainer.scheduler.state_dict() if trainer.scheduler is not None else None,
        }

    def _try_out(self) -> None:
        """Run two batches, and check that the state can be saved, before anything is written."""
        try:
            json.dumps(self._state())
        except TypeError as error:
            raise ConfigError(f"lr_scheduler or optimizer: its state cannot be saved as JSON ({error})") from error
        with torch.random.fork_rng():
            steps = islice(epoch_batches(self.loader, 0, 1), _TRIED_OUT)
            self.trainer.try_out([batch for step in steps for batch in step])

    def train(self) -> None:
        """Train to the end, after `prepare`, and save: the proxy if there is one, the model's checkpoint after fine-tuning.

        SIGTERM saves a checkpoint after the current step and ends the process with status 75.
        """
        cfg, trainer = self.cfg, self.trainer
        previous = signal.signal(signal.SIGTERM, lambda *_: setattr(trainer, "stop", True))
        try:
            with self.recorder as recorder:
                recorder.start(self.total_steps, trainer.steps)
                while trainer.steps < self.total_steps:
                    epoch, done = divmod(trainer.steps, self.steps_per_epoch)
                    for batches in epoch_batches(self.loader, epoch, cfg.gradient_accumulation_steps, done):
                        recorder.step({"epoch": epoch, **trainer.step(batches), **self._validate()})
                        self._checkpoint()
                        if trainer.steps == self.total_steps:
                            break
                    every = cfg.save_every_epochs
                    if (
                        every
                        and (epoch + 1) % every == 0
                        and trainer.steps < self.total_steps
                        and not self.stage.is_warm_up
                    ):
                        self._save(recorder.folder / f"epoch_{epoch + 1}")
                self.checkpointer.wait()
                self._save(recorder.folder if self.stage.is_warm_up else recorder.folder / "checkpoint")
                recorder.finish(**self._facts())
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _validate(self) -> dict[str, float]:
        step, every = self.trainer.steps, self.cfg.val_every_steps
        if self.val_loader is None or not (step == self.total_steps or (every and step % every == 0)):
            return {}
        return self.trainer.validation_losses(self.val_loader, data_sources(self.val_loader))

    def _checkpoint(self) -> None:
        """Write a checkpoint if one is due, and end the process if it has been asked to stop."""
        step, every = self.trainer.steps, self.cfg.checkpoint_every_steps
        end_of_epoch = step % self.steps_per_epoch == 0
        if self.trainer.stop_agreed or (every and (step % every == 0 or end_of_epoch) and step < self.total_steps):
            self.checkpointer.save(self.trainer, self._state())
        if self.trainer.stop_agreed:
            self.checkpointer.wait()
            if self.world.is_main:
                print(f"stopped after step {step}; go on with resume=true", file=sys.stderr)
            sys.exit(STOPPED)

    def _save(self, folder: Path) -> None:
        # The folder is there already if the run was killed just after writing it. The main process looks for all: a copy
        # of the model that comes late would find what the first has just written, and leave the others waiting.
        if not self.stage.is_warm_up and not self.world.broadcast(folder.exists()):
            write_checkpoint(folder, self.trainer.module, self.cfg, self.world, self.card)
        proxy = self.trainer.proxy
        if proxy is not None and self.world.is_main:
            model = str(self.cfg.model["_component_"])
            save_proxy(folder / PROXY_FILE, proxy.seen, model=model, step=self.trainer.steps, rule=proxy.rule)

    def _facts(self) -> dict[str, object]:
        parameters = list(self.trainer.module.parameters())
        manifest = Path(str(self.cfg.data)) / "manifest.json" if self.cfg.data else None
        return {
            "dtype": self.cfg.dtype,
            "seed": self.cfg.seed,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": {part: sum(p.numel() for p in group) for part, group in self.trainer.groups.items()},
            "tuning": {
                part: {"method": how.method, "lr": how.lr, **how.arguments, "saved_share": how.share}
                for part, how in self.stage.tuning.items()
            },
            "checkpoint_dir": self.cfg.checkpoint_dir,
            "data_manifest_sha256": sha256(manifest) if manifest is not None and manifest.is_file() else None,
        }
