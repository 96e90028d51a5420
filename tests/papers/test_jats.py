"""JATS XML: figures, alternatives, joined pictures, and the sentences that refer to a figure by id."""

import io

import pytest
from articles import fig, jats, noise, write_article
from PIL import Image

from ift_components.papers.article import LeftOut
from ift_components.papers.jats import read_jats


def read(path, root=None):
    (article,) = read_jats(path, (root or path.parent).resolve(), "en")
    return article


def opened(figure):
    return Image.open(io.BytesIO(figure.content))


BODY = """
<sec><title>Results</title>
<p>A mass is seen in <xref ref-type="fig" rid="F1">Fig. 1A</xref>, as others
found<sup><xref ref-type="bibr" rid="b1">3</xref></sup>.
It grew. See <xref ref-type="fig" rid="F1">Figs. 1</xref>&#8211;<xref ref-type="fig" rid="F3">3</xref> for the course;
a volume of <inline-formula><tex-math>\\documentclass{x}</tex-math></inline-formula>2 ml was found.</p>
<p>Two at once (<xref ref-type="fig" rid="F2 F3">Figures 2 and 3</xref>). No figure here
[<xref ref-type="bibr" rid="b2">4</xref>].
  <list><list-item><p>In a list: <xref rid="F2">Figure 2</xref>.</p></list-item></list></p></sec>
"""


def test_captions_mentions_and_pictures(tmp_path):
    figures = [
        fig(
            "F1",
            "Figure 1",
            "<title>A mass</title><p><bold>A</bold>: axial. B: coronal.</p><p>DOI: 10.1/f1</p>",
            ["f1"],
        ),
        fig("F2", "Figure 2", "<p>After &lt;treatment&gt;.</p>", ["f2.tif"]),
        fig("F3", "Figure 3", "<p>Later</p>", ["sub/f3.png"]),
    ]
    pictures = {"f1.jpg": noise(1), "f1.gif": noise(2, (40, 30)), "f2.jpg": noise(3)}
    path = write_article(tmp_path, jats(BODY, floats="".join(figures)), pictures)
    write_article(tmp_path / "sub", "", {"f3.png": noise(4)}, "x.txt")
    article = read(path)
    assert (article.id, article.licence) == ("PMC100", "https://creativecommons.org/licenses/by/4.0/")
    first, second, third = article.figures
    assert (first.name, first.label, first.caption) == ("F1", "Figure 1", "A mass. A: axial. B: coronal.")
    assert (second.caption, third.caption) == ("After <treatment>.", "Later")
    both = "See Figs. 1\u20133 for the course; a volume of 2 ml was found."
    pair = "Two at once (Figures 2 and 3)."
    assert first.mentions == ("A mass is seen in Fig. 1A, as others found.", both)
    assert second.mentions == (both, pair, "In a list: Figure 2.")
    assert third.mentions == (both, pair)
    assert first.content == (tmp_path / "f1.jpg").read_bytes()  # not the thumbnail, and not encoded anew
    assert first.place == "f1.jpg"
    assert opened(third).size == (160, 120)
    assert not article.dropped


def test_alternatives_give_the_largest_picture_that_opens(tmp_path):
    body = fig("F1", "", "<p>C.</p>", [("small.png", "large.png", "broken.png")])
    path = write_article(tmp_path, jats(body), {"small.png": noise(1, (50, 40)), "large.png": noise(2)})
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert read(path).figures[0].place == "large.png"


def test_several_graphics_and_groups_with_a_caption_are_one_picture(tmp_path):
    group = f"""<fig-group id="G"><caption><p>Course</p></caption>{fig("Ga", "A", "<p>Day 1</p>", ["a"])}
    {fig("Gb", "B", "<p>Day 9.</p>", ["b"])}</fig-group>"""
    loose = f"<fig-group>{fig('S1', 'S1', '<p>One.</p>', ['a'])}{fig('S2', 'S2', '<p>Two.</p>', ['b'])}</fig-group>"
    body = fig("F1", "Fig 1", "<p>Both.</p>", ["a", "b"]) + group + loose
    text = '<p>As <xref ref-type="fig" rid="Gb">Figure 2B</xref> shows.</p>'
    article = read(write_article(tmp_path, jats(body + text), {"a.png": noise(1), "b.png": noise(2, (100, 60))}))
    joined, grouped, one, two = article.figures
    assert opened(joined).size == (160, 120 + 10 + 60)
    assert opened(joined).getpixel((0, 130 + 59)) == (255, 255, 255)  # the narrower picture is centred on white
    assert (grouped.caption, grouped.mentions) == ("Course. A. Day 1. B. Day 9.", ("As Figure 2B shows.",))
    assert (one.caption, two.caption) == ("One.", "Two.")


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    outside = tmp_path / "outside.png"
    noise(1).save(outside)
    root = tmp_path / "in"
    body = "".join(
        [
            fig("F1", "Fig 1", "", ["ok"]),
            fig("F2", "Fig 2", "<p>Missing.</p>", ["nothing"]),
            fig("F3", "Fig 3", "<p>Up.</p>", ["../outside.png"]),
            fig("F4", "Fig 4", "<p>Absolute.</p>", [str(outside)]),
            fig("F5", "Fig 5", "<p>Web.</p>", ["https://example.org/a.png"]),
            fig("F6", "Fig 6", "<p>Film.</p>", []),
            fig("F7", "Fig 7", "<p>Broken.</p>", ["broken"]),
            fig("F8", "Fig 8", "<p>Link.</p>", ["link"]),
            fig("F9", "Fig 9", "<p>Good.</p>", ["ok"]),
        ]
    )
    other = f"</article-x><sub-article><body>{fig('T1', 'Fig 1', '<p>Bonne.</p>', ['ok'])}</body></sub-article>"
    text = jats(body).replace("</article>", other.removeprefix("</article-x>") + "</article>")
    path = write_article(root, text, {"ok.png": noise(2)})
    (root / "broken.png").write_bytes(b"\x89PNG broken")
    (root / "link.png").symlink_to(outside)
    article = read(path)
    assert [figure.name for figure in article.figures] == ["F9"]
    assert dict(article.dropped) == {
        "figure of a sub-article (a translation, a review)": 1,
        "figure without a caption": 1,
        "picture file is missing": 1,
        "picture out of the folder": 3,
        "picture at a web address": 1,
        "figure without a picture (a film, a table, a formula)": 1,
        "picture cannot be read": 1,
    }


BOMB = '<!DOCTYPE article [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (jats("<p>&c;</p>", doctype=BOMB), "declares entities"),
        (jats("<p>&x;</p>", doctype='<!DOCTYPE article [<!ENTITY x SYSTEM "secret.txt">]>'), "declares entities"),
        (jats("<p><b>"), "damaged XML"),
        ("", "damaged XML"),
        ("<html><body><article><p>x</p></article></body></html>", "no JATS article"),
        (jats("<p>&nosuch; <xref rid='F1'>1</xref></p>" + fig("F1", "", "<p>x</p>", ["a"])), "only its DTD defines"),
    ],
)
def test_files_that_are_refused(tmp_path, text, reason):
    (tmp_path / "secret.txt").write_text("SECRET")
    path = write_article(tmp_path, text, {"a.png": noise(1)})
    with pytest.raises(LeftOut, match=reason):
        read(path)


def test_entities_of_the_dtd_namespaces_and_several_articles(tmp_path):
    one = jats("<p>&alpha; and <xref rid='F1'>Fig</xref>.</p>" + fig("F1", "", "<p>5 &#956;m &plusmn; 1.</p>", ["a"]))
    root = one[one.index("<article ") :].replace(
        "<article ", '<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" '
    )
    doctype = one[one.index("<!DOCTYPE") : one.index("<article ")].replace("article PUBLIC", "records PUBLIC")
    text = f"{doctype}<records>{root}{root.replace('>100<', '>PMC7<')}</records>"
    path = write_article(tmp_path, text, {"a.png": noise(1)})
    first, second = read_jats(path, tmp_path.resolve(), "en")
    assert (first.id, second.id) == ("PMC100", "PMC7")
    assert first.figures[0].caption == "5 \u03bcm \u00b1 1."
    assert first.figures[0].mentions[-1] == "\u03b1 and Fig."
