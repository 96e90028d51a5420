"""Pools of instructions: one for each sample and epoch, drawn by seed, epoch and index alone."""

from collections import Counter

import pytest

from ift_components.data import report_dataset
from ift_components.data.dataset import DatasetContext
from ift_components.data.instructions import read_instructions
from ift_components.data.prompts import Text, prompt_tokens
from ift_components.errors import ConfigError
from ift_components.models import tiny_vision_transform
from ift_components.shuffling import shuffle_parts
from ift_components.training.card import run_facts
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, epoch_batches

POOL = ["Describe it.", "What is seen?", "Report this scan."]


@pytest.fixture
def dataset(prepared):
    def make(instruction, seed=0):
        context = DatasetContext(tiny_vision_transform(), 0, seed)
        options = {"source": str(prepared), "split": "train", "shuffling": shuffle_parts(",")}
        return report_dataset(context, instruction=instruction, responses_per_image=2, **options)

    return make


def test_each_sample_and_epoch_draws_one(dataset):
    transform = tiny_vision_transform()
    names = {tuple(prompt_tokens(transform, Text(text))): text for text in POOL}

    def drawn(data, epoch):
        data.set_epoch(epoch)
        return [names[tuple(data[index].prompt)] for index in range(len(data))]

    first, second = dataset(POOL), dataset(POOL)
    orders = [drawn(first, epoch) for epoch in (0, 1, 2)]
    assert drawn(second, 1) == orders[1]  # whatever was read before
    assert orders[0] != orders[1] != orders[2]
    assert drawn(dataset(POOL, seed=1), 0) != orders[0]
    counts = Counter(text for order in orders for text in order)  # 64 each of 192 on average
    assert set(counts) == set(POOL)
    assert min(counts.values()) > 40
    one = dataset(POOL[1])
    assert drawn(one, 0) == [POOL[1]] * 64
    one.set_epoch(2)
    assert [one[i].responses for i in range(9)] == [first[i].responses for i in range(9)]  # orders are drawn apart


def test_the_shipped_pool_trains(train_config, prepared, world, make_trainer):
    cfg = train_config("instruction=${shipped:instruction_pool}")
    assert check_settings(cfg).rule is None
    assert len(set(cfg.instructions)) == 58
    trainer = make_trainer(cfg, rule=None)
    batches = next(epoch_batches(build_loader(cfg, world), 0, 1))
    assert trainer.step(batches)["loss"] > 0
    assert (
        run_facts(cfg, world).prompt
        == 'the instruction was drawn for each sample from 58, such as "Describe this medical image."'
    )


def test_a_list_on_the_command_line(train_config):
    cfg = train_config("instruction=[Describe it., What is seen?]")
    assert cfg.instructions == ("Describe it.", "What is seen?")
    assert cfg.dataset["instruction"] == ["Describe it.", "What is seen?"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("  ", "instruction: is empty; give a text"),
        ([], "instruction: is empty"),
        (["x", " "], "instruction: is empty"),
        (7, "instruction: 7 is neither a text, nor a list of texts, nor a .txt file"),
        ("no/such.txt", r"instruction: no/such.txt cannot be read .*give a \.txt file of one instruction a line"),
    ],
)
def test_wrong_instructions_are_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        read_instructions(value)
