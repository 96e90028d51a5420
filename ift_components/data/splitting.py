"""Dividing records between train, val and test where a dataset does not say."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ift_components.errors import ConfigError, DataError

NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "validate": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip


def split_name(value: str) -> str:
    """Return train, val or test for the names in use (`dev`, `validation`, ...); other values as they are."""
    return NAMES.get(value.strip().lower(), value)


def random_splits(keys: Iterable[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, str]:
    """Divide keys (records or groups) at random: the sorted distinct keys, shuffled; first val, then test, rest train.

    Args:
        keys: what is divided; a key that occurs twice counts once.
        val_fraction: part for val, rounded down, but one key at least unless it is 0.
        test_fraction: part for test, likewise.
        seed: seed of `random.Random`.

    Returns:
        The split of each key.

    Raises:
        ConfigError: if the fractions are negative or leave nothing to train on.
        DataError: if there are too few keys.
    """
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"builder.val_fraction={val_fraction} and builder.test_fraction={test_fraction} must not be negative and "
            "must leave something to train on"
        )
    order = sorted(set(keys))
    random.Random(seed).shuffle(order)
    val = max(1, int(len(order) * val_fraction)) if val_fraction else 0
    test = max(1, int(len(order) * test_fraction)) if test_fraction else 0
    if len(order) <= val + test:
        raise DataError(f"{len(order)} image(s) or group(s) are too few to divide between train, val and test")
    names = ["val"] * val + ["test"] * test + ["train"] * (len(order) - val - test)
    return dict(zip(order, names, strict=True))


@dataclass(frozen=True, kw_only=True)
class Division:
    """How the rows of a table are divided between splits: as a column says, or at random by image or group.

    Attributes:
        image_column: names each image; None finds the column whose values are files of the dataset's folder.
        split_column: holds train, val (or validation, dev) or test; None divides rows at random.
        group_column: rows of one group, such as a patient, are never divided between splits; a row without a group is one
            of its own.
        val_fraction: part of the rows or groups for validation, without `split_column`.
        test_fraction: part for testing, without `split_column`.
        seed: seed of the division.
    """

    image_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    @property
    def key_column(self) -> str:
        """The column that names the image."""
        return self.image_column or "image"

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        return [name for name in (self.image_column, self.split_column, self.group_column) if name]

    def group(self, row: Mapping[str, str]) -> str | None:
        """Return the group of a row."""
        return (row[self.group_column] or None) if self.group_column else None

    def draw(self, rows: Iterable[Mapping[str, str]]) -> dict[str, str]:
        """Return the split of each image or group; empty if a column holds the splits."""
        if self.split_column:
            return {}
        keys = (self.group(row) or row[self.key_column] for row in rows)
        return random_splits(keys, self.val_fraction, self.test_fraction, self.seed)

    def split(self, row: Mapping[str, str], drawn: Mapping[str, str]) -> str:
        """Return the split of a row; `drawn` is what `draw` returned."""
        if self.split_column:
            return split_name(row[self.split_column])
        return drawn[self.group(row) or row[self.key_column]]

    def required(self, drawn: Mapping[str, str]) -> tuple[str, ...]:
        """Return the splits that must not be empty."""
        return ("train",) if self.split_column else tuple(dict.fromkeys(drawn.values()))
