"""General instruction samples for the miniature: its own pretraining tasks again, so that tuning forgets less of them."""

import random
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ift_components.data.dataset import DatasetContext, Sample, TrainingDataset
from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Text, prompt_tokens, response_tokens
from ift_components.errors import ConfigError
from ift_components.miniature import tasks
from ift_components.miniature.lessons import subjects

# Quizzes are left out: which options come next in them is chance, and here every token of an answer carries loss.
TASKS = {task.__name__: task for task in tasks.IMAGE_TASKS if task is not tasks.quiz}
# As often, relative to one another, as in the shipped miniature's pretraining.
WEIGHTS = MappingProxyType(
    {"describe": 0.4, "list_findings": 0.4, "ask": 1.0, "yes_no": 1.5, "multiple_choice": 3.0, "choice_in_words": 1.0}
)


class RehearsalDataset(Dataset[Sample], TrainingDataset):
    """Pictures drawn anew each epoch, each under one instruction, a `TrainingDataset` without end; for `mixture`.

    Args:
        context: the run's transform and seed; instructions have words of their own, so that the proxy is not used.
        samples: samples of one epoch.
        scenes: share of pictures that show shapes instead of a cell. With 1 they have nothing to do with cells, as a model's
            general instruction data have nothing to do with one's own images.
        style: the style that cells are drawn in.
        weights: how often each task is drawn, relative to the others.
        name: what its losses are called where a run has several sources.

    Raises:
        ConfigError: if a number is out of its range or a task is unknown.
    """

    has_slots = False

    def __init__(
        self,
        context: DatasetContext,
        *,
        samples: int,
        scenes: float = 1.0,
        style: str = "schematic",
        weights: Mapping[str, float] = WEIGHTS,
        name: str = "rehearsal",
    ) -> None:
        if samples < 1:
            raise ConfigError(f"dataset.samples: {samples} is below 1")
        if not 0 <= scenes <= 1:
            raise ConfigError(f"dataset.scenes: {scenes} is not a share, 0 to 1")
        unknown = [task for task in weights if task not in TASKS]
        if unknown:
            raise ConfigError(f"dataset.weights: '{unknown[0]}' is not a task; tasks: {', '.join(TASKS)}")
        if not weights or min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise ConfigError(f"dataset.weights: {dict(weights)} are not weights of 0 or more, one of them above 0")
        self.sources = (name,)
        self._transform, self._seed, self._epoch = context.transform, context.seed, 0
        self._samples, self._scenes = samples, scenes
        self._tasks, self._weights = [TASKS[task] for task in weights], list(weights.values())
        self._image = ImageTransform(context.transform)
        self._cells, self._shapes = subjects(style, self._image.size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that pictures and instructions are drawn for."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._samples:
            raise IndexError(f"sample {index} of {self._samples}")
        key = (self._seed, self._epoch, index)
        generator, rng = np.random.default_rng(key), random.Random(repr(key))
        subject = self._shapes if rng.random() < self._scenes else self._cells
        codes = subject.sample(1, generator)
        pixels = subject.draw(codes, generator)[0]  # [side, side, 3]
        task = rng.choices(self._tasks, self._weights)[0]
        instruction, answer = task(subject.values(codes[0]), subject.choices, rng)
        return Sample(
            id=f"{self._epoch}-{index}",
            prompt=prompt_tokens(self._transform, Text(instruction)),
            responses=[response_tokens(self._transform, answer)],
            image=self._image.normalise(Image.fromarray(pixels)),
            source=self.sources[0],
        )
