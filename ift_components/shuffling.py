"""Response shuffling (paper Eq. 4): the parts of a description in a new random order each time a sample is seen.

The order is a function of (seed, epoch, sample index) alone: resuming, the number of loader workers and the number of processes
change nothing.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Name under which the attributes of a report hold its phrases, where the report cannot be taken apart at its separators.
PHRASE = "phrase"


class Shuffling(Protocol):
    """Reorders a report; `attributes` are its (name, value) pairs."""

    def __call__(self, report: str, attributes: Sequence[tuple[str, str]], key: tuple[int, ...]) -> str:
        """Return the report reordered; `key` is (seed, epoch, sample index) and, for further responses, a number."""


def random_order(count: int, key: tuple[int, ...]) -> list[int]:
    """Return a permutation of `range(count)` drawn from a generator seeded with `key`: (seed, epoch, sample index)."""
    return np.random.default_rng(key).permutation(count).tolist()


def shuffle_parts(separator: str = ",") -> Shuffling:
    """Shuffle the parts between separators: `Join(Shuffle(Split(y)))`; phrases that hold the separator stay whole.

    Args:
        separator: `","` for attribute reports, which are joined again by `", "`; a separator of white space alone (the paper's
            ablation " ") joins as it splits.

    Raises:
        ValueError: if the separator is empty.
    """
    if not separator:
        raise ValueError("separator: is empty; give the text between two parts of a report, such as ','")
    joiner = separator if separator.isspace() else f"{separator} "

    def shuffle(report: str, attributes: Sequence[tuple[str, str]], key: tuple[int, ...]) -> str:
        phrases = [] if separator.isspace() else [value for name, value in attributes if name == PHRASE]
        parts = phrases or [part.strip() for part in report.split(separator) if part.strip()]
        return joiner.join(parts[i] for i in random_order(len(parts), key))

    return shuffle


def shuffle_sections(names: Sequence[str] = ("findings", "impression")) -> Shuffling:
    """Shuffle named sections (MIMIC-CXR: findings and impression), joined by a space.

    Args:
        names: names in the sample's `attributes` whose values are the sections.
    """

    def shuffle(report: str, attributes: Sequence[tuple[str, str]], key: tuple[int, ...]) -> str:
        sections = [value for name, value in attributes if name in names]
        return " ".join(sections[i] for i in random_order(len(sections), key)) if sections else report

    return shuffle
