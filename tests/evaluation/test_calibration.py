"""Answers without what a model says on average, and the area under the ROC curve."""

import math
import random
from itertools import product

import pytest

from ift_components.errors import ConfigError, DataError
from ift_components.evaluation.calibration import check_calibration, fit
from ift_components.evaluation.compare import read_run
from ift_components.evaluation.constancy import auroc
from ift_components.evaluation.pairs import Run
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.run import Evaluation


def answers(count, seed, bias):
    """Make answers of a model that tends to say "no" but whose probabilities follow the image."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        options = rng.sample(["no", "yes"], 2)
        right = "yes" if rng.random() < 0.2 else "no"
        logits = [bias * (text == "no") + rng.gauss(2, 1) * (text == right) for text in options]
        total = 1.5 * sum(map(math.exp, logits))  # a third goes to what is no letter
        item = Item(str(number), "choice", "d", str(number), "?", attribute="a", options=tuple(options))
        item = Item(**{**vars(item), "answer": options.index(right)})
        chosen = max(range(2), key=logits.__getitem__)
        scores = {"predicted": chosen, "correct": chosen == item.answer}
        probabilities = tuple(math.exp(logit) / total for logit in logits)
        made.append(Prediction(item, forced=chosen, probabilities=probabilities, scores=scores))
    return made


def right(predictions, text):
    of = [p.correct for p in predictions if p.item.answer_text == text]
    return sum(of) / len(of)


def test_what_is_always_said_is_taken_off():
    validation, test = answers(400, 0, 5.0), answers(400, 1, 5.0)
    assert right(test, "yes") < 0.1
    calibration = fit(validation)
    assert calibration.share > 0
    told = calibration.apply(test)
    assert right(told, "yes") > 0.7
    assert right(told, "no") > 0.7
    for before, after in zip(test, told, strict=True):
        texts, p = before.item.options, before.probabilities
        scores = {
            text: math.log(q / sum(p)) - calibration.share * calibration.means["a", text]
            for text, q in zip(texts, p, strict=True)
        }
        assert texts[after.predicted] == max(scores, key=scores.get)
        assert after.correct == (after.predicted == after.item.answer)


def test_nothing_is_taken_off_where_that_tells_no_more():
    certain = [
        Prediction(p.item, probabilities=(0.0, 1.0) if p.item.answer else (1.0, 0.0)) for p in answers(50, 2, 0.0)
    ]
    scored = [p.scored({"predicted": p.item.answer, "correct": True}) for p in certain]
    assert fit(scored).share == 0
    assert all(p.correct for p in fit(scored).apply(scored))


def test_an_attribute_that_was_not_asked_is_an_error():
    validation = answers(20, 4, 1.0)
    run = Run("val", {"weights": {"sha256": "a"}, "dataset": "d"}, validation)
    (asked,) = (Item(**{**vars(p.item), "image_id": "other"}) for p in answers(1, 3, 0.0))
    assert check_calibration(run, {"sha256": "a"}, [asked]) == validation
    with pytest.raises(DataError, match="val does not ask for 'b'"):
        check_calibration(run, {"sha256": "a"}, [asked, Item(**{**vars(asked), "attribute": "b"})])


def test_area_under_the_curve_counts_pairs():
    predictions = answers(60, 5, 3.0)
    areas = []
    for text in ("no", "yes"):
        share = {True: [], False: []}
        for p in predictions:
            place = p.item.options.index(text)
            share[place == p.item.answer].append(p.probabilities[place] / sum(p.probabilities))
        pairs = [(a > b) + (a == b) / 2 for a, b in product(share[True], share[False])]
        areas.append(sum(pairs) / len(pairs))
    assert auroc(predictions) == pytest.approx(sum(areas) / 2)
    assert auroc([Prediction(p.item) for p in predictions]) is None


def evaluate(cfg, world):
    return Evaluation(cfg, world).run()


PROBABLE = ("scoring=logits", "letter_probabilities=true", "image_control=false")


def test_by_the_recipe(eval_config, world, tmp_path):
    validation = eval_config(*PROBABLE, "split=val", f"output_dir={tmp_path / 'val'}")
    results = evaluate(validation, world)
    assert 0.5 < results["auroc"] <= 1
    assert {"colour", "border"} <= set(results["attributes"])
    test = eval_config(*PROBABLE, f"output_dir={tmp_path / 'test'}")
    before = evaluate(test, world)
    assert "calibrated" not in before
    # The answers are there: the same folder goes on, and figures of calibrated ones come beside its own.
    after = evaluate(
        eval_config(*PROBABLE, f"output_dir={tmp_path / 'test'}", f"calibration={tmp_path / 'val'}"), world
    )
    found = after["calibrated"]
    assert after["accuracy"] == before["accuracy"]
    assert 0 <= found["share"] <= 1
    assert set(found["attributes"]) == set(after["attributes"])
    assert 0 < found["balanced_accuracy"] <= 1
    assert "the share was chosen by validation answers" in (tmp_path / "test" / "report.md").read_text()


def test_the_letter_that_is_chosen_is_the_most_probable_one(eval_config, world, tmp_path):
    cfg = eval_config(
        "scoring=both", "letter_probabilities=true", "image_control=false", f"output_dir={tmp_path / 'out'}"
    )
    evaluation = Evaluation(cfg, world)
    evaluation.run()
    predictions = read_run(tmp_path / "out", "out").predictions
    assert all(len(p.probabilities) == len(p.item.options) and sum(p.probabilities) <= 1.001 for p in predictions)
    agreeing = [p.forced == max(range(len(p.probabilities)), key=p.probabilities.__getitem__) for p in predictions]
    assert sum(agreeing) >= 0.9 * len(agreeing)  # a letter with and without a bracket add up here


def test_what_cannot_be_calibrated_by(eval_config, world, tmp_path):
    with pytest.raises(ConfigError, match="scoring=generate chooses no letter"):
        evaluate(eval_config("scoring=generate", "letter_probabilities=true"), world)
    with pytest.raises(ConfigError, match="set letter_probabilities=true"):
        evaluate(eval_config("scoring=logits", f"calibration={tmp_path}"), world)
    with pytest.raises(DataError, match="is not a finished evaluation"):
        evaluate(eval_config(*PROBABLE, f"calibration={tmp_path}"), world)
    evaluate(eval_config(*PROBABLE, f"output_dir={tmp_path / 'same'}"), world)
    with pytest.raises(DataError, match=r"of the same images, .* would flatter; evaluate another split"):
        evaluate(eval_config(*PROBABLE, f"calibration={tmp_path / 'same'}"), world)
    evaluate(eval_config(*PROBABLE[::2], "split=val", f"output_dir={tmp_path / 'plain'}"), world)
    with pytest.raises(DataError, match="has no probabilities; evaluate with letter_probabilities=true"):
        evaluate(eval_config(*PROBABLE, f"calibration={tmp_path / 'plain'}"), world)
    evaluate(eval_config(*PROBABLE, "split=val", "checkpoint_dir=null", f"output_dir={tmp_path / 'other'}"), world)
    with pytest.raises(DataError, match=r"this model is .* evaluate this one's validation split"):
        evaluate(eval_config(*PROBABLE, f"calibration={tmp_path / 'other'}"), world)
