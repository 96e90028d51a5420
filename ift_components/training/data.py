"""Loaders of training and validation samples, whose order depends on seed and epoch alone."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ift_components.config import instantiate
from ift_components.data.dataset import Sample, collate
from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.models.forward import Batch
from ift_components.training.settings import TrainSettings


class ResumableSampler(DistributedSampler[int]):
    """A process's share of an epoch's order, from a given sample on.

    The order is torch's: a permutation drawn from seed and epoch, which the processes take turns in. A step therefore holds
    the same samples however many processes share it.

    Attributes:
        start: samples of this process's share to leave out at the front of the next epoch.
    """

    start = 0

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

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        if index >= 0:
            return self._dataset[index]
        return cast("Sample", {**self._dataset[0], "responses": []})


def _dataset(cfg: TrainSettings, node: dict[str, Any], where: str) -> tuple[Dataset[Sample], partial[Batch]]:
    transform = instantiate(cfg.tokenizer, "tokenizer")
    instruction = cfg.instruction or int(cfg.proxy.num_vectors)
    return instantiate(node, where, transform, instruction=instruction, seed=cfg.seed), partial(
        collate, transform=transform
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
    sampler = ResumableSampler(dataset, world.size, world.rank, shuffle=True, seed=cfg.seed, drop_last=True)
    loader = DataLoader(
        dataset,
        batch_size=cfg.batch_size,
        sampler=sampler,
        num_workers=cfg.num_workers,
        collate_fn=make_batch,
        pin_memory=world.device.type == "cuda",
        drop_last=True,
    )
    if len(loader) < cfg.gradient_accumulation_steps:
        raise ConfigError(
            f"batch_size: one step takes {global_batch_size(cfg, world)} samples (batch_size x gradient_accumulation_steps x "
            f"processes), and the dataset has {len(dataset)}; make it smaller"  # type: ignore[arg-type]
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
        sampler=ValidationSampler(dataset, world.size, world.rank, shuffle=False),
        num_workers=cfg.num_workers,
        collate_fn=make_batch,
    )
    return cast("DataLoader[Batch]", loader)


def global_batch_size(cfg: TrainSettings, world: World) -> int:
    """Return the samples of one optimizer step over all processes."""
    return cfg.batch_size * cfg.gradient_accumulation_steps * world.size


def steps_per_epoch(loader: DataLoader[Batch], accumulation: int) -> int:
    """Return the optimizer steps of one epoch; batches that do not fill a step are left out."""
    return len(loader) // accumulation


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
    loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
    iterator = iter(loader)
    for _ in range(steps_per_epoch(loader, accumulation) - done):
        yield [next(iterator) for _ in range(accumulation)]
