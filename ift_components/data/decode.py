"""Opening images of any kind, so that what goes into a prepared folder decodes to plain 8-bit RGB or grey.

A JPEG or PNG that already is that is kept byte for byte. What is converted, always to PNG, which loses nothing:
CMYK, palettes and transparency (over white) to RGB; 16-bit and floating point stretched from the image's own lowest
and highest value to 8-bit grey; EXIF rotation applied; other file formats re-encoded; DICOM windowed (`dicom`).
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ift_components.data.grey import stretch
from ift_components.errors import DataError

MAX_PIXELS = 100_000_000
MASK_PART = 0.98
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")  # others may start programs, as EPS does
_ORIENTATION = 0x0112
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Opened:
    """An image that was opened and checked.

    Attributes:
        path: the file.
        content: bytes of a JPEG or PNG to store; the file's own where nothing had to be converted.
        converted: what was done to it, in words; empty where the bytes are the file's.
        sha256: of the file's content, in hexadecimal.
        size: width and height in pixels.
        pixels: difference hash of 64 bits, for near-duplicates; None unless asked for.
    """

    path: Path
    content: bytes
    converted: str
    sha256: str
    size: tuple[int, int]
    pixels: int | None = None


@dataclass(frozen=True)
class Preparation:
    """What is done to every image of a build.

    Attributes:
        square: pad to a square with black, the image in the middle.
        center_crop: keep a square of this many pixels in the middle; smaller images are kept as they are.
        max_side: reduce larger images to this many pixels on the longer side.
        perceptual: compute the difference hash.
        skip_masks: an image of two values is a mask, not the picture.
    """

    square: bool = False
    center_crop: int | None = None
    max_side: int | None = None
    perceptual: bool = False
    skip_masks: bool = False


def open_image(paths: Sequence[Path], preparation: Preparation) -> Opened:
    """Read, check and, where needed, convert an image file.

    Args:
        paths: JPEG, PNG, TIFF, BMP, GIF, WebP or DICOM; with `skip_masks` the first that is no mask counts.
        preparation: what is done to it.

    Raises:
        DataError: if it cannot be decoded, is animated or has more than 100 million pixels, or if all are masks.
    """
    for path in paths:
        opened = _open(path, preparation)
        if opened is not None:
            return opened
    raise DataError(f"is missing: {len(paths)} file(s), all of them masks (two-valued)")


def _open(path: Path, preparation: Preparation) -> Opened | None:
    """Return one file, opened and checked; None if it is a mask and masks are passed over."""
    data, image, done = _read(path)
    if preparation.skip_masks and is_mask(image):
        return None
    image = _fit(image, done, preparation)
    content = _png(image) if done else data
    digest = hashlib.sha256(data).hexdigest()
    perceptual = difference_hash(image) if preparation.perceptual else None
    return Opened(path, content, ", ".join(done), digest, image.size, perceptual)


def is_mask(image: Image.Image) -> bool:
    """Tell whether practically all pixels are next to the darkest or the brightest value (JPEG blurs a mask's edges)."""
    values = np.asarray(image.convert("L"), dtype=np.int16)
    low, high = int(values.min()), int(values.max())
    margin = (high - low) // 12
    return bool(((values <= low + margin) | (values >= high - margin)).mean() > MASK_PART)


def _read(path: Path) -> tuple[bytes, Image.Image, list[str]]:
    """Return a file's bytes, the image in 8 bits and what had to be done for that."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise DataError("is an empty file")
    done: list[str] = []
    # A damaged file makes Pillow and pydicom raise nearly anything, and each is that file's problem. What is done to the
    # decoded image afterwards is ours: an error there is no file's, and is not caught.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warnings of damage and size: what matters is raised below
            if data[128:132] == b"DICM":
                from ift_components.data.dicom import decode_dicom  # noqa: PLC0415 (pydicom is slow to import)

                return data, decode_dicom(data, MAX_PIXELS), ["DICOM windowed to 8 bits"]
            return data, _decode(data, done, MAX_PIXELS), done
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"cannot be decoded: {(str(error) or repr(error)).splitlines()[0]}") from error


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return an image file's picture as plain 8-bit RGB or grey, as a prepared folder would hold it.

    Args:
        data: the file's bytes, in one of `FORMATS`.
        max_pixels: a larger image is refused before it is decoded.

    Raises:
        DataError: if it cannot be decoded, is animated or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, [], max_pixels)
    except DataError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise DataError(f"cannot be decoded: {(str(error) or repr(error)).splitlines()[0]}") from error


def _decode(data: bytes, done: list[str], max_pixels: int) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise DataError(f"has {image.width}x{image.height} pixels, expected at most {max_pixels:,} in all; reduce it")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a photo with its preview
        raise DataError(f"is animated or has several pages ({frames}); extract the one that is meant")
    image.load()
    if image.format not in ("JPEG", "PNG", "MPO"):
        done.append(f"{image.format} re-encoded")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        done.append("EXIF rotation applied")
    if image.mode in _DEEP_MODES:
        done.append("stretched to 8 bits")
        return stretch(np.asarray(image))
    if image.mode in ("RGB", "L"):
        return image
    done.append(f"{image.mode} to RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        over = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(over, image).convert("RGB")
    return image.convert("RGB")


def _fit(image: Image.Image, done: list[str], preparation: Preparation) -> Image.Image:
    crop, max_side = preparation.center_crop, preparation.max_side
    if crop and max(image.size) > crop:
        width, height = (min(side, crop) for side in image.size)
        x, y = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((x, y, x + width, y + height))
        done.append(f"cropped to the middle {width}x{height}")
    if max_side and max(image.size) > max_side:
        ratio = max_side / max(image.size)
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        image = image.resize(size, Image.Resampling.LANCZOS)
        done.append(f"reduced to {size[0]}x{size[1]}")
    if preparation.square and image.width != image.height:
        side = max(image.size)
        if side * side > MAX_PIXELS:  # a long strip: the padding alone would fill the memory
            what = f"{image.width}x{image.height}, padded to a square, has more than {MAX_PIXELS:,} pixels"
            raise DataError(f"of {what}; reduce it, or set max_side")
        canvas = Image.new(image.mode, (side, side))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
        done.append("padded to a square")
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits, each telling whether a cell of a 9x8 thumbnail is darker than its right neighbour."""
    import imagehash  # noqa: PLC0415 (seldom needed, slow to import)

    return int(str(imagehash.dhash(image)), 16)
