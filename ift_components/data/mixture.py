"""Several named datasets in one, each sample's source drawn by weights that may change as training goes on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ift_components.config import instantiate
from ift_components.data.balance import balancing_weights
from ift_components.data.dataset import DatasetContext, Sample, TrainingDataset
from ift_components.data.leakage import leak_notes
from ift_components.errors import ConfigError

_KEYS = {"weight", "dataset", "balance", "loss_weight"}


@dataclass(frozen=True)
class Weight:
    """A source's weight as a function of progress p, 0 at the first sample of the first epoch, 1 at the last's end.

    `start` up to p = `since`, then on a straight line to `end` at p = 1.
    """

    start: float
    end: float
    since: float = 0.0

    @classmethod
    def parse(cls, node: Any, key: str) -> "Weight":
        """Return the weight of a config: a number, or a mapping `{start, end, from}`; `from` is 0 if it is not there.

        Args:
            node: what the config holds.
            key: where, for messages.

        Raises:
            ConfigError: if it is neither, a value is negative or not finite, or `from` is not from 0 to below 1.
        """
        mapping = node if isinstance(node, Mapping) else {"start": node, "end": node}
        if not {"start", "end"} <= set(mapping) <= {"start", "end", "from"}:
            raise ConfigError(f"{key}: {dict(mapping)} is neither a number nor a mapping of start, end and from")
        for name, value in mapping.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not (math.isfinite(value) and value >= 0)
            ):
                what = key if mapping is not node else f"{key}.{name}"
                raise ConfigError(f"{what}: {value} is not a number of 0 or more")
        weight = cls(float(mapping["start"]), float(mapping["end"]), float(mapping.get("from", 0.0)))
        if not weight.since < 1:
            raise ConfigError(f"{key}.from: {weight.since} is not a share of the run, from 0 to below 1")
        return weight

    def at(self, progress: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weight at each of some points of the run, [n]."""
        return self.start + (self.end - self.start) * np.clip((progress - self.since) / (1 - self.since), 0, 1)

    def __str__(self) -> str:
        return (
            f"{self.start:g}" if self.start == self.end else f"{self.start:g} to {self.end:g} from {self.since:.0%} on"
        )


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    Attributes:
        name: what its losses are called.
        dataset: its samples.
        weight: how often it is drawn, relative to the others.
        loss_weight: how much each of its response tokens counts in the loss, relative to the others'.
        probabilities: how often each of its samples is drawn, [len(dataset)]; None goes over all before any comes again.
    """

    name: str
    dataset: TrainingDataset
    weight: Weight
    loss_weight: float = 1.0
    probabilities: NDArray[np.float64] | None = None

    def order(self, seed: int, number: int, epoch: int) -> NDArray[np.int64]:
        """Return the order of one pass over the source, [len(dataset)]: a permutation, or draws by the probabilities."""
        size = len(self.dataset)
        generator = np.random.default_rng((seed, number, epoch))
        if self.probabilities is not None:
            return generator.choice(size, size, p=self.probabilities)
        return np.arange(size) if self.dataset.is_ordered else generator.permutation(size)


class MixtureDataset(Dataset[Sample], TrainingDataset):
    """A mixture of named sources, a `TrainingDataset` whose order is the order of training.

    Sample i of epoch e is of the source that a draw by the weights at progress (e + (i + 0.5) / n) / epochs chooses. A source
    hands out its samples pass by pass: none comes a second time before all have come once, over epochs too, and each of its
    passes is an epoch to it, with shuffling and options of its own. All of it depends on (seed, epoch, index) alone.

    Args:
        context: the run's, handed to every source.
        sources: by name `{weight, dataset}`, and `balance` if rare samples are to be drawn more often: `words`, or
            `{attribute: NAME}` (see `balance`). `weight` is a number or `{start, end, from}` (see `Weight`). `loss_weight`, 1
            if it is not there, is how much each of its response tokens counts in the loss.
        epochs: of the run (`${epochs}` in a config), for the progress that weights depend on.
        samples: n, samples of one epoch; a source's name for so many that every epoch goes once through that source (where
            weights change, in the mean over the run); None takes as many as all sources together have.
        tested_on: prepared folders that the model will be tested on, to look for leaks into them too.

    Raises:
        ConfigError: if there is no source, a weight is negative, all are 0 at some point of the run, `samples` names no source
            or one that is never drawn, or a source's own arguments are wrong.
        DataError: if a source's data are.
    """

    is_ordered = True

    def __init__(
        self,
        context: DatasetContext,
        *,
        sources: Mapping[str, Any],
        epochs: int,
        samples: int | str | None = None,
        tested_on: Sequence[str] = (),
    ) -> None:
        for key, value in (("epochs", epochs), ("samples", samples)):
            if value is not None and not isinstance(value, str) and value < 1:
                raise ConfigError(f"dataset.{key}: {value} is below 1")
        if not isinstance(sources, Mapping) or not sources:
            raise ConfigError("dataset.sources: names no source; give NAME: {weight: 1.0, dataset: {_component_: ...}}")
        self._seed, self._epochs, self._epoch = context.seed, epochs, 0
        self._mixed = [_source(str(name), node, context) for name, node in sources.items()]
        self._size = self._once_through(samples) if isinstance(samples, str) else samples or self._all_samples()
        self._tested_on = [Path(folder) for folder in tested_on]
        self.sources = tuple(source.name for source in self._mixed)
        self.has_slots = any(source.dataset.has_slots for source in self._mixed)
        self.prepared_splits = tuple(pair for source in self._mixed for pair in source.dataset.prepared_splits)
        counts = [source.dataset.pictures for source in self._mixed]
        self.pictures = None if None in counts else sum(filter(None, counts))
        self._drawn: NDArray[np.int64] | None = None
        self._counts = np.stack([self._count(epoch) for epoch in range(epochs)])  # [epochs, sources]
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def _all_samples(self) -> int:
        return sum(len(source.dataset) for source in self._mixed)

    def _once_through(self, name: str) -> int:
        """Return the samples of an epoch that, in the mean over the run, holds as many of a source as that has."""
        names = [source.name for source in self._mixed]
        if name not in names:
            raise ConfigError(
                f"dataset.samples: '{name}' is neither a number nor a source; sources: {', '.join(names)}"
            )
        number = names.index(name)
        bounds = self._bounds((np.arange(self._all_samples()) + 0.5) / self._all_samples())
        share = float((np.diff(bounds, axis=0, prepend=0.0)[number] / bounds[-1]).mean())
        if share == 0:
            raise ConfigError(f"dataset.samples: '{name}' has the weight 0 throughout; name a source that is drawn")
        return round(len(self._mixed[number].dataset) / share)

    def _bounds(self, progress: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sources' weights summed up, at each of some points of the run, [sources, points]."""
        bounds = np.cumsum([source.weight.at(progress) for source in self._mixed], axis=0)
        if not (bounds[-1] > 0).all():
            at = progress[np.argmin(bounds[-1])]
            raise ConfigError(f"dataset.sources: all weights are 0 at {at:.0%} of the run; one has to be above 0")
        return bounds

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        """Return the number of the source of every sample of an epoch, [n]."""
        bounds = self._bounds((epoch + (np.arange(self._size) + 0.5) / self._size) / self._epochs)
        drawn = np.random.default_rng((self._seed, epoch)).random(self._size) * bounds[-1]
        return (drawn >= bounds).sum(axis=0)

    def _count(self, epoch: int) -> NDArray[np.int64]:
        return np.bincount(self._draw(epoch), minlength=len(self._mixed))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that the next samples are drawn for."""
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Sample:
        if self._drawn is None:
            self._drawn = self._draw(self._epoch)
            # The how manieth of its source each sample is, counted from the run's first epoch.
            self._rank = np.empty_like(self._drawn)
            for number in range(len(self._mixed)):
                places = np.flatnonzero(self._drawn == number)
                self._rank[places] = np.arange(len(places)) + self._counts[: self._epoch, number].sum()
        number, rank = int(self._drawn[index]), int(self._rank[index])
        source = self._mixed[number]
        source_epoch, place = divmod(rank, len(source.dataset))
        if self._orders.get(number, (-1,))[0] != source_epoch:
            self._orders[number] = (source_epoch, source.order(self._seed, number, source_epoch))
        source.dataset.set_epoch(source_epoch)
        sample = source.dataset[int(self._orders[number][1][place])]
        if source.loss_weight != 1:
            sample = sample.weighed(source.loss_weight)
        return replace(sample, id=f"{source.name}/{sample.id}", source=source.name)

    def notes(self) -> list[str]:
        """Return the number of samples of each source over the run, and the leaks among sources."""
        totals = self._counts.sum(axis=0)
        lines = [f"mixture: {totals.sum()} samples in {self._epochs} epoch(s) of {self._size}"]
        for source, total in zip(self._mixed, totals, strict=True):
            size = len(source.dataset)
            lines.append(
                f"  {source.name}: {total} samples ({total / totals.sum():.1%}), {total / size:.2f} times its {size}; weight "
                f"{source.weight}"
            )
        return lines + leak_notes(self._trained_on(), self._tested_on)

    def _trained_on(self) -> Iterator[tuple[str, Path, str]]:
        for source in self._mixed:
            for folder, split in source.dataset.prepared_splits:
                yield source.name, folder, split


def _source(name: str, node: Any, context: DatasetContext) -> Source:
    key = f"dataset.sources.{name}"
    if not isinstance(node, Mapping) or not {"weight", "dataset"} <= set(node) <= _KEYS:
        raise ConfigError(f"{key}: {node} is not a mapping of weight, dataset and, if wanted, balance and loss_weight")
    weight = Weight.parse(node["weight"], f"{key}.weight")
    try:
        dataset: TrainingDataset = instantiate(node["dataset"], f"{key}.dataset", context)
    except ConfigError as error:
        raise ConfigError(f"source '{name}': {error}") from error
    balance = node.get("balance")
    probabilities = None if balance is None else balancing_weights(balance, dataset, f"{key}.balance")
    loss_weight = Weight.parse(node.get("loss_weight", 1.0), f"{key}.loss_weight")
    if loss_weight.start != loss_weight.end:
        raise ConfigError(f"{key}.loss_weight: {node['loss_weight']} is not one number")
    return Source(name, dataset, weight, loss_weight.start, probabilities)
