"""One training run from its config: what `ift_warmup_recipe` and `ift_recipe` both do."""

import json
import shutil
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ift_components.config import instantiate
from ift_components.distributed import World
from ift_components.errors import ConfigError, UserError
from ift_components.files import sha256
from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.model_card import model_card
from ift_components.proxy import PROXY_FILE, save_proxy
from ift_components.smears.dataset import draw_if_missing
from ift_components.training.averaging import OtherWeights, WeightAverage
from ift_components.training.card import run_facts
from ift_components.training.checkpoint import Checkpointer
from ift_components.training.checks import Stage
from ift_components.training.data import (
    build_loader,
    build_validation_loader,
    data_sources,
    epoch_batches,
    global_batch_size,
    print_notes,
    read_batches,
    steps_per_epoch,
    trial_batches,
)
from ift_components.training.encoded import KeptEncodings, count_pictures, keep_encodings
from ift_components.training.layout import settle_layout
from ift_components.training.loop import Trainer
from ift_components.training.recorder import Recorder
from ift_components.training.rehearsal import Rehearsal
from ift_components.training.run_folder import RunFolder, on_main
from ift_components.training.settings import TrainSettings
from ift_components.training.setup import (
    build_module,
    build_optimizer,
    build_proxy,
    build_variation,
    checkpoint_bytes,
    offload_activations,
    parameter_groups,
    trained_share,
    write_checkpoint,
)
from ift_components.training.watch import Best, Watch

STOPPED = 75  # exit status after SIGTERM: everything is saved, run again with resume=true
_TRIED_OUT = 2


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
    watch: Watch | None
    kept: KeptEncodings | None
    checkpointer: Checkpointer
    steps_per_epoch: int
    total_steps: int
    card: str
    """Text of the checkpoint's model card; gathered before training, so that nothing about it can fail after."""

    def __init__(self, cfg: TrainSettings, world: World, stage: Stage) -> None:
        self.cfg, self.world, self.stage = cfg, world, stage
        self.folder = RunFolder(cfg, world)
        self.recorder = Recorder(cfg, world, stage.name)
        self.best = Best()

    def run(self) -> None:
        """Prepare and train, while no other run may write the output folder."""
        with self.folder.held():
            self.prepare()
            self.train()

    def prepare(self) -> None:
        """Build data, model, proxy and optimizer, load the checkpoint to resume from, and run two batches on trial.

        Raises:
            UserError: for everything wrong with the config, the data or the checkpoint; nothing has been written then.
        """
        cfg, world = self.cfg, self.world
        torch.manual_seed(cfg.seed)
        draw_if_missing(cfg.data)
        self.folder.check()
        self.loader = build_loader(cfg, world)
        self.val_loader = build_validation_loader(cfg, world)
        pictures = count_pictures(self.loader, self.val_loader) if cfg.keep_encoded else 0
        self.watch = Watch(cfg, world, self.stage.tuning) if cfg.val_questions is not None else None
        self.steps_per_epoch = steps_per_epoch(self.loader, cfg.gradient_accumulation_steps)
        steps = cfg.epochs * self.steps_per_epoch
        self.total_steps = min(steps, cfg.max_steps) if cfg.max_steps else steps
        self.trainer = self._build_trainer()
        if not self.stage.is_warm_up:
            self.folder.check_room(checkpoint_bytes(self.trainer.module, cfg))
        self.kept = self._keep_encodings(pictures) if cfg.keep_encoded else None
        spare = Path(cfg.spare_dir) if cfg.spare_dir else None
        self.checkpointer = Checkpointer(self.folder.path / "resume", world, cfg.keep_last, spare)
        if cfg.resume:
            self._resume()
        self.card = "" if self.stage.is_warm_up else model_card(run_facts(cfg, self.world))
        self._try_out()
        print_notes(self.loader, world)
        on_main(world, self.recorder.open_logger)

    def _build_trainer(self) -> Trainer:
        world, tuning = self.world, self.stage.tuning
        with torch.random.fork_rng():
            largest, *_ = trial_batches(self.loader, 1)
        cfg = settle_layout(self.cfg, world, tuning, largest)
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
            pulls={
                part: (how.pull, [parameter.detach().clone() for parameter in groups[part]])
                for part, how in tuning.items()
                if how.pull
            },
            rehearsal=self._build_rehearsal(module),
            variation=build_variation(cfg, world, proxy),
            average=WeightAverage(module, cfg.averaging.decay) if cfg.averaging.decay is not None else None,
            saved_activations=offload_activations(world) if cfg.activation_offloading else nullcontext(),
        )

    def _build_rehearsal(self, module: ResponseLoss) -> Rehearsal | None:
        settings, sources = self.cfg.rehearsal, data_sources(self.loader)
        if not settings.kl_weight:
            return None
        if settings.source not in sources or len(sources) == 1:
            raise ConfigError(
                f"rehearsal.source: '{settings.source}' is not one of several sources ({', '.join(sources)}); train on a "
                "mixture that has it, or set rehearsal.kl_weight=0"
            )
        return Rehearsal(OtherWeights(module), sources.index(settings.source), settings.source, settings.kl_weight)

    def _keep_encodings(self, pictures: int) -> KeptEncodings:
        folder = self.folder.path / "encoded"
        kept = keep_encodings(self.trainer.module, pictures, self.cfg.tiles, self.world, folder)
        self.folder.check_room(kept.room, "what keep_encoded keeps")
        return kept

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
            for key, value in saved.items():
                if isinstance(group.get(key), Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = value
        if self.trainer.scheduler is not None:
            saved = _like(state["scheduler"], self.trainer.scheduler.state_dict())
            self.trainer.scheduler.load_state_dict(saved)
        if state.get("best") is not None:
            self.best.load(state["best"])
            self._stop_early()
        reached = self.recorder.last_step()
        if self.world.is_main:
            again = f": {reached - state['step']} steps are done again" if reached > state["step"] else ""
            print(f"resume: {path} is whole; the run had come to step {reached}{again}", file=sys.stderr)

    def _state(self) -> dict[str, Any]:
        """Return where the run stands, as JSON values."""
        trainer = self.trainer
        groups = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
        return {
            "step": trainer.steps,
            "global_batch_size": global_batch_size(self.cfg, self.world),
            "param_groups": _plain(groups),
            "best": self.best.state() if self.cfg.keep_best is not None else None,
            "scheduler": _plain(trainer.scheduler.state_dict()) if trainer.scheduler is not None else None,
        }

    def _try_out(self) -> None:
        """Run two batches, and check that the state can be saved, before anything is written."""
        try:
            json.dumps(self._state())
        except TypeError as error:
            raise ConfigError(f"lr_scheduler or optimizer: its state cannot be saved as JSON ({error})") from error
        with torch.random.fork_rng():
            batches = trial_batches(self.loader, _TRIED_OUT)
            self._check_image_size(batches[0])
            self.trainer.try_out(batches)

    def _check_image_size(self, batch: Batch) -> None:
        clip = self.trainer.module.model.encoder.clip
        side = clip.conv.kernel_size[0] * round(clip.patches_per_tile**0.5)
        pixels = batch.images.shape[-1] if batch.images is not None else side
        if pixels != side:
            raise ConfigError(
                f"tokenizer.image_size: pictures are {pixels} pixels wide, the model's tiles {side}; give both the same size"
            )

    def train(self) -> None:
        """Train to the end, after `prepare`, and save: the proxy if there is one, the model's checkpoint after fine-tuning.

        SIGTERM saves a checkpoint after the current step and ends the process with status 75.
        """
        cfg, trainer = self.cfg, self.trainer
        previous = signal.signal(signal.SIGTERM, lambda *_: setattr(trainer, "stop", True))
        try:
            if self.world.is_main:
                print(trained_share(trainer.module, self.stage.tuning, trainer.groups))
            with self.recorder as recorder:
                self.world.barrier()  # every process has seen what the folder holds
                self.folder.start()
                self.checkpointer.clean()
                if self.kept is not None:
                    on_main(self.world, self.kept.start)
                    trainer.kept = self.kept
                recorder.start(self.total_steps, trainer.steps)
                self._save_epoch()  # the run may have been stopped before it was written
                while trainer.steps < self.total_steps:
                    epoch, done = divmod(trainer.steps, self.steps_per_epoch)
                    for batches in epoch_batches(self.loader, epoch, cfg.gradient_accumulation_steps, done):
                        recorder.step({"epoch": epoch, **trainer.step(batches), **self._validate(), **self._look()})
                        self._checkpoint()
                        if trainer.steps == self.total_steps:
                            break
                    self._save_epoch()
                self.checkpointer.wait()
                self._save_at_end()
                if self.kept is not None:
                    on_main(self.world, self.kept.remove)
                recorder.finish(**self._facts())
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _save_epoch(self) -> None:
        """Write `epoch_N` if the run stands at the end of an epoch that is to be kept."""
        steps, every = self.trainer.steps, self.cfg.save_every_epochs
        epoch, inside = divmod(steps, self.steps_per_epoch)
        due = every and epoch and not inside and epoch % every == 0 and steps < self.total_steps
        if due and not self.stage.is_warm_up:
            self._save(self.folder.path / f"epoch_{epoch}")

    def _save_at_end(self) -> None:
        """Save what the stage leaves behind; if there is no room for it, keep what is needed to do so later.

        Raises:
            UserError: if it cannot be saved; the message says how to finish.
        """
        try:
            self._save(self.folder.path / self.stage.result)
        except UserError as error:
            raise UserError(f"{error}; {self._keep_state()}") from error

    def _keep_state(self) -> str:
        """Write a checkpoint to resume from wherever there is room, and say where and how to go on."""
        for in_spare in (False, True)[: 2 if self.cfg.spare_dir else 1]:
            try:
                path = self.checkpointer.save(self.trainer, self._state(), in_spare=in_spare)
                self.checkpointer.wait()
            except UserError:
                continue  # the next place, or the message below
            return f"nothing is lost: the trained state is in {path}; make room and run again with resume=true"
        latest = self.checkpointer.latest()
        if latest is None:
            return "there was no room to keep the trained state either, and spare_dir names no other disk"
        lost = self.trainer.steps - int(latest.name.removeprefix("step_"))
        return f"make room and run again with resume=true: it goes on from {latest}, {lost} steps are done again"

    def _validate(self) -> dict[str, float]:
        step, every = self.trainer.steps, self.cfg.val_every_steps
        if self.val_loader is None or not (step == self.total_steps or (every and step % every == 0)):
            return {}
        with self.trainer.saved_weights():
            return self.trainer.validation_losses(read_batches(self.val_loader), data_sources(self.val_loader))

    def _look(self) -> dict[str, float]:
        """Ask the validation questions if it is time; keep the checkpoint if it is the best, end the run if none came lately.

        Raises:
            ConfigError: if the questions do not give the measure that the best is chosen by.
        """
        cfg, step, every = self.cfg, self.trainer.steps, self.cfg.val_questions_every_steps
        if self.watch is None or not (step == self.total_steps or (every and step % every == 0)):
            return {}
        with self.trainer.saved_weights():
            measures = self.watch.look(self.trainer)
        if cfg.keep_best is not None:
            name = f"val_{cfg.keep_best}"
            if name not in measures:
                raise ConfigError(f"keep_best: the questions give no '{cfg.keep_best}', only {', '.join(measures)}")
            if self.best.see(measures[name], step):
                self._save_best()
            self._stop_early()
        return measures

    def _save_best(self) -> None:
        """Write `best_STEP`, then remove the one before it: there is always a whole one."""
        folder = self.folder.path / f"best_{self.trainer.steps}"
        self._save(folder)
        if self.world.is_main:
            for path in self.folder.path.glob("best_*"):
                if path != folder:
                    shutil.rmtree(path)
        self.world.barrier()

    def _stop_early(self) -> None:
        patience = self.cfg.early_stopping
        if patience is not None and self.best.since >= patience:
            self.total_steps = self.trainer.steps

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
            on_main(self.world, lambda: self.folder.begin_save(folder.name))
            with self.trainer.saved_weights():
                write_checkpoint(folder, self.trainer.module, self.cfg, self.world, self.card)
        proxy = self.trainer.proxy
        if proxy is not None:
            model, steps = str(self.cfg.model["_component_"]), self.trainer.steps
            path = folder / PROXY_FILE
            save = partial(save_proxy, path, proxy.seen, model=model, step=steps, rule=proxy.rule)
            on_main(self.world, partial(save, image_layout=self.cfg.image_layout.note()))

    def _facts(self) -> dict[str, object]:
        parameters = list(self.trainer.module.parameters())
        manifest = Path(str(self.cfg.data)) / "manifest.json" if self.cfg.data else None
        return {
            "dtype": self.cfg.dtype,
            "seed": self.cfg.seed,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": {part: sum(p.numel() for p in group) for part, group in self.trainer.groups.items()},
            "tuning": {
                part: {**entry, "saved_share": self.stage.tuning[part].share}
                for part, entry in self.stage.tuning.as_dict().items()
            },
            "averaging_decay": self.cfg.averaging.decay,
            "best": self.best.state() if self.cfg.keep_best is not None else None,
            "checkpoint_dir": self.cfg.checkpoint_dir,
            "data_manifest_sha256": sha256(manifest) if manifest is not None and manifest.is_file() else None,
        }


def _like(value: Any, current: Any) -> Any:
    """Return what `_plain` gave with numbers where `current` holds tensors as tensors: arithmetic in fp32 must stay so."""
    if isinstance(current, dict):
        return {key: _like(item, current.get(key)) for key, item in value.items()}
    if isinstance(current, list | tuple) and isinstance(value, list):
        return [_like(item, old) for item, old in zip(value, current, strict=True)]
    return torch.tensor(value, dtype=current.dtype, device=current.device) if isinstance(current, Tensor) else value


def _plain(value: Any) -> Any:
    """Return nested state with its numbers in tensors as numbers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
