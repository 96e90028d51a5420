"""What the shipped miniature can do, as its model card says, and that the smears are a domain it has not seen."""

import pytest

from ift_components.config import load_config
from ift_components.data.prepared import read_manifest
from ift_components.evaluation.settings import EvalSettings
from ift_components.miniature.questions import OPEN, UNRELATED
from ift_components.miniature.scores import score
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.smears.dataset import draw_if_missing
from ift_components.training.checks import check_settings
from ift_components.training.settings import TrainSettings

RECIPES = {
    "data_smears.yaml": "ift_data_recipe",
    "tiny_warmup.yaml": "ift_warmup_recipe",
    "tiny_ift.yaml": "ift_recipe",
    "tiny_eval.yaml": "ift_eval_recipe",
}


def test_it_is_small():
    assert sum(path.stat().st_size for path in TINY_CHECKPOINT.iterdir()) < 12_000_000


def test_its_scores(world, tmp_path):
    schematic = score(None, "schematic", world, count=300, folder=tmp_path / "schematic")
    smear = score(None, "smear", world, count=300, folder=tmp_path / "smear")
    assert schematic["well_formed"] >= 0.99
    assert schematic["accuracy"] >= 0.85
    assert schematic[OPEN] >= 0.9
    assert schematic[UNRELATED] >= 0.9
    assert smear["well_formed"] >= 0.99
    assert smear["chance"] < smear["accuracy"] < schematic["accuracy"] - 0.15
    assert 0.4 < smear[OPEN] < schematic[OPEN] - 0.15
    assert smear[UNRELATED] == schematic[UNRELATED]  # the same pictures of shapes


@pytest.mark.parametrize("name", ["tiny_warmup.yaml", "tiny_ift.yaml", "tiny_eval.yaml"])
def test_configs_are_whole_without_overrides(name):
    cfg = load_config(name, [], EvalSettings if name == "tiny_eval.yaml" else TrainSettings)
    assert cfg.checkpoint_dir == str(TINY_CHECKPOINT)
    draw_if_missing(cfg.data)
    assert read_manifest(cfg.data)["counts"]["reports"]["train"] == 2000
    if name != "tiny_eval.yaml":
        assert check_settings(cfg).is_warm_up == (name == "tiny_warmup.yaml")
    if name == "tiny_ift.yaml":
        assert cfg.proxy.path == str(TINY_PROXY)
        assert TINY_PROXY.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_configs_run_without_overrides(name, tune, tmp_path):
    tune(RECIPES[name], "--config", name, cwd=tmp_path)
    (out,) = (tmp_path / "runs").iterdir()
    assert any((out / left).exists() for left in ("manifest.json", "run.json", "results.json"))
