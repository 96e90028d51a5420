"""The plans that are shipped: their keys are right, and so is every stage's config."""

import pytest
import yaml

from ift_components.config import config_names, find_config
from ift_components.tables.plan import load_plan
from ift_components.tables.runs import plan_runs

CONFIGS = {name: yaml.safe_load(find_config(name).read_text(encoding="utf-8")) for name in config_names()}
PLANS = {name: plan for name, plan in CONFIGS.items() if "rows" in plan}


@pytest.fixture
def everything_given(tmp_path):
    """A function that returns overrides by which a plan has all that a user would have to give it."""
    (tmp_path / "manifest.json").write_text("{}\n")

    def give(plan):
        given = [f"output_dir={tmp_path / 'out'}", "seeds=[0]"]
        given += [f"datasets.{key}.folder={tmp_path}" for key, node in plan["datasets"].items() if node.get("root")]
        return given + [f"paths.{key}={tmp_path}" for key, path in plan.get("paths", {}).items() if path == "???"]

    return give


@pytest.mark.parametrize("name", PLANS)
def test_shipped_plans_are_right(name, everything_given, tmp_path):
    plan = load_plan(name, everything_given(PLANS[name]))
    assert plan.output == tmp_path / "out"
    assert f"--config {name}" in find_config(name).read_text(encoding="utf-8").split("\n\n", maxsplit=1)[0]


@pytest.mark.parametrize(
    "name",
    ["table1_tiny.yaml", *(pytest.param(name, marks=pytest.mark.slow) for name in PLANS if name != "table1_tiny.yaml")],
)
def test_every_stage_of_every_row_is_right(name, everything_given):
    plan = load_plan(name, everything_given(PLANS[name]))
    planned = plan_runs(plan)
    assert {row for row, _ in planned.cells} == {row.name for row in plan.rows}


@pytest.mark.slow
def test_plans_of_one_paper_share_their_runs(everything_given):
    ids = []
    for name in ("table1_tiny.yaml", "table2_tiny.yaml"):
        planned = plan_runs(load_plan(name, everything_given(PLANS[name])))
        row = planned.cells["InstFree", "wbcatt"]
        ids.append({key: row[key] for key in ("warmup", "tune", "evaluate")})
    assert ids[0] == ids[1]
