"""Pages of one evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ift_components.evaluation.items import Item


def write_pages(
    folder: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], items: Sequence[Item]
) -> None:
    """Write the pages."""
    _ = (folder, results, rows, items)
