"""The one path from a picture to the encoder's input."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.transforms.vision_utils.tile_crop import tile_crop
from torchvision.transforms.v2 import functional as F

from ift_components.errors import DataError
from ift_components.models.pictures import to_canvas

_SIDES = 16  # more than the tiles of a side


class ImageTransform:
    """Turns a picture into tiles: upright, RGB, on a canvas of whole tiles, normalised in fp32.

    A picture is a grid of tiles, [down, across, 3, size, size]: its shape is the picture's aspect ratio. By default it is one
    tile that holds the squashed picture, as the authors have it.

    Args:
        transform: the model's transform; its tile size, mean and standard deviation are used.
        resize: `bilinear`, as torchtune's and Meta's transforms do, or `bicubic`.
        tiles: most tiles of a picture.
    """

    def __init__(self, transform: Llama3VisionTransform, resize: str = "bilinear", tiles: int = 1) -> None:
        reference = transform.transform_image
        self.size, self.tiles, self.resize = reference.tile_size, tiles, resize
        self._mean, self._std = reference.mean, reference.std

    def canvas(self, image: Image.Image) -> Image.Image:
        """Return the picture upright, in RGB, on a canvas of whole tiles."""
        return to_canvas(image, self.size, self.tiles, self.resize)

    def normalise(self, canvas: Image.Image) -> Tensor:
        """Return a canvas as a grid of tiles, [down, across, 3, size, size] in fp32."""
        # The model's own transform converts to bf16 before it normalises; this one stays in fp32.
        pixels = F.to_dtype(F.pil_to_tensor(canvas), torch.float32, scale=True)
        if self._mean is not None:
            pixels = F.normalize(pixels, mean=self._mean, std=self._std)
        down, across = canvas.height // self.size, canvas.width // self.size
        return tile_crop(pixels, self.size).unflatten(0, (down, across))

    def __call__(self, image: Image.Image) -> Tensor:
        """Return any picture as a grid of tiles, [down, across, 3, size, size] in fp32."""
        return self.normalise(self.canvas(image))


def stack_images(images: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """Return images as the encoder takes them: their tiles row by row, filled up with zeros to the most tiles of one.

    Args:
        images: m images, [down, across, 3, h, w] each.

    Returns:
        [m, 1, tiles, 3, h, w], and the tiles down and across of each, [m, 1, 2], on the CPU: torchtune loops over it.

    Raises:
        ValueError: if one has another number of dimensions.
    """
    for image in images:
        if image.ndim != 5:  # noqa: PLR2004 (as said)
            raise ValueError(f"expected images of [tiles down, tiles across, 3, h, w], got one of {list(image.shape)}")
    aspect_ratio = torch.tensor([[image.shape[:2]] for image in images], dtype=torch.int)
    return pad_sequence([image.flatten(0, 1) for image in images], batch_first=True).unsqueeze(1), aspect_ratio


class CachedCanvases:
    """Canvases kept in one file, each made when it is first asked for, shared by all processes and later runs.

    Every picture takes the room of the largest canvas.

    Args:
        folder: the cache's folder.
        name: stands for the pictures and their order.
        count: number of pictures.
        picture: what makes canvases; another size, filter or number of tiles is another file.

    Raises:
        DataError: if the disk has no room for them.
    """

    def __init__(self, folder: Path, name: str, count: int, picture: ImageTransform) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._picture = picture
        name = f"{name}-{count}-{picture.size}-{picture.resize}" + (f"-{picture.tiles}" if picture.tiles > 1 else "")
        self._pixels = _shared_array(folder / f"{name}.pixels", (count, picture.tiles * picture.size**2 * 3))
        # Tiles down and across in one byte; 0 where there is no canvas yet.
        self._made = _shared_array(folder / f"{name}.made", (count,))

    def get(self, index: int, read: Callable[[], Image.Image]) -> Tensor:
        """Return picture `index` as `ImageTransform` does, calling `read` for it if no one has before."""
        size = self._picture.size
        if not self._made[index]:
            canvas = np.asarray(self._picture.canvas(read()))
            self._pixels[index, : canvas.size] = canvas.reshape(-1)
            # After the pixels: another process may read at any moment.
            self._made[index] = _SIDES * (canvas.shape[0] // size) + canvas.shape[1] // size
        down, across = divmod(int(self._made[index]), _SIDES)
        pixels = np.array(self._pixels[index, : down * across * size**2 * 3])
        return self._picture.normalise(Image.fromarray(pixels.reshape(down * size, across * size, 3)))


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
