"""What the loaders refuse before a run starts, and what they say about sources."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from ift_components.data import report_dataset
from ift_components.data.dataset import DatasetContext
from ift_components.data.prompts import slot_id
from ift_components.errors import ConfigError
from ift_components.models import tiny_vision_transform
from ift_components.training.data import build_loader, build_validation_loader, data_sources, epoch_batches


class TwoSources:
    """A component of a user's own: every third sample is from another source, under a text of its own."""

    sources = ("reports", "questions")
    has_slots = True
    is_ordered = False

    def __init__(self, context, source):
        self._slots = report_dataset(context, source=source, split="train")
        self._texts = report_dataset(context, source=source, split="train", instruction="What is shown?")

    def __len__(self):
        return len(self._slots)

    def __getitem__(self, index):
        return replace(self._texts[index], source="questions") if index % 3 == 0 else self._slots[index]

    def set_epoch(self, epoch):
        self._slots.set_epoch(epoch)


class Slots(TwoSources):
    """Ignores the run's instruction."""

    def __init__(self, context, source):
        super().__init__(DatasetContext(context.transform, 8, context.seed), source)


def own(component, prepared):
    node = f"dataset={{_component_: {__name__}.{component.__name__}, source: '{prepared}'}}"
    return ["~dataset", node]


def test_instruction_takes_the_slots_place(train_config, world):
    batches = next(epoch_batches(build_loader(train_config("instruction=Describe this."), world), 0, 1))
    assert len(batches[0].slot_index) == 0
    transform = tiny_vision_transform()
    assert not (batches[0].tokens == slot_id(transform)).any()
    text = transform.tokenizer.encode("Describe this.", add_bos=False, add_eos=False)
    row = batches[0].tokens[0].tolist()
    assert row[row.index(transform.tokenizer.image_id) + 1 :][: len(text)] == text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["instruction=Describe", "dataset.instruction=null"],
            r"dataset.instruction: is null, and a run under an `instr",
        ),
        (["dataset.instruction=Describe"], r"dataset: no sample's prompt has a place for the proxy"),
    ],
)
def test_prompts_that_do_not_fit_the_run_are_refused(train_config, world, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_loader(train_config(*overrides), world)


def test_a_dataset_that_ignores_the_instruction_is_refused(train_config, world, prepared):
    cfg = train_config("instruction=Describe", *own(Slots, prepared))
    with pytest.raises(ConfigError, match="dataset: its prompts hold proxy slots, and under `instruction` there is no"):
        build_loader(cfg, world)


def test_losses_are_logged_by_source(train_config, world, make_trainer, prepared):
    val = f"val_dataset={{_component_: {__name__}.TwoSources, source: '{prepared}'}}"
    cfg = train_config(*own(TwoSources, prepared), val, "batch_size=6")
    loader, val_loader = build_loader(cfg, world), build_validation_loader(cfg, world)
    assert data_sources(loader) == data_sources(val_loader) == ("reports", "questions")
    trainer = make_trainer(cfg)
    trainer.sources = data_sources(loader)
    steps = epoch_batches(loader, 0, 2)
    batches = next(steps)
    counts = torch.stack([batch.labels_by_source() for batch in batches]).sum(dim=0)
    assert counts.min() > 0
    with torch.no_grad():
        sums = sum(trainer.loss(batch) for batch in batches)
    metrics = trainer.step(batches)
    assert metrics["loss_reports"] == pytest.approx(float(sums[0] / counts[0]), rel=1e-6)
    assert metrics["loss_questions"] == pytest.approx(float(sums[1] / counts[1]), rel=1e-6)
    assert metrics["loss"] == pytest.approx(float(sums.sum() / counts.sum()), rel=1e-6)
    assert metrics["tokens"] == counts.sum()
    losses = trainer.validation_losses(val_loader, data_sources(val_loader))
    assert set(losses) == {"val_loss", "val_loss_reports", "val_loss_questions"}
    low, high = sorted((losses["val_loss_reports"], losses["val_loss_questions"]))
    assert low < losses["val_loss"] < high


def test_epochs_of_one_seed_are_not_those_of_the_next(train_config, world):
    """Nor is any of the first epochs of the first seeds another's; the first epoch's order is torch's own for the seed."""
    orders = {}
    for seed in range(3):
        sampler = build_loader(train_config(f"seed={seed}"), world).sampler
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders[seed, epoch] = tuple(sampler)
            assert sorted(orders[seed, epoch]) == list(range(64))
        sampler.set_epoch(1)
        assert tuple(sampler) == orders[seed, 1]
        expected = torch.randperm(64, generator=torch.Generator().manual_seed(seed)).tolist()
        assert list(orders[seed, 0]) == expected
    assert len(set(orders.values())) == 9


def test_batches_are_pinned(train_config, world, monkeypatch):
    """What torch's loader calls under `pin_memory` reaches every tensor of a batch."""
    (batch,) = next(epoch_batches(build_loader(train_config("dataset.responses_per_image=2"), world), 0, 1))
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor.clone())
    copy = pin_memory(batch)
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 9
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors}
    assert torch.equal(copy.tokens, batch.tokens)
    assert copy.tokens is not batch.tokens
    assert copy.ids == batch.ids
