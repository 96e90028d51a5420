"""The one way in which a picture of any shape becomes one tile."""

from PIL import Image, ImageOps

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
