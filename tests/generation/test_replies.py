"""Reading replies: a table checked by hand, and real replies of a language model."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ift_components.generation.replies import (
    Pair,
    parse_choices,
    parse_description,
    parse_one_pair,
    parse_pairs,
    parse_question,
)

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
TWO = [Pair("Is it dark?", "Yes"), Pair("Where is it?", "In the liver.")]
LABELLED = "Q: Is it dark?\nA: Yes\n\nQ: Where is it?\nA: In the liver."


@pytest.mark.parametrize(
    "reply",
    [
        LABELLED,
        f"Here are the pairs:\n\n{LABELLED}\n\nLet me know if you need more!",
        f"{LABELLED}\n\nNote: I avoided measurements.\n\n(Removed Q3 as you asked)",
        "**Q: Is it dark?**\nA: Yes\n\n**Q: Where is it?**\n**A:** In the liver.",
        "**Q1:** Is it dark?\nA1: Yes\n**Q2:** Where is it?\nA2: In the liver.",
        "**Question 1**\nIs it dark?\n \n**Answer**\nYes\n\n**Question 2**\nWhere is it?\n \n**Answer**\nIn the liver.",
        "Question: Is it dark?\nAnswer: Yes\nQuestion: Where is it?\nAnswer: In the liver.",
        "1. Q: Is it dark?\n   A: Yes\n2. Q: Where is it?\n   A: In the liver.",
        "- Q: Is it dark? A: Yes\n- Q: Where is it? A: In the liver.",
        "Here they are:\n\nIs it dark?\nYes\n\nWhere is it?\n In the liver.",
        "Is it dark?\n\nYes\n\nWhere is it?\n\nIn the liver.",
        "1. Is it dark?\nYes\n2. Where is it?\nIn the liver.",
        "1. Is it dark?\nA: Yes\n\n2. Where is it?\nA: In the liver.",
        "Q: Is it dark?\nA: Yes\n\nQ: Where is it?\nA: In\nthe liver.",
        '[{"question": "Is it dark?", "answer": "Yes"}, {"question": "Where is it?", "answer": "In the liver."}]',
        '{"p": [{"Question": "Is it dark?", "Answer": "Yes"}, {"question": "Where is it?", "answer": "In the liver."}]}',
        LABELLED.replace("\n", "\r\n"),
    ],
)
def test_layouts_that_give_the_same_two_pairs(reply):
    parsed = parse_pairs(reply)
    assert parsed.pairs == TWO
    assert parsed.complete


@pytest.mark.parametrize(
    ("reply", "count", "reasons"),
    [
        ("", 0, ["empty reply"]),
        (" \n ", 0, ["empty reply"]),
        ("I'm sorry, but I cannot see the image.", 0, ["the model declined"]),
        ("Please go ahead and provide the caption.", 0, ["the model declined"]),
        ("The liver is dark.", 0, ["no question in it"]),
        ("Q: Is it dark?\nA: Yes\nQ: Where?", 1, ["question without an answer"]),
        ("Q: Is it dark?\n(to be answered later)\nQ: Where?\nA: Left", 1, ["text that is neither question nor answer"]),
        ("Q: Is it dark?\n(from anatomy) A: Yes", 0, ["text that is neither question nor answer"]),
        ("Q: Is it dark?\nA: Yes\n\nThe liver is large.", 0, ["text that is neither question nor answer"]),
        ("Q: Is it dark?\nA: (not in the text)", 0, ["a placeholder instead of an answer"]),
        ("A: Yes\nQ: Where?\nA: Left", 1, ["answer without a question"]),
        ("Q: Is it dark?\nA:\nQ: Where?\nA: Left", 1, ["question without an answer"]),
        ("Q: Is it dark?\nA: Yes\nA: No", 1, ["answer without a question"]),
        ("Is it dark?\nYes\n\nThis is all I know.", 0, ["text that is neither question nor answer"]),
        (
            '[{"question": "Is it dark?"}, {"question": "Where?", "answer": "Left"}]',
            1,
            ["JSON without a question and an answer in words"],
        ),
    ],
)
def test_pieces_that_are_refused_with_a_reason(reply, count, reasons):
    parsed = parse_pairs(reply)
    assert (len(parsed.pairs), parsed.refused) == (count, reasons)
    assert not parsed.complete


OPTIONS = ("CT", "MRI", "X-ray", "Ultrasound")
CHOICE = "Q: Which modality?\nA) CT\nB) MRI\nC) X-ray\nD) Ultrasound\n"


@pytest.mark.parametrize(
    "reply",
    [
        f"{CHOICE}Answer: B",
        f"{CHOICE}Answer: B) MRI",
        f"{CHOICE}Answer: (B) mri.",
        f"{CHOICE}**Correct answer:** MRI",
        "Q: Which modality?\nA: CT\nB: MRI\nC: X-ray\nD: Ultrasound\nAnswer: B",
        "1. Which modality?\nA. CT\nB. MRI\nC. X-ray\nD. Ultrasound\nAnswer: B",
        json.dumps([{"question": "Which modality?", "options": OPTIONS, "answer": "MRI"}]),
        json.dumps(
            [{"question": "Which modality?", "options": dict(zip("ABCD", OPTIONS, strict=True)), "answer": "B"}]
        ),
    ],
)
def test_options(reply):
    parsed = parse_choices(reply)
    assert parsed.pairs == [Pair("Which modality?", "MRI", OPTIONS)]
    assert parsed.complete


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (f"{CHOICE}Answer: E", "an answer that is none of its options"),
        (f"{CHOICE}Answer: PET", "an answer that is none of its options"),
        (f"{CHOICE}Answer: B) CT", "an answer whose letter and text differ"),
        (CHOICE, "question without an answer"),
        (f"{CHOICE.replace('B) MRI', 'B) ct')}Answer: A", "two options that read the same"),
        ("Q: Which?\nA) CT\nC) MRI\nAnswer: A", "options whose letters do not run from A"),
        ("Q: Which modality?\nA: CT", "question without options"),
    ],
)
def test_options_that_are_refused(reply, reason):
    assert parse_choices(reply).refused == [reason]
    assert not parse_choices(reply).pairs


@pytest.mark.parametrize(
    ("reply", "question", "reason"),
    [
        ("What is dark?", "What is dark?", None),
        ('Here is a question:\n\n**"What is dark?"**', "What is dark?", None),
        ("Question: What is dark?\n\nLet me know if it helps!", "What is dark?", None),
        ("What is dark? What is light?", "What is dark? What is light?", None),
        ("What is dark?\nWhat is light?", None, "several questions instead of one"),
        ("What is dark?\nThe liver.", None, "text beside the question"),
        ("The liver is dark.", None, "no question in it"),
        ("", None, "empty reply"),
        ("I cannot help with that.", None, "the model declined"),
    ],
)
def test_one_question(reply, question, reason):
    parsed = parse_question(reply)
    assert parsed.pairs == ([Pair(question, "")] if question else [])
    assert parsed.refused == ([reason] if reason else [])


def test_one_pair_and_descriptions():
    assert parse_one_pair("Q: Why?\nA: Because of the mass.\nIt grew.").pairs == [
        Pair("Why?", "Because of the mass. It grew.")
    ]
    assert parse_one_pair(LABELLED).refused == ["several pairs instead of one"]
    text = "The liver is dark.\n\nIts edge is sharp."
    for reply in (text, f"Here is a description:\n\n{text}\n\nLet me know if you need more."):
        assert parse_description(reply).pairs == [Pair("", "The liver is dark. Its edge is sharp.")]
    assert parse_description("I'm unable to see images.").refused == ["the model declined"]
    assert parse_description("\n").refused == ["empty reply"]


@pytest.mark.skipif(not (REAL / "medm").is_dir(), reason="../shared/data/medm is not there")
def test_real_replies():
    replies = json.loads((REAL / "medm" / "medpix_qa_raw.json").read_text(encoding="utf-8"))
    parsed = [parse_pairs(row["qa_pairs"]) for row in replies]
    assert sum(p.complete for p in parsed) == 1383  # of 1,393: 99.3 %
    assert sum(len(p.pairs) for p in parsed) == 7312
    # Counted apart: every line that begins with a Q, and six bare questions, are a pair or a refusal.
    labels = sum(line.lstrip("* ").startswith("Q") for row in replies for line in row["qa_pairs"].splitlines())
    named = Counter(reason for p in parsed for reason in p.refused)
    assert named == {"a placeholder instead of an answer": 11, "text that is neither question nor answer": 4}
    assert labels + 6 == 7312 + 15
    questions = json.loads((REAL / "medm" / "roco_qa_raw.json").read_text(encoding="utf-8"))
    outcomes = Counter(parse_question(row["qa_pair"]).refused[0:1] == [] for row in questions)
    assert outcomes == {True: 3998, False: 2}
