"""The endless lessons of the miniature's pretraining: pictures drawn and instructions made as they are needed."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.data.builders.wbcatt import SCHEMA as CELL_SCHEMA
from ift_components.data.dataset import Sample, collate
from ift_components.data.prompts import Text, prompt_tokens, response_tokens
from ift_components.data.schema import Schema
from ift_components.data.wording import letters
from ift_components.errors import ConfigError
from ift_components.miniature import tasks
from ift_components.miniature.scenes import SCENE_SCHEMA, draw_scenes, sample_scenes
from ift_components.models.forward import Batch
from ift_components.smears.render import draw_cells
from ift_components.smears.sampler import sample_cells

Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Subject:
    """What pictures can show.

    Attributes:
        schema: the attributes.
        sample: draws so many rows of codes, [n, attributes].
        draw: draws pictures of rows, [n, side, side, 3].
    """

    schema: Schema
    sample: Callable[[int, np.random.Generator], Codes]
    draw: Callable[[Codes, np.random.Generator], NDArray[np.uint8]]

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """All values of every attribute."""
        return {attribute.name: attribute.values or () for attribute in self.schema.attributes}

    def values(self, row: Codes) -> dict[str, str]:
        """Return the values of one row of codes, [attributes], those that apply."""
        pairs = zip(self.choices.items(), row.tolist(), strict=True)
        return {name: values[code] for (name, values), code in pairs if code >= 0}


def subjects(style: str, side: int) -> tuple[Subject, Subject]:
    """Return the two subjects: cells, half of them with realistic attributes and half with independent ones, and scenes.

    Args:
        style: the style that cells are drawn in.
        side: side of the pictures in pixels.
    """

    def sample(count: int, generator: np.random.Generator) -> Codes:
        half = count // 2
        rows = [sample_cells(half, generator), sample_cells(count - half, generator, independent=True)]
        return generator.permutation(np.concatenate(rows))

    def draw(codes: Codes, generator: np.random.Generator) -> NDArray[np.uint8]:
        return draw_cells(codes, style, generator, side=side)

    return Subject(CELL_SCHEMA, sample, draw), Subject(SCENE_SCHEMA, sample_scenes, partial(draw_scenes, side=side))


class Lessons:
    """Makes the batches of each stage; a batch is a function of (seed, step, process) alone.

    Args:
        transform: the miniature's transform.
        style: the style that cells are drawn in.
        scenes: share of pictures that show shapes instead of a cell.
        finds: share of instructions that are `find`, which needs no image.
        weights: how often each image task is drawn, by name, relative to the others; a task that is not named is not drawn.
        seed: seed of everything.
        rank: this process, so that each has lessons of its own.

    Raises:
        ConfigError: if a share is not within 0 to 1, or a task is unknown.
    """

    def __init__(
        self,
        transform: Llama3VisionTransform,
        *,
        style: str,
        scenes: float,
        finds: float,
        weights: Mapping[str, float],
        seed: int,
        rank: int,
    ) -> None:
        for name, share in (("scenes", scenes), ("finds", finds)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name}: {share} is not a share, 0 to 1")
        by_name = {task.__name__: task for task in tasks.IMAGE_TASKS}
        unknown = sorted(set(weights) - set(by_name))
        if unknown or not weights:
            what = f"'{unknown[0]}' is not a task" if unknown else "names no task"
            raise ConfigError(f"weights: {what}; tasks: {', '.join(by_name)}")
        self.transform = transform
        self.subjects = subjects(style, transform.transform_image.tile_size)
        self._scenes, self._finds = scenes, finds
        self._tasks, self._weights = [by_name[name] for name in weights], list(weights.values())
        self._words = sorted(
            {word for subject in self.subjects for values in subject.choices.values() for word in values}
        )
        answers = (*letters(tasks.MOST_OPTIONS), *tasks.MARKS)
        encoded = [transform.tokenizer.encode(f" {x}", add_bos=False, add_eos=False)[0] for x in answers]
        self._answers = torch.tensor(encoded)
        self._key = (seed, rank)
        reference = transform.transform_image
        self._mean, self._std = (torch.tensor(x).view(3, 1, 1) for x in (reference.mean, reference.std))

    def _generators(self, stage: int, step: int) -> tuple[np.random.Generator, random.Random]:
        key = (*self._key, stage, step)
        return np.random.default_rng(key), random.Random(repr(key))

    def normalise(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return pictures [n, side, side, 3] as the encoder's input [n, 1 tile, 3, side, side]."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
        return images.sub_(self._mean).div_(self._std).unsqueeze(1)

    def pictures(self, step: int, count: int) -> tuple[int, Tensor, Tensor]:
        """Return the encoder stage's batch: its subject's number, images [n, 1, 3, side, side] and codes [n, attributes]."""
        generator, _ = self._generators(0, step)
        # The same subject on every process: its head alone has a gradient.
        number = int(random.Random(repr((self._key[0], step))).random() < self._scenes)
        codes = self.subjects[number].sample(count, generator)
        return number, self.normalise(self.subjects[number].draw(codes, generator)), torch.from_numpy(codes).long()

    def find(self, step: int, count: int) -> Batch:
        """Return the first stage's batch, without images: `find` alone."""
        _, rng = self._generators(3, step)
        return self._without_images([tasks.find(self._words, rng) for _ in range(count)])

    def language(self, step: int, count: int) -> Batch:
        """Return the language stage's batch, without images: `find`, and the image tasks about a text that states values."""
        generator, rng = self._generators(1, step)
        turns = []
        for _ in range(count):
            if rng.random() < self._finds:
                turns.append(tasks.find(self._words, rng))
            else:
                subject = self.subjects[rng.random() < self._scenes]
                values = subject.values(subject.sample(1, generator)[0])
                turns.append(tasks.reading(self._task(rng), values, subject.choices, rng))
        return self._without_images(turns)

    def _without_images(self, turns: Sequence[tasks.Turn]) -> Batch:
        samples = [self._sample(turn, torch.zeros(1, 3, 1, 1)) for turn in turns]
        return replace(self._batch(samples), images=None)

    def _task(self, rng: random.Random) -> tasks.ImageTask:
        return rng.choices(self._tasks, self._weights)[0]

    def joint(self, step: int, count: int, parts: int) -> list[Batch]:
        """Return the joint stage's batch in so many parts, cut by length so that little is padded."""
        generator, rng = self._generators(2, step)
        shapes = sum(rng.random() < self._scenes for _ in range(count))
        samples = []
        for subject, number in zip(self.subjects, (count - shapes, shapes), strict=True):
            codes = subject.sample(number, generator)
            images = self.normalise(subject.draw(codes, generator))
            for row, image in zip(codes, images, strict=True):
                if rng.random() < self._finds:
                    turn = tasks.find(self._words, rng)
                else:
                    turn = self._task(rng)(subject.values(row), subject.choices, rng)
                samples.append(self._sample(turn, image))
        samples.sort(key=lambda sample: len(sample.prompt) + len(sample.responses[0]))
        cuts = [round(i * count / parts) for i in range(parts + 1)]
        pieces = [samples[begin:end] for begin, end in pairwise(cuts)]
        return [self._batch(piece) for piece in pieces if piece]

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        """Collate; of quizzes letters and marks alone stay labels, because which options come next in them is chance."""
        batch = collate(samples, self.transform)
        quiz = torch.tensor([sample.id.endswith((tasks.QUIZ, tasks.FIND)) for sample in samples])
        row = batch.response_index // batch.tokens.shape[1]
        counts = ~quiz[row] | torch.isin(batch.labels, self._answers)
        return replace(batch, response_index=batch.response_index[counts], labels=batch.labels[counts])

    def _sample(self, turn: tasks.Turn, image: Tensor) -> Sample:
        """Return a training sample of a turn about an image, [1 tile, 3, side, side]."""
        instruction, answer = turn
        prompt = prompt_tokens(self.transform, Text(instruction))
        return Sample(instruction, prompt, [response_tokens(self.transform, answer)], image.unsqueeze(0))
