"""Values of any range as 8-bit grey."""

import numpy as np
from PIL import Image

from ift_components.errors import DataError


def stretch(values: np.ndarray) -> Image.Image:
    """Return an 8-bit grey image `[h, w]` of the values, their lowest as black and their highest as white.

    Raises:
        DataError: if no value is finite.
    """
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise DataError("holds no finite pixel value")
    low, high = float(finite.min()), float(finite.max())
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
