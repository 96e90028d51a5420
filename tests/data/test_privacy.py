"""Private data: marker words in every report, question and cell, every kind of damage, and nothing of it outside the data."""

import functools
import json
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import openpyxl
import pyarrow.parquet as pq
import pytest
from dirty import dirty_tree
from test_mimic_cxr import ENTRIES, QUESTIONS, TRAIN
from test_mimic_cxr import PRIVATE as MARKER
from trees import build, edit, save_csv, save_picture, wbcatt_tree
from trees_medical import cbis_dicom_files, cbis_row, cbis_tables, mimic_entry, mimic_tree, skincon_row, skincon_tree
from trees_vqa import medpix2_tree, pmc_vqa_tree, roco_tree, slake_tree, vqa_rad_tree

from ift_components.data.builders import (
    cbis_ddsm,
    image_table,
    image_text,
    medpix2,
    mimic_cxr,
    pmc_vqa,
    roco,
    skincon,
    slake,
    vqa_rad,
    wbcatt,
)
from ift_components.data.builders.skincon import CONCEPTS
from ift_components.data.exports import ExportOptions, export
from ift_components.errors import ConfigError, DataError

Damage = Callable[[Path], object]

SETS = ("train", "train", "train", "val", "test")
QUESTION_HEADER = ["image", "question", "answer", "kind", "options", "attribute"]


def text_tree(root: Path) -> Path:
    names = [save_picture(root / f"{n}.png", n).name for n in range(15)]
    table = [[name, f"It is {MARKER} {name}. Then {MARKER}.", SETS[n % 5]] for n, name in enumerate(names)]
    save_csv(root / "t.csv", ["image", "text", "set"], table)
    asked = [
        [name, f"Where is {MARKER}?", f"{MARKER} left", "choice", f"{MARKER} left|right", "place"] for name in names
    ]
    save_csv(root / "q.csv", QUESTION_HEADER, asked)
    return root


def table_tree(root: Path) -> Path:
    names = [save_picture(root / f"{n}.png", n).name for n in range(15)]
    table = [[n, ("round", "oval")[i % 2], f"{MARKER} remark {i}", SETS[i % 5]] for i, n in enumerate(names)]
    save_csv(root / "t.csv", ["image", "shape", "remark", "set"], table)
    (root / "schema.yaml").write_text(
        "attributes: [{name: shape, values: [round, oval]}, {name: remark, asked: false}]"
    )
    return root


def mimic(root: Path) -> Path:
    asked = [[*row[:3], f"{row[3]} {MARKER}", row[4]] for row in QUESTIONS]
    return mimic_tree(root, ENTRIES, {"poor": 0.1}, {"oblique": "LL", "lateral": "LATERAL"}, asked)


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda root: edit(root / name, lambda text: text.replace(old, new, 1))


TRAIN_JSON = "chat_train_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
VQA = "medical-cxr-vqa-questions.csv"
TEXT_DAMAGE = {
    "whole": lambda _: None,
    "no header in the questions": replaced("q.csv", "image,question,answer,kind,options,attribute\n", ""),
    "no header": replaced("t.csv", "image,text,set", ""),
    "a shifted cell": replaced("q.csv", "0.png,Where", f"Where {MARKER}?,Where"),
    "a shifted attribute": replaced("q.csv", ",place", f",{MARKER} place"),
    "an unknown kind": replaced("q.csv", ",choice,", f",{MARKER},"),
    "an answer not offered": replaced("q.csv", f"{MARKER} left|right", "up|down"),
    "a cell too many": replaced("t.csv", "0.png,", f"0.png,{MARKER},"),
    "an image that is a text": replaced("t.csv", "0.png,", f"{MARKER} as image,"),
    "a split that is a text": replaced("t.csv", ",val", f",{MARKER}"),
    "an unclosed quote": replaced("t.csv", "0.png,", f'0.png,"{MARKER} '),
    "another encoding": lambda root: (root / "t.csv").write_bytes(b"\xe9" + (root / "t.csv").read_bytes()),
    "a damaged image": lambda root: (root / "3.png").write_bytes(f"{MARKER} no image".encode()),
}
TABLE_DAMAGE = {
    "whole": lambda _: None,
    "an unlisted value": replaced("t.csv", ",round,", f",{MARKER},"),
    "a missing image": replaced("t.csv", "0.png,", f"{MARKER}.png,"),
    "a repeated column": replaced("t.csv", "image,shape,remark", f"{MARKER},{MARKER},remark"),
}
MIMIC_DAMAGE = {
    "whole": lambda _: None,
    "items of other shapes": lambda root: (root / TRAIN_JSON).write_text(
        json.dumps([*TRAIN, f"just {MARKER}", {"impression": MARKER}, mimic_entry(1, 2, "../../climb", MARKER, None)])
    ),
    "a cut list": lambda root: (root / TRAIN_JSON).write_text((root / TRAIN_JSON).read_text()[:-30]),
    "no header in the questions": replaced(
        VQA, "study_id,subject_id,question_type,question,answer", f"{MARKER},{MARKER}"
    ),
    "a shifted question": replaced(VQA, "51000001,11000001,abnormality,", f"51000001,11000001,{MARKER} what?,"),
    "a mask table of text": replaced("MIMIC-CXR-JPG.csv", "0.9", MARKER),
    "a mask table with a cell too many": replaced("MIMIC-CXR-JPG.csv", "0.9,", f"0.9,{MARKER},"),
}


def marked(tree: Callable[[Path], Path], *words: str) -> Callable[[Path], Path]:
    """Return what writes a tree in whose tables a marker follows each of some words."""

    def write(root: Path) -> Path:
        tree(root)
        for path in tables(root):
            edit(path, lambda text: functools.reduce(lambda t, word: t.replace(word, f"{word} {MARKER}"), words, text))
        return root

    return write


def tables(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".csv", ".json", ".jsonl", ".txt"))


def pictures(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".png", ".dcm"))


def every_table(change: Callable[[str], str]) -> Damage:
    return lambda root: [edit(path, change) for path in tables(root)]


def second_line(change: Callable[[str], str]) -> Damage:
    """Return what changes the second line of every table, or the only one."""

    def change_text(text: str) -> str:
        first, line_break, rest = text.partition("\n")
        second, other_break, others = rest.partition("\n")
        return first + line_break + change(second) + other_break + others if second else change(first)

    return every_table(change_text)


# What is done to the files of every dataset.
DAMAGE: dict[str, Damage] = {
    "whole": lambda _: None,
    "cut tables": every_table(lambda text: text[: 2 * len(text) // 3]),
    "empty tables": every_table(lambda _: ""),
    "tables of text": every_table(lambda _: f"Just {MARKER}, and {MARKER}.\n{MARKER}, left, {MARKER}\n"),
    "no first line": every_table(lambda text: text.partition("\n")[2]),
    "a cell too many": second_line(lambda line: f"{MARKER},{line}"),
    "shifted cells": second_line(lambda line: f"{MARKER} what?,{line.rpartition(',')[0]}"),
    "a row of text": second_line(lambda line: ",".join([MARKER] * (line.count(",") + 1))),
    "an unclosed quote": second_line(lambda line: f'"{MARKER} {line}'),
    "markers as numbers": every_table(lambda text: re.sub(r"(?<=[,:])\s?\d+(?=[,}\n])", f'"{MARKER}"', text)),
    "markers as values": every_table(lambda text: re.sub(r'"(?=[,}])', f' {MARKER}"', text)),
    "fields of other names": every_table(lambda text: re.sub(r"(?<=[{,]\")(\w+)(?=\":)", MARKER, text, count=1)),
    "null fields": every_table(lambda text: re.sub(r': "[^"]*"', ": null", text, count=3)),
    "another encoding": lambda root: [path.write_bytes(b"\xe9" + path.read_bytes()) for path in tables(root)],
    "damaged images": lambda root: [path.write_bytes(f"{MARKER} no image".encode()) for path in pictures(root)],
    "no images": lambda root: [path.unlink() for path in pictures(root)],
    "a repeated row": every_table(lambda text: text + text.rstrip("\n").rpartition("\n")[2] + "\n"),
}


@dataclass(frozen=True)
class Dataset:
    """How a dataset full of markers is written and read, and what is done to it alone.

    Attributes:
        tree: writes its folder.
        source: reads it, under `private`.
        damage: further kinds of damage, by name.
        vocabulary: values that occur are its vocabulary, which an inferred schema lists: it gets no marker among them.
    """

    tree: Callable[[Path], Path]
    source: Callable[..., object]
    damage: dict[str, Damage] = field(default_factory=dict)
    vocabulary: bool = False


def cbis(root: Path) -> Path:
    persons = [f"P_{MARKER}{n}" for n in range(12)]
    found = [cbis_row("Mass-Training", person, "OVAL", "SPICULATED", "MALIGNANT") for person in persons]
    found += [cbis_row("Calc-Test", f"P_{MARKER}99", "COARSE", "LINEAR", "BENIGN")]
    cbis_tables(root, found)
    return cbis_dicom_files(root)


def skin(root: Path) -> Path:
    root.mkdir(parents=True)
    return skincon_tree(root, [skincon_row(n, f"{MARKER}{n}.jpg", CONCEPTS[n : n + 2]) for n in range(20)])


def cells(root: Path) -> Path:
    wbcatt_tree(root)
    (root / "PBC_dataset_normal_DIB").rename(root / f"{MARKER}_DIB")
    every_table(lambda text: text.replace("PBC_dataset_normal_DIB", f"{MARKER}_DIB"))(root)
    return root


def workbook(root: Path) -> Path:
    """A workbook of remarks and names of persons."""
    dirty_tree(root)
    book = openpyxl.load_workbook(root / "lesions.xlsx")
    for number, row in enumerate(book.active.iter_rows(2), 1):
        row[-1].value = f"{MARKER} {row[-1].value}"
        row[1].value = f"{MARKER} {number}"
    book.save(root / "lesions.xlsx")
    return root


def broken_workbook(root: Path) -> None:
    book = openpyxl.load_workbook(root / "lesions.xlsx")
    book.active["D3"], book.active["A5"] = f"={MARKER}", f"{MARKER} 5"
    book.save(root / "lesions.xlsx")


def headless_workbook(root: Path) -> None:
    book = openpyxl.load_workbook(root / "lesions.xlsx")
    book.active.delete_rows(1)
    book.save(root / "lesions.xlsx")


DATASETS = {
    "image_text": Dataset(
        text_tree, functools.partial(image_text, table="t.csv", questions="q.csv", split_column="set"), TEXT_DAMAGE
    ),
    "image_table": Dataset(
        table_tree,
        lambda root, **more: image_table(root, "t.csv", schema=f"{root}/schema.yaml", split_column="set", **more),
        TABLE_DAMAGE,
    ),
    "image_table, inferred": Dataset(
        table_tree, functools.partial(image_table, table="t.csv", split_column="set"), TABLE_DAMAGE, vocabulary=True
    ),
    "image_table, workbook": Dataset(
        workbook,
        functools.partial(image_table, table="lesions.xlsx"),
        {"a broken workbook": broken_workbook, "a workbook without a header": headless_workbook},
        vocabulary=True,
    ),
    "mimic_cxr": Dataset(mimic, mimic_cxr, MIMIC_DAMAGE),
    "wbcatt": Dataset(cells, wbcatt),
    "skincon": Dataset(skin, skincon),
    "cbis_ddsm": Dataset(cbis, cbis_ddsm),
    "vqa_rad": Dataset(marked(vqa_rad_tree, "Is it", "How", "Where", "left", "Yes", "HEAD", "PRES"), vqa_rad),
    "slake": Dataset(marked(slake_tree, "Which", "Yes", "CT", "Axial", "Lung", "Modality"), slake),
    "pmc_vqa": Dataset(marked(pmc_vqa_tree, "Which", "What", "A scan", "CT", "MRI"), pmc_vqa),
    "roco": Dataset(marked(roco_tree, "A mass"), roco),
    "medpix2": Dataset(
        marked(medpix2_tree, "A mass", "Two masses", "A cyst", "Axial", "Coronal", "Abdomen", "Finding", "CT"), medpix2
    ),
}
# Kinds of damage that put a marker among the values that an inferred schema lists as its vocabulary.
_VALUES = ("an unlisted value", "a row of text", "shifted cells", "a cell too many", "tables of text")


CASES = [
    (dataset, name, damage)
    for dataset, row in DATASETS.items()
    for name, damage in (DAMAGE | row.damage).items()
    if not (row.vocabulary and name in _VALUES)
]


@pytest.mark.parametrize(("dataset", "name", "damage"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_nothing_private_outside_the_data_files(tmp_path, capfd, dataset, name, damage):
    row = DATASETS[dataset]
    root = row.tree(tmp_path / "in")
    damage(root)
    messages = []
    for on_bad_row in ("error", "skip"):
        try:
            build(row.source(str(root), private=True, on_bad_row=on_bad_row), tmp_path / "out")
            break
        except (DataError, ConfigError) as error:
            messages.append(str(error))
    printed = capfd.readouterr()
    others = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(root) and p.suffix != ".parquet"]
    for text in (*messages, printed.out, printed.err, *(path.read_text() for path in others)):
        assert MARKER not in text.replace(str(tmp_path), "")
    out = tmp_path / "out"
    if name == "whole":
        assert out.is_dir()
        # The data files do hold it, so that what is looked for elsewhere is what could be there.
        assert row.vocabulary or any(MARKER in str(pq.read_table(path).to_pylist()) for path in out.rglob("*.parquet"))
    if out.is_dir():
        assert "<img" not in (out / "preview.html").read_text()
        assert {stat.S_IMODE(p.stat().st_mode) for p in out.rglob("*") if p.is_file()} == {0o600}
        assert {stat.S_IMODE(p.stat().st_mode) for p in (out, *out.rglob("*")) if p.is_dir()} == {0o700}
        assert json.loads((out / "manifest.json").read_text())["private"] is True


def test_exports_of_a_private_folder_are_for_their_owner_alone(tmp_path):
    source = DATASETS["image_text"].source(str(text_tree(tmp_path / "in")), private=True)
    build(source, tmp_path / "out")
    out = export(tmp_path / "out", ExportOptions("ms_swift"))
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in out.rglob("*") if p.is_file()} == {0o600}
