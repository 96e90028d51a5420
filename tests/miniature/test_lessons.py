"""Lessons are a function of seed, step and process, and their pictures reach the model as every other image does."""

import numpy as np
import pytest
import torch
from PIL import Image

from ift_components.data.images import ImageTransform
from ift_components.errors import ConfigError
from ift_components.miniature import tasks
from ift_components.miniature.lessons import Lessons
from ift_components.miniature.scenes import SCENE_SCHEMA, draw_scenes, sample_scenes
from ift_components.models import tiny_vision_transform

SETTINGS = {"style": "schematic", "scenes": 0.3, "finds": 0.2, "weights": {"ask": 1.0, "multiple_choice": 2.0}}


@pytest.fixture(scope="module")
def transform():
    return tiny_vision_transform()


@pytest.fixture(scope="module")
def lessons(transform):
    return Lessons(transform, **SETTINGS, seed=0, rank=0)


def test_pixels_are_those_of_the_image_transform(lessons, transform):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
    one_by_one = torch.stack([ImageTransform(transform)(Image.fromarray(image))[0] for image in pixels])
    torch.testing.assert_close(lessons.normalise(pixels), one_by_one, atol=1e-6, rtol=0)


def test_batches_depend_on_seed_step_and_process_alone(lessons, transform):
    again = Lessons(transform, **SETTINGS, seed=0, rank=0)
    again.joint(3, 8, 2)  # what was drawn before does not matter
    for a, b in zip(lessons.joint(5, 8, 2), again.joint(5, 8, 2), strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.images, b.images)
    other = Lessons(transform, **SETTINGS, seed=0, rank=1)
    assert other.joint(5, 8, 1)[0].ids != lessons.joint(5, 8, 1)[0].ids
    assert lessons.joint(6, 8, 1)[0].ids != lessons.joint(5, 8, 1)[0].ids


def test_parts_hold_every_sample_once(lessons):
    whole, parts = lessons.joint(1, 12, 1), lessons.joint(1, 12, 3)
    assert sorted(id_ for batch in parts for id_ in batch.ids) == sorted(whole[0].ids)
    widths = [batch.tokens.shape[1] for batch in parts]
    assert widths == sorted(widths)


def test_shares(lessons):
    batches = [batch for step in range(20) for batch in lessons.joint(step, 32, 1)]
    ids = [id_ for batch in batches for id_ in batch.ids]
    without_image = sum(id_ == tasks.FIND for id_ in ids)
    assert without_image / len(ids) == pytest.approx(0.2, abs=0.05)
    numbers = [lessons.pictures(step, 2)[0] for step in range(300)]
    assert np.mean(numbers) == pytest.approx(0.3, abs=0.08)


def test_codes_and_pictures_belong_together(lessons):
    number, images, codes = next(found for step in range(20) if (found := lessons.pictures(step, 6))[0] == 1)
    assert images.shape == (6, 1, 3, 84, 84)
    ground = images[:, 0, :, 1, 1].mean(dim=1)  # a corner shows the background
    order = ground[codes[:, 3].argsort()]
    assert number == 1
    assert (order[1:] - order[:-1]).min() > -0.4  # black, grey, white


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenes": 1.5}, "scenes: 1.5 is not a share"),
        ({"weights": {"asks": 1.0}}, "weights: 'asks' is not a task; tasks: describe, list_findings, ask"),
        ({"weights": {}}, "weights: names no task"),
    ],
)
def test_wrong_settings(transform, change, message):
    with pytest.raises(ConfigError, match=message):
        Lessons(transform, **{**SETTINGS, **change}, seed=0, rank=0)


def test_scenes_show_their_attributes():
    generator = np.random.default_rng(0)
    codes = sample_scenes(40, generator)
    pixels = draw_scenes(codes, generator).astype(float)
    assert pixels.shape == (40, 84, 84, 3)
    values = [[a.values[i] for a, i in zip(SCENE_SCHEMA.attributes, row, strict=True)] for row in codes]
    for image, (count, _, colour, ground) in zip(pixels, values, strict=True):
        expected = {"black": 20, "grey": 120, "white": 235}[ground]
        assert abs(image[:2, :2].mean() - expected) < 20
        differs = np.abs(image - image[:2, :2].mean(axis=(0, 1))).max(axis=-1) > 35
        number = ["one", "two", "three", "four"].index(count) + 1
        assert 0.01 * number < differs.mean() < 0.11 * number, (count, ground, colour)


def test_of_quizzes_letters_and_marks_alone_are_labels(transform):
    lessons = Lessons(transform, **{**SETTINGS, "weights": {"quiz": 1.0, "ask": 1.0}}, seed=0, rank=0)
    said = set()
    for step in range(3):
        for batch in (lessons.language(step, 16), *lessons.joint(step, 16, 1)):
            assert (batch.images is None) == any("\n" in id_ for id_ in batch.ids)
            for row, id_ in enumerate(batch.ids):
                labels = batch.labels[batch.response_index // batch.tokens.shape[1] == row].tolist()
                if id_.endswith((tasks.QUIZ, tasks.FIND)):
                    said |= {transform.tokenizer.decode([token]).strip() for token in labels}
                else:  # every other answer is learned to its end
                    assert labels[-1] == transform.tokenizer.eot_id
    assert said == {*"ABCDEF", "right", "not"}


def test_the_first_lessons_are_to_find_words_alone(lessons, transform):
    batch = lessons.find(0, 8)
    assert batch.images is None
    assert set(batch.ids) == {tasks.FIND}
    said = {transform.tokenizer.decode([token]).strip() for token in batch.labels.tolist()}
    assert said <= {*"ABCDEF", "right", "not"}
