"""Reading answers: the authors' rule to the letter, and the strict one that never guesses."""

import random

import pytest

from ift_components.data.wording import letters, multiple_choice_prompt
from ift_components.evaluation.parsing import parse_paper, parse_strict

SIZE = ["big", "small"]
NUCLEUS = ["irregular", "segmented-bilobed", "segmented-multilobed", "unsegmented-band", "unsegmented-indented"]
COLOUR = ["blue", "light blue", "purple blue"]
YES_NO = ["yes", "no"]


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


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("The correct answer is B.", SIZE, 1),
        ("The correct answer is [B].", SIZE, 1),
        ("the correct answer is (b)", SIZE, 1),
        ("Answer: B", SIZE, 1),
        ("**B**", SIZE, 1),
        ("b", SIZE, 1),
        ("B) small", SIZE, 1),
        ("B. small\nThe cell is small.", SIZE, 1),
        ("Option B because the cell is tiny.", SIZE, 1),
        ("It must be (B).", SIZE, 1),
        ("\uff22", SIZE, 1),  # a full-width B
        ("The cell is small \U0001f600", SIZE, 1),
        ("It is SMALL.", SIZE, 1),
        ("light blue", COLOUR, 1),
        ("The cytoplasm is light\nblue.", COLOUR, 1),
        ("segmented-bilobed nucleus", NUCLEUS, 1),
        ("The answer is A light blue", COLOUR, None),  # letter and text disagree, and A may be an article
        ("The correct answer is A. light blue", COLOUR, None),
        ("The answer is a light blue tone", COLOUR, 1),  # an article, then one option's text
        ("A small cell", SIZE, 1),
        ("A big one", SIZE, 0),
        ("bilobed", NUCLEUS, None),
        ("segmented", NUCLEUS, None),
        ("nonsense about unsmall things", SIZE, None),
        ("blue or light blue", COLOUR, None),
        ("A or B", SIZE, None),
        ("The correct answer is A. No, the correct answer is B.", SIZE, None),
        ("The correct answer is D.", SIZE, None),
        ("The correct answer is D. small", SIZE, None),
        ("\u6b63\u89e3\u306f\u5c0f\u3055\u3044 \U0001f600", SIZE, None),
        ("", SIZE, None),
        ("yes", YES_NO, 0),
        ("The correct answer is B.", YES_NO, 1),
        ("Yes, there is no doubt", YES_NO, None),
    ],
)
def test_strict(text, options, expected):
    assert parse_strict(text, options) == expected


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
