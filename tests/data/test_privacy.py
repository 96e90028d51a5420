"""Private data: marker words in every report, question and cell, every kind of damage, and nothing of it outside the data."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from test_mimic_cxr import ENTRIES, QUESTIONS, TRAIN
from test_mimic_cxr import PRIVATE as MARKER
from trees import build, edit, save_csv, save_picture
from trees_medical import mimic_entry, mimic_tree

from ift_components.data.builders import image_table, image_text, mimic_cxr
from ift_components.data.exports import ExportOptions, export
from ift_components.errors import DataError

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


def text_source(root: Path, **more: str):
    return image_text(root, "t.csv", questions="q.csv", split_column="set", private=True, **more)


def table_source(root: Path, **more: str):
    return image_table(root, "t.csv", schema=str(root / "schema.yaml"), split_column="set", private=True, **more)


def inferred_source(root: Path, **more: str):
    return image_table(root, "t.csv", split_column="set", private=True, **more)


CASES = [
    *((text_tree, text_source, name) for name in TEXT_DAMAGE),
    *((table_tree, table_source, name) for name in TABLE_DAMAGE),
    # An inferred schema lists the values of attributes: they are its vocabulary, so that a new one is no secret.
    *((table_tree, inferred_source, name) for name in TABLE_DAMAGE if name != "an unlisted value"),
    *((mimic, mimic_cxr, name) for name in MIMIC_DAMAGE),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{source.__name__}: {name}" for _, source, name in CASES])
def test_nothing_private_outside_the_data_files(tmp_path, capfd, case):
    tree, source, name = case
    damage = {text_tree: TEXT_DAMAGE, table_tree: TABLE_DAMAGE, mimic: MIMIC_DAMAGE}[tree][name]
    root = tree(tmp_path / "in")
    damage(root)
    messages = []
    for on_bad_row in ("error", "skip"):
        try:
            build(source(root, on_bad_row=on_bad_row), tmp_path / "out")
            break
        except DataError as error:
            messages.append(str(error))
    printed = capfd.readouterr()
    others = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(root) and p.suffix != ".parquet"]
    for text in (*messages, printed.out, printed.err, *(path.read_text() for path in others)):
        assert MARKER not in text
    out = tmp_path / "out"
    if name == "whole":
        assert out.is_dir()
    if out.is_dir():
        assert MARKER.encode() in (out / "reports" / "train.parquet").read_bytes() or source is inferred_source
        assert "<img" not in (out / "preview.html").read_text()
        assert {stat.S_IMODE(p.stat().st_mode) for p in out.rglob("*") if p.is_file()} == {0o600}
        assert {stat.S_IMODE(p.stat().st_mode) for p in (out, *out.rglob("*")) if p.is_dir()} == {0o700}
        assert json.loads((out / "manifest.json").read_text())["private"] is True


def test_exports_of_a_private_folder_are_for_their_owner_alone(tmp_path):
    build(text_source(text_tree(tmp_path / "in")), tmp_path / "out")
    out = export(tmp_path / "out", ExportOptions("ms_swift"))
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in out.rglob("*") if p.is_file()} == {0o600}
