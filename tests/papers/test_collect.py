"""The whole run: table, pictures and manifest, drops by reason, resume, and `image_text` reading the result."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from articles import fig, jats, noise, write_article
from PIL import Image, ImageFilter
from scipy.signal import convolve2d
from test_pdf import two_pages

from ift_components.config import ConfigError
from ift_components.data.build import BuildOptions, prepare
from ift_components.data.builders import image_text
from ift_components.data.mcq import QuestionOptions
from ift_components.data.source import Problems
from ift_components.errors import DataError, UserError
from ift_components.papers import collect
from ift_components.papers.collect import PaperOptions, collect_papers
from ift_components.papers.quality import PictureFilter, sharpness

OPTIONS = PaperOptions(PictureFilter())


def table(out):
    with (out / "figures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def papers(root):
    """Three articles as XML (one twice), one as PDF, and files that are refused."""
    for number in range(3):
        text = '<p>Seen in <xref ref-type="fig" rid="F1">Figure 1</xref>, arrow.</p>'
        body = fig("F1", "Figure 1", f"<p>Finding {number}. Second sentence.</p>", ["f1"]) + text
        write_article(root / f"PMC{number}", jats(body, number=str(number)), {"f1.jpg": noise(number)})
    shutil.copytree(root / "PMC0", root / "copy")
    two_pages(root / "pdf" / "a.pdf")
    two_pages(root / "PMC1" / "same.pdf")
    (root / "notes.xml").write_text("<notes/>")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._notes.xml").write_bytes(b"\x00\x05\x16\x07")  # a Mac's archive adds these
    return root


def test_a_folder_of_papers(tmp_path):
    root, out = papers(tmp_path / "in"), tmp_path / "out"
    manifest = collect_papers(root, out, OPTIONS)
    assert manifest["counts"] == {
        "papers": 6, "articles": 4, "articles_with_figures": 4, "figures": 5, "figures_with_mentions": 5,
    }  # fmt: skip
    assert manifest["refused"] == {
        "PDF beside the same article's XML": 1, "article that occurs a second time": 1, "XML that is no JATS article": 1,
    }  # fmt: skip
    rows = table(out)
    assert [row["article"] for row in rows] == ["PMC0", "PMC1", "PMC2", "pdf/a.pdf", "pdf/a.pdf"]
    assert rows[1]["text"] == "Finding 1. Second sentence."
    assert rows[1]["mentions"] == "Seen in Figure 1, arrow."
    assert (rows[1]["width"], rows[1]["height"]) == ("160", "120")
    assert {path.relative_to(out).as_posix() for path in (out / "images").rglob("*.*")} == {
        row["image"] for row in rows
    }
    assert not (out / "parts").exists()
    columns = {"group_column": "article", "context_column": "mentions"}
    source = image_text(out, "figures.csv", **columns, val_fraction=0.25, test_fraction=0.25)
    sections = {record.id: record.sections for record in source.records(Problems())}
    assert sections[rows[1]["image"]] == (
        ("sentence", "Finding 1."), ("sentence", "Second sentence."), ("context", "Seen in Figure 1, arrow."),
    )  # fmt: skip
    prepared = prepare(source, tmp_path / "prepared", QuestionOptions(), BuildOptions(workers=1))
    assert sum(prepared["counts"]["reports"].values()) == 5
    assert prepared["checks"]["leaks"]["groups"] == {"total": 4, "count": 0, "pairs": {}, "first": []}


def test_pictures_are_dropped_by_reason(tmp_path):
    pictures = {
        "sharp.png": noise(1),
        "blurred.png": noise(2).filter(ImageFilter.GaussianBlur(4)),
        "empty.png": Image.new("RGB", (200, 200), "white"),
        "tiny.png": noise(3, (99, 300)),
        "banner.png": noise(4, (1000, 100)),
        "logo.png": noise(5),
    }
    names = [*pictures, "logo.png"]
    body = "".join(fig(f"F{n}", f"Fig {n}", "<p>A.</p>", [name]) for n, name in enumerate(names))
    write_article(tmp_path / "in", jats(body), pictures)
    manifest = collect_papers(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert manifest["dropped"] == {
        "blurred or empty picture (variance of the Laplacian below 100)": 2,
        "logo (the same picture in several figures)": 2,
        "tiny picture (a side below 100 pixels)": 1,
        "logo or banner (more than 8 times as long as wide)": 1,
    }
    assert [row["place"] for row in table(tmp_path / "out")] == ["sharp.png"]
    lenient = PaperOptions(PictureFilter(min_sharpness=0, min_side=1, max_aspect=10))
    assert collect_papers(tmp_path / "in", tmp_path / "lenient", lenient)["counts"]["figures"] == 5


def test_sharpness_is_the_variance_of_the_four_neighbour_laplacian():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    grey = np.rint(np.asarray(image, np.float64) @ (0.299, 0.587, 0.114))
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    expected = convolve2d(np.pad(grey, 1, mode="reflect"), kernel, mode="valid").var()
    assert sharpness(image) == pytest.approx(expected, rel=1e-3)


def test_an_interrupted_run_goes_on_and_an_unchanged_one_does_nothing(tmp_path, monkeypatch, capsys):
    root, out = papers(tmp_path / "in"), tmp_path / "out"
    reads = []
    jats_reader = collect.read_jats

    def stops_at_third(path, *rest):
        reads.append(path.parent.name)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return jats_reader(path, *rest)

    monkeypatch.setattr(collect, "read_jats", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        collect_papers(root, out, OPTIONS)
    assert not out.exists()
    assert reads == ["PMC0", "PMC1", "PMC2"]
    collect_papers(root, out, OPTIONS)
    assert "going on" in capsys.readouterr().out
    assert reads == ["PMC0", "PMC1", "PMC2", "PMC2", "copy", "in"]
    whole = collect_papers(root, tmp_path / "whole", OPTIONS, workers=2)
    assert (out / "figures.csv").read_bytes() == (tmp_path / "whole" / "figures.csv").read_bytes()
    assert json.loads((out / "manifest.json").read_text()) == whole
    count = len(reads)
    collect_papers(root, out, OPTIONS)
    assert "nothing to do" in capsys.readouterr().out
    assert len(reads) == count
    with pytest.raises(UserError, match="already holds files"):
        collect_papers(root, out, PaperOptions(PictureFilter(min_side=50)))
    noise(7, (200, 150)).save(root / "PMC1" / "f1.jpg")
    with pytest.raises(UserError, match="already holds files"):
        collect_papers(root, out, OPTIONS)


def test_wrong_values(tmp_path):
    (tmp_path / "empty").mkdir()
    for root, message in (("nowhere", "is not a folder"), ("empty", "holds no papers")):
        with pytest.raises(DataError, match=message):
            collect_papers(tmp_path / root, tmp_path / "out", OPTIONS)
    write_article(tmp_path / "one", jats(fig("F1", "", "<p>x</p>", ["none"])), {})
    with pytest.raises(DataError, match=r"no figure is left of 1 paper\(s\): picture file is missing 1"):
        collect_papers(tmp_path / "one", tmp_path / "out", OPTIONS)
    with pytest.raises(ConfigError, match=r"pictures.min_side is 0, expected at least 1"):
        collect_papers(tmp_path / "one", tmp_path / "out", PaperOptions(PictureFilter(min_side=0)))
    with pytest.raises(ConfigError, match=r"workers is 0"):
        collect_papers(tmp_path / "one", tmp_path / "out", OPTIONS, workers=0)


def test_the_recipe(tmp_path, monkeypatch, capsys):
    import ift_papers_recipe  # noqa: PLC0415

    root = papers(tmp_path / "in")
    arguments = ["--config", "papers.yaml", f"root={root}", f"output_dir={tmp_path / 'out'}", "pictures.min_side=10"]
    monkeypatch.setattr(sys, "argv", ["ift_papers_recipe", *arguments])
    ift_papers_recipe.main()
    printed = capsys.readouterr().out
    assert "refused: 1 (XML that is no JATS article)" in printed
    assert "5 figures of 4 articles, 5 of them mentioned in the text, out of 6 papers" in printed
