"""Asking the model while it trains: what it has learnt and what it tells of it, without touching the run.

The questions go to a copy of the model, filled from the trained weights, so that shards, recomputation and random states of the
run stay as they are. The copy holds the weights as they would be saved now: parts that `tuning` sets back are set back; reports
under the proxy are written before that.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.config import instantiate
from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.models.blend import blend
from ift_components.models.build import build_model, compute_buffers
from ift_components.models.hf_layout import read_weights
from ift_components.models.tile_padding import set_tile_padding
from ift_components.models.trainable import Tuning, apply_tuning, part_of
from ift_components.training.loop import Trainer
from ift_components.training.settings import TrainSettings, parse_dtype
from ift_components.training.setup import WholeTensors


@dataclass(frozen=True)
class WatchContext:
    """What a run hands to the component of `val_questions`, before the arguments of its YAML."""

    transform: Llama3VisionTransform
    """The model's transform."""

    world: World
    """The processes; each answers its share."""

    resize: str
    """How pictures are resized to a tile."""

    instruction: str | None
    """The text that the model is trained under, of a pool the first; None under the proxy."""

    tiles: int = 1
    """Most tiles of a picture."""


class Questions(Protocol):
    """What is asked on validation."""

    def reports(self, model: DeepFusionModel, proxy: Tensor | None) -> dict[str, str]:
        """Return by image the report that a model writes under what it is trained under, on every process alike."""

    def measures(self, model: DeepFusionModel, reports: Mapping[str, str]) -> dict[str, float]:
        """Return the measures of a model's answers by name, on every process alike."""


@dataclass
class Best:
    """The best value of a measure so far."""

    value: float = -math.inf
    """The value; minus infinity before the first."""

    step: int = 0
    """When it was reached."""

    since: int = 0
    """Looks since then."""

    def see(self, value: float, step: int) -> bool:
        """Take a new value; return whether it is the best."""
        if value > self.value:
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    def state(self) -> dict[str, Any]:
        """Return the fields as JSON values; None stands for the value that is not there yet."""
        return asdict(self) | {"value": None if self.value == -math.inf else self.value}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what `state` returned."""
        value = state["value"]
        self.value, self.step, self.since = -math.inf if value is None else value, state["step"], state["since"]


class Watch:
    """Asks a copy of the model questions.

    Args:
        cfg: a config of `TrainSettings` with `val_questions`.
        world: the processes; all call every method together.
        tuning: what is trained.

    Raises:
        UserError: if component, data or model are wrong.
    """

    def __init__(self, cfg: TrainSettings, world: World, tuning: Tuning) -> None:
        if cfg.val_questions is None:
            raise ConfigError("val_questions: names no component")
        self._cfg, self._device = cfg, world.device
        transform = instantiate(cfg.tokenizer, "tokenizer")
        context = WatchContext(transform, world, cfg.resize, next(iter(cfg.instructions), None), cfg.tiles)
        self._questions: Questions = instantiate(cfg.val_questions, "val_questions", context)
        self._shares = {part: how.share for part, how in tuning.items()}
        layout = cfg.image_layout
        model = set_tile_padding(build_model(cfg.model, meta=True), layout.answering_padding, layout.tiles)
        apply_tuning(model, tuning)
        model.requires_grad_(requires_grad=False)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(parse_dtype(cfg.dtype))
        model.to_empty(device=world.device)
        compute_buffers(model, world.device)
        self._model = model.eval()

    def look(self, trainer: Trainer) -> dict[str, float]:
        """Return `val_<measure>` of the model as it stands.

        Args:
            trainer: the run; nothing of it changes.
        """
        with torch.random.fork_rng(), torch.no_grad():
            weights = WholeTensors(trainer.module.model)
            own = self._model.state_dict()
            for name in weights:
                own[name].copy_(weights[name])
            proxy = None if trainer.proxy is None else trainer.proxy.seen.detach()
            reports = self._questions.reports(self._model, proxy)
            if self._cfg.checkpoint_dir is not None and min(self._shares.values()) < 1:
                for name, tensor in blend(read_weights(Path(self._cfg.checkpoint_dir)), weights, self._shares):
                    if self._shares[part_of(name)] < 1:
                        own[name].copy_(tensor)
            measures = self._questions.measures(self._model, reports)
        return {f"val_{name}": value for name, value in measures.items()}
