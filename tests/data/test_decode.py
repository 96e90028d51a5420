"""Images of every kind: kept, converted as documented, or refused with the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from trees import picture, png_bytes, save_picture

from ift_components.data.decode import Preparation, difference_hash, is_mask, open_image
from ift_components.errors import DataError


def opened(path, **options):
    result = open_image([path], Preparation(**options))
    return result, Image.open(io.BytesIO(result.content))


def refuse(path) -> str:
    with pytest.raises(DataError) as error:
        open_image([path], Preparation())
    return str(error.value)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_plain_files_are_kept_byte_for_byte(tmp_path, name):
    path = save_picture(tmp_path / name, 1)
    result, image = opened(path)
    assert (result.content, result.converted, result.size) == (path.read_bytes(), "", (16, 12))
    assert image.mode == "RGB"


def test_grey_stays_grey(tmp_path):
    result, image = opened(save_picture(tmp_path / "a.png", 1, mode="L"))
    assert (result.converted, image.mode) == ("", "L")


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    result, image = opened(tmp_path / "a.jpg")
    assert result.converted == "CMYK to RGB"
    assert image.mode == "RGB"
    red = np.asarray(image)[0, 0]
    assert red[0] > 200
    assert max(red[1:]) < 60


def test_transparency_goes_over_white_and_palettes_to_rgb(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(opened(tmp_path / "clear.png")[1]).min() == 255
    picture(1).quantize(8).save(tmp_path / "p.png")
    result, image = opened(tmp_path / "p.png")
    assert (result.converted, image.mode) == ("P to RGB", "RGB")


def test_sixteen_bits_are_stretched_over_their_own_range(tmp_path):
    Image.fromarray(np.array([[1000, 2000], [3000, 5000]], dtype=np.uint16)).save(tmp_path / "a.png")
    result, image = opened(tmp_path / "a.png")
    assert result.converted == "stretched to 8 bits"
    assert np.asarray(image).tolist() == [[0, 64], [128, 255]]


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    result, upright = opened(tmp_path / "a.jpg")
    assert (result.converted, upright.size) == ("EXIF rotation applied", (4, 8))


def test_other_formats_are_encoded_anew_without_loss(tmp_path):
    result, image = opened(save_picture(tmp_path / "a.bmp", 3))
    assert result.converted == "BMP re-encoded"
    assert np.array_equal(np.asarray(image), np.asarray(picture(3)))


def test_padding_to_a_square_is_black_and_centred(tmp_path):
    Image.new("L", (6, 2), 255).save(tmp_path / "a.png")
    result, image = opened(tmp_path / "a.png", square=True)
    assert result.converted == "padded to a square"
    assert np.asarray(image).tolist() == [[0] * 6] * 2 + [[255] * 6] * 2 + [[0] * 6] * 2


def test_large_images_are_reduced_on_request(tmp_path):
    result, image = opened(save_picture(tmp_path / "a.png", 1, size=(40, 10)), max_side=20)
    assert (result.converted, image.size) == ("reduced to 20x5", (20, 5))


def test_long_strips_are_fine(tmp_path):
    Image.new("L", (30_000, 3)).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0].size == (30_000, 3)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_bombs_are_refused_from_their_header(tmp_path):
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(bomb)
    message = refuse(tmp_path / "a.png")
    assert "30000x30000 pixels" in message or "decompression bomb" in message


def test_text_chunk_bombs_are_refused(tmp_path):
    data = png_bytes(picture(1))
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))
    (tmp_path / "a.png").write_bytes(data[:33] + bomb + data[33:])
    assert "cannot be decoded" in refuse(tmp_path / "a.png")


def test_damaged_files(tmp_path):
    whole = save_picture(tmp_path / "whole.jpg", 1, size=(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.png").write_bytes(png_bytes(picture(1))[:100])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    assert "cannot be decoded: image file is truncated" in refuse(tmp_path / "cut.jpg")
    assert "cannot be decoded" in refuse(tmp_path / "cut.png")
    assert refuse(tmp_path / "empty.jpg") == "is an empty file"
    assert "cannot be decoded" in refuse(tmp_path / "text.jpg")
    assert "cannot be read: Is a directory" in refuse(tmp_path)


def test_animations_and_pages_are_refused(tmp_path):
    frames = [picture(n) for n in range(3)]
    for name in ("a.gif", "a.tiff", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "several pages (3)" in refuse(tmp_path / name)


def test_difference_hash_finds_reencoded_images_and_not_others(tmp_path):
    smooth = picture(5, size=(9, 8)).resize((90, 80), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=60)
    again = opened(tmp_path / "a.jpg", perceptual=True)[0].pixels
    assert again is not None
    assert (again ^ difference_hash(smooth)).bit_count() <= 4
    assert (again ^ difference_hash(picture(6, size=(90, 80)))).bit_count() > 10


def test_masks_are_told_by_content(tmp_path):
    mask = Image.new("L", (200, 200))
    mask.paste(255, (50, 60, 120, 150))
    mask.save(tmp_path / "mask.jpg", quality=75)
    mask.save(tmp_path / "mask.png")
    crop = save_picture(tmp_path / "crop.jpg", 1, size=(80, 60), mode="L")
    assert is_mask(Image.open(tmp_path / "mask.jpg"))
    assert not is_mask(Image.open(crop))
    files = [tmp_path / "mask.jpg", tmp_path / "mask.png", crop]
    assert open_image(files, Preparation(skip_masks=True)).path == crop
    assert open_image(files, Preparation()).path == files[0]
    with pytest.raises(DataError, match=r"2 file\(s\), all of them masks"):
        open_image(files[:2], Preparation(skip_masks=True))


def test_the_middle_is_kept(tmp_path):
    pixels = np.arange(100 * 81 * 3, dtype=np.uint32).reshape(81, 100, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found, image = opened(tmp_path / "a.png", center_crop=40)
    assert found.converted == "cropped to the middle 40x40"
    np.testing.assert_array_equal(np.asarray(image), pixels[20:60, 30:70])
    assert opened(tmp_path / "a.png", center_crop=90)[1].size == (90, 81)  # what is smaller stays
    assert opened(tmp_path / "a.png", center_crop=40, max_side=10)[1].size == (10, 10)
    assert opened(tmp_path / "a.png", center_crop=100)[0].converted == ""
