"""The one place in which a picture of any shape becomes what is cut into tiles: a canvas of whole tiles."""

import math

import torch
from PIL import Image, ImageOps
from torchtune.modules.transforms.vision_utils.get_canvas_best_fit import (
    find_supported_resolutions,
    get_canvas_best_fit,
)
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

RESIZING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def squash(image: Image.Image, size: int, resize: str = "bilinear") -> Image.Image:
    """Return a picture upright, in RGB, resized to `size` x `size` pixels whatever its shape.

    Args:
        image: the picture.
        size: side of the tile in pixels.
        resize: a name in `RESIZING`.
    """
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return upright.resize((size, size), RESIZING[resize])


def _fitted(width: int, height: int, canvas_width: int, canvas_height: int, size: int) -> tuple[int, int]:
    """Return the width and height that a picture is resized to: within the canvas, at least a tile on its long side.

    torchtune's `resize_with_pad` has the same rule, but fails at a side of no pixel, which very thin pictures come to.
    """
    target_width, target_height = min(max(width, size), canvas_width), min(max(height, size), canvas_height)
    by_width, by_height = target_width / width, target_height / height
    if by_width < by_height:
        return target_width, min(max(1, math.floor(height * by_width)), target_height)
    return min(max(1, math.floor(width * by_height)), target_width), target_height


def to_canvas(image: Image.Image, size: int, tiles: int = 1, resize: str = "bilinear") -> Image.Image:
    """Return a picture upright, in RGB, on a canvas of whole tiles.

    One tile holds the squashed picture. Of more, the canvas is the smallest that does not shrink the picture, or else the one
    that shrinks it least; it keeps its shape and lies in the upper left corner, the rest is black. Canvas, size and pixels are
    those of transformers' `MllamaImageProcessor`; torchtune's `CLIPImageTransform` chooses the same but resizes in floating
    point, so that its pixels differ by up to a level of 255 (more in bicubic).

    Args:
        image: the picture.
        size: side of a tile in pixels.
        tiles: most tiles of a picture.
        resize: a name in `RESIZING`.

    Returns:
        A picture whose width and height are multiples of `size`, whose product is at most `tiles` * `size` ** 2.
    """
    if tiles == 1:
        return squash(image, size, resize)
    upright = ImageOps.exif_transpose(image).convert("RGB")
    shape = torch.empty(upright.height, upright.width, device="meta")
    canvases = torch.tensor(find_supported_resolutions(tiles, size))
    height, width = get_canvas_best_fit(shape, canvases, resize_to_max_canvas=False)
    fitted = _fitted(upright.width, upright.height, width, height, size)
    pixels = F.resize(F.pil_to_tensor(upright), list(reversed(fitted)), InterpolationMode(resize), antialias=True)
    return F.to_pil_image(F.pad(pixels, [0, 0, width - fitted[0], height - fitted[1]]))
