"""PDF: captions, pictures and mentions on pages made here; encrypted, damaged and scanned files."""

import io

import pytest
from articles import LOREM, Paper, noise
from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption

from ift_components.papers.article import LeftOut
from ift_components.papers.layout import Box, Line, Picture, clusters, paragraphs
from ift_components.papers.pdf import _numbers, read_pdf


def two_pages(path, **options):
    """Two columns and a logo on both pages; figure 1 of two panels, figure 2 on the second page, figure 3 without picture."""
    paper = Paper(path, **options)
    logo = noise(9, (40, 40))
    left = ["The mass is dark (Fig. 1A). Both panels", "of Figure 1 are axial. A later scan was made"]
    left.append("after two months; see Figs. 1 and 2.")
    for _ in range(6):
        left += [LOREM[:44], LOREM[44:88]]
    paper.picture(500, 790, 30, 30, logo).text(50, 780, left)
    paper.picture(320, 600, 100, 80, noise(1, (400, 320))).picture(430, 600, 100, 80, noise(2, (200, 160)))
    paper.text(
        320, 585, ["Figure 1. A mass in the liver before treat-", "ment. (A) Arterial phase. (B) Venous phase."], size=8
    )
    paper.text(320, 500, ["The second column goes on about", "Figure 2, which shows the liver later."])
    paper.page().picture(500, 790, 30, 30, logo).picture(50, 500, 200, 150, noise(3, (200, 150)))
    paper.text(50, 480, ["Fig. 2 | After treatment."], size=8).text(50, 400, ["Figure 3: A drawing."], size=8)
    body = ["Figure 2 may begin a line of running text, and", "it is no caption then.", *(LOREM[:80] for _ in range(4))]
    paper.text(50, 300, body)
    paper.save()
    return path


def test_figures_captions_and_mentions(tmp_path):
    article = read_pdf(two_pages(tmp_path / "a.pdf"), tmp_path, "en")
    assert article.id == "a.pdf"
    first, second = article.figures
    assert (first.label, first.place) == ("Figure 1", "page 1")
    assert first.caption == "A mass in the liver before treatment. (A) Arterial phase. (B) Venous phase."
    assert (second.label, second.caption, second.place) == ("Fig. 2", "After treatment.", "page 2")
    assert first.mentions == (
        "The mass is dark (Fig. 1A).",
        "Both panels of Figure 1 are axial.",
        "A later scan was made after two months; see Figs. 1 and 2.",
    )
    assert second.mentions == (
        "A later scan was made after two months; see Figs. 1 and 2.",
        "The second column goes on about Figure 2, which shows the liver later.",
        "Figure 2 may begin a line of running text, and it is no caption then.",
    )
    # Both panels are one picture of 210 x 80 points, in the finer one's four pixels a point.
    assert Image.open(io.BytesIO(first.content)).size == (840, 320)
    assert Image.open(io.BytesIO(second.content)).size == (200, 150)
    assert dict(+article.dropped) == {
        "logo (in the same place on several pages)": 2,
        "caption without a picture (drawn as vectors, or on another page)": 1,
    }


def test_a_turned_page_gives_an_upright_picture(tmp_path):
    image = Image.new("L", (100, 60), 200)
    image.paste(0, (0, 0, 20, 20))  # dark in the upper left corner
    paper = Paper(tmp_path / "a.pdf")
    paper.canvas.setPageRotation(90)
    paper.canvas.rotate(90)
    paper.canvas.translate(0, -595)
    paper.picture(100, 200, 200, 120, image).text(100, 185, ["Figure 1. Turned."])
    paper.text(100, 150, [LOREM[:90], LOREM[90:]]).save()
    (figure,) = read_pdf(tmp_path / "a.pdf", tmp_path, "en").figures
    shown = Image.open(io.BytesIO(figure.content)).convert("L")
    assert shown.width > shown.height
    assert shown.getpixel((5, 5)) < 50 < shown.getpixel((shown.width - 5, shown.height - 5))


def test_files_that_are_refused(tmp_path):
    two_pages(tmp_path / "locked.pdf", encrypt=StandardEncryption("secret"))
    with pytest.raises(LeftOut, match="encrypted"):
        read_pdf(tmp_path / "locked.pdf", tmp_path, "en")
    whole = two_pages(tmp_path / "whole.pdf").read_bytes()
    (tmp_path / "half.pdf").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "empty.pdf").write_bytes(b"")
    for name in ("half.pdf", "empty.pdf"):
        with pytest.raises(LeftOut, match=r"damaged|scanned"):
            read_pdf(tmp_path / name, tmp_path, "en")
    noise(1, (600, 800)).save(tmp_path / "scan.pdf")
    paper = Paper(tmp_path / "recognised.pdf")
    for number in range(2):
        paper.picture(0, 0, 595, 842, noise(number, (60, 80))).text(50, 700, [LOREM[:80]] * 5).page()
    paper.save()
    for name in ("scan.pdf", "recognised.pdf"):
        with pytest.raises(LeftOut, match="scanned"):
            read_pdf(tmp_path / name, tmp_path, "en")


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        ("See Fig. 2A.", ["2"]),
        ("Figures 1-3 and 5 show it.", ["1", "2", "3", "5"]),
        ("(Figs. 1, 2B, and S4)", ["1", "2", "S4"]),
        ("FIGURE 7 is dark; fig 8a too.", ["7", "8"]),
        ("Figure 2 and 5 patients", ["2"]),
        ("Figs. 4 to 6", ["4", "5", "6"]),
        ("A configuration 3 of figures.", []),
        ("Fig. 2A\u2013C", ["2"]),
    ],
)
def test_numbers_that_a_sentence_names(sentence, numbers):
    assert list(_numbers(sentence)) == numbers


def test_pictures_near_each_other_are_one_figure_whatever_their_order():
    boxes = [Box(0, 0, 10, 10), Box(60, 0, 70, 10), Box(30, 0, 40, 10), Box(0, 200, 10, 210)]
    groups = clusters([Picture(box, 1.0) for box in boxes])
    assert sorted(sorted(picture.box.left for picture in group) for group in groups) == [[0], [0, 30, 60]]


def test_paragraphs_go_on_in_the_next_column():
    def line(text, x, y):
        return Line(text, Box(x, y, x + 100, y + 10))

    lines = [line("A head", 0, 100), line("It goes", 0, 60), line("on here", 300, 100), line("and ends.", 300, 88)]
    assert list(paragraphs([*lines, line("new start.", 300, 50)])) == [
        "A head",
        "It goes on here and ends.",
        "new start.",
    ]
