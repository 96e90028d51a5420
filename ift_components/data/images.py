"""The one path from a picture to the encoder's input."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchtune.models.clip import CLIPImageTransform
from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.errors import DataError
from ift_components.models.pictures import squash


class ImageTransform:
    """Turns a picture into one tile: upright, RGB, squashed to a square, normalised in fp32.

    The authors squash every image to one 560 x 560 tile. One tile for every image of a run also keeps an image's embedding
    independent of its batch mates, because torchtune's encoder attends to the padding tiles of a mixed batch.

    Args:
        transform: the model's transform; its tile size, mean and standard deviation are used.
        resize: `bilinear`, as torchtune's and Meta's transforms do, or `bicubic`.
    """

    def __init__(self, transform: Llama3VisionTransform, resize: str = "bilinear") -> None:
        reference = transform.transform_image
        self.size = reference.tile_size
        self._resize = resize
        # The model's own transform converts to bf16 before it normalises; this one stays in fp32.
        self._normalise = CLIPImageTransform(
            image_mean=reference.mean,
            image_std=reference.std,
            tile_size=self.size,
            max_num_tiles=1,
            dtype=torch.float32,
        )

    def squash(self, image: Image.Image) -> Image.Image:
        """Return the picture upright, in RGB, [size, size]."""
        return squash(image, self.size, self._resize)

    def normalise(self, squashed: Image.Image) -> Tensor:
        """Return a squashed picture as [1 tile, 3, size, size] in fp32."""
        return self._normalise({"image": squashed})["image"]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return any picture as [1 tile, 3, size, size] in fp32."""
        return self.normalise(self.squash(image))


class SquashedImages:
    """Squashed pictures kept in one file, each made when it is first asked for, shared by all processes and later runs.

    Args:
        folder: the cache's folder.
        name: stands for the pictures, their order and the squashing; another name is another file.
        count: number of pictures.
        size: their side in pixels.

    Raises:
        DataError: if the disk has no room for them.
    """

    def __init__(self, folder: Path, name: str, count: int, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._pixels = _shared_array(folder / f"{name}.pixels", (count, size, size, 3))
        self._made = _shared_array(folder / f"{name}.made", (count,))

    def get(self, index: int, make: Callable[[], Image.Image]) -> Image.Image:
        """Return picture `index`, squashed, calling `make` for it if no one has before."""
        if not self._made[index]:
            self._pixels[index] = np.asarray(make())
            self._made[index] = 1  # after the pixels: another process may read at any moment
        return Image.fromarray(np.array(self._pixels[index]))


def _shared_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    size = math.prod(shape)
    try:
        with path.open("ab") as file:
            # The space is taken now, as zeros: writing into a hole of a full disk would kill the process by a signal.
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise DataError(
            f"dataset.cache_images: {path} takes {size / 1e9:.3g} GB and cannot be made: {error.strerror}; make room, or set "
            "dataset.cache_images to null"
        ) from error
    return np.memmap(path, np.uint8, "r+", shape=shape)
