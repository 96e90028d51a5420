"""Loss that weighs words which carry values, or a source's tokens: which tokens they are, and the mean by hand."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from ift_components.data.schema import Attribute, Schema
from ift_components.data.value_spans import balanced_weights, value_spans
from ift_components.errors import ConfigError
from ift_components.training.data import build_loader, data_sources, epoch_batches
from ift_components.training.shard_step import squared_norms

REPORTS = "{_component_: ift_components.data.report_dataset, source: '${data}', split: train}"


def test_spans_are_the_values_whatever_the_order():
    schema = Schema(
        (
            Attribute("cell size", values=("big", "small")),
            Attribute("granule size", values=("big", "small")),
            Attribute("granularity", values=("yes", "no"), phrases={"yes": "{name}", "no": ""}),
            Attribute("colour", values=("blue", "red"), phrase="the {name} is {value} here"),
            Attribute("label", phrase="{value}"),
        )
    )
    values = [("cell size", "small"), ("granule size", "big"), ("granularity", "yes"), ("colour", "blue")]
    values += [("label", "big granule size cells"), ("findings", "small")]
    report = "the colour is blue here, big granule size cells, granularity, big granule size, small cell size"
    spans = value_spans(schema, values, report)
    assert [report[start:end] for start, end, _ in spans] == [
        "blue",
        "big granule size cells",
        "granularity",
        "big",
        "small",
    ]
    assert spans[-1][2] == ("cell size", "small")


def test_tokens_of_values_are_weighed(train_config, world):
    cfg = train_config("dataset.value_weight=3", "dataset.responses_per_image=2")
    dataset = build_loader(cfg, world).dataset
    decode = dataset._transform.tokenizer.decode
    for index in range(8):
        sample = dataset[index]
        values = {item["name"]: item["value"] for item in dataset._texts[index]["attributes"]}
        words = {value if value != "yes" else name for name, value in values.items() if value != "no"}
        for response, weights in zip(sample.responses, sample.weights, strict=True):
            heavy = [token if weight == 3 else None for token, weight in zip(response, weights, strict=True)]
            assert set(weights) == {1, 3}
            pieces, piece = [], []
            for token in heavy:  # a run of heavy tokens is a value
                if token is not None:
                    piece.append(token)
                elif piece:
                    pieces.append(decode(piece).strip())
                    piece = []
            assert sorted(pieces) == sorted(words)


def test_rare_values_count_more():
    images = [[("size", "big"), ("vacuole", "no")]] * 9 + [[("size", "small"), ("vacuole", "yes"), ("shape", "round")]]
    for power in (0, 0.3, 1):
        weights = balanced_weights(images, power)
        by_attribute = {
            name: [weights[pair] for row in images for pair in row if pair[0] == name] for name, _ in weights
        }
        assert all(sum(values) == pytest.approx(len(values)) for values in by_attribute.values())  # 1 on average
        assert weights["vacuole", "yes"] / weights["vacuole", "no"] == pytest.approx(9**power)
    assert weights["vacuole", "yes"] == pytest.approx(10 / (2 * 1))  # images / (values * images with the value)


def test_tokens_of_rare_values_count_more(train_config, world):
    dataset = build_loader(train_config("dataset.value_weight=2", "dataset.value_balance=1"), world).dataset
    rows = [[(item["name"], item["value"]) for item in row["attributes"]] for row in dataset._texts]
    expected = balanced_weights(rows, 1)
    for index in range(8):
        sample = dataset[index]
        (weights,) = sample.weights
        told = {2 * expected[pair] for pair in rows[index]}
        assert {1.0} < set(weights) <= {1.0, *told}


def test_loss_is_the_weighted_mean(train_config, world, make_trainer):
    options = ["batch_size=6", "dataset.responses_per_image=2", "optimizer._component_=torch.optim.SGD"]
    plain, weighed = train_config(*options), train_config(*options, "dataset.value_weight=3")
    (batch,) = next(epoch_batches(build_loader(weighed, world), 0, 1))
    (same,) = next(epoch_batches(build_loader(plain, world), 0, 1))
    assert same.weights is None
    assert torch.equal(batch.labels, same.labels)
    heavy = batch.weights == 3
    values = replace(same, labels=same.labels[heavy], response_index=same.response_index[heavy])
    reference = make_trainer(plain)
    # Three times the values' loss is the plain loss and twice theirs alone.
    total = (reference.loss(same) + 2 * reference.loss(values)).sum() / batch.weights.sum()
    total.backward()
    norm = squared_norms({"fusion": reference.groups["fusion"]}, 1, torch.device("cpu")).sqrt().item()
    metrics = make_trainer(weighed).step([batch])
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert metrics["grad_norm_fusion"] == pytest.approx(norm, rel=1e-4)
    assert metrics["tokens"] == len(batch.labels)


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_a_source_counts_less(train_config, world, make_trainer, weight):
    sources = f"{{a: {{weight: 1, dataset: {REPORTS}}}, b: {{weight: 1, loss_weight: {weight}, dataset: {REPORTS}}}}}"
    cfg = train_config(
        "dataset._component_=ift_components.data.mixture",
        f"dataset.sources={sources}",
        "dataset.epochs=1",
        "batch_size=8",
    )
    loader = build_loader(cfg, world)
    (batch,) = next(epoch_batches(loader, 0, 1))
    trainer = make_trainer(cfg)
    trainer.sources = data_sources(loader)
    with torch.no_grad():
        a, b = trainer.loss(replace(batch, weights=None)).tolist()
    n_a, n_b = replace(batch, weights=None).labels_by_source().tolist()
    metrics = trainer.step([batch])
    assert metrics["loss"] == pytest.approx((a + weight * b) / (n_a + weight * n_b), rel=1e-5)
    assert metrics["loss_a"] == pytest.approx(a / n_a, rel=1e-5)
    assert ("loss_b" in metrics) == (weight > 0)


def test_a_step_without_any_weight_is_no_error(train_config, world, make_trainer):
    cfg = train_config("dataset.value_weight=3")
    (batch,) = next(epoch_batches(build_loader(cfg, world), 0, 1))
    metrics = make_trainer(cfg).step([replace(batch, weights=torch.zeros_like(batch.weights))])
    assert metrics["loss"] == metrics["grad_norm"] == 0


def test_wrong_weights_are_refused(train_config, world, prepared, tmp_path):
    free = shutil.copytree(prepared, tmp_path / "free")
    manifest = json.loads((free / "manifest.json").read_text())
    (free / "manifest.json").write_text(json.dumps({**manifest, "schema": None}))
    with pytest.raises(ConfigError, match=r"value_balance: 0.0 weigh the values .* set them to 1 and 0"):
        build_loader(train_config(f"data={free}", "dataset.value_weight=3"), world)
    with pytest.raises(ConfigError, match=r"dataset\.value_weight: -1 is below 0"):
        build_loader(train_config("dataset.value_weight=-1"), world)
    with pytest.raises(ConfigError, match=r"dataset\.value_balance: 2 is not between 0 \(no balance\) and 1"):
        build_loader(train_config("dataset.value_balance=2"), world)
    sources = f"{{a: {{weight: 1, loss_weight: -2, dataset: {REPORTS}}}}}"
    with pytest.raises(ConfigError, match=r"sources\.a\.loss_weight: -2 is not a number of 0 or more"):
        build_loader(
            train_config(
                "dataset._component_=ift_components.data.mixture", f"dataset.sources={sources}", "dataset.epochs=1"
            ),
            world,
        )
