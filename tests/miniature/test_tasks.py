"""Every task states what its values say, and nothing is answered in the form of a report."""

import random
import re

import pytest

from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.evaluation.parsing import PARSERS
from ift_components.miniature import tasks

CHOICES = {attribute.name: attribute.values for attribute in SCHEMA.attributes}


@pytest.fixture(params=range(20))
def drawn(request):
    rng = random.Random(request.param)
    return {name: rng.choice(values) for name, values in CHOICES.items()}, rng


def test_multiple_choice_is_answered_as_the_paper_parses_it(drawn):
    values, rng = drawn
    prompt, answer = tasks.multiple_choice(values, CHOICES, rng)
    question, *options, form = prompt.split("\n")
    texts = [option.split(". ", 1)[1] for option in options]
    asked = [name for name in CHOICES if set(texts) <= set(CHOICES[name])]  # two attributes are answered by yes and no
    assert 2 <= len(texts) <= 6
    assert form.startswith(
        'Response with only the letter of the correct choice, starting with "The correct answer is [A or B'
    )
    for parser in PARSERS.values():
        assert texts[parser(prompt, answer, texts)] in {values[name] for name in asked}
    assert question


def test_choices_in_words_agree_with_their_letters(drawn):
    values, rng = drawn
    prompt, answer = tasks.choice_in_words(values, CHOICES, rng)
    options = dict(line.split(". ", 1) for line in prompt.split("\n")[1:-1])
    stated = answer.split(". ", 1)[1] if answer[1:3] == ". " else answer
    if answer.startswith("The "):
        sentence, letter = answer.split(". The correct answer is ")
        assert sentence.endswith(options[letter.rstrip(".")])
    else:
        assert stated in options.values()
        assert stated in values.values()
        assert answer[1:3] != ". " or options[answer[0]] == stated


def _blocks(answer):
    """Split a quiz into its questions: the question, options with marks, and the letter."""
    for block in re.split(r"(?<=\.)\n(?=[^A-F]|[A-F][^.])(?!The correct)", answer):
        question, *lines, last = block.split("\n")
        options = {line[0]: line[3:] for line in lines}
        yield question, options, re.fullmatch(r"The correct answer is ([A-F])\.", last)[1]


def test_quizzes_are_right_and_half_of_them_marked(drawn):
    values, rng = drawn
    words = ["round", "light blue", "green", "small", "yes", "four", "cell"]
    marked = 0
    for number in range(60):
        task = (tasks.quiz(values, CHOICES, rng), tasks.find(words, rng))[number % 2]
        questions = list(_blocks(task[1]))
        assert len(questions) == 4
        for question, options, letter in questions:
            marks = {key: text.endswith(" right") for key, text in options.items() if text.endswith((" right", " not"))}
            marked += bool(marks)
            assert marks in ({}, {key: key == letter for key in options})
            texts = {key: re.sub(" (right|not)$", "", text) for key, text in options.items()}
            if number % 2:
                assert texts[letter] == question
            else:
                assert [
                    name
                    for name, value in values.items()
                    if value == texts[letter] and set(texts.values()) <= set(CHOICES[name])
                ]
    assert 240 * 0.3 < marked < 240 * 0.7


def test_reading_states_what_it_asks_about(drawn):
    values, rng = drawn
    prompt, answer = tasks.reading(tasks.ask, values, CHOICES, rng)
    text, question = prompt.split("\n")
    value = re.fullmatch(r"The .* is (.*)\.", answer)[1]
    assert value in text
    assert question


def test_yes_and_no_are_equally_frequent_and_right():
    rng = random.Random(0)
    values = {name: rng.choice(options) for name, options in CHOICES.items()}
    turns = [tasks.yes_no(values, CHOICES, rng) for _ in range(2000)]
    said = [answer in ("Yes.", "True.") for _, answer in turns]
    assert sum(said) == pytest.approx(1000, abs=100)
    for (question, _), yes in zip(turns, said, strict=True):
        stated = [
            name
            for name, value in values.items()
            if f"{name} is {value}" in question or f"the {name} {value}?" in question
        ]
        assert bool(stated) == yes, question


def test_descriptions_state_everything_but_not_as_a_report(drawn):
    values, rng = drawn
    _, text = tasks.describe(values, CHOICES, rng)
    assert text.count(".") == len(values)
    assert all(tasks.statement(name, value) in text for name, value in values.items())
    assert "," not in text
    _, text = tasks.list_findings(values, CHOICES, rng)
    assert sorted(text.split(", ")) == sorted(f"{value} {name}" for name, value in values.items())
