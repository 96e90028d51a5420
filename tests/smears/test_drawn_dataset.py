"""The drawn cells as a dataset: the same files for the same arguments, and a prepared folder like any other."""

import json

import numpy as np
import pytest

from ift_components.data.build import BuildOptions, prepare
from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.data.mcq import QuestionOptions
from ift_components.data.prepared import load_questions, load_reports
from ift_components.errors import ConfigError
from ift_components.smears.dataset import prepared_smears, smear_masks, smears

SMALL = {"train": 12, "val": 4, "test": 6}


def test_it_prepares_like_every_other_dataset(tmp_path):
    manifest = prepare(smears(**SMALL, root=str(tmp_path)), tmp_path / "out", QuestionOptions(), BuildOptions())
    assert manifest["counts"]["reports"] == SMALL
    assert manifest["counts"]["questions"] == {"train": 0, "val": 4, "test": 6}  # one an image, as for WBCAtt
    assert manifest["builder"]["name"] == "smears"
    report = load_reports(tmp_path / "out", "train")[0]
    values = {item["name"]: item["value"] for item in report["attributes"]}
    parts = [attribute.in_report(values[attribute.name]) for attribute in SCHEMA.attributes if attribute.name in values]
    assert report["report"] == ", ".join(part for part in parts if part)
    assert report["image"].size == (84, 84)
    question = load_questions(tmp_path / "out", "test")[0]
    assert question["options"][question["answer"]]


def test_a_split_depends_on_its_own_size_and_the_seed_alone(tmp_path):
    def images(**arguments):
        source = smears(root=str(tmp_path), **arguments)
        return [path.read_bytes() for path in sorted((source.root / "test").iterdir())]

    first = images(**SMALL)
    assert images(**{**SMALL, "train": 3}) == first
    assert images(**SMALL, seed=1) != first
    assert images(**SMALL, style="schematic") != first


def test_it_is_drawn_once(tmp_path):
    table = smears(**SMALL, root=str(tmp_path)).tables[0]
    before = table.stat().st_mtime_ns
    assert smears(**SMALL, root=str(tmp_path)).tables[0].stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [table.parent.name]


def test_a_killed_drawing_is_begun_again(tmp_path):
    folder = smears(**SMALL, root=str(tmp_path)).root
    whole = {path.name for path in (folder / "train").iterdir()}
    folder.rename(tmp_path / f".{folder.name}.partial")
    assert {path.name for path in (smears(**SMALL, root=str(tmp_path)).root / "train").iterdir()} == whole


def test_the_default_is_prepared_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("ift_components.smears.dataset.smears", lambda style: smears(style=style, **SMALL))
    monkeypatch.setenv("IFT_CACHE", str(tmp_path / "cache"))
    folder = prepared_smears("smear")
    assert folder.is_relative_to(tmp_path / "cache")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["reports"] == SMALL
    assert prepared_smears("smear") == folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "sketch"}, "builder.style: 'sketch' is not one of schematic, smear"),
        ({"train": -1}, "builder.train: expected numbers of images"),
        ({"train": 0, "val": 0, "test": 0}, "builder.train: expected numbers of images"),
        ({"side": 0}, "builder.side: 0 is below 1"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        smears(**arguments, root=str(tmp_path))


def test_masks_are_those_of_the_prepared_images(tmp_path):
    prepare(smears(**SMALL, root=str(tmp_path)), tmp_path / "out", QuestionOptions(), BuildOptions())
    masks = smear_masks(tmp_path / "out", "test")
    reports = load_reports(tmp_path / "out", "test")
    assert list(masks) == [reports[index]["id"] for index in range(6)]
    for index in range(6):
        grey = np.asarray(reports[index]["image"]).mean(-1)
        mask = masks[reports[index]["id"]]["cell"]
        assert grey[mask].mean() < grey[~mask].mean()  # cells are darker than the ground
    options = BuildOptions(max_side=60)
    prepare(smears(**SMALL, root=str(tmp_path)), tmp_path / "small", QuestionOptions(), options)
    assert smear_masks(tmp_path / "small", "test") is None
