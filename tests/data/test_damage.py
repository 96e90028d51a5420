"""One bad file never costs a build: damaged images of every kind, settings that cannot be, links, and what a rerun sees."""

import io
import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dicom import RAMP
from trees import BuildOptions, QuestionOptions, build, picture, save_csv, save_picture, wbcatt_tree
from trees_medical import dicom_bytes

from ift_components.data.build import prepare
from ift_components.data.builders import image_table, image_text, mimic_cxr, wbcatt
from ift_components.data.decode import Preparation, open_image
from ift_components.data.exports import ExportOptions, export
from ift_components.errors import ConfigError, DataError


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture(1, size=(40, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def samples() -> dict[str, bytes]:
    kinds = {kind: encoded(kind) for kind in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")}
    window = {"WindowCenter": 30_000, "WindowWidth": 20_000, "RescaleSlope": 1, "RescaleIntercept": 0}
    return kinds | {"TIFF, LZW": encoded("TIFF", compression="tiff_lzw"), "DICOM": dicom_bytes(RAMP, **window)}


def mutated(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(len(data))
        action = draw.randrange(4)
        if action == 0:
            data[place] = draw.randrange(256)
        elif action == 1:
            del data[place : place + draw.randrange(1, 9)]
        elif action == 2:
            data[place:place] = draw.randbytes(draw.randrange(1, 9))
        else:
            data[place : place + 4] = struct.pack("<I", draw.choice((0, 1, 2**31, 2**32 - 1)))
        if not data:
            return b"x"
    return bytes(data)


def fuzz(folder: Path, count: int) -> tuple[int, int]:
    draw, kinds = random.Random(0), list(samples().values())
    opened = refused = 0
    for number in range(count):
        path = folder / f"{number % 8}.jpg"
        path.write_bytes(mutated(kinds[number % len(kinds)], draw))
        try:
            image = Image.open(io.BytesIO(open_image([path], Preparation(square=True, perceptual=True)).content))
            assert image.mode in ("RGB", "L")
            opened += 1
        except DataError:
            refused += 1
    return opened, refused


def test_damaged_files_are_that_files_problem(tmp_path):
    opened, refused = fuzz(tmp_path, 400)
    assert opened > 50
    assert refused > 50


@pytest.mark.slow
def test_twenty_thousand_damaged_files(tmp_path):
    assert sum(fuzz(tmp_path, 20_000)) == 20_000


def test_a_strip_is_not_padded_to_a_square_that_fills_the_memory(tmp_path):
    Image.new("L", (30_000, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="30000x3, padded to a square, has more than 100,000,000 pixels"):
        open_image([tmp_path / "a.png"], Preparation(square=True))
    assert open_image([tmp_path / "a.png"], Preparation(square=True, max_side=300)).size == (300, 300)


def test_formats_that_start_programs_are_not_opened(tmp_path):
    buffer = io.BytesIO()
    picture(1).save(buffer, "EPS")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="cannot be decoded"):
        open_image([tmp_path / "a.jpg"], Preparation())


@pytest.mark.parametrize(
    "tags", [{"WindowCenter": None}, {"RescaleSlope": None}, {"VOILUTSequence": []}, {"WindowWidth": ""}]
)
def test_empty_dicom_tags_are_as_if_absent(tmp_path, tags):
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(RAMP, **tags))
    (tmp_path / "a.png").write_bytes(open_image([tmp_path / "a.dcm"], Preparation()).content)
    assert np.asarray(Image.open(tmp_path / "a.png")).ravel().tolist() == list(range(256))


def test_dicom_without_rows(tmp_path):
    data = dicom_bytes(RAMP).replace(b"\x28\x00\x10\x00US", b"\x28\x00\x12\x00US", 1)
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(DataError, match="is a DICOM file without Rows"):
        open_image([tmp_path / "a.dcm"], Preparation())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: image_table(r, "t.csv", val_fraction="abc"), "builder.val_fraction is 'abc', expected a number"),
        (lambda r: image_table(r, None), "builder.table is None, expected a text"),
        (lambda r: image_table(None, "t.csv"), "builder.root is None, expected a text"),
        (
            lambda r: image_table(r, "t.csv", attributes="colour"),
            r"builder.attributes is 'colour', expected a list, such as",
        ),
        (lambda r: image_text(r, private="yes"), "builder.private is 'yes', expected true or false"),
        (lambda r: mimic_cxr(r, min_dice="high"), "builder.min_dice is 'high', expected a number"),
    ],
)
def test_settings_of_the_wrong_type(tmp_path, make, message):
    with pytest.raises(ConfigError, match=message):
        make(str(tmp_path))


@pytest.mark.parametrize("setting", [{"max_side": -1}, {"workers": -1}, {"center_crop": -3}, {"max_side": 0}])
def test_settings_out_of_range(tmp_path, setting):
    (key, value), *_ = setting.items()
    with pytest.raises(ConfigError, match=f"{key} is {value}, expected a whole number from 1, or null"):
        prepare(wbcatt(wbcatt_tree(tmp_path / "in")), tmp_path / "out", QuestionOptions(), BuildOptions(**setting))


def test_folders_that_are_links(tmp_path):
    rows = [[f"disk/{n}.png", "ab"[n % 2]] for n in range(10)]
    for n in range(10):
        save_picture(tmp_path / "other" / f"{n}.png", n)
    save_csv(tmp_path / "in" / "t.csv", ["image", "kind"], rows)
    (tmp_path / "in" / "disk").symlink_to(tmp_path / "other")
    with pytest.raises(
        DataError, match=r"leads to another disk on purpose: builder.follow_links=true(.|\n)*lies outside of"
    ):
        build(image_table(tmp_path / "in", "t.csv"), tmp_path / "out")
    manifest = build(image_table(tmp_path / "in", "t.csv", follow_links=True), tmp_path / "out")
    assert sum(manifest["counts"]["reports"].values()) == 10


def test_a_rerun_sees_damage_and_says_what_changed(tmp_path):
    root = wbcatt_tree(tmp_path / "in")
    build(wbcatt(root), tmp_path / "out")
    path = tmp_path / "out" / "questions" / "val.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(
        DataError, match=r"already holds files, of another build: questions/val.parquet is damaged or missing"
    ):
        build(wbcatt(root), tmp_path / "out")
    path.write_bytes(whole)
    with pytest.raises(DataError, match="another questions; give another folder"):
        build(wbcatt(root), tmp_path / "out", protocol="full")
    save_picture(next(root.rglob("*.jpg")), 999, size=(5, 5))
    with pytest.raises(DataError, match="1 image files have changed or are gone"):
        build(wbcatt(root), tmp_path / "out")


def test_images_that_have_come_since_are_noticed(tmp_path, capsys):
    root = wbcatt_tree(tmp_path / "in")
    missing = min(root.rglob("*.jpg"))
    missing.rename(tmp_path / "kept.jpg")
    manifest = build(wbcatt(root, on_bad_row="skip"), tmp_path / "out")
    assert any("rows (17%) were left out" in warning for warning in manifest["checks"]["warnings"])
    build(wbcatt(root, on_bad_row="skip"), tmp_path / "out")
    assert "unchanged, nothing to do" in capsys.readouterr().out
    shutil.move(tmp_path / "kept.jpg", missing)
    with pytest.raises(DataError, match="images or rows that were left out are there now"):
        build(wbcatt(root, on_bad_row="skip"), tmp_path / "out")


def test_an_export_is_written_once(tmp_path, capsys):
    build(wbcatt(wbcatt_tree(tmp_path / "in")), tmp_path / "out")
    out = export(tmp_path / "out", ExportOptions("ms_swift"))
    assert export(tmp_path / "out", ExportOptions("ms_swift")) == out
    assert "exported already, nothing to do" in capsys.readouterr().out


def test_one_answer_throughout_and_no_questions_are_warned_of(tmp_path):
    table = [
        [save_picture(tmp_path / "in" / f"{n}.png", n).name, "ab"[n == 0], ("train", "val", "test")[n % 3]]
        for n in range(9)
    ]
    save_csv(tmp_path / "in" / "t.csv", ["image", "kind", "set"], table)
    manifest = build(image_table(tmp_path / "in", "t.csv", split_column="set"), tmp_path / "out", protocol="full")
    assert "all questions of val about 'kind' have one and the same answer" in manifest["checks"]["warnings"]
    page = (tmp_path / "out" / "preview.html").read_text()
    assert "Nothing to warn of" not in page
    assert "<title>in (image_table): prepared data</title>" in page
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["format"] == 2
