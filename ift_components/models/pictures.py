"""The one way in which a picture of any shape becomes one tile."""

from PIL import Image, ImageOps


def squash(image: Image.Image, size: int) -> Image.Image:
    """Return a picture upright, in RGB, resized to `size` x `size` pixels whatever its shape (bicubic)."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return upright.resize((size, size), Image.Resampling.BICUBIC)
