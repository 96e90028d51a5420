"""Judges against a scripted server: grades, resume, privacy, planted answers, both orders, agreement, a person's sheet."""

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from ift_components.config import load_config
from ift_components.errors import ConfigError, DataError, UserError
from ift_components.evaluation.judging.agreement import alpha_agreement, pair_agreement
from ift_components.evaluation.judging.grading import (
    TEMPLATES,
    PromptOptions,
    find_template,
    read_grade,
    read_preference,
    read_verdict,
)
from ift_components.evaluation.judging.radeval import load_radeval, radeval_figures
from ift_components.evaluation.judging.run import Judging, table
from ift_components.evaluation.judging.settings import JudgeSettings
from ift_components.evaluation.judging.subjects import PADDING, read_evaluation
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.run import Evaluation
from ift_components.miniature.scripted import ScriptedServer
from ift_components.miniature.scripted import texts_of as parts

PLACES = ("liver", "left lung", "right kidney", "spleen", "pancreas", "brain stem")
IMAGES = 30


def reference(number):
    return f"a dark mass in the {PLACES[number % len(PLACES)]}"


def write_evaluation(folder, answer, *, private=False, label=None, images=IMAGES):
    """Write what an evaluation leaves of open questions about images that `answer(number)` answers."""
    data = folder.parent / f"prepared-{'private' if private else 'open'}"
    data.mkdir(parents=True, exist_ok=True)
    manifest = {"format": 2, "private": private, "builder": {"name": "masses"}, "counts": {"reports": {}}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    folder.mkdir()
    config = {"data": str(data), "unrelated": {}, "label": label}
    (folder / "run.json").write_text(json.dumps({"config": config, "fingerprint": {"data": str(data)}}))
    lines = []
    for number in range(images):
        item = Item(
            id=f"q{number}", task="free", dataset="masses", image_id=f"i{number}", prompt="What is seen, and where?",
            reference=reference(number), kind="open",
        )  # fmt: skip
        scores = {"correct": False, "recall": 0.0}
        lines.append(json.dumps(Prediction(item, generated=answer(number)).scored(scores).line()))
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def share(told, answer):
    """Return the share of the reference's words in an answer, as a grade."""
    words = set(told.split())
    return round(10 * len(words & set(answer.split())) / len(words))


def fair(prompt):
    """Grade by the share of the reference's words, as a judge without a fault would."""
    told, answers = parts(prompt)
    grades = [share(told, answer) for answer in answers]
    if "Better:" in prompt:
        a, b = grades
        return f"Better: {'A' if a > b else 'B' if b > a else 'tie'}"
    if "Verdict:" in prompt:
        return f"Verdict: {'correct' if grades[0] == 10 else 'incorrect'}"
    return f"Some words agree.\nGrade: {grades[0]}"


class Judge(ScriptedServer):
    """Judges whose replies a function scripts by model."""

    def __init__(self):
        self.scripts = {}
        super().__init__(lambda request: self.scripts.get(request["model"], fair)(request["messages"][0]["content"]))


@pytest.fixture
def judge():
    with Judge() as made:
        yield made


@pytest.fixture
def config(judge, tmp_path):
    """A function that gives the config of a pass over evaluations by judges of the scripted server."""

    def make(evaluations, *overrides, judges=("first",), out="judged"):
        servers = [
            f"judge.servers.{name}.{key}"
            for name in judges
            for key in (f"base_url={judge.url}", f"model={name}", "retries=0")
        ]
        base = [f"evaluations=[{','.join(map(str, evaluations))}]", f"output_dir={tmp_path / out}", "bootstrap=200"]
        return load_config(
            "judge.yaml", [*base, *servers, "judge.templates.free=description", *overrides], JudgeSettings
        )

    return make


def good(number):
    return reference(number) if number % 3 else "a dark mass"


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("7", 7), ("8/10", 8), ("**8**", 8), ("[[9]]", 9), ("7.5", 7.5), ("7,5", 7.5), ("Grade: 0", 0), ("grade = 10", 10),
        ("It fits.\n\nGrade: 6", 6), ("**Grade:** 6/10", 6), ("Score (0-10): 4", 4), ('{"grade": 3}', 3), ("10 out of 10.", 10),
        ("I would give a score of 5 here.", 5), ("2 of 3 findings fit: 6/10", 6), ("<think>Grade: 2</think>\nGrade: 8", 8),
        ("Grade: 6. A grade of 8 would need the side.", 6), ("Grade: 8\n... Grade: 8", 8), ("Grade: [7]", 7),
        ("", None), ("I cannot grade this.", None), ("Grade: N", None), ("Grade: 11", None), ("Grade: -3", None),
        ("Grade: 4/5", None), ("80/100", None), ("Grade: 3\nGrade: 7", None), ("Grades go from 0 to 10.", None),
        ("Grade: 0-10", None), ("Grade: 0 to 10", None), ("<think>Grade: 2", None), ("Grade: 70%", None),
        ("In 2019 it was so.", None),
    ],
)  # fmt: skip
def test_a_grade_is_read_or_none_is(reply, grade):
    value, reason = read_grade(reply)
    assert value == grade
    assert bool(reason) == (grade is None)


@pytest.mark.parametrize(
    ("reply", "value"),
    [("Verdict: correct", 10), ("Why.\n**Verdict:** incorrect.", 0), ("Incorrect", 0), ("Verdict: not correct", 0),
     ("yes", 10), ("Verdict: correct\nVerdict: incorrect", None), ("It is correct that I am unsure", None)],
)  # fmt: skip
def test_a_verdict_is_read_or_none_is(reply, value):
    assert read_verdict(reply)[0] == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [("Better: A", 1), ("Because.\nBetter: **B**", 0), ("better: tie", 0.5), ("B", 0), ("A is better than B", None),
     ("Better: A\nBetter: B", None)],
)  # fmt: skip
def test_a_preference_is_read_or_none_is(reply, value):
    assert read_preference(reply)[0] == value


def test_templates_of_the_users_own_are_checked():
    own = {"mine": PromptOptions("{reference} or {answer}? {{json}}", "verdict")}
    assert find_template("mine", own, "x").render("q", "{r}", "a") == "{r} or a? {json}"
    assert "(empty)" in TEMPLATES["correct"].render("q", "r", "")
    for text, message in (
        ("{answer}", "no field {reference}"),
        ("{reference}{answer}{image}", "unknown field {image}"),
        ("{reference} {", r"judge.prompts.mine.text: .*write {{ and }}"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_template("mine", {"mine": PromptOptions(text)}, "x")
    with pytest.raises(ConfigError, match="x: 'other' is not one of description, reasoning, correct, mine"):
        find_template("other", own, "x")


def test_a_pass_by_two_judges(judge, config, tmp_path):
    """Grades are those that were scripted; every prompt, model and raw reply is kept; the harsh judge is two below the fair."""
    judge.scripts["harsh"] = lambda prompt: re.sub(r"\d+$", lambda m: str(max(0, int(m[0]) - 2)), fair(prompt))
    out = write_evaluation(tmp_path / "a", good)
    results = Judging(config([out], judges=("fair", "harsh"))).run()
    score = results["judges"]["fair"]["scores"]["a"]["free, open"]
    expected = [10 if number % 3 else share(reference(number), "a dark mass") for number in range(IMAGES)]
    assert score["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert score["interval"][0] < score["mean"] < score["interval"][1]
    assert (score["answers"], score["graded"], score["ungraded"]) == (IMAGES, IMAGES, {})
    assert results["judges"]["fair"]["warnings"] == []
    planted = results["judges"]["fair"]["planted"]["free"]
    assert (planted["sets"], planted["means"]["reference"], planted["means"]["empty"]) == (20, 10, 0)
    (pair,) = results["agreement"]["pairs"]
    assert (pair["difference"], pair["both"]) == (-2, IMAGES)
    assert pair["kappa_interval"][0] <= pair["kappa"] <= pair["kappa_interval"][1] < 1
    rows = [json.loads(line) for line in (tmp_path / "judged" / "judgements.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["key"] for row in rows}) == len(judge.requests)
    asked = {(request["model"], request["messages"][0]["content"]) for request in judge.requests}
    assert {(row["model"], row["prompt"]) for row in rows} == asked
    assert all(row["reply"].startswith("Some words agree.") and row["template"] == "description" for row in rows)
    with (tmp_path / "judged" / "grades.csv").open() as file:
        grades = [row for row in csv.DictReader(file) if row["judge"] == "fair" and row["evaluation"] == "a"]
    assert [float(row["grade"]) for row in grades] == expected
    page = (tmp_path / "judged" / "judging.html").read_text()
    assert "Do not rely on" not in page
    assert "Where raters differ most" in page
    assert results["evaluations"]["a"]["free"]["rouge1"] > 0.8
    before = len(judge.requests)
    assert Judging(config([out], judges=("fair", "harsh"))).run() == results
    Judging(config([out], judges=("fair", "harsh", "third"))).run()  # one more judge: only it is asked
    assert {request["model"] for request in judge.requests[before:]} == {"third"}


def test_replies_without_a_grade_stay_ungraded_and_are_counted(judge, config, tmp_path):
    def script(prompt):
        (answer,) = parts(prompt)[1]
        replies = {"a dark mass": "I will not say.", reference(1): (400, "filtered"), reference(2): "Grade: 12"}
        return replies.get(answer, fair(prompt))

    judge.scripts["first"] = script
    results = Judging(config([write_evaluation(tmp_path / "a", good)], "judge.planted=0")).run()
    score = results["judges"]["first"]["scores"]["a"]["free, open"]
    assert score["ungraded"] == {"no grade": 10, "no reply": 5, "outside 0 to 10": 5}
    assert (score["graded"], score["mean"]) == (10, 10)
    assert results["judges"]["first"]["warnings"] == [
        "free: only 0 sets of planted answers: nothing is known of this judge"
    ]


@pytest.mark.parametrize(
    ("script", "warning"),
    [
        (lambda prompt: "Grade: 7", "above the planted 'other' answer in 50 % of 20 sets only"),
        (lambda prompt: f"Grade: {min(10, len(parts(prompt)[1][0].split()))}", "above the planted 'padded' answer in 0 %"),
        (lambda prompt: "Grade: 0" if parts(prompt)[1][0] == "(empty)" else "Grade: 8", "planted 'other' answer in 50 %"),
        (
            lambda prompt: f"Grade: {9 if parts(prompt)[1][0] == parts(prompt)[0] else 5 if PADDING in prompt else 3}",
            "padding alone adds 2.0 to a wrong answer's grade",
        ),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_rank_planted_answers_is_not_printed_without_a_warning(
    judge, config, tmp_path, script, warning
):
    judge.scripts["first"] = script
    results = Judging(config([write_evaluation(tmp_path / "a", good)])).run()
    assert any(warning in text for text in results["judges"]["first"]["warnings"])
    text = table(results)
    assert text.index("WARNING: free: ") < text.index("a, free, open:")
    assert "Do not rely on its grades" in (tmp_path / "judged" / "judging.html").read_text()


def test_two_evaluations_are_compared_in_both_orders(judge, config, tmp_path):
    """The better answers win whatever their place; a judge that prefers the first place gets ties and a warning."""
    judge.scripts["placed"] = lambda prompt: "Better: A" if "Better:" in prompt else fair(prompt)
    first = write_evaluation(tmp_path / "a", lambda n: "a dark mass", label="short")
    second = write_evaluation(tmp_path / "b", good, label="whole")
    results = Judging(config([first, second], judges=("fair", "placed"))).run()
    (fairly,) = results["judges"]["fair"]["comparisons"]
    assert (fairly["better"], fairly["worse"], fairly["tied"], fairly["equal_texts"]) == (20, 0, 10, 10)
    assert fairly["preference"] == pytest.approx(20 / 30 + 10 / 60)
    assert (fairly["consistent"], fairly["first_shown"]) == (1, 0.5)
    (placed,) = results["judges"]["placed"]["comparisons"]
    assert (placed["preference"], placed["consistent"], placed["first_shown"]) == (0.5, 0, 1)
    assert results["judges"]["fair"]["planted_pairs"] == {"sets": 20, "preferred": 1, "warnings": []}
    warnings = results["judges"]["placed"]["warnings"]
    assert any("both orders agree on 0 % of the pairs of short and whole only" in text for text in warnings)
    assert any("reference to another image's reference in 50 % of pairs" in text for text in warnings)


def test_a_killed_pass_goes_on_and_asks_nothing_twice(judge, config, tmp_path):
    out, judged = write_evaluation(tmp_path / "a", good), tmp_path / "judged"
    hang = threading.Event()

    def script(prompt):
        if len(judge.requests) == 30:
            hang.wait(30)
        return fair(prompt)

    judge.scripts["first"] = script
    arguments = [f"evaluations=[{out}]", f"output_dir={judged}", f"judge.servers.first.base_url={judge.url}"]
    arguments += ["judge.servers.first.model=first", "judge.servers.first.concurrency=1", "bootstrap=200"]
    arguments += ["judge.templates.free=description"]
    code = "import sys, ift_judge_recipe; sys.argv[0] = 'ift_judge_recipe'; ift_judge_recipe.main()"
    process = subprocess.Popen([sys.executable, "-c", code, "--config", "judge.yaml", *arguments])
    deadline = time.monotonic() + 60
    while len(judge.requests) < 30:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    hang.set()
    lines = (judged / "judgements.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 29
    (judged / "judgements.jsonl").write_text("".join(lines)[:-20])  # as if it had died within a line
    results = Judging(config([out])).run()
    prompts = [(request["seed"], request["messages"][0]["content"]) for request in judge.requests]
    twice = {prompt for prompt in prompts if prompts.count(prompt) > 1}
    assert len(prompts) - len(set(prompts)) == len(twice) == 2  # the one under way, and the one whose line was cut
    assert results["judges"]["first"]["scores"]["a"]["free, open"]["graded"] == IMAGES


def test_a_server_that_fails_keeps_what_it_replied(judge, config, tmp_path):
    judge.scripts["first"] = lambda prompt: (503, "busy") if len(judge.requests) > 10 else fair(prompt)
    settings = config([write_evaluation(tmp_path / "a", good)], "judge.servers.first.concurrency=1")
    with pytest.raises(UserError, match=r"judge.servers.first.base_url: .* gave no reply to 20 of \d+ judgements"):
        Judging(settings).run()
    del judge.scripts["first"]
    asked = {(request["seed"], request["messages"][0]["content"]) for request in judge.requests[:10]}
    before = len(judge.requests)
    Judging(settings).run()
    assert not asked & {(request["seed"], request["messages"][0]["content"]) for request in judge.requests[before:]}


def test_private_texts_stay_here(judge, config, tmp_path):
    out = write_evaluation(tmp_path / "a", lambda n: f"secret {n}" if n % 2 else reference(n), private=True)
    with pytest.raises(
        ConfigError, match=r"judge.servers.first.base_url: https://api.example.org/v1 .*prepared-private is "
    ):
        Judging(config([out], "judge.servers.first.base_url=https://api.example.org/v1")).run()
    assert not (tmp_path / "judged").exists()
    with pytest.raises(ConfigError, match=r"judge.radeval: 'crimson' asks a hosted model"):
        Judging(config([out], "judge.radeval=[crimson]")).run()
    far = Judging(config([out], "judge.servers.first.base_url=https://api.example.org/v1", "judge.allow_remote=true"))
    far.prepare()
    Judging(config([out], judges=("first", "second"))).run()
    assert "secret" not in (tmp_path / "judged" / "judging.html").read_text()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "judged").rglob("*")} == {0}
    (tmp_path / "prepared-private" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="is not there to say"):
        Judging(config([out], "judge.servers.first.base_url=http://10.0.0.1/v1", out="other")).run()


def test_a_persons_blind_sheet(judge, config, tmp_path):
    """It tells no evaluation, is never written over, and its grades agree with the judge's as they were given."""
    a = write_evaluation(tmp_path / "a", lambda n: "=SUM(A1)" if n == 0 else good(n), label="label-one")
    b = write_evaluation(tmp_path / "b", lambda n: "a dark mass", label="label-two")
    Judging(config([a, b], "sheet.answers=15")).run()
    folder = tmp_path / "judged"
    with (folder / "sheet.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert all(name not in (folder / "sheet.html").read_text() for name in ("label-one", "label-two", "Grade:"))
    for row in rows:
        row["grade"] = str(share(row["reference"], row["answer"]))
    rows[0]["grade"] = ""
    with (folder / "sheet.csv").open("w") as file:
        file.write("code;grade\n" + "".join(f"{row['code']};{row['grade'].replace('.', ',')}\n" for row in rows))
    results = Judging(config([a, b], f"judge.sheets.anna={folder / 'sheet.csv'}")).run()
    (pair,) = results["agreement"]["pairs"]
    assert (pair["second"], pair["kappa"], pair["exact"]) == ("anna", 1, 1)
    assert pair["both"] == results["people"]["anna"]["graded"] >= 14
    assert (folder / "sheet.csv").read_text().startswith("code;grade\n")
    for text, message in (
        ("code,grade\n", "holds no grade yet"),
        ("code,grade\nabc,3\n", "line 2: code 'abc' is of no answer"),
        (f"code,grade\n{rows[1]['code']},12\n", "grade '12' is no number from 0 to 10"),
        (f"code,grade\n{rows[1]['code']},1\n{rows[1]['code']},2\n", "has two grades"),
        ("id,grade\n", "no column 'code'"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            Judging(config([a, b], f"judge.sheets.anna={tmp_path / 'bad.csv'}")).run()


def test_formulas_are_no_formulas_in_the_sheet(judge, config, tmp_path):
    Judging(config([write_evaluation(tmp_path / "a", lambda n: "=SUM(A1)")])).run()
    assert "'=SUM(A1)" in (tmp_path / "judged" / "sheet.csv").read_text(encoding="utf-8")


def test_agreement_is_that_of_other_libraries():
    """Kappa is statsmodels'; alpha Krippendorff's own example; the interval of kappa covers the truth."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 11, 60)
    y = np.clip(x + generator.integers(-2, 3, 60), 0, 10)
    counts = np.zeros((11, 11))
    np.add.at(counts, (x, y), 1)
    grades = [dict(enumerate(values.astype(float))) for values in (x, y)]
    images = {unit: unit // 2 for unit in range(60)}
    ours = pair_agreement(*grades, images, draws=500, seed=0)
    assert ours["kappa"] == pytest.approx(cohens_kappa(counts, wt="quadratic").kappa, abs=1e-12)
    assert ours["kappa_interval"][0] < ours["kappa"] < ours["kappa_interval"][1]
    nan = None
    raters = [
        [nan, nan, nan, nan, nan, 3, 4, 1, 2, 1, 1, 3, 3, nan, 3],
        [1, nan, 2, 1, 3, 3, 4, 3, nan, nan, nan, nan, nan, nan, nan],
        [nan, nan, 2, 1, 3, 4, 4, nan, 2, 1, 1, 3, 3, nan, 4],
    ]
    sparse = [{unit: float(v) for unit, v in enumerate(row) if v is not None} for row in raters]
    alpha = alpha_agreement(sparse, {unit: unit for unit in range(15)}, draws=200, seed=0)
    assert alpha["alpha"] == pytest.approx(0.810845, abs=1e-6)
    assert alpha["interval"][0] < alpha["alpha"] <= alpha["interval"][1]
    same = [{0: 5.0, 1: 5.0}] * 2
    assert alpha_agreement(same, {0: 0, 1: 1}, draws=10, seed=0)["alpha"] is None
    assert pair_agreement(*same, {0: 0, 1: 1}, draws=10, seed=0)["kappa"] is None


def test_kappas_interval_covers():
    """Two raters of a known kappa; 95 % intervals over images hold it about so often."""
    covered, truth = 0, 16 / (16 + 1)  # variance 16 in common, 1 each: 1 - 2 / (2 * 17)
    for seed in range(100):
        generator = np.random.default_rng(seed)
        common = generator.normal(5, 4, 100)
        x, y = (dict(enumerate(common + generator.normal(0, 1, 100))) for _ in range(2))
        low, high = pair_agreement(x, y, {u: u for u in range(100)}, draws=300, seed=seed)["kappa_interval"]
        covered += low <= truth <= high
    assert covered >= 88


def test_mistakes_are_one_line_before_anything_is_written(config, tmp_path):
    out = write_evaluation(tmp_path / "a", good)
    for overrides, message in (
        (["judge.templates.free=nice"], "judge.templates.free: 'nice' is not one of"),
        (["judge.templates.pictures=correct"], "judge.templates: 'pictures' is not one of free, report, choice"),
        (["judge.planted_share=0.3"], "judge.planted_share: 0.3; expected above 0.5"),
        (["judge.servers.first.model=null"], "judge.servers.first.model: give the name"),
        (["judge.sheets.first=x.csv"], "judge.sheets.first: a judge is called so too"),
        (["judge.templates.free=null", "judge.templates.choice=correct"], r"has no answer to choice, report \(it has free\)"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            Judging(config([out], *overrides)).run()
    with pytest.raises(DataError, match=r"holds no predictions.jsonl"):
        Judging(config([tmp_path])).run()
    with pytest.raises(DataError, match="names a folder twice"):
        Judging(config([out, out])).run()
    lines = (out / "predictions.jsonl").read_text()
    row = json.loads(lines.splitlines()[0])
    unscored = {key: value for key, value in row.items() if key not in ("correct", "recall")}
    (out / "predictions.jsonl").write_text(lines + json.dumps(unscored) + "\n")
    with pytest.raises(DataError, match="has not been finished"):
        Judging(config([out])).run()
    assert not (tmp_path / "judged").exists()


def test_a_real_evaluations_reports_and_choices_are_judged(eval_config, world, config, judge, monkeypatch):
    """From the miniature's evaluation, as it lies in its folder, to grades by two templates."""
    cfg = eval_config("report.instruction=Describe.", "report.max_new_tokens=8", "limit=6", "max_new_tokens=8")
    Evaluation(cfg, world).run()
    folder = Path(cfg.output_dir)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    judge.scripts["first"] = lambda prompt: "Verdict: correct" if "Verdict" in prompt else "Grade: 4"
    monkeypatch.setitem(sys.modules, "radeval", SimpleNamespace(RadEval=StandInRadEval))
    results = Judging(config([cfg.output_dir], "judge.templates.choice=correct", "judge.radeval=[rouge]")).run()
    assert results["evaluations"]["out"]["report"]["radeval"]["pairs"] == 6
    scores = results["judges"]["first"]["scores"]["out"]
    assert {group: (score["answers"], score["mean"]) for group, score in scores.items()} == {
        "choice": (6, 10),
        "report": (6, 4),
    }
    prompts = [request["messages"][0]["content"] for request in judge.requests]
    assert any(re.search(r"Reference \(right by definition\):\n[A-H]\. ", prompt) for prompt in prompts)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert read_evaluation(folder, ["report"]).private is None


def test_radeval_is_used_where_it_is_installed():
    if importlib.util.find_spec("radeval") is None:
        with pytest.raises(ConfigError, match=r"judge.radeval: .*install it by pip install .*\[radeval\]"):
            load_radeval(["rouge"], None)
        return
    evaluator = load_radeval(["rouge"], None)
    assert radeval_figures(evaluator, ["No effusion."], ["No effusion."])["rouge1"] == 1
    with pytest.raises(ConfigError, match=r"judge.radeval: Unknown metric 'nonsense'"):
        load_radeval(["nonsense"], None)


class StandInRadEval:
    """What version 2.2 of the package shows of itself: its arguments by name, its checks and kinds of values."""

    def __init__(self, metrics=None, *, per_sample=False, detailed=False, show_progress=True):
        assert isinstance(metrics, list)
        assert (per_sample, detailed, show_progress) == (False, False, False)
        for name in metrics:
            if name not in ("rouge", "radgraph"):
                raise ValueError(f"Unknown metric '{name}'.\n Available: rouge, radgraph")
            if name == "radgraph":
                raise OSError("no connection to the hub")

    def __call__(self, refs, hyps):
        assert isinstance(refs, list)
        assert isinstance(hyps, list)
        hits = [len(set(a.split()) & set(b.split())) / len(set(a.split())) for a, b in zip(refs, hyps, strict=True)]
        return {"recall": np.float32(np.mean(hits)), "pairs": len(hits), "labels": {"edema": 1.0}, "name": "rouge"}


def test_radeval_is_called_as_its_version_2_wants(monkeypatch):
    monkeypatch.setitem(sys.modules, "radeval", SimpleNamespace(RadEval=StandInRadEval))
    for metric, message in (("nonsense", r"judge.radeval: Unknown metric 'nonsense'. Avail"), ("radgraph", "the hub")):
        with pytest.raises(ConfigError, match=message):
            load_radeval([metric], None)
    figures = radeval_figures(
        load_radeval(["rouge"], None), ("clear lungs", "edema"), ("clear wide lungs here", "edema")
    )
    assert figures == {"recall": 0.75, "pairs": 2}
    assert json.loads(json.dumps(figures)) == figures
