"""One training run from its config: what `ift_warmup_recipe` and `ift_recipe` both do."""

import math
from pathlib import Path

from omegaconf import DictConfig

from ift_components.config import instantiate
from ift_components.files import sha256
from ift_components.proxy import PROXY_FILE, UpdateRule, save_proxy
from ift_components.training.distributed import World
from ift_components.training.loop import Trainer, epoch_batches, steps_per_epoch
from ift_components.training.recorder import Recorder
from ift_components.training.setup import (
    build_loader,
    build_module,
    build_optimizer,
    build_proxy,
    parameter_groups,
    write_checkpoint,
)


class TrainingRun:
    """A stage's run: built from its config, then trained, saving what the stage leaves behind.

    Args:
        cfg: a config of `TrainSettings`, checked.
        world: the processes.
        rule: the proxy's update rule.
        warm_up: whether the model is frozen and only the proxy trained.

    Raises:
        UserError: for everything wrong with the config, the data or the checkpoint; nothing has been written then.
    """

    def __init__(self, cfg: DictConfig, world: World, rule: UpdateRule, *, warm_up: bool) -> None:
        self.cfg, self.world, self.warm_up = cfg, world, warm_up
        self.recorder = Recorder(cfg, world, "warm-up" if warm_up else "fine-tuning")
        self.loader = build_loader(cfg, world)
        module = build_module(cfg, world, frozen=warm_up)
        dim = module.model.decoder.output.in_features
        proxy = build_proxy(cfg, world, rule, dim)
        groups = parameter_groups(module, proxy)
        optimizer = build_optimizer(cfg, groups)
        self.steps_per_epoch = steps_per_epoch(self.loader, cfg.gradient_accumulation_steps)
        self.total_steps = min(cfg.epochs * self.steps_per_epoch, cfg.max_steps or math.inf)
        scheduler = None
        if cfg.lr_scheduler is not None:
            scheduler = instantiate(cfg.lr_scheduler, optimizer, num_training_steps=self.total_steps)
        self.trainer = Trainer(module, proxy, groups, optimizer, world, cfg.clip_grad_norm, scheduler)

    def train(self) -> None:
        """Train to the end and save: the proxy always, the model's checkpoint after fine-tuning."""
        cfg, trainer = self.cfg, self.trainer
        with self.recorder as recorder:
            recorder.start(self.total_steps)
            for epoch in range(cfg.epochs):
                for batches in epoch_batches(self.loader, epoch, cfg.gradient_accumulation_steps):
                    if trainer.steps == self.total_steps:
                        break
                    recorder.step({"epoch": epoch, **trainer.step(batches)})
                done = trainer.steps == self.total_steps
                if not self.warm_up and not done and cfg.save_every_epochs and (epoch + 1) % cfg.save_every_epochs == 0:
                    self._save(recorder.folder / f"epoch_{epoch + 1}")
                if done:
                    break
            self._save(recorder.folder if self.warm_up else recorder.folder / "checkpoint")
            recorder.finish(**self._facts())

    def _save(self, folder: Path) -> None:
        if not self.warm_up:
            write_checkpoint(folder, self.trainer.module, self.cfg, self.world)
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
            "checkpoint_dir": self.cfg.checkpoint_dir,
            "data_manifest_sha256": sha256(manifest) if manifest is not None and manifest.is_file() else None,
        }
