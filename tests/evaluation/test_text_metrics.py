"""Free-text scores against counts made by hand, BLEU and ROUGE against their packages' own known values."""

import pytest

from ift_components.data.schema import Attribute, Schema
from ift_components.evaluation.instruction import ReportTemplate, instruction_dependence, read_out, retention
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.tasks import score_all
from ift_components.evaluation.text_metrics import closed_match, exact_match, summarise_texts, token_recall


def text(generated, reference, kind=None):
    item = Item(id=generated, task="free", dataset="d", image_id="i", prompt="?", reference=reference, kind=kind)
    return Prediction(item, generated=generated)


def summarised(*predictions):
    return summarise_texts(score_all(predictions, ScoringContext()))


def test_overlap_scores():
    same = summarised(text("small cell size, round cell shape", "small cell size, round cell shape"))
    assert same["bleu"] == pytest.approx(100)
    assert (same["rouge1"], same["rougeL"], same["length_ratio"], same["exact_match"]) == (1, 1, 1, 1)
    other = summarised(text("the cat sat", "the cat lay down"))
    assert other["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4), abs=1e-6)
    assert other["length_ratio"] == 0.75
    assert "nrefs:1" in other["bleu_signature"]


def test_hedges_are_counted_per_hundred_words():
    found = summarised(text("possible pneumonia, cannot exclude effusion", "pneumonia is likely present here"))
    assert found["hedges_per_100_words"] == 40
    assert found["reference_hedges_per_100_words"] == 20


def test_open_and_closed_answers():
    found = summarised(
        text("Yes, it is.", "yes", "closed"),
        text("yes or no", "no", "closed"),
        text("On the left side", "Left", "closed"),
        text("the right lung", "right lung", "open"),
        text("lung", "right lung", "open"),
    )
    assert (found["closed_questions"], found["closed_accuracy"]) == (3, pytest.approx(2 / 3, abs=1e-6))
    assert (found["open_questions"], found["open_accuracy"], found["open_recall"]) == (2, 0.5, 0.75)


def test_answers_in_any_script_and_none():
    assert exact_match("\u0414\u0430!", "\u0434\u0430")
    assert token_recall("", "left") == 0
    assert not closed_match("nothing", "no")
    assert summarised(text("", "left", "open"))["length_ratio"] == 0


REPORTS = ["small cell size, round cell shape, Neutrophil", "big cell size, irregular cell shape, Monocyte"]


def test_report_format():
    template = ReportTemplate(REPORTS)
    assert template.overlap(REPORTS[0]) == 1
    assert template.matches("Big cell size, round cell shape, Monocyte.")
    assert not template.matches("round cell shape")  # a value given as an answer
    assert not template.matches("The correct answer is A.")
    answers = [text(answer, "") for answer in (REPORTS[0], "The correct answer is A.", "B", "round cell shape")]
    scored = score_all(answers, ScoringContext(template=template))
    assert [p.scores["report_format"] for p in scored] == [True, False, False, False]


SCHEMA = Schema(
    (
        Attribute("size", values=("big", "small"), phrase="{value} cell size"),
        Attribute("granularity", values=("yes", "no"), phrases={"yes": "{name}", "no": ""}),
        Attribute("colour", values=("blue", "light blue")),
    )
)


@pytest.mark.parametrize(
    ("report", "attribute", "options", "expected"),
    [
        ("small cell size, light blue colour", 0, ["big", "small"], 1),
        ("small cell size, light blue colour", 2, ["blue", "light blue"], 1),
        ("small cell size, blue colour", 2, ["light blue", "blue"], 1),
        ("small cell size, granularity", 1, ["yes", "no"], 0),
        ("small cell size", 1, ["yes", "no"], 1),
        ("small cell size, big cell size", 0, ["big", "small"], None),
        ("nothing", 0, ["big", "small"], None),
        (" ", 1, ["yes", "no"], None),
    ],
)
def test_read_out(report, attribute, options, expected):
    assert read_out(report, options, SCHEMA.attributes[attribute]) == expected


def test_read_out_of_whole_lists_ignores_their_order():
    options = ["papule", "papule, erythema", "erythema, plaque"]
    assert read_out("erythema, papule.", options, None) == 1
    assert read_out("papule", options, None) == 0
    assert read_out("papule, plaque", options, None) is None


def choice(image, attribute, options, answer, letter):
    item = Item(
        id=f"{image}/{attribute}/{letter}",
        task="choice",
        dataset="d",
        image_id=image,
        prompt="?",
        attribute=attribute,
        options=tuple(options),
        answer=answer,
    )
    return Prediction(item, generated=f"The correct answer is {letter}.")


def test_instruction_dependence_by_hand():
    predictions = [
        choice("a", "size", ["big", "small"], 1, "A"),
        choice("a", "colour", ["blue", "light blue"], 0, "A"),
        choice("b", "size", ["big", "small"], 0, "B"),
        choice("c", "size", ["big", "small"], 0, "A"),
        choice("b", "granularity", ["yes", "no"], 1, "B"),
    ]
    reports = {"a": "small cell size, blue colour", "b": ", , nothing of the kind"}  # and so no "no" either
    assert instruction_dependence(score_all(predictions, ScoringContext(reports=reports, schema=SCHEMA))) == {
        "questions": 4,
        "read_out_accuracy": pytest.approx(2 / 4),
        "read_out_unparsed": 2,
        "question_accuracy": pytest.approx(2 / 4),
        "gap": pytest.approx(0),
    }
    assert instruction_dependence(score_all(predictions, ScoringContext(schema=SCHEMA))) is None


def test_retention():
    assert retention(0.75, 0.5, 0.25)["retained"] == pytest.approx(0.5)
    assert retention(0.75, 0.5, 0.25)["difference"] == -0.25
    assert retention(0.2, 0.5, 0.25)["retained"] is None
