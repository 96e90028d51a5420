"""Questions as training samples: their words, their options, and several that share an image's pass."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from questions import QUESTIONS, prepare_questions

from ift_components.data import question_dataset
from ift_components.data.dataset import DatasetContext, KnowsLongest, collate
from ift_components.data.instruction_format import render
from ift_components.data.prompts import Text, prompt_tokens
from ift_components.data.wording import multiple_choice_prompt
from ift_components.errors import ConfigError, DataError
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.forward import ResponseLoss

TEXTS = list(QUESTIONS)


@pytest.fixture(scope="module")
def transform():
    return tiny_vision_transform()


@pytest.fixture(scope="module")
def context(transform):
    return DatasetContext(transform, proxy_vectors=8, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(prepare_questions(tmp_path_factory.mktemp("questions")))


def words(transform, sample):
    """Return the questions and answers of a sample in words."""
    decode = transform.tokenizer.decode
    frame = prompt_tokens(transform, Text(""))
    tail = len(frame) - frame.index(transform.tokenizer.image_id) - 1
    return [
        (decode(question[:-tail]), decode(response[:-1]))
        for question, response in zip(sample.questions, sample.responses, strict=True)
    ]


def test_questions_are_worded_as_evaluation_words_them(folder, context, transform):
    dataset = question_dataset(context, source=folder, split="train")
    assert len(dataset) == 24
    asked = [words(transform, dataset[index])[0] for index in range(4)]
    assert asked == [
        (multiple_choice_prompt(TEXTS[0], ["left", "right"]), "The correct answer is A."),
        (TEXTS[1], "a scar"),
        (TEXTS[2], "yes"),
        (TEXTS[3], "left side"),
    ]
    first = dataset[1]
    assert first.prompt + first.questions[0] == prompt_tokens(transform, Text(TEXTS[1]))
    assert not dataset.has_slots


def test_kinds_limit_and_the_questions_of_a_pass(folder, context, transform):
    closed = question_dataset(context, source=folder, split="train", kinds=["closed"], limit=5)
    assert [words(transform, closed[index])[0][0] for index in range(5)] == [TEXTS[2], TEXTS[3]] * 2 + [TEXTS[2]]
    three = question_dataset(context, source=folder, split="train", questions_per_image=3)
    assert [len(three[index].questions) for index in range(4)] == [3, 1, 3, 1]
    pairs = [pair for index in range(len(three)) for pair in words(transform, three[index])]
    one = question_dataset(context, source=folder, split="train")
    assert pairs == [words(transform, one[index])[0] for index in range(24)]
    assert torch.equal(three[1].image, one[0].image)
    assert not torch.equal(three[2].image, one[0].image)


def test_longest_samples_are_known(folder, context):
    dataset = question_dataset(context, source=folder, split="train", questions_per_image=3)
    assert isinstance(dataset, KnowsLongest)
    sizes = [sum(map(len, [*dataset[i].questions, *dataset[i].responses])) for i in range(len(dataset))]
    assert min(sizes[index] for index in dataset.longest(6)) > max(
        sizes[index] for index in set(range(12)) - set(dataset.longest(6))
    )


def test_packed_questions_equal_separate_rows(folder, context, transform):
    """Loss and gradients of four questions behind each of two images, in fp64."""
    packed = question_dataset(context, source=folder, split="train", questions_per_image=4)
    single = question_dataset(context, source=folder, split="train")
    torch.manual_seed(0)
    model = tiny_llama3_2_vision().double()
    for name, parameter in model.named_parameters():
        if "scale" in name:  # the gates of cross-attention are closed at the start
            torch.nn.init.constant_(parameter, 0.7)
    module = ResponseLoss(model, torch.float64)
    totals, gradients = [], []
    for samples in ([packed[0], packed[1]], [single[index] for index in range(8)]):
        batch = collate(samples, transform)
        model.zero_grad()
        loss = module(replace(batch, images=batch.images.double()), None).sum()
        loss.backward()
        totals.append(loss.item())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert batch.images.shape[0] == 8
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    assert any("fusion_layer" in name and grad.abs().sum() > 0 for name, grad in gradients[1].items())
    assert any(name.startswith("encoder") and grad.abs().sum() > 0 for name, grad in gradients[1].items())
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-6, rtol=1e-6, msg=name)


def test_packed_questions_do_not_see_one_another(folder, context, transform):
    sample = question_dataset(context, source=folder, split="train", questions_per_image=2)[0]
    batch = collate([sample], transform)
    shared = len(sample.prompt)
    second = shared + len(sample.questions[0]) + len(sample.responses[0])
    assert not batch.mask[0, second:, shared:second].any()
    assert batch.mask[0, second:, :shared].all()
    assert batch.positions[0, second] == batch.positions[0, shared] == shared
    assert batch.labels.tolist() == [token for response in sample.responses for token in response]
    assert torch.equal(batch.tokens.flatten()[batch.response_index + 1], batch.labels)


def test_instruction_format_draws_form_and_options_anew(folder, context, transform):
    dataset = question_dataset(context, source=folder, split="train", template="instruction_format")
    first = [words(transform, dataset[index])[0] for index in range(24)]
    dataset.set_epoch(1)
    assert [words(transform, dataset[index])[0] for index in range(24)] != first
    dataset.set_epoch(0)
    assert [words(transform, dataset[index])[0] for index in range(24)] == first
    answers = {text: set(answers) for text, (_, _, _, answers) in QUESTIONS.items()}
    for index, (question, answer) in enumerate(first):
        text = TEXTS[index % 4]
        assert text in question
        options = re.findall(r"\([abc]\)([^;]+?)(?=;| The answer| Answer:| Short answer:| Provide)", question)
        assert {option.casefold() for option in options} <= {option.casefold() for option in answers[text]}
        assert not options or answer.casefold() in {option.casefold() for option in options}


def test_forms_are_the_papers():
    generator = np.random.default_rng(0)

    def forms(answer, *, closed, category):
        drawn = [render("Q?", answer, closed=closed, category=category, generator=generator) for _ in range(600)]
        return Counter(re.sub(r"CT|MRI|X-Ray", "_", text) for text in drawn)

    assert set(forms("yes", closed=True, category=())) == {
        "Question:Q?Option:(a)No; (b)Yes The answer to the question is",
        "Question:Q?Option:(a)No; (b)Yes Answer:",
        "Question:Q?Based on the image, give a judgmental answer to the question",
    }
    opened = forms("CT", closed=False, category={"CT", "MRI", "X-Ray", "ct"})
    assert set(opened) == {
        "Question:Q?Option:(a)_; (b)_ The answer to the question is",
        "Question:Q?Option:(a)_; (b)_ Answer:",
        "Question:Q?Option:(a)_; (b)_; (c)_ Short answer:",
        "Used the provided image to answer the question:Q?Option:(a)_; (b)_; (c)_ Provide your answer based on the option",
        'What is the answer to the following question?"Q?"',
    }
    assert all(80 < count < 160 for count in opened.values())  # 120 each expected
    assert set(forms("CT", closed=False, category={"ct"})) == {'What is the answer to the following question?"Q?"'}
    sides = [
        render("Q?", "left", closed=True, category={"left", "right", "no"}, generator=generator) for _ in range(99)
    ]
    assert not any("no" in text.split("Option:")[1].split() for text in sides if "Option:" in text)
    assert {text.split("Option:")[1][:9] for text in sides if "Option:" in text} == {"(a)left; ", "(a)right;"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kinds": ["chioce"]}, ConfigError, r"dataset.kinds: \['chioce'\] is not a list of choice, closed, open"),
        ({"kinds": []}, ConfigError, r"dataset.kinds: \[\] is not a list of"),
        ({"template": "papers"}, ConfigError, "'papers' is not one of plain, instruction_format"),
        ({"questions_per_image": 0}, ConfigError, "dataset.questions_per_image: 0 is below 1"),
        ({"split": "trian"}, DataError, "split 'trian' does not exist"),
    ],
)
def test_bad_arguments_are_named(folder, context, arguments, error, message):
    with pytest.raises(error, match=message):
        question_dataset(context, **{"source": folder, "split": "train", **arguments})


def test_long_question_is_named(folder):
    short = DatasetContext(tiny_vision_transform(max_seq_len=40), 0, 0)
    with pytest.raises(ConfigError, match=r"max_seq_len: 40 tokens do not hold question '.*' and its answer"):
        question_dataset(short, source=folder, split="train")
    question_dataset(short, source=folder, split="train", kinds=["closed"])
    with pytest.raises(ConfigError, match="max_seq_len: 40 tokens"):
        question_dataset(short, source=folder, split="train", kinds=["closed"], template="instruction_format")


def test_cached_images_are_the_same(folder, context, tmp_path):
    plain = question_dataset(context, source=folder, split="train", questions_per_image=4)
    cached = question_dataset(
        context, source=folder, split="train", kinds=["open"], cache_images=str(tmp_path), limit=3
    )
    assert all(torch.equal(cached[index].image, plain[index].image) for index in range(3))
    again = question_dataset(context, source=folder, split="train", cache_images=str(tmp_path))
    assert all(torch.equal(again[index * 4].image, plain[index].image) for index in range(6))


def test_question_without_its_image_is_named_before_any_is_read(context, tmp_path):
    folder = prepare_questions(tmp_path, images="path")
    (tmp_path / "in" / "train1.png").unlink()
    with pytest.raises(
        DataError, match=r"questions of split 'train': 4 have no image: '.*train1.png is missing\)"
    ) as error:
        question_dataset(context, source=str(folder), split="train")
    assert "\n" not in str(error.value)
    question_dataset(context, source=str(folder), split="val")
