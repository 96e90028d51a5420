"""What the miniature is taught: descriptions, and open, yes/no and multiple-choice questions, about any schema's attributes.

Answers are sentences of their own kind ("The nucleus shape is irregular."); only where a list is asked for are they phrases as
in a dataset's reports ("irregular nucleus shape, ..."). A model that answers everything in phrases has forgotten.
"""

import random
from collections.abc import Callable, Mapping, Sequence

from ift_components.data.wording import ANSWER_PREFIX, letters, multiple_choice_prompt, option_lines

Values = Mapping[str, str]  # attribute name to its value, those that apply
Choices = Mapping[str, Sequence[str]]  # attribute name to all of its values
Turn = tuple[str, str]  # an instruction and its answer

DESCRIBE = (
    "Describe the image.",
    "Describe this picture in full sentences.",
    "What do you see?",
    "Write down everything that you see.",
    "Please describe what is shown.",
)
LIST = (
    "List the findings.",
    "List what you see in short phrases.",
    "Write a short report.",
    "Note all attributes, separated by commas.",
)
ASK = (
    "What is the {name}?",
    "Tell me the {name}.",
    "Name the {name}.",
    "Which {name} do you see?",
    "Please give the {name}.",
)
# Questions that read better than the general ones.
_ALSO_ASK = {
    "label": ("What type of cell is this?", "Which cell is it?"),
    "number of shapes": ("How many shapes are there?", "Count the shapes."),
    "shape": ("What kind of shape is it?",),
    "shape colour": ("Which colour do the shapes have?",),
    "background colour": ("Which colour is behind the shapes?",),
}
YES_NO = (
    ("Is the {name} {value}?", "Yes.", "No."),
    ("Is it right that the {name} is {value}?", "Yes.", "No."),
    ("True or false: the {name} is {value}.", "True.", "False."),
)
MOST_OPTIONS = 6
_PLAINLY = 0.7  # share of multiple-choice questions that are worded as the paper's
_MARKED = 0.5  # share of quizzes with marks
_QUESTIONS = 4  # in a quiz
MARKS = ("right", "not")
QUIZ = "Make a quiz about it."
FIND = "Find each word among the choices below it."


def statement(name: str, value: str) -> str:
    """Return the sentence that states one attribute."""
    return f"The {name} is {value}."


def describe(values: Values, _choices: Choices, rng: random.Random) -> Turn:
    """Ask for a description; it states every attribute in a sentence."""
    return rng.choice(DESCRIBE), " ".join(statement(name, value) for name, value in values.items())


def list_findings(values: Values, _choices: Choices, rng: random.Random) -> Turn:
    """Ask for short phrases, one an attribute in any order: the nearest that the miniature knows to a dataset's reports."""
    phrases = [f"{value} {name}" for name, value in values.items()]
    rng.shuffle(phrases)
    return rng.choice(LIST), ", ".join(phrases)


def _question(name: str, rng: random.Random) -> str:
    forms = ASK + _ALSO_ASK.get(name, ())
    return rng.choice(forms).format(name=name)


def ask(values: Values, _choices: Choices, rng: random.Random) -> Turn:
    """Ask for one attribute; the answer is a sentence."""
    name = rng.choice(list(values))
    return _question(name, rng), statement(name, values[name])


def yes_no(values: Values, choices: Choices, rng: random.Random) -> Turn:
    """Ask whether an attribute has a value; as often right as wrong."""
    name = rng.choice(list(values))
    other_values = [value for value in choices[name] if value != values[name]]
    form, yes, no = rng.choice(YES_NO)
    right = rng.choice((True, False))
    value = values[name] if right else rng.choice(other_values)
    return form.format(name=name, value=value), yes if right else no


def _options(name: str, values: Values, choices: Choices, rng: random.Random) -> list[str]:
    """Return two to six shuffled options with the right one among them; half of the time all of them."""
    other_values = [value for value in choices[name] if value != values[name]]
    most = min(len(other_values), MOST_OPTIONS - 1)
    count = rng.choice((most, rng.randint(1, most)))
    options = [values[name], *rng.sample(other_values, count)]
    rng.shuffle(options)
    return options


def multiple_choice(values: Values, choices: Choices, rng: random.Random) -> Turn:
    """Ask a multiple-choice question in the form of the paper's."""
    name = rng.choice(list(values))
    options = _options(name, values, choices, rng)
    question = ASK[0].format(name=name) if rng.random() < _PLAINLY else _question(name, rng)
    letter = letters(len(options))[options.index(values[name])]
    return multiple_choice_prompt(question, options), f"{ANSWER_PREFIX} {letter}."


def choice_in_words(values: Values, choices: Choices, rng: random.Random) -> Turn:
    """Ask a multiple-choice question whose answer repeats the option's text, which ties texts to letters."""
    name = rng.choice(list(values))
    options = _options(name, values, choices, rng)
    letter = letters(len(options))[options.index(values[name])]
    form, answer = rng.choice(
        (
            ("Answer with the letter and the text.", f"{letter}. {values[name]}"),
            ("Answer with the text of the correct choice.", f"{values[name]}"),
            (
                "Answer in a sentence, then give the letter.",
                f"{statement(name, values[name])} {ANSWER_PREFIX} {letter}.",
            ),
        )
    )
    return "\n".join([_question(name, rng), *option_lines(options), form]), answer


def quiz(values: Values, choices: Choices, rng: random.Random) -> Turn:
    """Ask many multiple-choice questions in one answer, half of the time with every option marked as right or not.

    The marks teach to judge an option where it stands, a supervised judgement each; the letter is then only to be read off.
    """
    marked = rng.random() < _MARKED
    blocks = []
    for name in rng.sample(list(values), min(_QUESTIONS, len(values))):
        options = _options(name, values, choices, rng)
        blocks.append(_block(_question(name, rng), options, options.index(values[name]), marked=marked))
    return QUIZ, "\n".join(blocks)


def find(words: Sequence[str], rng: random.Random) -> Turn:
    """Ask for the option that is the word before them, list after list: a quiz that needs no image."""
    marked = rng.random() < _MARKED
    blocks = []
    for _ in range(_QUESTIONS):
        options = rng.sample(words, rng.randint(2, MOST_OPTIONS))
        right = rng.randrange(len(options))
        blocks.append(_block(options[right], options, right, marked=marked))
    return FIND, "\n".join(blocks)


def _block(question: str, options: Sequence[str], right: int, *, marked: bool) -> str:
    """Return one question of a quiz with its options and answer."""
    marks = [f" {MARKS[number != right]}" if marked else "" for number in range(len(options))]
    lines = option_lines([f"{option}{mark}" for option, mark in zip(options, marks, strict=True)])
    return "\n".join([question, *lines, f"{ANSWER_PREFIX} {letters(len(options))[right]}."])


def reading(task: "ImageTask", values: Values, choices: Choices, rng: random.Random) -> Turn:
    """Ask about a text that states some of the values, instead of an image."""
    names = rng.sample(list(values), rng.randint(2, min(4, len(values))))
    some = {name: values[name] for name in names}
    text = rng.choice((describe, list_findings))(some, choices, rng)[1]
    instruction, answer = task(some, choices, rng)
    return f"{text}\n{instruction}", answer


ImageTask = Callable[[Values, Choices, random.Random], Turn]
IMAGE_TASKS: tuple[ImageTask, ...] = (describe, list_findings, ask, yes_no, quiz, multiple_choice, choice_in_words)
