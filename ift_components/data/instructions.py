"""Instructions in words, one or a pool that one is drawn from for each sample and epoch."""

from pathlib import Path
from typing import Any

import numpy as np

from ift_components.errors import ConfigError


def read_instructions(value: Any, key: str = "instruction") -> tuple[str, ...]:
    """Return the instructions that a config's value stands for.

    Args:
        value: a text, a list of texts, or the path of a `.txt` file that holds one a line; blank lines do not count.
        key: where it stands in the config, for messages.

    Raises:
        ConfigError: if it is none of these, or holds no text, or the file cannot be read.
    """
    lines = value
    if isinstance(value, str):
        lines = _lines(Path(value), key) if value.endswith(".txt") else [value]
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{key}: {value!r} is neither a text, nor a list of texts, nor a .txt file of one a line")
    if not lines or not all(line.strip() for line in lines):
        raise ConfigError(f"{key}: is empty; give a text, or null to train under the proxy")
    return tuple(lines)


def _lines(path: Path, key: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}: {path} cannot be read ({error}); give a .txt file of one instruction a line"
        ) from error


def draw(count: int, seed: int, epoch: int, index: int) -> int:
    """Return which of `count` instructions a sample is given; nothing else is drawn from the same numbers."""
    stream = np.random.SeedSequence((seed, epoch, index), spawn_key=(0,))
    return int(np.random.default_rng(stream).integers(count))
