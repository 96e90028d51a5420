"""DICOM windows, against pydicom's own and against numbers worked out by hand."""

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_voi_lut
from trees_medical import dicom_bytes

from ift_components.data.decode import MAX_PIXELS, Preparation, open_image
from ift_components.data.dicom import decode_dicom
from ift_components.errors import DataError

RAMP = np.arange(0, 65_536, 257, dtype=np.uint16).reshape(16, 16)


def decoded(pixels=RAMP, **tags) -> np.ndarray:
    return np.asarray(decode_dicom(dicom_bytes(pixels, **tags), MAX_PIXELS)).astype(int)


def test_without_a_window_the_own_range_is_stretched():
    assert decoded().ravel().tolist() == list(range(256))
    assert decoded(np.array([[1000, 1500], [2000, 3000]], dtype=np.uint16)).tolist() == [[0, 64], [128, 255]]


def test_monochrome1_is_turned_over():
    assert decoded(monochrome=1).ravel().tolist() == list(range(255, -1, -1))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function):
    tags = {"WindowCenter": [30_000, 5], "WindowWidth": [20_000, 5], "VOILUTFunction": function}
    data = pydicom.Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 16, 0
    for name, value in tags.items():
        setattr(data, name, value)
    expected = apply_voi_lut(RAMP, data, index=0) * (255 / 65_535)
    assert np.abs(decoded(**tags) - expected).max() <= 0.51
    assert len(np.unique(decoded(**tags))) > 50


def test_rescale_comes_before_the_window():
    pixels = np.array([[0, 1000], [1500, 2000]], dtype=np.uint16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1000, "WindowCenter": 500.5, "WindowWidth": 1001}
    assert decoded(pixels, **tags).tolist() == [[0, 0], [128, 255]]


def test_window_of_width_one_is_a_threshold():
    pixels = np.array([[9, 10, 11]], dtype=np.uint16)
    assert decoded(pixels, WindowCenter=10, WindowWidth=1).tolist() == [[0, 255, 255]]


def test_files_become_png_through_the_common_door(tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(RAMP))
    opened = open_image([tmp_path / "a.dcm"], Preparation())
    assert opened.converted == "DICOM windowed to 8 bits"
    (tmp_path / "a.png").write_bytes(opened.content)
    assert np.asarray(Image.open(tmp_path / "a.png")).ravel().tolist() == list(range(256))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], "without an image"),
        (lambda data: data[:-100], "pixel data that cannot be decoded"),
        (lambda data: data[:140], "DICOM"),
        (lambda _: dicom_bytes(RAMP, NumberOfFrames=3), "has 3 frames"),
        (lambda _: dicom_bytes(RAMP, WindowCenter=1, WindowWidth=-5), "window of width -5"),
        (lambda _: dicom_bytes(RAMP, Rows=30_000, Columns=30_000), "30000x30000 pixels"),
        (lambda _: dicom_bytes(RAMP, PixelData=None), "pixel data that cannot be decoded"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    (tmp_path / "a.dcm").write_bytes(change(dicom_bytes(RAMP)))
    with pytest.raises(DataError, match=message):
        open_image([tmp_path / "a.dcm"], Preparation())
