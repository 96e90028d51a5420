"""Training samples: what a prompt is made of, what carries loss, and that no order depends on processes or workers."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from PIL import Image
from torch.utils.data import DistributedSampler
from torchtune.models.llama3_2_vision import llama3_2_vision_transform

from ift_components.data import report_dataset
from ift_components.data.dataset import DatasetContext, collate
from ift_components.data.images import ImageTransform
from ift_components.data.prepared import load_reports
from ift_components.data.prompts import SLOT_TOKEN, Slots, Text, prompt_tokens, slot_id
from ift_components.errors import ConfigError, DataError
from ift_components.models import tiny_vision_transform
from ift_components.shuffling import shuffle_parts


@pytest.fixture(scope="module")
def transform():
    return tiny_vision_transform()


@pytest.fixture(scope="module")
def context(transform):
    return DatasetContext(transform, proxy_vectors=8, seed=0)


@pytest.fixture
def dataset(prepared, transform):
    return report_dataset(
        DatasetContext(transform, 8, 3), source=str(prepared), split="train", shuffling=shuffle_parts(",")
    )


def test_prompt_is_llama3s_with_slots_in_place_of_the_instruction(transform):
    tokenizer = transform.tokenizer
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    slots = prompt_tokens(transform, Slots(2))
    text = prompt_tokens(transform, Text("What is it?"))

    def spell(tokens):
        return [names.get(token) or tokenizer.decode([token]) for token in tokens]

    user, assistant = (spell(tokenizer.encode(role, add_bos=False, add_eos=False)) for role in ("user", "assistant"))
    head = ["<|begin_of_text|>", "<|start_header_id|>", *user, "<|end_header_id|>", "\n\n", "<|image|>"]
    tail = ["<|eot_id|>", "<|start_header_id|>", *assistant, "<|end_header_id|>", "\n\n"]
    assert spell(slots) == [*head, SLOT_TOKEN, SLOT_TOKEN, *tail]
    assert spell(text) == [*head, *spell(tokenizer.encode("What is it?", add_bos=False, add_eos=False)), *tail]


def test_slot_token_cannot_be_typed(transform):
    assert slot_id(transform) == transform.tokenizer.base_vocab_size + 2
    assert slot_id(transform) not in prompt_tokens(transform, Text(f"Say {SLOT_TOKEN} now"))


def test_same_prompt_with_the_11b_tokenizer():
    llama = pytest.importorskip("llama_models", reason="the Llama 3 tokenizer file ships in the package llama-models")
    big = llama3_2_vision_transform(str(files(llama).joinpath("llama3/tokenizer.model")))
    expected = [128000, 128006, 882, 128007, 271, 128256, 128002, 128002, 128009, 128006, 78191, 128007, 271]
    assert prompt_tokens(big, Slots(2)) == expected


def test_loss_is_on_the_response_and_its_end_alone(dataset, transform):
    batch = collate([dataset[0], dataset[1]], transform)
    tokens = batch.tokens.flatten()
    assert torch.equal(tokens[batch.response_index + 1], batch.labels)
    responses = dataset[0].responses[0] + dataset[1].responses[0]
    assert batch.labels.tolist() == responses
    assert batch.labels[-1] == transform.tokenizer.eot_id
    assert tokens[batch.slot_index].tolist() == [slot_id(transform)] * 16
    before = dataset[0].prompt.index(transform.tokenizer.image_id)
    assert before >= 5
    assert not batch.sees_image[:, :before].any()
    assert batch.sees_image[:, before:].all()


def test_reports_are_shuffled_by_seed_epoch_and_index(prepared, context, transform, dataset):
    first = [dataset[i].responses[0] for i in range(8)]
    dataset.set_epoch(1)
    second = [dataset[i].responses[0] for i in range(8)]
    dataset.set_epoch(0)
    assert [dataset[i].responses[0] for i in range(8)] == first
    assert first != second
    plain = report_dataset(context, source=str(prepared), split="train")
    reports = load_reports(prepared, "train")["report"]
    assert [transform.tokenizer.decode(plain[i].responses[0][:-1]) for i in range(8)] == list(reports[:8])


def test_limit_and_repeat(prepared, context, transform):
    made = report_dataset(
        context,
        source=str(prepared),
        split="train",
        limit=5,
        repeat=3,
        shuffling=shuffle_parts(","),
    )
    assert len(made) == 15
    assert made[1].id == made[6].id == made[11].id
    assert len({tuple(made[i].responses[0]) for i in (1, 6, 11)}) > 1  # each pass draws another order


@pytest.mark.parametrize("processes", [2, 4])
def test_steps_hold_the_same_samples_for_any_number_of_processes(dataset, processes):
    def steps(size, per_process):
        samplers = [DistributedSampler(dataset, size, rank, seed=1, drop_last=True) for rank in range(size)]
        orders = [list(sampler) for sampler in samplers]
        width = len(orders[0]) // per_process
        return [{i for order in orders for i in order[s * per_process : (s + 1) * per_process]} for s in range(width)]

    assert steps(1, 8) == steps(processes, 8 // processes)


def test_image_is_squashed_and_normalised(transform):
    out = ImageTransform(transform)(Image.new("RGB", (50, 200), (255, 0, 128)))
    assert out.shape == (1, 1, 3, 84, 84)
    assert out.dtype is torch.float32
    mean, std = torch.tensor(transform.transform_image.mean), torch.tensor(transform.transform_image.std)
    expected = (torch.tensor([1.0, 0.0, 128 / 255]) - mean) / std
    torch.testing.assert_close(out[0, 0].mean(dim=(1, 2)), expected, atol=1e-5, rtol=0)


def test_long_report_is_named(prepared):
    short = tiny_vision_transform(max_seq_len=24)
    with pytest.raises(ConfigError, match=r"max_seq_len: 24 tokens do not hold the prompt and the report of '"):
        report_dataset(DatasetContext(short, 8, 0), source=str(prepared), split="train")


def test_bad_arguments_are_named(prepared, context, transform, tmp_path):
    with pytest.raises(DataError, match="is not a prepared folder"):
        report_dataset(context, source=str(tmp_path), split="train")
    with pytest.raises(DataError, match="split 'trian' does not exist"):
        report_dataset(context, source=str(prepared), split="trian")
    with pytest.raises(ConfigError, match=r"dataset.limit: 0 is below 1"):
        report_dataset(context, source=str(prepared), split="train", limit=0)


def test_several_responses_are_shuffled_apart(prepared, context, transform):
    def make(count):
        return report_dataset(
            context,
            source=str(prepared),
            split="train",
            shuffling=shuffle_parts(","),
            responses_per_image=count,
        )

    four, one = make(4), make(1)
    assert [len(four[i].responses) for i in range(3)] == [4, 4, 4]
    assert four[0].responses[0] == one[0].responses[0]
    assert len({tuple(r) for i in range(8) for r in four[i].responses}) > 16
    with pytest.raises(ConfigError, match="4 responses are all the same without shuffling"):
        report_dataset(context, source=str(prepared), split="train", responses_per_image=4)


@pytest.mark.parametrize("tiles", [1, 4])
def test_cached_images_are_decoded_once_and_the_same(prepared, context, tiles, tmp_path, monkeypatch):
    context = replace(context, tiles=tiles)

    def make():
        return report_dataset(context, source=str(prepared), split="train", cache_images=str(tmp_path / "cache"))

    plain = report_dataset(context, source=str(prepared), split="train")
    expected = [plain[i].image for i in range(6)]
    first = make()
    assert all(torch.equal(first[i].image, expected[i]) for i in range(6))
    monkeypatch.setattr(ImageTransform, "canvas", None)  # nothing may be decoded again
    again = make()
    assert all(torch.equal(again[i].image, expected[i]) for i in range(6))
    with pytest.raises(TypeError):
        again[6]
