"""A run on a mixture: samples under the proxy and under words in one batch, losses by source, notes, resuming."""

import json

import pytest
import torch

from ift_components.data.dataset import collate
from ift_components.models.trainable import FINE_TUNING
from ift_components.proxy import UpdateRule
from ift_components.training.checks import Stage
from ift_components.training.data import build_loader, data_sources, epoch_batches
from ift_components.training.run import TrainingRun

REPORTS = "{_component_: ift_components.data.report_dataset, source: '${data}', split: train"
QUESTIONS = "{_component_: ift_components.data.question_dataset, source: '${data}', split: val, questions_per_image: 3"
SOURCES = f"""{{
    proxy: {{weight: 1.0, dataset: {REPORTS}}}}},
    text: {{weight: 1.0, dataset: {REPORTS}, instruction: Describe it.}}}},
    questions: {{weight: {{start: 1.0, end: 2.0}}, dataset: {QUESTIONS}}}}},
    rehearsal: {{weight: 0.5, dataset: {{_component_: ift_components.miniature.rehearsal.RehearsalDataset, samples: 40}}}}}}"""
OVERRIDES = [
    "dataset._component_=ift_components.data.mixture",
    f"dataset.sources={' '.join(SOURCES.split())}",
    "dataset.epochs=${epochs}",
    "dataset.samples=24",
    "batch_size=8",
    "epochs=2",
]


def test_losses_by_source_are_those_of_its_samples_alone(train_config, world, make_trainer):
    cfg = train_config(*OVERRIDES, "batch_size=24")
    loader = build_loader(cfg, world)
    assert data_sources(loader) == ("proxy", "text", "questions", "rehearsal")
    (batch,) = next(epoch_batches(loader, 0, 1))
    samples = [loader.dataset[index] for index in range(24)]
    assert batch.ids == [sample.id for sample in samples]  # in the mixture's own order
    assert {sample.source for sample in samples} == set(data_sources(loader))
    trainer = make_trainer(cfg, world)
    transform = loader.collate_fn.keywords["transform"]
    sums, counts = dict.fromkeys(data_sources(loader), 0.0), dict.fromkeys(data_sources(loader), 0)
    with torch.no_grad():
        for sample in samples:
            alone = collate([sample], transform)
            sums[sample.source] += trainer.loss(alone).sum().item()
            counts[sample.source] += len(alone.labels)
    trainer.sources = data_sources(loader)
    metrics = trainer.step([batch])
    for source, total in sums.items():
        assert metrics[f"loss_{source}"] == pytest.approx(total / counts[source], rel=1e-5)


def test_run_prints_notes_and_resumes_exactly(train_config, world, tmp_path, capsys):
    def run(folder, *overrides):
        cfg = train_config(*OVERRIDES, f"output_dir={tmp_path / folder}", *overrides)
        training = TrainingRun(cfg, world, Stage(FINE_TUNING, UpdateRule.UPDATE))
        training.prepare()
        return training

    whole = run("whole")
    whole.train()
    printed = capsys.readouterr().err
    assert "mixture: 48 samples in 2 epoch(s) of 24" in printed
    assert "  proxy: " in printed
    parts = run("parts", "checkpoint_every_steps=4")
    step = parts.trainer.step

    def stop_after_four(batches):
        parts.trainer.stop = parts.trainer.steps == 3
        return step(batches)

    parts.trainer.step = stop_after_four
    with pytest.raises(SystemExit):
        parts.train()
    run("parts", "checkpoint_every_steps=4", "resume=true").train()
    rows = [
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("whole", "parts")
    ]
    assert len(rows[0]) == len(rows[1]) == 6
    for left, right in zip(*rows, strict=True):
        assert {k: v for k, v in left.items() if k.startswith("loss")} == {
            k: v for k, v in right.items() if k.startswith("loss")
        }
