"""Which pictures are worth keeping: sharp enough, large enough and no logo."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from ift_components.errors import ConfigError


@dataclass
class PictureFilter:
    """Limits below which a picture is dropped.

    Attributes:
        min_sharpness: least variance of the Laplacian (`sharpness`); blurred and empty pictures lie below 100.
        min_side: least number of pixels of the shorter side.
        max_aspect: the longer side is at most this many times the shorter; banners and rules lie above.
    """

    min_sharpness: float = 100.0
    min_side: int = 100
    max_aspect: float = 8.0

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: naming the key and what it may be.
        """
        for name, least in (("min_sharpness", 0), ("min_side", 1), ("max_aspect", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"pictures.{name} is {value}, expected at least {least}")

    def reason(self, content: bytes) -> tuple[str, float, tuple[int, int]]:
        """Judge a picture.

        Args:
            content: the bytes of a JPEG or PNG that decodes.

        Returns:
            Why it is dropped (empty if it is kept), its sharpness, and its width and height in pixels.
        """
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("L")
        value = sharpness(image)
        shorter, longer = sorted(image.size)
        if shorter < self.min_side:
            return f"tiny picture (a side below {self.min_side} pixels)", value, image.size
        if longer > self.max_aspect * shorter:
            return f"logo or banner (more than {self.max_aspect:g} times as long as wide)", value, image.size
        if value < self.min_sharpness:
            return (
                f"blurred or empty picture (variance of the Laplacian below {self.min_sharpness:g})",
                value,
                image.size,
            )
        return "", value, image.size


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of a picture's grey values, 0 to 255.

    Grey is 0.299 R + 0.587 G + 0.114 B, rounded to 8 bits. The Laplacian is the sum of the second differences in both
    directions, the kernel [[0, 1, 0], [1, -4, 1], [0, 1, 0]] with the picture mirrored at its edges (the edge itself not
    repeated): what OpenCV's `Laplacian(grey, CV_64F).var()` computes (Pech-Pacheco et al. 2000).
    """
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    return float(ndimage.laplace(grey, mode="mirror").var())
