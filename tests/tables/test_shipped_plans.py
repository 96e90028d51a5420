"""The plans that are shipped: right as they stand, by the first command of their headers, and the same at both sizes."""

import re
import shlex

import pytest
import yaml

from ift_components.config import CONFIG_DIR
from ift_components.tables import runs
from ift_components.tables.findings.__main__ import plans
from ift_components.tables.findings.claims import read_claims
from ift_components.tables.plan import load_plan
from ift_components.tables.runs import plan_runs

PLANS = plans()
CLUSTER = ("executor=", "partition=", "account=", "jobs=")


def first_command(name):
    """Return the overrides of the first command of a plan's header, and what the header says of its number of runs."""
    lines = [line.removeprefix("#").strip() for line in (CONFIG_DIR / name).read_text().splitlines() if line[:1] == "#"]
    at = next(number for number, line in enumerate(lines) if line.startswith("tune run ift_table_recipe"))
    command = lines[at]
    while command.endswith("\\"):
        at, command = at + 1, command[:-1] + lines[at + 1]
    words = shlex.split(command)
    assert words[3:5] == ["--config", name]
    said = re.search(r"(\d+) runs by the first command", " ".join(lines))
    return [word for word in words[5:] if not word.startswith(CLUSTER)], int(said[1]) if said else None


def load(name, tmp_path, *overrides):
    """Return a plan by its first command, one empty folder in the place of every file that a user gives."""
    words = [re.sub(r"=([A-Z0-9_]+|[\w-]+\.json)$", f"={tmp_path}", word) for word in first_command(name)[0]]
    return load_plan(name, [*words, f"output_dir={tmp_path / 'out'}", f"runs_dir={tmp_path / 'runs'}", *overrides])


def counts(name, tmp_path, monkeypatch):
    """Which runs are the same is told by what is typed alone: merging every config takes minutes."""
    monkeypatch.setattr(runs, "_merged", lambda config, texts: {"config": config, **dict.fromkeys(texts)})
    monkeypatch.setattr(runs, "_checked_config", lambda *_: {})
    plan = load(name, tmp_path)
    said = first_command(name)[1]
    assert len(plan.tabled) > 0
    assert said in (None, len(plan_runs(plan).runs))
    assert all(stage.minutes is not None for stage in plan.settings.stages.values())


@pytest.mark.parametrize("name", [name for name in PLANS if name.endswith("_tiny.yaml")])
def test_it_plans_as_many_runs_as_it_says(name, tmp_path, monkeypatch):
    counts(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLANS if not name.endswith("_tiny.yaml")])
def test_it_plans_as_many_runs_as_it_says_at_full_size(name, tmp_path, monkeypatch):
    counts(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", PLANS)
def test_its_last_row_is_what_the_recipes_read(name, tmp_path):
    check(name, tmp_path, list(PLANS[name]["rows"])[-1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_all_its_rows_are(name, tmp_path):
    check(name, tmp_path, list(PLANS[name]["rows"]))


def check(name, tmp_path, kept):
    """Plan rows in full, on one dataset and with one seed: every config is checked by its recipe, and rows differ."""
    node = yaml.safe_load((CONFIG_DIR / name).read_text())
    kept = list(kept)
    for row in kept:  # grows: what a row is like may be like another
        like = (node["rows"][row] or {}).get("like")
        kept += [like] if like else []
    commanded = first_command(name)[0]
    first = next(dataset for dataset in node["datasets"] if f"~datasets.{dataset}" not in commanded)
    left_out = [row for row in node["rows"] if row not in kept]
    written = tmp_path / name
    node["rows"] = {row: {"datasets": [first], **(what or {})} for row, what in node["rows"].items() if row in kept}
    for what in node["rows"].values():
        what.pop("against", None)  # of rows that are not kept
    node |= {"baseline": None, "figures": {}}
    written.write_text(yaml.safe_dump(node, sort_keys=False))
    words = [re.sub(r"=([A-Z0-9_]+|[\w-]+\.json)$", f"={tmp_path}", word) for word in commanded]
    words = [word for word in words if not any(f"rows.{row}" in word for row in left_out)]
    planned = plan_runs(load_plan(str(written), [*words, f"output_dir={tmp_path / 'out'}", "seeds=[0]"]))
    assert {row for run in planned.runs.values() for row in run.rows} == set(kept)


@pytest.mark.parametrize("name", [name for name in PLANS if name.endswith("_tiny.yaml")])
def test_both_sizes_have_the_same_rows_columns_and_numbers(name):
    """Ranks of the papers' table are a quarter for the miniature; the first paper's at 11B also ask other models."""
    tiny, full = PLANS[name], PLANS[name.replace("_tiny", "_11b")]
    if name == "papers_table_tiny.yaml":
        ranks = {"8": "32", "16": "64", "32": "128", "64": "256"}
        tiny = {**tiny, "rows": {re.sub(r"\b\d+\b", lambda m: ranks[m[0]], row): w for row, w in tiny["rows"].items()}}
    if name.startswith(("peft", "medm", "papers")):
        assert list(tiny["rows"]) == list(full["rows"])
        assert tiny["columns"] == full["columns"]
        for row in tiny["rows"]:
            assert tiny["rows"][row].get("paper") == full["rows"][row].get("paper")
        assert tiny.get("baseline") == full.get("baseline")
        assert tiny["seeds"] == full["seeds"]
    else:
        assert set(tiny["rows"]) <= set(full["rows"])


MEANS = re.compile(r"(free\.|attributes\.|unrelated\.)?(\w+\.)*(\w+_)?(accuracy|recall)")


def test_claims_compare_what_their_table_compares():
    """Where a figure is a mean over questions and one table has both rows, the test is the table's own, paired one."""
    for claim in (claim for paper in read_claims() for claim in paper.claims):
        for test in claim.tests:
            plan = PLANS[test.first.plan]
            rows, column = (
                [plan["rows"][side.row] or {} for side in (test.first, test.second)],
                plan["columns"][test.column],
            )
            key = column if isinstance(column, str) else column["key"]
            own = any(row.get("values") for row in rows)
            if test.first.plan != test.second.plan or own or "read_out" in key or not MEANS.fullmatch(key):
                continue
            named = [plan["baseline"] in (test.first.row, test.second.row)]
            named += [
                test.column in row.get("against", {}).get(other.row, [])
                for row, other in zip(rows, (test.second, test.first), strict=True)
            ]
            assert any(named), test


def test_claims_name_what_plans_have():
    titles = [node["title"] for node in PLANS.values()]
    assert len(set(titles)) == len(titles)
    tests = [test for paper in read_claims() for claim in paper.claims for test in claim.tests]
    assert len(tests) > 40
    for test in tests:
        for side in (test.first, test.second):
            plan = PLANS[side.plan]
            assert side.row in plan["rows"], side
            assert {test.column, *test.control} <= set(plan["columns"]), test
            assert set(test.datasets) <= set(plan["datasets"])
    packaged = {name for name in PLANS if name.endswith("_tiny.yaml")} | {
        "forgetting.yaml",
        "proxies.yaml",
        "telling.yaml",
        "wording.yaml",
    }
    assert {side.plan for test in tests for side in (test.first, test.second)} == packaged


@pytest.mark.slow
def test_plans_of_one_paper_share_their_runs(tmp_path):
    ids = []
    for name in ("table1_tiny.yaml", "table2_tiny.yaml"):
        row = plan_runs(load(name, tmp_path, "seeds=[0]")).cells["InstFree", "wbcatt"]
        ids.append({key: row[key] for key in ("warmup", "tune", "evaluate")})
    assert ids[0] == ids[1]
