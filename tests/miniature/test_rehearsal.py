"""Rehearsal: the miniature's own tasks as training samples."""

import re

import pytest
import torch

from ift_components.data.dataset import DatasetContext, collate
from ift_components.errors import ConfigError
from ift_components.miniature.rehearsal import TASKS, RehearsalDataset
from ift_components.miniature.scenes import SCENE_SCHEMA
from ift_components.models import tiny_vision_transform


@pytest.fixture(scope="module")
def context():
    return DatasetContext(tiny_vision_transform(), proxy_vectors=8, seed=3)


def words(context, sample):
    decode = context.transform.tokenizer.decode
    return decode(sample.prompt[sample.prompt.index(context.transform.tokenizer.image_id) + 1 :]), decode(
        sample.responses[0][:-1]
    )


def test_samples_are_drawn_by_seed_epoch_and_index(context):
    dataset = RehearsalDataset(context, samples=6)
    first = [dataset[index] for index in range(6)]
    again = RehearsalDataset(context, samples=6)
    assert all(torch.equal(again[i].image, first[i].image) for i in reversed(range(6)))
    assert [again[i].responses for i in range(6)] == [sample.responses for sample in first]
    again.set_epoch(1)
    assert not any(torch.equal(again[i].image, first[i].image) for i in range(6))
    assert first[0].image.shape == (1, 1, 3, 84, 84)
    with pytest.raises(IndexError):
        dataset[6]
    batch = collate(first, context.transform)
    assert len(batch.slot_index) == 0


def test_shapes_alone_and_cells_alone(context):
    names = {attribute.name for attribute in SCENE_SCHEMA.attributes}
    for scenes, is_shape in ((1.0, True), (0.0, False)):
        dataset = RehearsalDataset(context, samples=12, scenes=scenes, weights={"describe": 1.0})
        for index in range(12):
            _, answer = words(context, dataset[index])
            stated = set(re.findall(r"The (.+?) is ", answer))
            assert (stated == names) is is_shape


def test_tasks_are_drawn_by_weight(context):
    dataset = RehearsalDataset(context, samples=300, weights={"multiple_choice": 3.0, "yes_no": 1.0})
    answers = [words(context, dataset[index])[1] for index in range(300)]
    letters = sum(answer.startswith("The correct answer is") for answer in answers)
    assert {answer for answer in answers if not answer.startswith("The")} == {"Yes.", "No.", "True.", "False."}
    assert 225 - 4 * 7.5 < letters < 225 + 4 * 7.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "dataset.samples: 0 is below 1"),
        ({"scenes": 1.5}, "dataset.scenes: 1.5 is not a share"),
        ({"weights": {"quiz": 1.0}}, f"'quiz' is not a task; tasks: {', '.join(TASKS)}"),
        ({"weights": {"ask": 0.0}}, "one of them above 0"),
    ],
)
def test_bad_arguments_are_named(context, arguments, message):
    with pytest.raises(ConfigError) as error:
        RehearsalDataset(context, **{"samples": 3, **arguments})
    assert message in str(error.value)
