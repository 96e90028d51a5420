"""Reading answers: the authors' rule to the letter, and the strict one that never guesses."""

import random

import answers  # beside this file
import pytest

from ift_components.data.wording import letters, multiple_choice_prompt
from ift_components.evaluation.parsing import parse_authors, parse_paper, parse_strict

SIZE = ["big", "small"]


def test_prompt_is_the_authors():
    assert multiple_choice_prompt("What is the cell size?", SIZE) == (
        "What is the cell size?\nA. big\nB. small\n"
        'Response with only the letter of the correct choice, starting with "The correct answer is [A or B].".'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The correct answer is B.", 1),
        ("The correct answer is [B].", 1),
        ("The correct answer is **b**", 1),
        ("The correct answer is A. The correct answer is B.", 1),
        ("B", 1),
        ("The correct answer is B. small", None),
        ("The correct answer is (B)", None),
        ("The correct answer is C.", None),
        ("the correct answer is B", None),
        ("", None),
        ("small", None),
    ],
)
def test_paper(text, expected):
    assert parse_paper(text, SIZE) == expected


TABLE = answers.table()


def test_the_table_is_long_and_holds_readable_and_unreadable_answers():
    assert len(TABLE) >= 220
    assert 80 < sum(reading is None for _, _, reading in TABLE) < 150


@pytest.mark.parametrize(("text", "options", "expected"), TABLE)
def test_strict(text, options, expected):
    assert parse_strict(text, options) == expected


def test_authors_rule_as_it_runs():
    """Their code searches prompt and answer together: a bare letter stands after the prompt's own sentence, and is wrong."""
    prompt = multiple_choice_prompt("What is the cell size?", SIZE)
    for text in ("The correct answer is B.", "The correct answer is [B].", "It is tiny. The correct answer is **b**"):
        assert parse_authors(prompt, text, SIZE) == parse_paper(text, SIZE) == 1
    for text in ("B", "B.", "[B]", " b"):
        assert parse_authors(prompt, text, SIZE) is None
        assert parse_paper(text, SIZE) == 1
    assert parse_authors(prompt, "The correct answer is C.", SIZE) is None


def test_the_form_asked_for_is_read_alike():
    """Whatever the options, the sentence that the prompt asks for is read the same by both."""
    rng = random.Random(0)
    words = ["round", "small", "yes", "no", "a", "light blue", "blue", "b", "x-ray", "A"]
    for _ in range(200):
        options = rng.sample(words, rng.randint(2, 6))
        index = rng.randrange(len(options))
        letter = letters(len(options))[index]
        for form in (f"The correct answer is {letter}.", f"The correct answer is [{letter}].", letter):
            assert parse_paper(form, options) == parse_strict(form, options) == index


def test_more_options_than_letters():
    with pytest.raises(ValueError, match="27 options, but only 26 letters"):
        letters(27)
