"""DICOM pixels to 8-bit grey: rescale and value-of-interest transforms, then MONOCHROME1 turned over."""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from ift_components.data.grey import stretch
from ift_components.errors import DataError


def decode_dicom(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image of a single-frame DICOM file.

    The modality rescale is applied, then the file's first window or lookup table; a file without either is stretched
    from its lowest to its highest value. MONOCHROME1 (low is white) is inverted. Colour is returned as RGB.

    Args:
        data: the file's content.
        max_pixels: largest image accepted.

    Raises:
        DataError: if it holds no image, several frames, too many pixels or damaged pixel data.
    """
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
    except (InvalidDicomError, EOFError, OSError, ValueError) as error:
        raise DataError(f"is not a readable DICOM file: {error}") from error
    if "PixelData" not in dataset:
        raise DataError("is a DICOM file without an image")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DataError(f"has {dataset.NumberOfFrames} frames, expected one")
    absent = [name for name in ("Rows", "Columns", "PhotometricInterpretation") if dataset.get(name) is None]
    if absent:
        raise DataError(f"is a DICOM file without {', '.join(absent)}")
    if dataset.Rows * dataset.Columns > max_pixels:
        raise DataError(f"has {dataset.Columns}x{dataset.Rows} pixels, expected at most {max_pixels:,} in all")
    try:
        pixels = dataset.pixel_array
    except Exception as error:
        raise DataError(
            f"has pixel data that cannot be decoded: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error
    if dataset.PhotometricInterpretation.startswith(("RGB", "YBR", "PALETTE")):
        return _colour(pixels, dataset)
    return window(pixels, dataset)


def window(pixels: np.ndarray, dataset: pydicom.Dataset) -> Image.Image:
    """Return grey pixels `[h, w]` in 8 bits as the file's rescale, window and photometric interpretation say.

    Raises:
        DataError: if the window is none.
    """
    rescaled = dataset.get("ModalityLUTSequence") or (
        _filled(dataset, "RescaleSlope") and _filled(dataset, "RescaleIntercept")
    )
    values = apply_modality_lut(pixels, dataset) if rescaled else pixels
    # A tag may be there and empty, which says no more than if it were not.
    if dataset.get("VOILUTSequence"):
        top = 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        share = apply_voi_lut(values, dataset, index=0) / top
    elif _filled(dataset, "WindowCenter") and _filled(dataset, "WindowWidth"):
        share = _windowed(values, dataset)
    else:
        share = np.asarray(stretch(values)) / 255
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        share = 1 - share
    return Image.fromarray(np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8))


def _filled(dataset: pydicom.Dataset, key: str) -> bool:
    return key in dataset and dataset[key].value not in (None, "", [])


def _windowed(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Return rescaled values as shares (0 to 1) of the file's first window."""
    # pydicom scales to the range of the stored bits; a data set of our own with the window alone makes it that of 16 bits.
    view = pydicom.Dataset()
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = "MONOCHROME2", 16, 0
    for key in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if _filled(dataset, key):
            view[key] = dataset[key]
    try:
        return apply_windowing(values, view) / (2**16 - 1)
    except ValueError as error:
        raise DataError(f"has a window of width {dataset.WindowWidth}: {error}") from error


def _colour(pixels: np.ndarray, dataset: pydicom.Dataset) -> Image.Image:
    if dataset.PhotometricInterpretation.startswith("PALETTE") or pixels.dtype != np.uint8:
        raise DataError(
            f"has colour type {dataset.PhotometricInterpretation} with {dataset.BitsAllocated} bits: not read"
        )
    return Image.fromarray(pixels)  # pydicom has turned YBR into RGB
