"""The preview page: what it shows, that data cannot inject markup, and that Chromium draws it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image
from test_mimic_cxr import ENTRIES, PRIVATE, QUESTIONS
from trees import build, save_csv, save_picture, wbcatt_tree
from trees_medical import mimic_tree

from ift_components.data.builders import image_table, image_text, mimic_cxr, wbcatt

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&<b>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs


def test_page_shows_reports_questions_answers_and_statistics(tmp_path):
    build(wbcatt(wbcatt_tree(tmp_path / "in")), tmp_path / "out", protocol="full")
    page = (tmp_path / "out" / "preview.html").read_text()
    assert "big cell size, round cell shape" in page
    assert 'What is the granularity?</b><br><span class="option right">A. yes</span><span class="option">B. no' in page
    assert "<h3>nucleus shape</h3>" in page
    assert "<td>cell size</td><td>2</td><td>50.0 %</td>" in page
    tags = Tags(page)
    assert tags.names.count("img") == 6
    sources = [value for name, value in tags.attributes if name == "src"]
    assert all(re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", source) for source in sources)
    assert not {"script", "iframe", "link", "object", "form", "a"} & set(tags.names)


def evil_pages(tmp_path):
    root = tmp_path / "in"
    rows, texts = [], []
    for n in range(12):
        name = save_picture(root / f"<img src=x onerror=alert({n})>.png", n).name
        rows.append([name, EVIL + str(n % 2), EVIL, ("train", "val", "test")[n % 3]])
        texts.append([name, EVIL + f" {n}.", ("train", "val", "test")[n % 3]])
    save_csv(root / "t.csv", ["image", "a<b", "<script>x</script>", "set"], rows)
    save_csv(root / "x.csv", ["image", "text", "set"], texts)
    save_csv(root / "q.csv", ["image", "question", "answer"], [[rows[1][0], EVIL, EVIL], [rows[2][0], EVIL, "b"]])
    build(image_table(root, "t.csv", split_column="set"), tmp_path / "table", protocol="full")
    build(image_text(root, "x.csv", questions="q.csv", split_column="set"), tmp_path / "text")
    return [tmp_path / out / "preview.html" for out in ("table", "text")]


def test_nothing_from_the_dataset_becomes_markup(tmp_path):
    for page in evil_pages(tmp_path):
        text = page.read_text()
        tags = Tags(text)
        assert "&lt;script&gt;" in text
        assert "script" not in tags.names
        assert tags.names.count("b") == tags.attributes.count(("class", "question"))
        assert not [name for name, _ in tags.attributes if name.startswith("on")]
        assert "default-src 'none'" in text
        assert tags.names.count("img") == 12


def test_private_data_stays_out(tmp_path):
    views = {"oblique": "LL", "lateral": "LATERAL"}
    build(mimic_cxr(mimic_tree(tmp_path / "in", ENTRIES, {}, views, QUESTIONS)), tmp_path / "out")
    page = (tmp_path / "out" / "preview.html").read_text()
    assert PRIVATE not in page
    assert "<img" not in page
    assert "statistics only" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to draw the page with")
def test_chromium_draws_the_page_and_runs_nothing(tmp_path):
    page = evil_pages(tmp_path)[0]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, *flags, "--window-size=1250,2000", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    with Image.open(shot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x3B, 0x6E, 0xA5), (0xC9, 0x8A, 0x2B), (0x5A, 0x93, 0x67)} <= colours  # the bars of the three splits
    command = [CHROMIUM, *flags, "--dump-dom", page.as_uri()]
    drawn = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout
    assert "<title>in (image_table): prepared data</title>" in drawn  # the script in the data would have changed it
