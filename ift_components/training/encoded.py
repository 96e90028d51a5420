"""What a frozen vision encoder makes of each picture, kept so that each is computed once in a run.

Kept by a hash of the pixels, so that what is handed out is never another picture's: a changed one is computed anew.
"""

import hashlib
import shutil
import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from ift_components.data.dataset import TrainingDataset
from ift_components.distributed import World
from ift_components.errors import ConfigError, UserError
from ift_components.files import atomic_path
from ift_components.models.forward import Batch, ResponseLoss, encode_images

_SHARE = 0.5
"""Share of the host's available memory that may be taken; above, or with several processes, files are used."""


class _Files(MutableMapping[str, Tensor]):
    """Tensors in a folder, a file each; other processes may read and write there too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def __getitem__(self, key: str) -> Tensor:
        return load_file(self._path(key))["encoded"]

    def __setitem__(self, key: str, value: Tensor) -> None:
        with atomic_path(self._path(key)) as path:
            save_file({"encoded": value}, path)

    def __contains__(self, key: object) -> bool:
        return self._path(str(key)).is_file()

    def __delitem__(self, key: str) -> None:
        self._path(key).unlink()

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in self._folder.glob("*.safetensors"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class KeptEncodings:
    """Fills batches with what the encoder makes of their pictures, computing only those that it has not seen.

    Args:
        module: the training forward; its encoder is frozen and whole on every process.
        pictures: different pictures that there are at most.
        folder: folder of the run's own for files that all processes share; None keeps tensors in this process's memory.
        size: bytes that all pictures take at most.
    """

    def __init__(self, module: ResponseLoss, pictures: int, folder: Path | None, size: int) -> None:
        self.folder = folder
        self._module, self._pictures, self._size, self._new = module, pictures, size, 0
        self._kept: MutableMapping[str, Tensor] = {} if folder is None else _Files(folder)

    @property
    def room(self) -> int:
        """The bytes that will still be written to disk."""
        if self.folder is None:
            return 0
        return max(0, self._size - sum(path.stat().st_size for path in self.folder.glob("*.safetensors")))

    def start(self) -> None:
        """Make the folder, and remove what a killed run has left half-written there; the main process alone calls this."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(".*.tmp"):
                path.unlink()

    def remove(self) -> None:
        """Remove the folder at the run's end; the main process alone calls this."""
        if self.folder is not None:
            shutil.rmtree(self.folder)

    def fill(self, batch: Batch, device: torch.device) -> Batch:
        """Return a batch with `features` in place of `images`.

        Args:
            batch: as the loader gives it, on the CPU.
            device: the model's.

        Raises:
            UserError: if there are more different pictures than there should be: something changes them.
        """
        if batch.images is None:
            return batch
        keys = [hashlib.blake2b(pixels.numpy().data, digest_size=20).hexdigest() for pixels in _own_tiles(batch)]
        missing = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._kept}
        if missing:
            self._encode(batch, missing, device)
        features = [self._kept[key] for key in keys]
        return replace(batch, images=None, features=pad_sequence(features, batch_first=True).to(device))

    @torch.no_grad()
    def _encode(self, batch: Batch, missing: dict[str, int], device: torch.device) -> None:
        self._new += len(missing)
        if self._new > self._pictures:
            raise UserError(
                f"keep_encoded: the data have {self._pictures} pictures, and more different ones came: something changes them "
                "each time; set keep_encoded=false"
            )
        rows = sorted(missing.values())
        ratio = batch.aspect_ratio[rows]
        counts = ratio.reshape(-1, 2).prod(dim=1).tolist()
        images = cast("Tensor", batch.images)[rows, :, : max(counts)].to(device, self._module.compute_dtype)
        features = encode_images(self._module.model, images, ratio)
        per_tile = features.shape[1] // max(counts)
        kept = {row: own[: count * per_tile].cpu() for row, own, count in zip(rows, features, counts, strict=True)}
        for key, row in missing.items():
            self._kept[key] = kept[row].clone()


def _own_tiles(batch: Batch) -> Iterator[Tensor]:
    """Yield each picture's own tiles, [tiles, 3, h, w], without those that fill it up to its batch mates."""
    counts = batch.aspect_ratio.reshape(-1, 2).prod(dim=1).tolist()
    for pixels, count in zip(cast("Tensor", batch.images), counts, strict=True):
        yield pixels[0, :count].contiguous()


def count_pictures(*loaders: DataLoader[Batch] | None) -> int:
    """Return how many different pictures the loaders' data have.

    Raises:
        ConfigError: if a dataset shows other pictures each time.
    """
    total = 0
    for loader in loaders:
        if loader is None:
            continue
        pictures = cast("TrainingDataset", loader.dataset).pictures
        if pictures is None:
            raise ConfigError("keep_encoded: a dataset shows other pictures each time; set keep_encoded=false")
        total += pictures
    return total


def keep_encodings(module: ResponseLoss, pictures: int, tiles: int, world: World, folder: Path) -> KeptEncodings:
    """Choose where to keep what the encoder gives, and announce its size.

    Args:
        module: the training forward, its encoder frozen and whole.
        pictures: from `count_pictures`.
        tiles: most tiles of a picture.
        world: the processes.
        folder: where files go, if memory does not do; not made yet.
    """
    model = module.model
    tokens = tiles * model.encoder.clip.get_image_tokens_per_tile()
    size = pictures * tokens * model.decoder.output.in_features * module.compute_dtype.itemsize
    in_memory = world.size == 1 and size <= _SHARE * world.host_memory()
    if world.is_main:
        where = "in memory" if in_memory else f"in {folder} until the run ends"
        print(
            f"keep_encoded: the encoder's output for at most {pictures:,} pictures takes {size / 1e9:.3g} GB {where}",
            file=sys.stderr,
        )
    return KeptEncodings(module, pictures, None if in_memory else folder, size)
