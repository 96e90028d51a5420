"""The recipe as a user types it, private data, refusals, and maps on the page of an evaluation."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from ift_components.config import load_config
from ift_components.data.build import BuildOptions, prepare
from ift_components.data.mcq import QuestionOptions
from ift_components.errors import UserError
from ift_components.saliency import CAUTION
from ift_components.saliency.run import Maps
from ift_components.saliency.settings import SaliencySettings
from ift_components.smears.dataset import smears

FAST = ["checks.samples=3", "checks.sanity_samples=1", "checks.bootstrap=100", "methods=[rollout,attention]"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    root = tmp_path_factory.mktemp("cells")
    prepare(smears(train=2, val=2, test=6, root=str(root)), root / "prepared", QuestionOptions(), BuildOptions())
    return root / "prepared"


def saliency(tune, cwd, data, *overrides, check=True):
    arguments = ["--config", "tiny_saliency.yaml", f"data={data}", f"output_dir={cwd / 'out'}", *overrides]
    return tune("ift_saliency_recipe", *arguments, cwd=cwd, check=check)


def test_pages_pictures_and_arrays(tune, cells, tmp_path):
    result = saliency(tune, tmp_path, cells, *FAST, "samples=2")
    out = tmp_path / "out"
    assert "rollout: " in result.stdout
    assert f"pages: {out / 'index.html'}" in result.stdout
    checks = json.loads((out / "checks.json").read_text())
    assert set(checks) == {"rollout", "attention", "centre", "random"}
    assert 0.1 < checks["rollout"]["cell"]["area"] < 0.5  # the drawn cells' own masks
    assert set(checks["rollout"]["sanity"]) >= {"output", "vision encoder"}
    run = json.loads((out / "run.json").read_text())
    assert [sample["id"] for sample in run["samples"]] == ["test/00000.png#0", "test/00001.png#0"]
    name = run["samples"][0]["name"]
    page = (out / "samples" / f"{name}.html").read_text()
    index = (out / "index.html").read_text()
    for text in (page, index):
        assert CAUTION.split(";")[0] in text
        assert "a mask at the picture" in text
        assert not re.search(r"""(src|href)=["'](https?:)?//""", text)  # no network
    assert f'href="samples/{name}.html"' in index
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert (data["rows"], data["columns"], data["attention"]["layers"]) == (6, 6, [1, 3, 5])
    arrays = np.load(out / "samples" / f"{name}.npz")
    assert arrays["rollout"].shape == (6, 6)
    assert arrays["rollout"].sum() == pytest.approx(1, abs=1e-5)
    assert list(arrays["tokens"]) == data["pieces"]
    layers, heads, tokens, patches = arrays["attention_by_layer_head_token_patch"].shape
    assert (layers, heads, tokens, patches) == (3, 4, len(data["pieces"]), 36)
    with Image.open(out / "samples" / f"{name}.attention.png") as picture:
        assert picture.height == 448


def test_without_tests_every_page_says_so(tune, cells, tmp_path):
    chosen = "samples=[test/00003.png#0]"
    saliency(
        tune, tmp_path, cells, chosen, "checks.samples=0", "methods=[attention]", "layer=3", "head=1", "answer=right"
    )
    out = tmp_path / "out"
    pages = [out / "index.html", *(out / "samples").glob("*.html")]
    assert len(pages) == 2
    assert all("Not tested on this model" in page.read_text() for page in pages)
    arrays = np.load(next((out / "samples").glob("*.npz")))
    place = int(arrays["chosen"][0])
    raw = arrays["attention_by_layer_head_token_patch"][1, 1, place]
    np.testing.assert_allclose(arrays["attention"].ravel(), raw / raw.sum(), atol=1e-5)


def test_pages_of_private_data_hold_no_image_and_no_word(tune, cells, tmp_path):
    private = tmp_path / "private"
    shutil.copytree(cells, private)
    manifest = json.loads((private / "manifest.json").read_text())
    (private / "manifest.json").write_text(json.dumps(manifest | {"private": True}))
    saliency(tune, tmp_path, private, *FAST, "samples=1")
    out = tmp_path / "out"
    assert sorted(path.suffix for path in (out / "samples").iterdir()) == [".npz"]
    index = (out / "index.html").read_text()
    assert "show_private=true" in index
    assert "correct answer" not in index
    assert "tokens" not in np.load(next((out / "samples").iterdir()))
    assert (out / "index.html").stat().st_mode & 0o077 == 0
    shutil.rmtree(out)
    saliency(tune, tmp_path, private, "checks.samples=0", "methods=[rollout]", "samples=1", "show_private=true")
    assert sorted(path.suffix for path in (out / "samples").iterdir()) == [".html", ".npz", ".png"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.rglob("*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods=[gradcam]"], "methods: 'gradcam' is not one of attention, rollout, relevance, integrated_gradients"),
        (["samples=[test/00003.png]"], "has no question 'test/00003.png'; did you mean 'test/00003.png#0'?"),
        (["samples=0"], "samples: 0 is neither a number of questions above 0 nor a list of their ids"),
        (["layer=2"], "layer: 2 does not attend to the image; those that do: 1, 3, 5"),
        (["head=9"], "head: 9 does not exist; expected 0 to 3"),
        (["methods=[rollout]", "layer=1"], "layer and head: only method 'attention' has them"),
        (["answer=wrong"], "answer: 'wrong' is not one of given, right"),
        (["split=dev"], "questions split 'dev' does not exist"),
        (["checks.samples=-1"], "checks.samples: -1 is below 0"),
        (["frozen_dtype=nf4"], "checks.sanity_samples: quantised weights cannot be made random"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(world, cells, tmp_path, overrides, message):
    arguments = [f"data={cells}", f"output_dir={tmp_path / 'out'}", *overrides]
    with pytest.raises(UserError) as caught:
        Maps(load_config("tiny_saliency.yaml", arguments, SaliencySettings), world).run()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_mistake_is_one_line_and_status_2(tune, cells, tmp_path):
    result = saliency(tune, tmp_path, cells, "method=rollout", check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "unknown key 'method'; did you mean 'methods'?" in line


def test_the_page_of_an_evaluation_shows_maps(tune, cells, tmp_path):
    common = ["--config", "tiny_eval.yaml", f"data={cells}", "scoring=generate", "image_control=false", "bootstrap=100"]
    out = tmp_path / "evaluation"
    tune("ift_eval_recipe", *common, f"output_dir={out}", cwd=tmp_path)
    assert "Where answers came from" not in (out / "report.html").read_text()
    before = (out / "predictions.jsonl").read_text()
    tune("ift_eval_recipe", *common, f"output_dir={out}", "saliency=rollout", cwd=tmp_path)  # no answer is given again
    assert (out / "predictions.jsonl").read_text() == before
    page = (out / "report.html").read_text()
    assert "Where answers came from: attention rollout" in page
    assert CAUTION.split(";")[0] in page
    assert "a mask at the picture" in page
    assert page.count('alt="map of ') == 6
    wrong = tune("ift_eval_recipe", *common, f"output_dir={out}", "saliency=gradcam", cwd=tmp_path, check=False)
    assert wrong.returncode == 2
    assert "saliency: 'gradcam' is not one of" in wrong.stderr
