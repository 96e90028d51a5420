"""What a table shows of runs that have ended: hand-made folders, whose figures are known."""

import csv
import importlib
import json
import statistics

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from ift_components.evaluation.compare import read_run
from ift_components.evaluation.pairs import measure_of
from ift_components.statistics import compare_methods, holm, wilson_interval
from ift_components.tables.cells import dig, make_table
from ift_components.tables.figures import draw_figures
from ift_components.tables.folder import DONE, STATE, State, last_lines, progress_of
from ift_components.tables.pages import write_status, write_tables
from ift_components.tables.plan import load_plan
from ift_components.tables.runs import plan_runs


def finish(run):
    """Leave in a run's folder what its recipe would."""
    module = importlib.import_module(run.command[2])
    run.folder.mkdir(parents=True)
    cfg = module.Settings(**OmegaConf.to_container(OmegaConf.create(run.config)))
    module.main.__wrapped__(cfg)
    (run.folder / DONE).write_text(json.dumps({"state": "finished", "seconds": 60.0, "memory_gb": 1.5, "attempts": 1}))


@pytest.fixture
def ended(write_plan):
    """A function that makes a plan all or some of whose runs have ended."""

    def make(change=None, *, but=()):
        plan = load_plan(str(write_plan(change)), [])
        planned = plan_runs(plan)
        for run in planned.runs.values():
            if run.stage not in but:
                finish(run)
        return plan, planned

    return make


def test_means_spread_and_tests_are_those_of_the_answers(ended):
    plan, planned = ended()
    table = make_table(plan, planned, complete=True)
    assert table.notes == []
    runs = {}
    for row in ("untuned", "baseline", "method", "better method"):
        ids = planned.cells[row, "toys"]["evaluate"]
        runs[row] = [read_run(planned.runs[i].out, row) for i in ids]
        cell = table.cells[row, "toys", "accuracy"]
        accuracies = [run.results["accuracy"] for run in runs[row]]
        assert cell.values == accuracies
        assert cell.mean == pytest.approx(statistics.mean(accuracies))
        assert cell.sd == (pytest.approx(statistics.stdev(accuracies)) if len(accuracies) > 1 else None)
    # The same comparison by hand: what each question earned, clustered by image, balanced over attributes and answers.
    tested, p_values = [], []
    for row in ("untuned", "method", "better method"):
        for title in ("accuracy", "balanced"):
            items = list(runs["baseline"][0].items.values())
            sides = [np.array([run.scores("correct", items) for run in runs[name]]) for name in ("baseline", row)]
            clusters = [item.image_id for item in items]
            cells = [(item.attribute, item.answer_text) for item in items] if title == "balanced" else None
            expected = compare_methods(*sides, clusters, cells)  # every attribute has two classes: they weigh alike
            cell = table.cells[row, "toys", title]
            found = cell.differences["baseline"]
            assert (found.value, found.low, found.high) == pytest.approx(
                (expected.difference, expected.low, expected.high)
            )
            assert cell.interval[0] <= cell.mean <= cell.interval[1]
            tested.append(found)
            p_values.append(expected.p)
    assert [found.p_holm for found in tested] == pytest.approx(holm(p_values))
    assert table.cells["better method", "toys", "accuracy"].differences["baseline"].p_holm < 0.05
    assert table.cells["baseline", "toys", "accuracy"].differences == {}
    # Further columns: another key of the same runs, a list's length, a share of run.json.
    assert table.cells["prior", "toys", "accuracy"].values == [0.6]
    assert table.cells["prior", "toys", "balanced"].planned == 0
    assert table.cells["method", "toys", "constant"].mean == 1
    assert table.cells["method", "toys", "trained"].values == [0.25, 0.25]
    assert table.cells["untuned", "toys", "trained"].planned == 0
    assert table.cells["method", "toys", "accuracy"].paper == 0.684
    assert table.cells["better method", "toys", "accuracy"].paper == 0.752


def test_rows_are_compared_with_others_than_the_baseline_where_the_plan_says_so(ended):
    """In the columns that are named, paired by question, and corrected together with all other tests; on every page."""
    plan, planned = ended(lambda p: p["rows"]["better method"].update(against={"method": ["accuracy"], "untuned": []}))
    table = make_table(plan, planned, complete=True)
    rows = ("better method", "method")
    better, method = ([read_run(planned.runs[i].out, r) for i in planned.cells[r, "toys"]["evaluate"]] for r in rows)
    items = list(better[0].items.values())
    sides = [np.array([run.scores("correct", items) for run in runs]) for runs in (method, better)]
    expected = compare_methods(*sides, [item.image_id for item in items])
    found = table.cells["better method", "toys", "accuracy"].differences["method"]
    assert (found.value, found.low, found.high, found.p) == pytest.approx(
        (expected.difference, expected.low, expected.high, expected.p)
    )
    assert set(table.cells["better method", "toys", "balanced"].differences) == {"baseline"}
    assert "method" not in table.cells["untuned", "toys", "accuracy"].differences
    tested = [one for cell in table.cells.values() for one in cell.differences.values()]
    assert len(tested) == 7
    assert [one.p_holm for one in tested] == pytest.approx(holm([one.p for one in tested]))
    write_tables(plan, planned, table, [])
    text = f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}), p = {found.p_holm:.2g}"
    markdown, html = ((plan.output / f"table.{suffix}").read_text() for suffix in ("md", "html"))
    assert f"Less method, in points:\n\n| | accuracy |\n|---|---:|\n| better method | {text} |" in markdown
    assert markdown.index("Less baseline, in points") < markdown.index("Less method, in points")
    assert "<p>Less method, in points" in html
    assert text in html
    lines = list(csv.DictReader((plan.output / "differences.csv").open()))
    assert len(lines) == 7
    (line,) = (line for line in lines if line["than"] == "method")
    assert (line["row"], line["column"]) == ("better method", "accuracy")
    assert [float(line[key]) for key in ("difference", "low", "high", "p", "p_holm")] == pytest.approx(
        [found.value, found.low, found.high, found.p, found.p_holm]
    )


def test_tables_say_the_same_in_every_format(ended):
    plan, planned = ended(lambda p: p["rows"]["method"].update(x=1) or p["rows"]["better method"].update(x=8))
    table = make_table(plan, planned, complete=True)
    figures = draw_figures(plan, planned, table)
    write_tables(plan, planned, table, figures)
    out = plan.output
    assert [path.name for path in figures] == [
        "bars-accuracy.png",
        "radar-toys.png",
        "line-accuracy.png",
        "line-balanced.png",
    ]
    assert all(min(Image.open(path).size) > 300 for path in figures)
    cell = table.cells["better method", "toys", "accuracy"]
    shown = f"{100 * cell.mean:.1f} ± {100 * cell.sd:.1f}"
    html, markdown, latex = ((out / f"table.{suffix}").read_text() for suffix in ("html", "md", "tex"))
    assert shown in html
    assert (
        f"| better method | 2 | {shown} ({100 * cell.interval[0]:.1f} to {100 * cell.interval[1]:.1f}) | 75.2 |"
        in markdown
    )
    bold = shown.replace("±", r"$\pm$")
    assert rf"better method & \textbf{{{bold}}}" in latex
    assert "figures/radar-toys.png" in markdown
    rows = list(csv.DictReader((out / "table.csv").open()))
    (row,) = (r for r in rows if r["row"] == "better method" and r["column"] == "accuracy")
    assert float(row["mean"]) == pytest.approx(cell.mean)
    assert [float(v) for v in row["values"].split()] == pytest.approx(cell.values)
    assert (row["seeds"], row["paper"]) == ("2", "0.752")
    stored = json.loads((out / "table.json").read_text())
    assert stored["baseline"] == "baseline"
    assert stored["cells"][0]["differences"]["baseline"]["p_holm"] <= 1
    assert len(stored["cells"]) == len(rows) == 5 * 5
    for line in markdown.splitlines():
        assert not line.startswith("|") or line.count("|") in (9, 4, 8), line


def test_a_page_of_an_unfinished_table_shows_what_is_there(ended):
    plan, planned = ended(but=("evaluate",))
    runs = [planned.runs[i] for i in planned.cells["method", "toys"]["evaluate"]]
    finish(runs[0])
    runs[1].folder.mkdir(parents=True)
    failed = {"state": "failed", "attempts": 2, "seconds": 3.0, "memory_gb": 0.1, "status": 3, "began": "then"}
    (runs[1].folder / STATE).write_text(json.dumps(failed))
    (runs[1].folder / "log.txt").write_text("first\n 10%\r 20%\r 30%\nthe loss is <not> a number\n")
    table = make_table(plan, planned, complete=False)
    cell = table.cells["method", "toys", "accuracy"]
    assert (len(cell.values), cell.planned, cell.sd, cell.interval) == (1, 2, None, None)
    plan.output.mkdir(exist_ok=True)
    write_status(plan, planned, table, running=True)
    page = (plan.output / "table.html").read_text()
    assert f"{100 * cell.mean:.1f} (1 of 2)" in page
    assert "9 of 15 runs are finished, <span" in page
    assert "1 failed" in page
    assert "the loss is &lt;not&gt; a number" in page
    assert "attempt 2, status 3" in page
    assert 'http-equiv="refresh"' in page
    write_status(plan, planned, table, running=False)
    assert 'http-equiv="refresh"' not in (plan.output / "table.html").read_text()


def test_rows_that_were_asked_otherwise_are_not_compared(ended):
    def change(plan):
        plan["rows"]["method"]["evaluate"] = {"first": 5}

    plan, planned = ended(change)
    table = make_table(plan, planned, complete=True)
    assert len(table.notes) == 4  # accuracy and balanced accuracy; the better method is like it
    assert table.notes[0].startswith("method is not compared: accuracy: baseline has 240 questions, method 240; 'q0'")
    assert table.cells["method", "toys", "accuracy"].differences == {}
    assert table.cells["method", "toys", "accuracy"].interval is not None
    assert table.cells["untuned", "toys", "accuracy"].differences["baseline"].p_holm is not None


def test_every_figure_that_is_a_mean_over_questions_has_its_measure(ended):
    _, planned = ended()
    (run_id,) = planned.cells["untuned", "toys"]["evaluate"]
    run = read_run(planned.runs[run_id].out, "untuned")
    accuracy = run.results["accuracy"]
    assert measure_of(run, "accuracy").values([run]).mean() == pytest.approx(accuracy)
    shape = measure_of(run, "attributes.shape.accuracy")
    assert shape.values([run]).mean() == pytest.approx(run.results["attributes"]["shape"]["accuracy"])
    assert len(set(measure_of(run, "macro_accuracy").cells)) == 3
    for key in ("well_formed", "image_control.accuracy", "free.accuracy", "free.open_recall", "kappa"):
        assert measure_of(run, key) is None


def test_an_interval_of_a_table_where_all_is_right_is_not_empty(ended):
    def change(plan):
        plan["rows"] = {"perfect": {"tune": {"lr": 1.0}}}

    plan, planned = ended(change)
    cell = make_table(plan, planned, complete=True).cells["perfect", "toys", "accuracy"]
    assert cell.mean == 1
    assert cell.interval == pytest.approx(wilson_interval(1.0, 80))


def test_a_run_is_at_work_as_long_as_its_lock_is_held(tmp_path):
    from ift_components.files import locked  # noqa: PLC0415

    folder = tmp_path / "run"
    assert progress_of(folder).state is State.WAITING
    folder.mkdir()
    (folder / STATE).write_text('{"state": "running"}')
    assert progress_of(folder).state is State.INTERRUPTED
    with locked(folder):
        assert progress_of(folder).state is State.RUNNING
    assert progress_of(folder).state is State.INTERRUPTED


def test_keys_may_hold_dots_and_logs_progress_bars(tmp_path):
    assert dig({"a": {"b.c": {"d": 1}}, "a.b": 2}, "a.b.c.d") == 1
    assert dig({"a": [1]}, "a.b") is None
    log = tmp_path / "log.txt"
    log.write_text("".join(f"line {n}\n\n" for n in range(20)) + "0%\r50%\r100%")
    assert last_lines(log, 3) == ["line 18", "line 19", "100%"]
    assert last_lines(tmp_path / "none") == []
