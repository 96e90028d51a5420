"""Loaders of training and validation samples, whose order depends on seed and epoch alone."""

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ift_components.config import instantiate
from ift_components.data.dataset import DatasetContext, KnowsLongest, Sample, TrainingDataset, collate
from ift_components.distributed import World
from ift_components.errors import ConfigError, UserError
from ift_components.models.forward import Batch
from ift_components.training.settings import TrainSettings


class ResumableSampler(DistributedSampler[int]):
    """A process's share of an epoch's order, from a given sample on.

    The order is torch's: a permutation drawn from seed and epoch, or the dataset's own, which the processes take turns in. A
    step therefore holds the same samples however many processes share it.

    Attributes:
        start: samples of this process's share to leave out at the front of the next epoch.
    """

    start = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) whose order is drawn: by the seed in the first, by seed and epoch in later ones.

        torch adds the epoch to the seed, so that the second epoch of one seed would be the first of the next.
        """
        self._run_seed = getattr(self, "_run_seed", self.seed)
        drawn = np.random.SeedSequence((self._run_seed, epoch)).generate_state(1, np.uint64)[0]
        self.seed = self._run_seed if epoch == 0 else int(drawn >> np.uint64(1))

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.start, None)


class ValidationSampler(DistributedSampler[int]):
    """Every sample once over all processes, in order, as -1 - index where a process only fills up its share."""

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        for index in range(self.rank, self.total_size, self.num_replicas):
            yield index if index < size else -1


class _Padded(Dataset[Sample]):
    """A dataset whose sample -1 is its first one without a response, so that it adds nothing to a loss."""

    def __init__(self, dataset: TrainingDataset) -> None:
        self._dataset = dataset
        self.sources, self.pictures = dataset.sources, getattr(dataset, "pictures", None)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[index] if index >= 0 else replace(self._dataset[0], responses=[])


def _dataset(cfg: TrainSettings, node: dict[str, Any], where: str) -> tuple[TrainingDataset, partial[Batch]]:
    """Build a dataset and what makes batches of its samples.

    Raises:
        ConfigError: if the component is wrong, or its prompts do not fit the run's instruction or proxy.
    """
    transform = instantiate(cfg.tokenizer, "tokenizer")
    slots = 0 if cfg.instruction is not None else cfg.proxy.num_vectors
    dataset: TrainingDataset = instantiate(
        node, where, DatasetContext(transform, slots, cfg.seed, cfg.resize, cfg.tiles)
    )
    if dataset.has_slots and not slots:
        raise ConfigError(
            f"{where}: its prompts hold proxy slots, and under `instruction` there is no proxy to fill them"
        )
    if slots and not dataset.has_slots and where == "dataset":
        raise ConfigError(
            f"{where}: no sample's prompt has a place for the proxy, which would not be trained; set {where}.instruction to "
            "null, or give a top-level instruction to train without a proxy"
        )
    return dataset, partial(
        collate, transform=transform, sources=tuple(dataset.sources), supervise_header=cfg.supervise_header
    )


def build_loader(cfg: TrainSettings, world: World) -> DataLoader[Batch]:
    """Build the loader of the training samples.

    Args:
        cfg: a config of `TrainSettings`.
        world: the processes.

    Raises:
        ConfigError: if one epoch holds less than one optimizer step.
    """
    dataset, make_batch = _dataset(cfg, cfg.dataset, "dataset")
    sampler = ResumableSampler(
        cast("Dataset[int]", dataset),
        world.size,
        world.rank,
        shuffle=not dataset.is_ordered,
        seed=cfg.seed,
        drop_last=True,
    )
    loader = DataLoader(
        cast("Dataset[Sample]", dataset),
        batch_size=cfg.batch_size,
        sampler=sampler,
        num_workers=cfg.num_workers,
        collate_fn=make_batch,
        pin_memory=world.device.type == "cuda",
        drop_last=True,
        worker_init_fn=_ignore_sigterm,
    )
    if len(loader) < cfg.gradient_accumulation_steps:
        raise ConfigError(
            f"batch_size: one step takes {global_batch_size(cfg, world)} samples (batch_size x gradient_accumulation_steps x "
            f"processes), and the dataset has {len(dataset)}; make it smaller"
        )
    return cast("DataLoader[Batch]", loader)  # collate makes batches of the samples


def build_validation_loader(cfg: TrainSettings, world: World) -> DataLoader[Batch] | None:
    """Build the loader of the validation samples, or None if the config has none."""
    if cfg.val_dataset is None:
        return None
    dataset, make_batch = _dataset(cfg, cfg.val_dataset, "val_dataset")
    loader = DataLoader(
        _Padded(dataset),
        batch_size=cfg.batch_size,
        sampler=ValidationSampler(cast("Dataset[int]", dataset), world.size, world.rank, shuffle=False),
        num_workers=cfg.num_workers,
        collate_fn=make_batch,
        worker_init_fn=_ignore_sigterm,
    )
    return cast("DataLoader[Batch]", loader)


def data_sources(loader: DataLoader[Batch]) -> tuple[str, ...]:
    """Return the names of the sources that a loader's samples are from."""
    return tuple(cast("TrainingDataset", loader.dataset).sources)


def print_notes(loader: DataLoader[Batch], world: World) -> None:
    """Print what the training data's dataset wants a user to know, once."""
    if world.is_main:
        for note in cast("TrainingDataset", loader.dataset).notes():
            print(note, file=sys.stderr)


def global_batch_size(cfg: TrainSettings, world: World) -> int:
    """Return the samples of one optimizer step over all processes."""
    return cfg.batch_size * cfg.gradient_accumulation_steps * world.size


def steps_per_epoch(loader: DataLoader[Batch], accumulation: int) -> int:
    """Return the optimizer steps of one epoch; batches that do not fill a step are left out."""
    return len(loader) // accumulation


def _ignore_sigterm(worker: int) -> None:  # noqa: ARG001
    """Let a loader worker outlive the SIGTERM that a scheduler sends to all: the run needs its batches to end well."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def read_batches(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yield a loader's batches.

    Raises:
        UserError: for a sample that cannot be read, with its own message though a worker raised it.
    """
    # Workers are started with the signal blocked: between the fork and `_ignore_sigterm` it would kill them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except UserError as error:
            # A worker's error comes with its traceback as the message, which ends with `package.module.DataError: message`.
            last = str(error).strip().splitlines()[-1]
            raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")) from error
        yield batch


def trial_batches(loader: DataLoader[Batch], count: int) -> list[Batch]:
    """Return so many batches to try a run out on: the longest samples, if the dataset knows them, and an epoch's first.

    Args:
        loader: from `build_loader`.
        count: how many.
    """
    dataset = cast("TrainingDataset", loader.dataset)
    batches = []
    if isinstance(dataset, KnowsLongest):
        samples = [dataset[index] for index in dataset.longest(cast("int", loader.batch_size))]
        batches.append(loader.collate_fn(samples))
    steps = islice(epoch_batches(loader, 0, 1), count - len(batches))
    return batches + [batch for step in steps for batch in step]


def epoch_batches(loader: DataLoader[Batch], epoch: int, accumulation: int, done: int = 0) -> Iterator[list[Batch]]:
    """Yield the batches of every optimizer step of an epoch (from 0), in the order of (seed, epoch).

    Args:
        loader: from `build_loader`.
        epoch: sets the data order and the response shuffling.
        accumulation: batches an optimizer step.
        done: optimizer steps of this epoch to leave out; their samples are not read.
    """
    sampler = cast("ResumableSampler", loader.sampler)
    sampler.set_epoch(epoch)
    sampler.start = done * accumulation * cast("int", loader.batch_size)
    cast("TrainingDataset", loader.dataset).set_epoch(epoch)
    iterator = read_batches(loader)
    for _ in range(steps_per_epoch(loader, accumulation) - done):
        yield [next(iterator) for _ in range(accumulation)]
