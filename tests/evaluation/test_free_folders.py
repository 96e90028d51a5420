"""Folders that hold open and closed questions alone, as VQA-RAD does: results, pages and comparisons."""

import json
import re
from pathlib import Path

import ift_data_recipe
import pytest
from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from ift_components.errors import UserError
from ift_components.evaluation.compare import compare, read_run
from ift_components.evaluation.free_scores import summarise_free
from ift_components.evaluation.pairs import measure_of
from ift_components.evaluation.predictors.own import OwnPredictor
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.results import table
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.tasks import score_all
from ift_components.evaluation.verdict import standing

IMAGES = 12


def question(image, text, answer, kind):
    return {
        "qid": 1, "image_name": f"{image}.jpg", "image_organ": "HEAD", "question": text, "answer": answer,
        "answer_type": kind, "question_type": "PRES" if kind == "CLOSED" else "POS", "phrase_type": "freeform",
    }  # fmt: skip


@pytest.fixture(scope="module")
def vqa(tmp_path_factory):
    """A prepared folder made by the data recipe out of VQA-RAD's own layout: a closed and an open question an image."""
    root = tmp_path_factory.mktemp("vqa_rad")
    (root / "images").mkdir()
    rows = []
    for number in range(IMAGES):
        Image.new("RGB", (40, 40), (20 * number, 90, 200 - 10 * number)).save(root / "images" / f"{number}.jpg")
        rows.append(question(number, "Is it dark?", "No" if number < 8 else "Yes", "CLOSED"))
        rows.append(question(number, "Where is it?", "left lung" if number % 3 else "liver", "OPEN"))
    train = [question(n, "Is there air?", "no", "CLOSED") for n in range(3)]
    train.append(question(0, "What side?", "Left lung.", "OPEN"))
    (root / "trainset.json").write_text(json.dumps(train))
    (root / "testset.json").write_text(json.dumps([{**row, "phrase_type": "test_freeform"} for row in rows]))
    return root


@pytest.fixture(scope="module")
def folder(vqa, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--config", "data_vqa_rad.yaml", f"builder.root={vqa}", f"output_dir={out}", "workers=1"]
        patch.setattr("sys.argv", ["ift_data_recipe", *arguments])
        ift_data_recipe.main()
    return out


@pytest.fixture
def answering(monkeypatch):
    """A function that sets what the model answers to an item."""

    def say(text):
        monkeypatch.setattr(
            OwnPredictor,
            "_answer",
            lambda self, batch, rows, drawing: [(text(work.item), None, None) for work in batch],
        )

    return say


def looks(item):
    """Right about organs, but only with the right pixels; with others it says a lung, and more than was asked for."""
    if item.kind == "closed":
        return f"{item.reference}, I think."
    return item.reference if item.task == "free" else "left lung base"


def never_looks(item):
    return "no" if item.kind == "closed" else "left lung"


def test_a_folder_of_open_and_closed_questions(eval_config, folder, answering, world):
    cfg = eval_config(f"data={folder}", "image_control=true", "free.max_new_tokens=5")
    answering(looks)
    results = Evaluation(cfg, world).run()
    out = Path(cfg.output_dir)
    assert json.loads((out / "results.json").read_text()) == results
    assert (results["questions"], results["images"]) == (2 * IMAGES, IMAGES)
    assert "accuracy" not in results  # there is no multiple-choice question
    free = results["free"]
    assert (free["accuracy"], free["closed_accuracy"], free["open_accuracy"]) == (1, 1, 1)
    assert free["closed_interval"] == pytest.approx(proportion_confint(IMAGES, IMAGES, method="wilson"), abs=1e-6)
    assert free["closed_prior"] == pytest.approx(8 / 12)  # always no, the training answer
    assert free["open_prior"] == pytest.approx(8 / 12)  # always left lung
    assert free["prior"] == pytest.approx(16 / 24)
    control = free["image_control"]
    assert (control["accuracy"], control["difference"]) == (0.5, 0.5)
    assert (free["open_recall"], control["open_recall"]) == (1, pytest.approx(8 / 12))  # the lungs' words
    assert control["open_recall_difference"] == pytest.approx(4 / 12)
    low, high = control["open_recall_difference_interval"]
    assert 0 < low < 4 / 12 < high < 1
    run = read_run(out, "run")
    every, recall = (measure_of(run, f"free.image_control.{key}") for key in ("difference", "open_recall_difference"))
    assert (every.values([run]).mean(), recall.values([run]).mean()) == (0.5, pytest.approx(4 / 12))
    assert recall.interval([run]) == pytest.approx((low, high), abs=0.1)  # Student's beside a bootstrap's
    reach = proportion_confint(0, IMAGES, method="wilson")[1]  # of every image the same half is read
    assert every.interval([run]) == pytest.approx((0.5 - reach, 0.5 + reach))
    assert measure_of(run, "free.image_control.accuracy") is None
    assert free["yes_no"]["balanced_accuracy"] == 1
    page = (out / "report.html").read_text()
    assert "Accuracy of free questions is 100.0 % (" in page
    assert "better than not looking at the image" in page
    assert "of that share, read from the image, points</td><td>33.3</td>" in page
    assert "Closed questions: 100.0 %" in page
    assert page.count('<td class="left">closed</td>') == 1
    assert page.count('class="card"') == 12
    assert not re.search(r"\{&#39;|\{'", page)
    assert "| all | open | 12 | 100.0 |" in (out / "report.md").read_text()
    printed = table(results)
    assert re.search(r"closed +12 +1.000  0\.\d+ to 1.000 +0.667", printed)
    assert re.search(r"all +24 +1.000  0\.\d+ to 1.000 +0.667", printed)
    assert "recall with another image's pixels 0.667; read from the image +0.333 (" in printed
    assert "better than not looking at the image" in standing(results)


def test_a_model_that_always_says_no_is_called_constant(eval_config, folder, answering, world):
    answering(never_looks)
    cfg = eval_config(f"data={folder}", "image_control=true")
    free = Evaluation(cfg, world).run()["free"]
    run = read_run(Path(cfg.output_dir), "run")
    reach = proportion_confint(0, IMAGES, method="wilson")[1]  # nothing spreads
    assert measure_of(run, "free.image_control.difference").interval([run]) == pytest.approx((-reach, reach))
    assert free["closed_accuracy"] == pytest.approx(8 / 12)
    assert free["yes_no"]["balanced_accuracy"] == 0.5
    assert free["yes_no"]["most_frequent_answer"] == {"text": "no", "share": 1, "constant": True}
    assert free["image_control"]["difference"] == 0
    page = (Path(cfg.output_dir) / "report.html").read_text()
    assert "not distinguishable from not looking at the image" in page
    assert "is said nearly always" in page
    assert "nothing can be shown to have been read from the image" in page


def test_such_evaluations_are_compared(eval_config, folder, answering, world, tmp_path):
    runs = []
    for label, text in (("untuned", never_looks), ("tuned", looks)):
        answering(text)
        cfg = eval_config(f"data={folder}", f"label={label}", out=label)
        Evaluation(cfg, world).run()
        runs.append(cfg.output_dir)
    found = compare(eval_config(f"compare=[{','.join(runs)}]", out="page"))
    (pair,) = found["pairs"]
    assert pair["measure"] == "accuracy of free questions"
    assert pair["difference"] == pytest.approx(8 / 24)
    assert pair["free"]["closed_accuracy"]["difference"] == pytest.approx(4 / 12)
    assert pair["free"]["open_recall"]["difference"] == pytest.approx(4 / 12)
    assert 0 < pair["low"] < pair["high"] < 1
    assert all("p_holm" in part for part in pair["free"].values())
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "tuned against untuned: accuracy of free questions +33.3 points" in page
    assert "<td>tuned</td>" in page
    assert not re.search(r"\{&#39;|\{'", page)
    change = Evaluation(eval_config(f"data={folder}", "label=tuned", f"baseline={runs[0]}", out="tuned"), world).run()
    assert change["change"]["difference"] == pytest.approx(8 / 24)
    assert "tuned against untuned" in (tmp_path / "tuned" / "report.html").read_text()


def test_a_folder_without_questions_is_refused_before_anything_is_written(eval_config, prepared, world, tmp_path):
    with pytest.raises(UserError, match="questions"):
        Evaluation(eval_config(f"data={prepared}", "split=val2"), world).run()
    assert not (tmp_path / "out").exists()


def test_free_figures_by_hand():
    """Closed answers by yes and no, open ones by their text; the intervals are Wilson's over images."""

    def row(number, kind, reference, text):
        item = Item(f"q{number}", "free", "d", f"i{number}", "?", attribute="a", reference=reference, kind=kind)
        return Prediction(item, generated=text)

    rows = [row(n, "closed", "yes" if n < 3 else "no", "Yes." if n < 5 else "no") for n in range(10)]
    rows += [row(10 + n, "open", "left lung", ["the left lung", "lung", "heart", None][n]) for n in range(4)]
    found = summarise_free(score_all(rows, ScoringContext()), draws=200)
    assert (found["closed_accuracy"], found["open_accuracy"], found["open_recall"]) == (0.8, 0.25, 0.375)
    assert found["accuracy"] == pytest.approx(9 / 14)
    assert found["closed_interval"] == pytest.approx(proportion_confint(8, 10, method="wilson"), abs=1e-6)
    assert found["open_interval"] == pytest.approx(proportion_confint(1, 4, method="wilson"), abs=1e-6)
    assert (found["closed_prior"], found["closed_majority"], found["majority"]) == (None, 0.7, pytest.approx(11 / 14))
    assert (found["yes_no"]["sensitivity"], found["yes_no"]["specificity"]) == (1, pytest.approx(5 / 7))
    low, high = found["yes_no"]["balanced_interval"]
    assert low < found["yes_no"]["balanced_accuracy"] < high
