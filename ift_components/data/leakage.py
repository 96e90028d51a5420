"""What one prepared folder trains on and another is tested on: images by content or by look, and groups by name."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ift_components.data.checks import NEAR
from ift_components.data.parts import part_rows
from ift_components.data.prepared import read_manifest
from ift_components.errors import DataError


@dataclass(frozen=True)
class Contents:
    """What tells the images of one split apart.

    Attributes:
        digests: SHA-256 of the image files.
        hashes: their perceptual hashes, 64 bits each; fewer where they were not computed.
        groups: names of the groups (patients, cases, articles).
    """

    digests: frozenset[str]
    hashes: NDArray[np.uint64]
    groups: frozenset[str]


@dataclass(frozen=True)
class Leak:
    """What of a split that is tested on occurs in one that is trained on.

    Attributes:
        images: images whose files are the same, byte for byte.
        lookalikes: further images whose perceptual hashes differ in at most `NEAR` of 64 bits.
        groups: groups of one name.
    """

    images: int
    lookalikes: int
    groups: int

    def __bool__(self) -> bool:
        return bool(self.images or self.lookalikes or self.groups)

    def __str__(self) -> str:
        return f"{self.images} identical image(s), {self.lookalikes} more that look alike, {self.groups} group(s) of one name"


@cache
def read_contents(folder: Path, split: str) -> Contents:
    """Return what tells the images of a prepared folder's split apart.

    Raises:
        DataError: if the folder is not a prepared one, or lacks its `files.parquet`.
    """
    read_manifest(folder)
    files, reports = folder / "files.parquet", folder / "reports" / f"{split}.parquet"
    if not files.is_file():
        raise DataError(f"{folder} has no files.parquet to compare its images by; prepare the folder again")
    rows = [
        row
        for row in part_rows(files, ["split", "sha256", "perceptual", "problem"])
        if row["split"] == split and row["problem"] is None
    ]
    hashes = [row["perceptual"] for row in rows if row["perceptual"] is not None]
    groups = (row["group"] for row in part_rows(reports, ["group"])) if reports.is_file() else ()
    return Contents(
        frozenset(row["sha256"] for row in rows),
        np.array(hashes, dtype=np.uint64),
        frozenset(group for group in groups if group is not None),
    )


def find_leak(trained: Contents, tested: Contents) -> Leak:
    """Return what of `tested` occurs in `trained`."""
    images = len(trained.digests & tested.digests)
    alike = sum(bool((np.bitwise_count(trained.hashes ^ hash_) <= NEAR).any()) for hash_ in tested.hashes)
    # The same file looks alike too: what is identical is not counted again.
    return Leak(images, max(alike - images, 0), len(trained.groups & tested.groups))


def leak_notes(sources: Iterable[tuple[str, Path, str]], tested_on: Iterable[Path]) -> list[str]:
    """Return a line for every leak from a source into the val or test split of another prepared folder.

    A folder's own splits were compared when it was prepared.

    Args:
        sources: name, prepared folder and split of what is trained on.
        tested_on: further prepared folders that the model will be tested on.
    """
    sources = list(sources)
    folders = dict.fromkeys(path.resolve() for path in [*(folder for _, folder, _ in sources), *tested_on])
    notes = []
    for name, folder, split in sources:
        for other in folders:
            if other == folder.resolve():
                continue
            for held_out in ("val", "test"):
                leak = find_leak(read_contents(folder.resolve(), split), read_contents(other, held_out))
                if leak:
                    notes.append(f"leak: source '{name}' trains on what '{held_out}' of {other} holds: {leak}")
    return notes
