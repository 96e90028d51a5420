"""What a plan becomes, without running it: which runs, which of them are shared, and every way to get one wrong."""

import pytest
from omegaconf import OmegaConf

from ift_components.errors import UserError
from ift_components.tables.engine import listing
from ift_components.tables.plan import flatten, load_plan
from ift_components.tables.runs import override_text, plan_runs


def planned(path, *overrides):
    """Return a plan and its runs."""
    plan = load_plan(str(path), overrides)
    return plan, plan_runs(plan)


def evaluations(runs, row):
    """Return the ids of a row's evaluations."""
    return runs.cells[row, "toys"]["evaluate"]


def test_what_rows_share_is_planned_once(write_plan):
    plan, runs = planned(write_plan())
    stages = [run.stage for run in runs.runs.values()]
    # Warm-ups are shared by both methods, the untuned model has no seed.
    assert {stage: stages.count(stage) for stage in stages} == {"warmup": 2, "tune": 6, "evaluate": 7}
    assert runs.cells["method", "toys"]["warmup"] == runs.cells["better method", "toys"]["warmup"]
    assert evaluations(runs, "untuned") == evaluations(runs, "prior")
    assert len(evaluations(runs, "untuned")) == 1
    order = list(runs.runs)
    assert all(order.index(needed) < order.index(run.id) for run in runs.runs.values() for needed in run.needs)
    tune = runs.runs[runs.cells["better method", "toys"]["tune"][1]]
    warmup = runs.runs[runs.cells["method", "toys"]["warmup"][1]]
    assert tune.needs == (warmup.id,)
    assert tune.config["start"] == str(warmup.out / "weights.json")
    assert (tune.config["lr"], tune.config["seed"]) == (0.8, 1)
    assert tune.config["output_dir"] == str(plan.output / "runs" / tune.id / "out")
    assert tune.config["data"] == str(plan.file.absolute().parent / "toys")
    assert "-seed1-" in tune.id
    # What refers to a stage that is left out is left out: the recipe's own default stays.
    assert "start" not in runs.runs[runs.cells["baseline", "toys"]["tune"][0]].config


def test_a_change_in_one_row_is_a_change_of_its_runs_alone(write_plan):
    _, before = planned(write_plan())

    def change(plan):
        plan["rows"]["better method"]["tune"]["lr"] = 0.9

    _, after = planned(write_plan(change))
    same = before.runs.keys() & after.runs.keys()
    assert len(same) == len(before.runs) - 4
    for row in ("untuned", "baseline", "method"):
        assert before.cells[row, "toys"] == after.cells[row, "toys"]


def test_names_order_speed_and_place_make_no_other_run(write_plan, tmp_path):
    _, before = planned(write_plan())

    def change(plan):
        rows = list(plan["rows"].items())
        plan["rows"] = {
            ("renamed" if name == "better method" else name): row for name, row in [*rows[:2], rows[2], rows[3]]
        }
        plan["output_dir"] = "elsewhere"
        plan["stages"]["tune"]["overrides"]["num_workers"] = 4
        plan["stages"]["tune"]["minutes"] = 7
        plan["datasets"]["toys"]["folder"] = "moved"

    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "manifest.json").write_text("{}\n")
    _, after = planned(write_plan(change))
    assert before.runs.keys() == after.runs.keys()
    (tmp_path / "moved" / "manifest.json").write_text('{"other": 1}\n')
    _, other = planned(write_plan(change))
    assert not other.runs.keys() & after.runs.keys()


def test_paths_typed_are_those_of_where_one_stands(write_plan, tmp_path):
    def change(plan):
        plan["paths"] = {"base": "???"}
        plan["stages"]["tune"]["overrides"]["start"] = "@base/weights.json"
        del plan["rows"]["baseline"]

    with pytest.raises(UserError, match=r"give a value for paths\.base"):
        load_plan(str(write_plan(change)), [])
    (tmp_path / "mine").mkdir()
    _, runs = planned(write_plan(change), "paths.base=mine", "output_dir=there")
    run = runs.runs[runs.cells["method", "toys"]["tune"][0]]
    assert run.config["start"] == str(tmp_path / "mine" / "weights.json")
    assert run.needs == ()
    assert run.folder.parent == tmp_path / "there" / "runs"


def test_a_row_may_have_its_own_seeds_datasets_and_stages(write_plan, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "manifest.json").write_text('{"more": 1}\n')

    def change(plan):
        plan["datasets"]["more"] = {"folder": "more", "tune": {"steps": 9}}
        plan["rows"]["better method"] |= {"seeds": [5], "datasets": ["more"]}
        plan["rows"]["best method"] = {"like": "better method", "tune": {"lr": 0.9}}
        plan["rows"]["short"] = {"stages": ["tune", "evaluate"], "datasets": ["toys"], "tune": {"steps": 1}}

    plan, runs = planned(write_plan(change))
    assert ("better method", "toys") not in runs.cells
    (tuned,) = (runs.runs[i] for i in runs.cells["better method", "more"]["tune"])
    assert (tuned.config["seed"], tuned.config["steps"]) == (5, 9)
    assert list(runs.cells["short", "toys"]) == ["tune", "evaluate"]
    _, without = planned(plan.file, "~datasets.more")
    # What is like a row that has nothing to run on has nothing either.
    assert set(without.cells) == {(row, "toys") for row in ("untuned", "baseline", "method", "prior", "short")}


def test_a_row_may_have_its_data_prepared_in_a_way_of_its_own(write_plan, tmp_path):
    def change(plan):
        plan["datasets"]["toys"] = {"config": "data_wbcatt.yaml", "root": str(tmp_path), "overrides": {"max_side": 84}}
        plan["rows"]["method"]["data"] = {"report_phrase": "{value} {name}"}
        plan["rows"]["usual again"] = {"like": "baseline", "tune": {"lr": 0.8}}

    _, runs = planned(write_plan(change))
    usual, named = (run for run in runs.runs.values() if run.stage == "data")
    assert (usual.config["max_side"], named.config["max_side"]) == (84, 84)
    assert (usual.config["report_phrase"], named.config["report_phrase"]) == (None, "{value} {name}")
    # What is like the row has its data too; all others share the usual ones.
    assert set(named.rows) == {"method", "better method"}
    for row, data in (("method", named), ("better method", named), ("baseline", usual), ("usual again", usual)):
        for stage in ("tune", "evaluate"):
            read = [runs.runs[run_id] for run_id in runs.cells[row, "toys"][stage]]
            assert {run.config["data"] for run in read} == {str(data.out)}
            assert all(data.id in run.needs for run in read)


def test_a_module_is_a_stage_too(write_plan):
    def change(plan):
        plan["stages"]["extra"] = {
            "optional": True,
            "module": "json.tool",
            "arguments": ["@dataset/manifest.json", "@output"],
            "overrides": {"--indent": 2, "--sort-keys": True, "--compact": False, "key": "value"},
        }
        plan["rows"]["method"]["stages"] = ["extra", "warmup", "tune", "evaluate"]

    _, runs = planned(write_plan(change))
    (extra,) = (run for run in runs.runs.values() if run.stage == "extra")
    arguments = extra.command[3:]
    assert arguments[1:] == (str(extra.out), "--indent", "2", "--sort-keys", "key=value")
    assert arguments[0].endswith("/toys/manifest.json")
    assert "seed" not in extra.id
    assert extra.settings.resume == "afresh"


def test_overrides_are_read_back_as_they_are():
    assert flatten({"a": {"b": 1, "c.d": None}, "e": {}, "f": [1]}) == {"a.b": 1, "a.c.d": None, "e": {}, "f": [1]}
    for value in (
        "plain",
        "a: b",
        "@x",
        "",
        "null",
        "3",
        "${data}",
        "What?\nThis.",
        "[1",
        3,
        None,
        [1, "b"],
        True,
        1e-5,
    ):
        read = OmegaConf.to_container(OmegaConf.from_dotlist([f"k={override_text(value)}"]))
        assert read == {"k": value}


WRONG = {
    "unknown key": (lambda p: p.update(sedes=[1]), "unknown key 'sedes'; did you mean 'seeds'"),
    "no such stage": (
        lambda p: p["rows"]["method"].update(tuen={"lr": 1}),
        "rows.method.tuen: no stage is called so; did you mean 'tune'",
    ),
    "stage not run": (
        lambda p: p["rows"]["baseline"].update(warmup={"lr": 1}),
        "rows.baseline.warmup: the row does not run this stage, so that nobody reads its overrides",
    ),
    "key nobody reads": (
        lambda p: p["rows"]["method"].update(tune={"lrr": 1}),
        "rows.method.tune: toy_train.yaml: unknown key 'lrr'; did you mean 'lr'",
    ),
    "wrong type": (lambda p: p["rows"]["method"].update(tune={"lr": "fast"}), "rows.method.tune: toy_train.yaml: lr:"),
    "same run": (
        lambda p: p["rows"].update(again={"tune": {"lr": 0.8}}),
        "rows.again: is the same run as 'better method' on toys",
    ),
    "like nobody": (lambda p: p["rows"]["prior"].update(like="nobody"), "no row above it is called 'nobody'"),
    "data of a row that nobody reads": (
        lambda p: (
            p["datasets"]["toys"].update(folder=None, config="data_wbcatt.yaml", root="."),
            p["rows"]["method"].update(data={"report_phrases": "x"}),
        ),
        "rows.method.data: data_wbcatt.yaml: unknown key 'report_phrases'; did you mean 'report_phrase'",
    ),
    "data of a row, prepared already": (
        lambda p: p["rows"]["method"].update(data={"report_phrase": "x"}),
        r"rows.method.data: report_phrase cannot be changed in what is prepared already, .*toys; give datasets.toys.root=PATH",
    ),
    "reference to nothing": (
        lambda p: p["stages"]["tune"]["overrides"].update(start="@warmpu/weights.json"),
        "refers to nothing; did you mean 'warmup'",
    ),
    "reference to a stage left out": (
        lambda p: p["rows"]["baseline"].update(tune={"start": "@warmup/weights.json"}),
        "a stage that this row does not run before it",
    ),
    "no dataset": (
        lambda p: p["datasets"]["toys"].update(folder="nowhere", config="data_wbcatt.yaml"),
        r"no prepared folder .* tune run ift_data_recipe --config data_wbcatt.yaml .* Download, no registration: the tables",
    ),
    "no root": (
        lambda p: p["datasets"].update(cells={"config": "data_wbcatt.yaml", "root": "???"}),
        r"give datasets.cells.root=PATH.*'~datasets.cells'. Download, no registration.*PATH then holds",
    ),
    "missing root": (
        lambda p: p["datasets"].update(cells={"config": "data_vqa_rad.yaml", "root": "nowhere"}),
        r"datasets.cells.root: nowhere is not there. Download, no registration \(CC0\)",
    ),
    "column of nothing": (lambda p: p["columns"].update(x={"key": "a", "unit": "points"}), "columns.x.unit: 'points'"),
    "paper in percent": (lambda p: p["rows"]["method"].update(paper={"accuracy": 61.7}), "61.7 is no share"),
    "paper of nothing": (lambda p: p["rows"]["method"].update(paper={"acuracy": 0.6}), "did you mean 'accuracy'"),
    "baseline": (lambda p: p.update(baseline="methd"), "there is no row 'methd'; did you mean 'method'"),
    "figure": (lambda p: p.update(figures={"radar": ["methd"]}), "figures.radar: there is no 'methd'"),
    "seeds": (lambda p: p.update(seeds=[1, 1]), "seeds: .* holds a number twice"),
    "executor": (lambda p: p.update(executor="lsf"), "executor: 'lsf' is not one of local, slurm"),
    "partition": (lambda p: p.update(partition="gpu"), "partition: only executor=slurm has one"),
    "stage of nothing": (lambda p: p["stages"].update(more={"optional": True}), "stages.more: give either recipe"),
    "recipe of nobody": (
        lambda p: p["stages"]["tune"].update(recipe="no_recipe"),
        "recipe: 'no_recipe' is no recipe of this package's kind",
    ),
    "no title": (lambda p: p.pop("title"), "give a value for title"),
    "x": (lambda p: p["rows"]["method"].update(x="eight"), "rows.method.x: 'eight' is not a number"),
    "against nobody": (
        lambda p: p["rows"]["method"].update(against={"untund": ["accuracy"]}),
        "rows.method.against: there is no other row 'untund'; did you mean 'untuned'",
    ),
    "against itself": (
        lambda p: p["rows"]["method"].update(against={"method": ["accuracy"]}),
        "rows.method.against: there is no other row 'method'",
    ),
    "against no list": (
        lambda p: p["rows"]["method"].update(against={"untuned": "accuracy"}),
        "is not a list of names",
    ),
    "against in no column": (
        lambda p: p["rows"]["method"].update(against={"untuned": ["acuracy"]}),
        "rows.method.against.untuned: there is no column 'acuracy'; did you mean 'accuracy'",
    ),
    "against other keys": (
        lambda p: p["rows"]["method"].update(against={"prior": ["accuracy"]}),
        r"rows.method.against.prior: 'prior' shows keys of its own \(values\) and is not compared",
    ),
    "against a row of another dataset": (
        lambda p: (
            p["datasets"].update(more={"folder": "toys"}),
            p["rows"]["method"].update(against={"untuned": ["accuracy"]}, datasets=["toys"]),
            p["rows"]["untuned"].update(datasets=["more"]),
        ),
        "rows.method.against.untuned: the two rows have no dataset in common",
    ),
}


def test_a_row_that_is_compared_with_one_left_out_is_none_the_less_run(write_plan):
    path = write_plan(lambda p: p["rows"]["method"].update(against={"untuned": ["accuracy"]}))
    plan, runs = planned(path, "~rows.untuned", "~rows.prior")
    assert ("method", "toys") in runs.cells
    assert plan.compared(plan.rows[1], "accuracy") == ["baseline", "untuned"]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_plans_are_refused_in_one_line(write_plan, tmp_path, case):
    change, message = WRONG[case]
    with pytest.raises(UserError, match=message) as error:
        planned(write_plan(change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_component_of_a_packaged_config_is_checked(write_plan):
    def change(plan):
        plan["stages"]["real"] = {
            "recipe": "ift_recipe",
            "config": "tiny_ift.yaml",
            "optional": True,
            "overrides": {"data": "@dataset"},
        }
        plan["rows"] = {"row": {"stages": ["real"], "real": {"dataset.limits": 3}}}
        plan["columns"] = {"loss": {"key": "loss", "stage": "real", "file": "metrics.jsonl", "unit": "number"}}

    def unread(plan):
        change(plan)
        plan["rows"]["row"]["real"] = {"proxy": {"momentum": 0.9}, "instruction": "Describe."}

    with pytest.raises(UserError, match=r"report_dataset has no argument 'limits'; did you mean 'limit'"):
        planned(write_plan(change))
    with pytest.raises(UserError, match=r"proxy.momentum: nobody reads it, because instruction='Describe.'"):
        planned(write_plan(unread))


def test_listing_counts_and_estimates(write_plan):
    plan, runs = planned(write_plan(), "jobs=2", "seeds=[0]", "stages.warmup.minutes=1", "stages.evaluate.minutes=2")
    text = listing(plan, runs)
    # 1 warm-up, 3 tunings, 4 evaluations: 1 + 9 + 8 minutes in two.
    assert text.splitlines()[-1] == "8 of 8 runs are to be done: about 9 min with jobs=2, 4 GB of memory"
    assert text.count("waiting") == 8
    assert "better method" in text
