"""What the exports share: rows with the bytes of their images, and image files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ift_components.data.parts import part_rows
from ift_components.errors import DataError

# The name that Hugging Face's own datasets use for each split.
HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def stored_rows(folder: Path, kind: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a prepared folder's `reports` or `questions`, a row group in memory at a time."""
    yield from part_rows(folder / kind / f"{split}.parquet")


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
