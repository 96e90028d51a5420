"""Keeping to the untuned model on general prompts: divergence and gradient by hand, and with everything else at once."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ift_components.errors import ConfigError
from ift_components.models.forward import Target
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.run import TrainingRun

REPORTS = (
    "{_component_: ift_components.data.report_dataset, source: '${data}', split: train, responses_per_image: 2, "
    "shuffling: {_component_: ift_components.shuffling.shuffle_parts}, value_weight: 3}"
)
GENERAL = "{_component_: ift_components.miniature.rehearsal.RehearsalDataset, samples: 40}"
SOURCES = (
    f"{{reports: {{weight: 1, dataset: {REPORTS}}}, rehearsal: {{weight: 1, loss_weight: 0.5, dataset: {GENERAL}}}}}"
)
MIXTURE = ["dataset._component_=ift_components.data.mixture", f"dataset.sources={SOURCES}"]
MIXTURE += ["dataset.epochs=${epochs}", "dataset.samples=40"]
START = [f"checkpoint_dir={TINY_CHECKPOINT}", f"proxy.path={TINY_PROXY}"]
LORA = "tuning={encoder: {method: lora, rank: 4}, fusion: {method: lora, rank: 4}, decoder: frozen}"


@pytest.fixture
def make_run(train_config, world, tmp_path):
    def make(name, *overrides):
        cfg = train_config(*MIXTURE, *START, f"output_dir={tmp_path / name}", "epochs=2", *overrides)
        training = TrainingRun(cfg, world, check_settings(cfg))
        training.prepare()
        return training

    return make


@pytest.mark.parametrize("more", [(), (LORA,), ("dtype=bf16", "tuning.decoder=full")])
def test_divergence_and_its_gradient_are_those_by_hand(make_run, more):
    options = ["batch_size=6", "optimizer._component_=torch.optim.SGD", "optimizer.lr=0.05", *more]
    kept = make_run("kept", "rehearsal.kl_weight=0.7", "clip_grad_norm=null", *options).trainer
    plain = make_run("plain", "clip_grad_norm=null", *options).trainer
    untuned = make_run("untuned", *options).trainer.module
    with torch.no_grad():  # away from the start, where the divergence is 0
        generator = torch.Generator().manual_seed(0)
        for p, q in zip(kept.groups["fusion"], plain.groups["fusion"], strict=True):
            noise = 0.05 * torch.randn(p.shape, generator=generator)
            for each in (p, q):
                local = each.to_local() if hasattr(each, "to_local") else each
                local.add_(noise)
    (batch,) = next(epoch_batches(make_run("data", *options).loader, 0, 1))
    rows = (batch.source_index == 1).nonzero().squeeze(1)
    assert 0 < len(rows) < len(batch.labels)
    with torch.no_grad():
        p = F.log_softmax(untuned(batch, plain.proxy.seen, logits_only=True)[rows], dim=-1)
    q = F.log_softmax(plain.module(batch, plain.proxy.seen, logits_only=True)[rows], dim=-1)
    divergence = (p.exp() * (p - q)).sum() / len(rows)
    metrics = kept.step([batch])
    losses, weights = plain.loss(batch), batch.labels_by_source().sum()
    assert metrics["kl"] == pytest.approx(divergence.item(), rel=1e-3)
    assert metrics["kl"] > 1e-6
    assert metrics["loss"] == pytest.approx((losses.sum() / weights).item(), rel=1e-5)  # its own weights are back
    if "dtype=bf16" in more:
        return
    (losses.sum() / weights + 0.7 * divergence).backward()
    for part in ("encoder", "fusion"):
        # A plain step moves by the gradient; both trainers stood at the same weights.
        moved = torch.cat(
            [(q - p).detach().flatten() for p, q in zip(kept.groups[part], plain.groups[part], strict=True)]
        )
        wanted = 0.05 * torch.cat([q.grad.flatten() for q in plain.groups[part]])
        assert (moved - wanted).norm() <= 1e-3 * wanted.norm(), part


def test_divergence_is_zero_at_the_start_and_off_changes_nothing(make_run):
    kept, plain = make_run("kept", "rehearsal.kl_weight=1").trainer, make_run("plain").trainer
    batches = next(epoch_batches(make_run("data", "batch_size=8").loader, 0, 1))
    first, same = kept.step(batches), plain.step(batches)
    assert first.pop("kl") == pytest.approx(0, abs=1e-9)
    assert first["loss"] == same["loss"]
    assert first["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-6)
    assert kept.step(batches)["kl"] > 0


def test_selected_samples_are_computed_as_before(train_config, world, make_trainer):
    cfg = train_config(*MIXTURE, "batch_size=8")
    trainer = make_trainer(cfg)
    (batch,) = next(epoch_batches(build_loader(cfg, world), 0, 1))
    with torch.no_grad():
        whole = trainer.module(batch, trainer.proxy.seen, logits_only=True)
        some = batch.select([1, 2, 5, 7])
        part = trainer.module(some, trainer.proxy.seen, logits_only=True)
    rows = batch.response_index // batch.tokens.shape[1]
    chosen = sum(rows == row for row in (1, 2, 5, 7)).bool()
    torch.testing.assert_close(part, whole[chosen], rtol=0, atol=1e-4)
    assert torch.equal(some.labels, batch.labels[chosen])
    assert some.ids == [batch.ids[row] for row in (1, 2, 5, 7)]
    target = Target(torch.arange(len(part)), part)
    with torch.no_grad():
        assert trainer.module(some, trainer.proxy.seen, target)[-1].item() == pytest.approx(0, abs=1e-5)


EVERYTHING = ["rehearsal.kl_weight=0.5", "averaging.decay=0.8", "proxy.noise=0.1", "proxy.dropout=0.1", "max_steps=4"]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_everything_at_once_resumes_exactly(make_run, tmp_path):
    options = [*EVERYTHING, "batch_size=8"]
    make_run("whole", *options).train()
    parts = make_run("parts", *options)
    step = parts.trainer.step

    def stop_after_two(batches):
        parts.trainer.stop = parts.trainer.steps == 1
        return step(batches)

    parts.trainer.step = stop_after_two
    with pytest.raises(SystemExit):
        parts.train()
    make_run("parts", *options, "resume=true").train()
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [(row["loss"], row["kl"]) for row in whole] == [(row["loss"], row["kl"]) for row in parts]
    for name in ("model.safetensors", "proxy_instruction.safetensors"):
        left, right = (load_file(tmp_path / run / "checkpoint" / name) for run in ("whole", "parts"))
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_everything_at_once_on_two_processes_repeats_one(tune, make_run, prepared, tmp_path):
    make_run("one", *EVERYTHING, "batch_size=8").train()
    options = [*MIXTURE, *START, *EVERYTHING, f"data={prepared}", "num_workers=0", "epochs=2", "batch_size=4"]
    command = ["ift_recipe", "--config", "tiny_ift.yaml", *options, f"output_dir={tmp_path / 'two'}"]
    tune("--nproc_per_node", "2", *command, cwd=tmp_path)
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    for key in ("loss", "loss_reports", "kl"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rehearsal.kl_weight=-1"], r"rehearsal\.kl_weight: -1\.0 is below 0"),
        (
            ["rehearsal.kl_weight=1", "tuning.fusion=ptuning_v2"],
            r"compares with the untuned model, which 'ptuning_v2' on",
        ),
        (
            ["rehearsal.kl_weight=1", "rehearsal.source=other"],
            r"rehearsal\.source: 'other' is not one of several sources",
        ),
        (["rehearsal.kl_weight=1", "rehearsal.source=reports"], r"the prompts of 'reports' are the proxy's"),
    ],
)
def test_wrong_rehearsal_is_refused(make_run, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_run("wrong", *overrides)
