"""Whole evaluations: outputs, resuming, refusing, several processes, comparing."""

import json
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import ift_eval_recipe
import pytest
from filelock import FileLock
from launching import launch

from ift_components.errors import UserError
from ift_components.evaluation.compare import compare
from ift_components.evaluation.predictors.own import OwnPredictor
from ift_components.evaluation.run import Evaluation
from ift_components.proxy import UpdateRule, random_theta, save_proxy


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


def evaluate(cfg, world):
    return Evaluation(cfg, world).run()


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def finished(eval_config, world):
    cfg = eval_config()
    return cfg, evaluate(cfg, world)


def test_outputs(finished, items):
    cfg, results = finished
    folder = Path(cfg.output_dir)
    assert json.loads((folder / "results.json").read_text()) == results
    rows = lines(folder)
    assert [row["id"] for row in rows] == [item.id for item in items]
    assert results["questions"] == 32
    assert results["accuracy"] == pytest.approx(sum(row["correct"] for row in rows) / 32, abs=1e-6)
    assert 0 < results["accuracy"] < 1
    assert results["forced_accuracy"] >= results["accuracy"]
    assert results["attributes"]["border"]["well_formed"] < 0.5 < results["attributes"]["colour"]["well_formed"]
    assert set(rows[0]) >= {"id", "prompt", "generated", "predicted", "correct", "seconds", "paper", "strict", "forced"}
    assert len(results["weights"]["sha256"]) == 64
    assert set(results["data_sha256"]) == {
        "data/questions/test.parquet",
        "data/reports/test.parquet",
        "data/manifest.json",
    }
    assert results["config"]["max_new_tokens"] == 50
    assert results["instruction_following"]["image_dependence"] == 0
    page = (folder / "report.html").read_text()
    wrong = sum(not row["correct"] for row in rows)
    assert page.count('class="card"') == min(30, wrong) + min(12, 32 - wrong)
    assert page.count('class="matrix"') == 4
    assert 'src="http' not in page
    assert (
        (folder / "table.tex").read_text().endswith(f"out & -- & -- & -- & {100 * results['accuracy']:.1f} & -- \\\\\n")
    )
    assert "than not looking at the image" in page or "from not looking at the image" in page
    assert "| colour | 8 |" in (folder / "report.md").read_text()


def test_pages_of_private_data_hold_figures_alone(eval_config, prepared, world, tmp_path):
    private = tmp_path / "private"
    shutil.copytree(prepared, private)
    manifest = json.loads((private / "manifest.json").read_text())
    (private / "manifest.json").write_text(json.dumps({**manifest, "private": True}))
    cfg = eval_config(f"data={private}", "limit=8")
    results = evaluate(cfg, world)
    page = (Path(cfg.output_dir) / "report.html").read_text()
    assert 'class="card"' not in page
    assert 'class="matrix"' not in page
    assert "What is the" not in page
    assert "triangle" not in page
    assert stat.S_IMODE(Path(cfg.output_dir).stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in Path(cfg.output_dir).iterdir()} == {0o600}
    assert f"{100 * results['accuracy']:.1f}" in page


def test_the_page_escapes_what_models_and_datasets_say(eval_config, world, monkeypatch):
    evil = "<script>alert(1)</script> \ud83d\ude00 \u5c0f\u3055\u3044 \\textbf | $x$"
    monkeypatch.setattr(OwnPredictor, "_answer", lambda self, batch, rows, drawing: [(evil, None, None)] * len(batch))
    cfg = eval_config("scoring=generate", "label=<b>bold</b>")
    results = evaluate(cfg, world)
    assert (results["accuracy"], results["unparsed"]) == (0, 32)
    page = (Path(cfg.output_dir) / "report.html").read_text()
    assert "<script>" not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;" in page
    assert lines(cfg.output_dir)[0]["generated"].encode("utf-16", "surrogatepass") == evil.encode(
        "utf-16", "surrogatepass"
    )


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_stopped_run_goes_on(finished, world, monkeypatch, cut):
    """Ten lines are there, the last perhaps in part; the rest is answered, and nothing twice."""
    cfg, results = finished
    path = Path(cfg.output_dir) / "predictions.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    before = lines(cfg.output_dir)
    path.write_bytes(b"".join(whole[:10]) + whole[10][: -cut if cut else 0])
    (path.parent / "results.json").unlink()
    asked = []
    answer = OwnPredictor.answer
    monkeypatch.setattr(
        OwnPredictor, "answer", lambda self, work, drawing: asked.extend(work) or answer(self, work, drawing)
    )
    again = evaluate(cfg, world)
    assert len(asked) == 22
    assert without_time(lines(cfg.output_dir)) == without_time(before)
    assert again["attributes"] == results["attributes"]


def test_a_finished_run_is_only_shown_again(finished, world, monkeypatch):
    cfg, results = finished
    monkeypatch.setattr("ift_components.evaluation.run.build_for_inference", None)  # no model is needed
    assert evaluate(cfg, world)["accuracy"] == results["accuracy"]


def test_killed_in_the_middle(eval_config, tmp_path, world):
    """kill -9 while lines are written; the same command ends with every line once, as an undisturbed run's."""
    reference = eval_config(out="reference")
    evaluate(reference, world)
    cfg = eval_config("batch_size=2")
    given = [
        f"{key}={getattr(cfg, key)}" for key in ("data", "checkpoint_dir", "output_dir", "batch_size", "bootstrap")
    ]
    command = ["ift_eval_recipe", "--config", "tiny_eval.yaml", "model.num_layers=4", "image_control=false", *given]
    process = launch(*command, cwd=tmp_path, streams=(tmp_path / "out.txt", tmp_path / "err.txt"))
    path = Path(cfg.output_dir) / "predictions.jsonl"
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 3):
        assert process.running(), process.output
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    process.wait()
    assert 3 <= path.read_bytes().count(b"\n") < 32
    evaluate(cfg, world)
    assert without_time(lines(cfg.output_dir)) == without_time(lines(reference.output_dir))


def test_two_evaluators_in_one_folder(finished, world):
    cfg, _ = finished
    content = {path: path.read_bytes() for path in Path(cfg.output_dir).iterdir()}
    with FileLock(Path(cfg.output_dir) / ".lock"), pytest.raises(UserError, match="another evaluation is writing to"):
        evaluate(cfg, world)
    assert {path: path.read_bytes() for path in Path(cfg.output_dir).iterdir()} == content


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_new_tokens=7", "differs in max_new_tokens"),
        ("checkpoint_dir=null", "differs in checkpoint_dir, model_config_sha256, weights"),
        ("parser=strict", "differs in parser"),
    ],
)
def test_another_evaluations_folder_is_refused(finished, eval_config, world, override, message):
    cfg, _ = finished
    content = {path: path.read_bytes() for path in Path(cfg.output_dir).iterdir()}
    with pytest.raises(UserError, match=message):
        evaluate(eval_config(override), world)
    assert {path: path.read_bytes() for path in Path(cfg.output_dir).iterdir()} == content


def test_a_damaged_line_and_foreign_files(finished, eval_config, world):
    cfg, _ = finished
    path = Path(cfg.output_dir) / "predictions.jsonl"
    content = path.read_text().splitlines()
    path.write_text("\n".join([content[0], "{broken", *content[2:]]) + "\n")
    with pytest.raises(UserError, match=r"predictions.jsonl: line 2 is damaged"):
        evaluate(cfg, world)
    other = eval_config(out="other")
    Path(other.output_dir).mkdir()
    (Path(other.output_dir) / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds files"):
        evaluate(other, world)


def test_settings_are_checked(eval_config, world, tmp_path):
    for overrides, message in (
        (["scoring=letters"], "scoring: 'letters' is not one of generate, logits, both"),
        (["parser=loose"], "parser: 'loose' is not one of authors, paper, strict"),
        (["n_runs=5"], "5 greedy runs are all the same"),
        (["temperature=-1"], "temperature: -1.0"),
        (["tile_padding=both"], "tile_padding: 'both' is not one of none, meta, paper"),
        (["tile_padding=meta"], "checkpoint was tuned to be asked with tile_padding none and not meta"),
        (["tiles=4"], "checkpoint was tuned to be asked with tiles 1 and not 4"),
        (["tiles=3"], "tiles: '3' is not one of 1, 4"),
        (["data=null"], "data: Incompatible value"),
        (["free.path=x.json"], "free.images"),
        (["unrelated={image_table: somewhere}"], "unrelated: 'image_table' is the name of the main dataset"),
        (["report.proxy=nowhere"], "nowhere does not exist"),
        (["model.decoder_dim=64"], "does not fit the model: .* weights differ"),
        (["predictor._component_=ift_components.evaluation.predictors.ServerPredictor"], "checkpoint_dir: only this"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(eval_config(*overrides), world)
    assert list(tmp_path.iterdir()) == []


def test_the_layout_is_the_checkpoints_unless_another_is_meant(eval_config, world, capsys):
    """What was computed stands in the results, by which runs are compared."""
    noted = evaluate(eval_config("limit=8"), world)
    layout = {"tiles": 1, "tile_padding": "none", "resize": "bilinear"}
    assert {key: noted["config"][key] for key in layout} == layout
    assert "pictures: tiles 1, tile_padding none, resize bilinear" in capsys.readouterr().err
    cfg = eval_config("limit=8", "tiles=4", "tile_padding=meta", "other_layout=true", out="other")
    other = evaluate(cfg, world)
    assert {key: other["config"][key] for key in layout} == {**layout, "tiles": 4, "tile_padding": "meta"}
    assert [line["generated"] for line in lines(cfg.output_dir)]
    first = Path(cfg.output_dir).parent / "out"
    with pytest.raises(UserError, match="out has tiles=1, other tiles=4; evaluate them alike"):
        compare(eval_config(f"compare=[{first},{cfg.output_dir}]", out="pair"))


def test_repeated_runs_reports_and_unrelated_tasks(eval_config, prepared, world, tmp_path):
    save_proxy(tmp_path / "proxy.safetensors", random_theta(4, 128, 0), model="m", step=0, rule=UpdateRule.UPDATE)
    more = ["temperature=1.0", "n_runs=3", "limit=8", f"unrelated={{other: {prepared}}}", "scoring=generate"]
    cfg = eval_config(*more, f"report.proxy={tmp_path / 'proxy.safetensors'}", "report.max_new_tokens=20")
    results = evaluate(cfg, world)
    assert results["questions"] == 8
    assert len(results["runs"]["accuracies"]) == results["runs"]["consistency"]["runs"] == 3
    assert results["unrelated"]["other"]["questions"] == 8
    assert results["reports"]["texts"] == 8
    assert results["instruction_following"]["instruction_dependence"]["questions"] == 24
    assert len(lines(cfg.output_dir)) == 24 + 24 + 8


def test_repeated_runs_differ_and_follow_the_seed(eval_config, world):
    def texts(*overrides, out):
        cfg = eval_config("n_runs=5", "temperature=0.7", "limit=4", "scoring=generate", *overrides, out=out)
        evaluate(cfg, world)
        return {(row["id"], row["run"]): row["generated"] for row in lines(cfg.output_dir)}

    first = texts(out="first")
    assert any(len({first[id_, run] for run in range(5)}) > 1 for id_, _ in first)
    assert texts("seed=1", out="second") != first
    assert texts("batch_size=1", out="third") == first


def test_the_image_control(eval_config, world):
    """The taught miniature reads shape and size from the image; with another's pixels that is lost."""
    cfg = eval_config("image_control=true")
    results = evaluate(cfg, world)
    control = results["image_control"]
    assert (results["questions"], control["questions"]) == (32, 32)
    assert [row["task"] for row in lines(cfg.output_dir)] == ["choice"] * 32 + ["control"] * 32
    assert control["difference"] == pytest.approx(results["accuracy"] - control["accuracy"], abs=1e-6)
    assert set(control["attributes"]) == set(results["attributes"])
    assert results["prior_shown"] is not None
    assert results["instruction_following"]["image_dependence_by_kind"] == {"choice": 0}


def test_verdicts_are_derived_from_the_answers_again(finished, world):
    cfg, results = finished
    path = Path(cfg.output_dir) / "predictions.jsonl"
    path.write_text("".join(json.dumps({**row, "correct": True, "predicted": 0}) + "\n" for row in lines(path.parent)))
    assert evaluate(cfg, world)["accuracy"] == results["accuracy"] < 1
    assert [row["correct"] for row in lines(path.parent)].count(True) == round(32 * results["accuracy"])


def test_free_questions(eval_config, world, tmp_path, items):
    items[0].picture().save(tmp_path / "a.png")
    rows = [
        {"qid": 1, "image_name": "a.png", "question": "Is it round?", "answer": "Yes", "answer_type": "CLOSED "},
        {
            "qid": 2,
            "image_name": "a.png",
            "question": "How many?",
            "answer": 3,
            "answer_type": "OPEN",
            "set": "counting",
        },
    ]
    (tmp_path / "vqa.json").write_text(json.dumps(rows))
    cfg = eval_config(
        "limit=4", f"free.path={tmp_path / 'vqa.json'}", f"free.images={tmp_path}", "free.max_new_tokens=5"
    )
    results = evaluate(cfg, world)
    assert (results["free"]["closed_questions"], results["free"]["open_questions"]) == (1, 1)
    assert {name: found["texts"] for name, found in results["free"]["sets"].items()} == {"counting": 1, "vqa": 1}
    assert [row["reference"] for row in lines(cfg.output_dir) if row["task"] == "free"] == ["Yes", "3"]
    rows[0]["image_name"] = "gone.png"
    rows.append({"qid": 2, "image_name": "a.png", "question": "", "answer": "x"})
    (tmp_path / "vqa.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"2 questions are wrong: '1': .*gone.png is missing; row 3 has no question"):
        evaluate(eval_config(f"free.path={tmp_path / 'vqa.json'}", f"free.images={tmp_path}", out="two"), world)


def test_two_processes_merge(finished, eval_config, tune, tmp_path):
    cfg, results = finished
    out = tmp_path / "two"
    given = [f"data={cfg.data}", f"checkpoint_dir={cfg.checkpoint_dir}", f"output_dir={out}", "model.num_layers=4"]
    tune(
        "--nproc_per_node",
        "2",
        "ift_eval_recipe",
        "--config",
        "tiny_eval.yaml",
        "bootstrap=200",
        "image_control=false",
        *given,
        cwd=tmp_path,
    )
    assert without_time(lines(out)) == without_time(lines(cfg.output_dir))
    assert json.loads((out / "results.json").read_text())["attributes"] == results["attributes"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in Path(cfg.output_dir).iterdir())


def test_comparison(finished, eval_config, world, *, tmp_path, monkeypatch, capsys):
    cfg, results = finished
    other = eval_config("checkpoint_dir=null", "label=untuned", "max_new_tokens=5", out="before")
    evaluate(other, world)
    arguments = [f"compare=[{other.output_dir},{cfg.output_dir}]", f"output_dir={tmp_path / 'page'}", "bootstrap=500"]
    monkeypatch.setattr(sys, "argv", ["ift_eval_recipe", "--config", "tiny_eval.yaml", *arguments])
    ift_eval_recipe.main()
    found = json.loads((tmp_path / "page" / "comparison.json").read_text())
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"]) == ("untuned", "out")
    assert pair["difference"] == pytest.approx(results["accuracy"], abs=1e-6)  # untuned answers are never well formed
    assert "p_mcnemar" not in pair  # four questions an image
    assert pair["seeds"] == [1, 1]
    assert pair["low"] < pair["difference"] < pair["high"]
    assert 0 < pair["p"] < 0.01 > pair["p_holm"] > pair["p"]
    before = json.loads((Path(other.output_dir) / "results.json").read_text())
    gain = results["balanced_accuracy"] - before["balanced_accuracy"]
    assert pair["balanced"]["difference"] == pytest.approx(gain, abs=1e-6)
    assert f"out - untuned: +{results['accuracy']:.3f}" in capsys.readouterr().out
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert page.count("<img") == 2
    assert (tmp_path / "page" / "table.tex").read_text().splitlines()[1].startswith("untuned & -- & -- & -- & 0.0")
    seeds = eval_config(f"compare=[{other.output_dir},{cfg.output_dir}]", out="page")
    with pytest.raises(UserError, match="already holds files"):
        compare(seeds)
    with pytest.raises(UserError, match="is not a finished evaluation"):
        compare(eval_config(f"compare=[{other.output_dir},{tmp_path}]", out="new"))
    with pytest.raises(UserError, match="two or more different folders"):
        compare(eval_config(f"compare=[{other.output_dir},{other.output_dir}]", out="new"))


def test_labels_are_compared_whatever_the_number_of_runs(eval_config, world, tmp_path):
    """Three seeds of one method and three of another beside a baseline: every two labels are compared, once."""
    folders = []
    for label, seeds in (("before", 1), ("FT", 3), ("InstFree", 3)):
        for seed in range(seeds):
            name = f"{label}-{seed}"
            evaluate(eval_config("limit=8", "temperature=0.7", f"seed={seed}", f"label={label}", out=name), world)
            folders.append(tmp_path / name)
    given = ",".join(map(str, folders))
    found = compare(eval_config(f"compare=[{given}]", out="page"))
    assert [(p["first"], p["second"], p["seeds"]) for p in found["pairs"]] == [
        ("before", "FT", [1, 3]),
        ("before", "InstFree", [1, 3]),
        ("FT", "InstFree", [3, 3]),
    ]
    same = found["pairs"][2]  # the same model, the same seeds
    assert (same["difference"], same["p"], same["p_holm"]) == (0, 1, 1)
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert '<td>InstFree</td><td class="left">FT</td>' in page
    evaluate(eval_config("limit=8", "parser=strict", "label=other", out="strict"), world)
    with pytest.raises(UserError, match=r"has parser=authors, strict parser=strict; evaluate them alike"):
        compare(eval_config(f"compare=[{folders[0]},{tmp_path / 'strict'}]", out="page2"))
