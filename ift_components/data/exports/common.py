"""What the exports share: rows with the bytes of their images, and image files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ift_components.data.prepared import upgraded
from ift_components.errors import DataError


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        folder: the prepared folder.
        manifest: its manifest.
        out: the folder to write now.
        final: the folder that `out` will become.
        instruction: the user's turn before a report in the chat formats.
    """

    folder: Path
    manifest: Mapping[str, Any]
    out: Path
    final: Path
    instruction: str

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.manifest["builder"]["name"]

    def filled(self, kind: str) -> list[str]:
        """Return the splits that have `reports` or `questions`."""
        return [split for split, count in self.manifest["counts"][kind].items() if count]

    def choice_splits(self) -> list[str]:
        """Return the splits that have multiple-choice questions.

        Raises:
            DataError: if there are none.
        """
        splits = [split for split in self.filled("questions") if any(choices(self.folder, split))]
        if not splits:
            raise DataError("the prepared folder has no multiple-choice questions to export")
        return splits


# The name that Hugging Face's own datasets use for each split.
HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def stored_rows(folder: Path, kind: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a prepared folder's `reports` or `questions`, a row group in memory at a time."""
    with pq.ParquetFile(folder / kind / f"{split}.parquet") as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            yield from (upgraded(table) if kind == "questions" else table).to_pylist()


def choices(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield the multiple-choice questions of a split; the others have no place in the formats that call this."""
    return (row for row in stored_rows(folder, "questions", split) if row["kind"] == "choice")


def image_bytes(image: Mapping[str, Any]) -> bytes:
    """Return the bytes of a stored image.

    Raises:
        DataError: if it is stored by path and the file is gone.
    """
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise DataError(f"image {image['path']} cannot be read any more: {error.strerror}; prepare again") from error


def suffix(content: bytes) -> str:
    """Return the file-name suffix of an image's bytes; prepared folders hold JPEG and PNG only."""
    return ".png" if content.startswith(b"\x89PNG") else ".jpg"


class ImageFiles:
    """Writes images as files, each once, however many rows show it.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def name(self, key: str, image: Mapping[str, Any]) -> str:
        """Return the name of the file of image `key`, written now if it is the first time."""
        if key not in self.names:
            content = image_bytes(image)
            # Numbered: names in the source may hold anything, and may give answers away.
            self.names[key] = f"{len(self.names):06d}{suffix(content)}"
            (self.folder / self.names[key]).write_bytes(content)
        return self.names[key]
