"""Pages: what they say in words, what they draw, and that no text of a model, a dataset or a person breaks them."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest

from ift_components.data.prepared import QUESTION_FEATURES
from ift_components.errors import UserError
from ift_components.evaluation import charts, parsing
from ift_components.evaluation.charts import interval_bars, radar
from ift_components.evaluation.compare import compare
from ift_components.evaluation.items import question_items
from ift_components.evaluation.predictors.own import OwnPredictor
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.verdict import changes


def evaluate(cfg, world):
    return Evaluation(cfg, world).run()


def answer_all(monkeypatch, text):
    monkeypatch.setattr(
        OwnPredictor, "_answer", lambda self, batch, rows, drawing: [(text(work.item), None, None) for work in batch]
    )


def right(item):
    return f"The correct answer is {'ABCDEFGH'[item.answer]}." if item.options else item.reference


def test_a_lone_surrogate_kills_neither_pages_nor_files(eval_config, world, monkeypatch, prepared, tmp_path):
    """A byte-level tokenizer can give one; what was answered is kept, and every page is valid UTF-8."""
    answer_all(monkeypatch, lambda item: "\udce9 half a sign \ud83d")
    cfg = eval_config("limit=4", f"unrelated={{other: {prepared}}}", "scoring=generate")
    cfg.label = "m\ud83d"
    assert evaluate(cfg, world)["unparsed"] == 4
    folder = Path(cfg.output_dir)
    for name in ("results.json", "report.html", "report.md", "table.tex", "predictions.jsonl", "run.json"):
        (folder / name).read_text(encoding="utf-8")
    assert "\ufffd half a sign \ufffd" in (folder / "report.html").read_text()
    (line, *_) = (folder / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["generated"] == "\udce9 half a sign \ud83d"
    evaluate(eval_config("limit=4", "label=x", f"unrelated={{other: {prepared}}}", "scoring=generate", out="b"), world)
    compare(eval_config(f"compare=[{folder},{tmp_path / 'b'}]", out="page"))
    assert "m\ufffd" in (tmp_path / "page" / "comparison.html").read_text(encoding="utf-8")


def test_the_page_of_an_evaluation(eval_config, prepared, world, monkeypatch, tmp_path):
    """Words first; bars beside the radar; right and wrong answers; date and command; nothing from elsewhere, no script."""
    answer_all(monkeypatch, lambda item: right(item) if "other" in item.dataset or item.attribute == "size" else "?")
    before = eval_config("checkpoint_dir=null", "label=untuned", f"unrelated={{other: {prepared}}}", out="before")
    evaluate(before, world)
    answer_all(monkeypatch, lambda item: right(item) if item.dataset != "other" else "The correct answer is A.")
    cfg = eval_config(f"baseline={before.output_dir}", f"unrelated={{other: {prepared}}}", "label=tuned $x_1$")
    monkeypatch.setattr("sys.argv", ["/somewhere/ift_eval_recipe.py", "--config", "tiny_eval.yaml", "data=a b"])
    results = evaluate(cfg, world)
    assert results["command"] == "tune run ift_eval_recipe --config tiny_eval.yaml 'data=a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d[+-]\d\d:\d\d", results["date"])
    page = (Path(cfg.output_dir) / "report.html").read_text()
    assert "tuned $x_1$ against untuned: accuracy +" in page
    assert re.search(r"Gained: .*colour \+100.0 points", page)
    assert re.search(r"Lost: .*unrelated: other -\d", page)
    assert results["date"] in page
    assert "tune run ift_eval_recipe --config tiny_eval.yaml" in page
    assert page.count('<div class="charts"><img') == 1
    assert page.count('<details class="zoom"><summary><img') == page.count('class="card"') == 12
    assert not re.search(r"<script|https?://|\{&#39;|\{'", page)
    assert results["unrelated"]["other"]["balanced_interval"][1] < 1
    assert all("balanced_interval" in rates for rates in results["attributes"].values())
    evaluate(eval_config("label=alone", out="alone"), world)
    assert "against" not in (tmp_path / "alone" / "report.html").read_text()
    with pytest.raises(UserError, match=r"baseline: .* is not a finished evaluation"):
        evaluate(eval_config(f"baseline={tmp_path}", out="new"), world)
    with pytest.raises(UserError, match="has 32 multiple-choice questions, new 4"):
        evaluate(eval_config(f"baseline={tmp_path / 'alone'}", "limit=4", out="new"), world)
    assert not (tmp_path / "new").exists()


def test_what_is_retained_has_an_interval(eval_config, prepared, world, monkeypatch, tmp_path):
    folders = []
    for label, wrong in (("before", ()), ("after", ("shape",))):
        answer_all(monkeypatch, lambda item, wrong=wrong: right(item) if item.attribute not in wrong else "C?")
        evaluate(eval_config(f"label={label}", f"unrelated={{other: {prepared}}}", out=label), world)
        folders.append(tmp_path / label)
    found = compare(eval_config(f"compare=[{folders[0]},{folders[1]}]", out="page"))
    retained = found["retention"]["after"]["other"]
    assert (retained["before"], retained["after"], retained["difference"]) == (1, 0.75, -0.25)
    assert retained["retained"] == pytest.approx((0.75 - retained["chance"]) / (1 - retained["chance"]))
    low, high = retained["retained_interval"]
    assert low <= retained["retained"] <= high
    assert 0 < retained["p_holm"] < 0.01 or retained["low"] == retained["high"] == -0.25  # every image lost one of four
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "Lost: " in page
    assert "unrelated: other -25.0 points" in page


def test_comparisons_refuse_unlike_runs(eval_config, world, tmp_path):
    cfg = eval_config("limit=4", "label=a", out="a")
    evaluate(cfg, world)
    results = json.loads((tmp_path / "a" / "results.json").read_text())

    def changed(name, change):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        new = json.loads(json.dumps(results))
        change(new)
        (tmp_path / name / "results.json").write_text(json.dumps({**new, "label": name}))
        return eval_config(f"compare=[{tmp_path / 'a'},{tmp_path / name}]", out="page")

    for name, change, message in (
        (
            "padded",
            lambda r: r["config"].update(tile_padding="meta"),
            "has tile_padding=none, padded tile_padding=meta",
        ),
        ("cubic", lambda r: r["config"].update(resize="bicubic"), "has resize=bilinear, cubic resize=bicubic"),
        ("strict", lambda r: r.update(parser="strict"), "has parser=authors, strict parser=strict"),
        ("old", lambda r: r.update(parser_version=1), rf"has parser_version=1, this release {parsing.VERSION}"),
    ):
        with pytest.raises(UserError, match=message):
            compare(changed(name, change))
    more = eval_config("limit=6", "label=more", out="more")
    evaluate(more, world)
    with pytest.raises(
        UserError, match=r"a has 4 multiple-choice questions, more 6; '.*' was asked in one of them only"
    ):
        compare(eval_config(f"compare=[{tmp_path / 'a'},{tmp_path / 'more'}]", out="page"))
    assert not (tmp_path / "page").exists()


def test_comparing_needs_the_folders_alone(eval_config, prepared, world, tmp_path, monkeypatch):
    """No data, checkpoint or tokenizer; nothing is drawn, so twice the same figures; an edited verdict does not count."""
    for label in ("a", "b"):
        evaluate(eval_config("limit=8", f"label={label}", "scoring=generate", out=label), world)
    path = tmp_path / "a" / "predictions.jsonl"
    rows = [{**json.loads(line), "correct": True, "strict": 0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gone = ["data=/gone", "checkpoint_dir=/gone", "~tokenizer", "~model"]
    monkeypatch.setattr("numpy.random.default_rng", None)
    given = f"compare=[{tmp_path / 'a'},{tmp_path / 'b'}]"
    first, second = (compare(eval_config(given, *gone, out=out)) for out in ("one", "two"))
    assert first["pairs"] == second["pairs"]
    assert first["pairs"][0]["difference"] == 0  # the same model, whatever the file says of it


@pytest.mark.parametrize("lines", [1, 7, 11])
def test_a_radars_legend_lies_below_the_names_of_attributes(monkeypatch, lines):
    """However many rows it has; the lowest name has three lines here."""
    figures = []
    monkeypatch.setattr(charts, "_picture", lambda canvas: figures.append(canvas.figure))
    names = ["size", "colour", "nuclear cytoplasmic ratio", "texture"]
    radar({f"a method {index}": dict.fromkeys(names, 0.5) for index in range(lines)}, dict.fromkeys(names, 0.25))
    (figure,) = figures
    figure.canvas.draw()
    (legend,), (axes,) = figure.legends, figure.axes
    lowest = min(label.get_window_extent().y0 for label in axes.get_xticklabels())
    assert legend.get_window_extent().y0 >= 0
    assert legend.get_window_extent().y1 < lowest


def test_charts_draw_any_name():
    """TeX, underscores in front, half a character: drawn as they are, and differently where they differ."""
    names = ["$x_1$", "a_b^c", r"$\frac{", "_led", "\ud800", "plain"]
    bars = dict.fromkeys(names, (0.5, (0.4, 0.6)))
    marks = {"prior $p$": dict.fromkeys(names, 0.3), "none": dict.fromkeys(names)}
    drawn = {label: interval_bars({label: bars}, marks) for label in ("$m_1$", r"\textbf{m", "_m", "m")}
    assert len(set(drawn.values())) == 4
    assert all(url.startswith("data:image/png;base64,") for url in drawn.values())
    lines = dict.fromkeys(("$m_1$", "_m"), dict.fromkeys(names, 0.5))
    assert radar(lines, dict.fromkeys(names, 0.2)) != radar({"m": lines["_m"]}, dict.fromkeys(names, 0.2))


def test_words_on_gains_and_losses():
    def part(difference, p):
        return {"difference": difference, "low": difference - 0.01, "high": difference + 0.01, "p_holm": p, "p": p}

    pair = {"first": "A", "second": "B", "measure": "accuracy", "seeds": [3, 3], **part(0.1, 0.001)}
    pair |= {"balanced": part(0.02, 0.3), "attributes": {"size": part(0.2, 0.01), "colour": part(-0.3, 0.02)}}
    pair["unrelated"] = {"shapes": part(-0.15, 0.01)}
    assert changes(pair) == [
        "B against A: accuracy +10.0 points (+9.0 to +11.0), better beyond chance.",
        "Gained: size +20.0 points (+19.0 to +21.0), accuracy +10.0 points (+9.0 to +11.0).",
        "Lost: colour -30.0 points (-31.0 to -29.0), unrelated: shapes -15.0 points (-16.0 to -14.0).",
    ]
    nothing = {**pair, **part(0.01, 0.5), "attributes": {}, "seeds": [1, 1], "unrelated": {}}
    del nothing["unrelated"]
    assert changes(nothing)[1:] == [
        "No gain can be shown.",
        "No loss can be shown.",
        "What it cost elsewhere is unknown: no unrelated task was asked.",
        "With one seed this is about two checkpoints, not about two methods.",
    ]


def test_one_evaluation_has_one_fingerprint(eval_config, checkpoint, world, *, monkeypatch, tmp_path, prepared):
    """Relative paths are the absolute ones; another model config or another proxy is another evaluation."""
    (tmp_path / "model").symlink_to(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "copy")
    free = {"id": 1, "image": "a.png", "question": "?", "answer": "x"}
    question_items(prepared, "test", "shapes")[0].picture().save(tmp_path / "a.png")
    (tmp_path / "free.json").write_text(json.dumps([free]))
    paths = {"checkpoint_dir": "copy", "free.path": "free.json", "free.images": "."}
    more = ["limit=4", f"unrelated={{other: {prepared}}}"]
    absolute = eval_config(*more, *(f"{key}={tmp_path / value}" for key, value in paths.items()))
    results = evaluate(absolute, world)
    monkeypatch.chdir(tmp_path)
    relative = eval_config("limit=4", f"unrelated={{other: {prepared}}}", *(f"{k}={v}" for k, v in paths.items()))
    assert evaluate(relative, world)["attributes"] == results["attributes"]
    config = tmp_path / "copy" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "note": "changed"}))
    with pytest.raises(UserError, match="differs in model_config_sha256"):
        evaluate(relative, world)
    fingerprint = json.loads((tmp_path / "out" / "run.json").read_text())["fingerprint"]
    assert fingerprint["parser_version"] == parsing.VERSION


def test_passwords_in_addresses_are_written_nowhere(eval_config, world, monkeypatch):
    answer_all(monkeypatch, right)
    monkeypatch.setattr("sys.argv", ["ift_eval_recipe.py", "predictor.base_url=http://me:pass@host/v1"])
    cfg = eval_config("limit=2", "dataset='http://me:pass@host/v1'")
    evaluate(cfg, world)
    page = (Path(cfg.output_dir) / "report.html").read_text()
    assert "predictor.base_url=http://host/v1" in page
    assert "me:pass" not in json.dumps(json.loads((Path(cfg.output_dir) / "run.json").read_text()))


@pytest.mark.parametrize(("limit", "asked"), [(1, 4), (4, 4), (5, 8)])
def test_limit_never_cuts_a_rotation_group(prepared, tmp_path, limit, asked):
    """Groups of four rotations, also where their rows do not stand together."""
    (tmp_path / "questions").mkdir()
    shutil.copy(prepared / "manifest.json", tmp_path)
    data = datasets.Dataset.from_parquet(str(prepared / "questions" / "test.parquet"))
    rows = list(data.cast_column("image", datasets.Image(decode=False)))
    for number, row in enumerate(rows):
        row["circular_group"] = f"group {number // 4 if number < 4 else 1 + number % 7}"
    datasets.Dataset.from_list(rows, features=QUESTION_FEATURES).to_parquet(tmp_path / "questions" / "test.parquet")
    items = question_items(tmp_path, "test", "shapes", limit=limit)
    begun = {item.circular_group for item in items[:limit]}
    assert len(items) == asked if limit < 5 else len(items) > 5
    assert all(item.circular_group in begun for item in items)
    whole = [row["circular_group"] for row in rows]
    assert all(sum(item.circular_group == group for item in items) == whole.count(group) for group in begun)
