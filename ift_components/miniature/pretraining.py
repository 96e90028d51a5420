"""Pretrains the miniature to follow instructions, in four stages: finding words, language, the encoder, everything.

Binding an option's letter to its text is the hard skill for a small model. Single multiple-choice questions do not teach it;
questions whose every option is marked as right or not do, which is why such lists come first and stay to the end.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.config import config_to_dict, instantiate
from ift_components.data.schema import Schema
from ift_components.distributed import World
from ift_components.errors import ConfigError, UserError
from ift_components.files import atomic_path, write_json
from ift_components.miniature.lessons import Lessons
from ift_components.models.build import build_model
from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.hf_layout import hf_config, save_checkpoint
from ift_components.models.image_layout import ImageLayout
from ift_components.training.settings import parse_dtype


@dataclass
class StageSettings:
    """One stage of the pretraining."""

    steps: int = MISSING
    """Optimizer steps."""

    batch_size: int = MISSING
    """Samples per process and step."""

    lr: float = 1.0e-3
    """Highest learning rate; it is reached after the first 2 % of the steps and falls along a cosine to a hundredth."""


@dataclass
class JointSettings(StageSettings):
    """The joint stage."""

    encoder_lr: float = MISSING
    """Highest learning rate of the vision encoder; at the language layers' rate it loses what its stage taught it."""


@dataclass
class PretrainSettings:
    """The pretraining of the miniature."""

    output_dir: str = MISSING
    """Folder to create; one in which the same pretraining was stopped goes on after its last whole stage."""

    model: dict[str, Any] = MISSING
    """Component that builds the model; every weight is trained."""

    tokenizer: dict[str, Any] = MISSING
    """Component that builds the model's transform."""

    style: str = "schematic"
    """The style that cells are drawn in."""

    scenes: float = MISSING
    """Share of pictures that show shapes instead of a cell."""

    finds: float = MISSING
    """Share of the tasks without image or text, to find a word among choices, after the first stage."""

    weights: dict[str, float] = MISSING
    """How often each task is drawn, relative to the others."""

    find: StageSettings = field(default_factory=StageSettings)
    """First stage, the language layers on finding words among choices."""

    language: StageSettings = field(default_factory=StageSettings)
    """Second stage, the language layers on text alone."""

    encoder: StageSettings = field(default_factory=StageSettings)
    """Third stage, the vision encoder under one linear head per attribute."""

    joint: JointSettings = field(default_factory=JointSettings)
    """Fourth stage, everything."""

    clip_grad_norm: float = 1.0
    """Largest norm of the gradient."""

    weight_decay: float = 0.05
    """Of the layers' matrices."""

    micro_batches: int = 2
    """Forward passes that a joint step is cut into."""

    log_every_steps: int = 50
    """How often a line is printed and logged."""

    save_dtype: str = "bf16"
    """Dtype of the saved checkpoint."""

    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""

    seed: int = 0
    """Seed of pictures, attributes and tasks."""


class Heads(nn.Module):
    """One linear head per attribute on the encoder's mean output; only the encoder's stage has them.

    Args:
        dim: width of the encoder's output.
        schemas: the subjects' attributes.
    """

    def __init__(self, dim: int, schemas: Sequence[Schema]) -> None:
        super().__init__()
        self.sizes = [[len(attribute.values or ()) for attribute in schema.attributes] for schema in schemas]
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.ModuleList(nn.Linear(dim, sum(sizes)) for sizes in self.sizes)

    def forward(self, features: Tensor, codes: Tensor, subject: int) -> Tensor:
        """Return the cross-entropy over the applicable attributes, summed.

        Args:
            features: the encoder's output, [b, image tokens, d].
            codes: value of each attribute, [b, attributes]; -1 where it does not apply.
            subject: which schema the rows are of.
        """
        logits = self.linear[subject](self.norm(features.mean(dim=1))).split(self.sizes[subject], dim=1)
        pairs = zip(logits, codes.T, strict=True)
        return torch.stack([F.cross_entropy(x, y, ignore_index=-1, reduction="sum") for x, y in pairs]).sum()


class Pretraining:
    """The four stages: `prepare` builds and checks, `run` trains.

    Args:
        cfg: a config of `PretrainSettings`.
        world: the processes; each trains on lessons of its own, gradients are averaged.
    """

    dtype: torch.dtype
    model: DeepFusionModel
    module: ResponseLoss
    lessons: Lessons

    def __init__(self, cfg: PretrainSettings, world: World) -> None:
        self.cfg, self.world = cfg, world
        self.folder = Path(cfg.output_dir)

    def prepare(self) -> None:
        """Check the config, build model and lessons, and create the folder or enter one of the same pretraining.

        Raises:
            UserError: for everything wrong with config or folder; nothing has been written then.
        """
        cfg, world = self.cfg, self.world
        self.dtype = parse_dtype(cfg.save_dtype, "save_dtype")
        for key in ("find", "language", "encoder", "joint"):
            values = vars(getattr(cfg, key))
            if min(values["steps"], values["batch_size"]) < 1 or min(values.values()) <= 0:
                raise ConfigError(f"{key}: every value must be above 0, not {values}")
        self.model = build_model(cfg.model, meta=False).to(world.device)
        self.model.requires_grad_(requires_grad=True)
        self.lessons = Lessons(
            instantiate(cfg.tokenizer, "tokenizer"),
            style=cfg.style,
            scenes=cfg.scenes,
            finds=cfg.finds,
            weights=cfg.weights,
            seed=cfg.seed,
            rank=world.rank,
        )
        self.module = ResponseLoss(self.model)
        self._enter()

    def _enter(self) -> None:
        """Create the output folder, or check that the one that is there is of the same pretraining."""
        config = config_to_dict(self.cfg)
        path = self.folder / "config.json"
        if (self.folder / "checkpoint").exists():
            raise ConfigError(f"output_dir: {self.folder} holds a finished pretraining; give another folder")
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != config:
            raise ConfigError(f"output_dir: {path} is another pretraining's; give another folder, or the same settings")
        if not path.is_file() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(f"output_dir: {self.folder} is not empty; give a new folder")
        self.world.barrier()
        if self.world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, config)

    def run(self) -> None:
        """Train all stages that are not there yet, after `prepare`, and write the checkpoint."""
        begin = time.perf_counter()
        self.model.train()
        stages = {"find": self._find, "language": self._language, "encoder": self._encoder, "joint": self._joint}
        for name, train in stages.items():
            path = self.folder / f"{name}.safetensors"
            if path.is_file():
                self.model.load_state_dict(load_file(path))
                continue
            train()
            if self.world.is_main:
                with atomic_path(path) as temporary:
                    save_file(self.model.state_dict(), temporary)
            self.world.barrier()
        if self.world.is_main:
            state = self.model.state_dict()
            save_checkpoint(
                self.folder / "checkpoint",
                state,
                hf_config(self.model),
                dtype=self.dtype,
                transform=instantiate(self.cfg.tokenizer, "tokenizer"),
                layout=ImageLayout(),
            )
            print(f"pretrained in {(time.perf_counter() - begin) / 60:.0f} min: {self.folder / 'checkpoint'}")

    def _part(self, prefix: str) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if name.startswith(prefix)]

    def _encoder(self) -> None:
        encoder, stage = self.model.encoder, self.cfg.encoder
        torch.manual_seed(self.cfg.seed)
        schemas = [subject.schema for subject in self.lessons.subjects]
        heads = Heads(self.model.decoder.output.in_features, schemas).to(self.world.device)

        def passes(step: int) -> Iterator[tuple[Tensor, int]]:
            subject, images, codes = self.lessons.pictures(step, stage.batch_size)
            images, codes = images.to(self.world.device), codes.to(self.world.device)
            ratio = torch.ones(len(images), 1, 2, dtype=torch.int)
            yield heads(encoder(images.unsqueeze(1), ratio), codes, subject), int((codes >= 0).sum())

        self._train("encoder", stage, [*self._part("encoder"), *heads.named_parameters()], passes)

    def _find(self) -> None:
        self._without_images("find", self.cfg.find, self.lessons.find)

    def _language(self) -> None:
        self._without_images("language", self.cfg.language, self.lessons.language)

    def _without_images(self, name: str, stage: StageSettings, lesson: Callable[[int, int], Batch]) -> None:
        def passes(step: int) -> Iterator[tuple[Tensor, int]]:
            batch = lesson(step, stage.batch_size).to(self.world.device)
            yield self.module(batch, None).sum(), len(batch.labels)

        self._train(name, stage, self._part("decoder"), passes)

    def _joint(self) -> None:
        stage, parts = self.cfg.joint, self.cfg.micro_batches

        def passes(step: int) -> Iterator[tuple[Tensor, int]]:
            for batch in self.lessons.joint(step, stage.batch_size, parts):
                yield self.module(batch.to(self.world.device), None).sum(), len(batch.labels)

        self._train("joint", stage, self._part(""), passes)

    def _train(
        self,
        name: str,
        stage: StageSettings,
        named: Sequence[tuple[str, nn.Parameter]],
        passes: Callable[[int], Iterator[tuple[Tensor, int]]],
    ) -> None:
        """Run one stage.

        Args:
            name: the stage's name, for the log.
            stage: its `StageSettings`.
            named: the parameters to train, with their names.
            passes: gives the forward passes of a step: each a summed loss and the number of terms in the sum.
        """
        parameters = [parameter for _, parameter in named]
        optimizer = torch.optim.AdamW(self._groups(stage, named), betas=(0.9, 0.95))
        schedule = LambdaLR(optimizer, partial(_rate, steps=stage.steps))
        sums, begin = torch.zeros(2), time.perf_counter()
        for step in range(stage.steps):
            here = torch.zeros(2, dtype=torch.float64, device=self.world.device)
            for loss, count in passes(step):
                loss.backward()
                here += torch.stack([loss.detach(), loss.new_tensor(count)])
            here = self.world.sum(here).cpu()
            self._average(parameters, float(here[1]))
            norm = nn.utils.clip_grad_norm_(parameters, self.cfg.clip_grad_norm)
            if not torch.isfinite(norm):
                raise UserError(f"{name} step {step + 1}: the gradient is not finite; lower {name}.lr")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            sums += here
            if (step + 1) % self.cfg.log_every_steps == 0 or step + 1 == stage.steps:
                self._log(name, step + 1, sums, begin)
                sums.zero_()

    def _groups(self, stage: StageSettings, named: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Return the optimizer's groups, by learning rate and weight decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in named:
            lr = getattr(stage, "encoder_lr", stage.lr) if name.startswith("encoder.") else stage.lr
            decay = self.cfg.weight_decay if parameter.ndim == 2 and ".layers." in name else 0.0  # noqa: PLR2004
            groups.setdefault((lr, decay), []).append(parameter)
        return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]

    def _average(self, parameters: Sequence[nn.Parameter], count: float) -> None:
        """Turn gradients of this process's summed loss into those of the mean over all processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world.size > 1:
            flat = self.world.sum(nn.utils.parameters_to_vector(gradients))
            nn.utils.vector_to_parameters(flat, gradients)
        torch._foreach_div_(gradients, count)

    def _log(self, stage: str, step: int, sums: Tensor, begin: float) -> None:
        if self.world.is_main:
            minutes = (time.perf_counter() - begin) / 60
            line = {
                "stage": stage,
                "step": step,
                "loss": round(float(sums[0] / sums[1]), 4),
                "minutes": round(minutes, 2),
            }
            print(line, flush=True)
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _rate(step: int, *, steps: int) -> float:
    """Return the share of the highest learning rate: a linear rise, then half a cosine down to a hundredth.

    torchtune's own schedule begins with a step at 0 and ends at 0, which is another one.
    """
    rise = max(1, steps // 50)
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
