"""Mixtures: which source a sample is from, what each source hands out, balance, leaks, and what is refused."""

from collections import Counter

import numpy as np
import pytest
import torch
from questions import prepare_questions
from trees import build, save_csv, save_picture

from ift_components.config import load_config
from ift_components.data import mixture, report_dataset
from ift_components.data.balance import value_weights, word_weights
from ift_components.data.builders import image_text
from ift_components.data.dataset import DatasetContext, Sample, TrainingDataset
from ift_components.errors import ConfigError
from ift_components.models import tiny_vision_transform
from ift_components.training.data import ResumableSampler
from ift_components.training.settings import TrainSettings


class Numbered(TrainingDataset):
    """Samples whose ids are their epoch and number."""

    has_slots = False
    sources = ("numbered",)

    def __init__(self, context: DatasetContext, *, count: int, kind: str = "plain") -> None:
        self.count, self.epoch = count, 0
        if kind != "plain":
            raise ConfigError(f"dataset.kind: '{kind}' is not plain")

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Sample(f"{self.epoch}:{index}", [0], [[1]], torch.zeros(1))

    def texts(self):
        return ["often"] * (self.count - 1) + ["rare"]

    def values(self, attribute):
        return [None] * self.count if attribute != "half" else ["a"] + ["b"] * (self.count - 1)


def source(weight, count=5, **options):
    kind = options.pop("kind", "plain")
    return {
        "weight": weight,
        "dataset": {"_component_": "test_mixture.Numbered", "count": count, "kind": kind},
        **options,
    }


@pytest.fixture(scope="module")
def context():
    return DatasetContext(tiny_vision_transform(), proxy_vectors=8, seed=3)


def drawn(dataset, epochs):
    """Return every sample's source and id, epoch after epoch."""
    pairs = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        samples = [dataset[index] for index in range(len(dataset))]
        assert all(sample.id.startswith(f"{sample.source}/") for sample in samples)
        pairs += [(sample.source, sample.id.split("/")[1]) for sample in samples]
    return pairs


def test_share_of_a_source_follows_its_weight(context):
    weights = {"a": 1.0, "b": {"start": 0.02, "end": 0.5, "from": 0.8}}
    dataset = mixture(context, sources={k: source(w) for k, w in weights.items()}, epochs=2, samples=5000)
    is_b = np.array([name == "b" for name, _ in drawn(dataset, 2)])

    def expected(progress):
        weight = 0.02 if progress <= 0.8 else 0.02 + (progress - 0.8) / 0.2 * 0.48
        return weight / (1 + weight)

    for start, end in ((0, 4000), (4000, 8000), (8000, 9000), (9000, 9500), (9500, 10000)):
        share = np.mean([expected((i + 0.5) / 10000) for i in range(start, end)])
        deviation = np.sqrt(share * (1 - share) / (end - start))
        assert abs(is_b[start:end].mean() - share) < 4 * deviation
    counts = Counter(name for name, _ in drawn(dataset, 2))
    notes = dataset.notes()
    assert notes[0] == "mixture: 10000 samples in 2 epoch(s) of 5000"
    assert notes[1].startswith(f"  a: {counts['a']} samples ({counts['a'] / 10000:.1%}), ")
    assert notes[2].endswith(f"{counts['b'] / 5:.2f} times its 5; weight 0.02 to 0.5 from 80% on")


def test_an_epoch_goes_once_through_the_named_source(context):
    sources = {"a": source(0.8, 6169), "b": source(0.2, 2000)}
    dataset = mixture(context, sources=sources, epochs=2, samples="a")
    assert len(dataset) == 7711  # 6,169 are four fifths of it
    sources = {"a": source({"start": 1, "end": 0}, 300), "b": source({"start": 0, "end": 1}, 50)}
    assert len(mixture(context, sources=sources, epochs=2, samples="a")) == 600  # half of the run in the mean
    for samples, message in (
        ("c", "dataset.samples: 'c' is neither a number nor a source; sources: a, b"),
        ("b", "dataset.samples: 'b' has the weight 0 throughout"),
    ):
        with pytest.raises(ConfigError, match=message):
            mixture(context, sources={"a": source(1.0), "b": source(0)}, epochs=1, samples=samples)


def test_no_sample_comes_again_before_all_have_come(context):
    dataset = mixture(context, sources={"a": source(2.0, 7), "b": source(1.0, 4)}, epochs=3)
    assert len(dataset) == 11
    pairs = drawn(dataset, 3)
    for name, count in (("a", 7), ("b", 4)):
        ids = [id_ for source_name, id_ in pairs if source_name == name]
        for start in range(0, len(ids), count):
            some = ids[start : start + count]
            assert {id_.split(":")[0] for id_ in some} == {str(start // count)}  # each pass is an epoch of the source
            assert len(set(some)) == len(some)
    assert [id_ for name, id_ in pairs if name == "a"][:7] != sorted(id_ for name, id_ in pairs if name == "a")[:7]


def test_samples_depend_on_seed_epoch_and_index_alone(context):
    def make(seed=3):
        sources = {"a": source(1.0, 9), "b": source({"start": 0, "end": 1}, 4)}
        return mixture(DatasetContext(context.transform, 0, seed), sources=sources, epochs=3, samples=20)

    pairs, late = drawn(make(), 3), make()
    late.set_epoch(2)
    assert [late[index].id for index in reversed(range(20))] == [f"{a}/{b}" for a, b in reversed(pairs[40:])]
    assert pairs != drawn(make(seed=4), 3)


def test_order_is_kept_by_the_sampler(context):
    dataset = mixture(context, sources={"a": source(1.0, 10)}, epochs=1)
    assert dataset.is_ordered
    shares = [list(ResumableSampler(dataset, 2, rank, shuffle=not dataset.is_ordered)) for rank in range(2)]
    assert shares == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_words_and_values_are_weighed():
    texts = ["small round", "small, round", "Small odd", ""]
    raw = np.array([(1 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 2) / 2, (1 / 3 + 1) / 2, 1 / 4])
    np.testing.assert_allclose(word_weights(texts), raw / raw.sum())
    np.testing.assert_allclose(value_weights(["x", "x", "y", None]), [1 / 6, 1 / 6, 1 / 3, 1 / 3])


@pytest.mark.parametrize(("balance", "number"), [("words", 9), ({"attribute": "half"}, 0)])
def test_balanced_source_is_drawn_by_its_weights(context, balance, number):
    """Nine texts share a word and weigh 1/9 each, the tenth's word weighs 1; of two values each is drawn as often."""
    dataset = mixture(context, sources={"a": source(1.0, 10, balance=balance)}, epochs=1, samples=4000)
    ids = Counter(id_.split(":")[1] for _, id_ in drawn(dataset, 1))
    assert abs(ids[str(number)] - 2000) < 4 * np.sqrt(4000 / 4)
    assert len(ids) == 10


def test_reports_tell_their_words_and_values(prepared, context):
    dataset = report_dataset(context, source=str(prepared), split="train", repeat=2, limit=3)
    texts, shapes = dataset.texts(), dataset.values("shape")
    assert len(texts) == len(shapes) == len(dataset) == 6
    assert all(f"{shape} shape" in text for shape, text in zip(shapes, texts, strict=True))
    assert dataset.values("weight") == [None] * 6


def test_leaks_among_sources_are_told(context, tmp_path):
    """Three of the other folder's train images are in the first's test: two files, one saved anew as JPEG; and a case."""
    first = prepare_questions(tmp_path / "first")
    root = tmp_path / "in"
    names = [
        save_picture(root / f"{seed}.png", seed).name for seed in (8, 9, 50, 51)
    ]  # 8 and 9: the first's test images
    rows = [[name, "Seen.", "train", f"case {n + 9}"] for n, name in enumerate(names[:3])]
    save_csv(
        root / "t.csv",
        ["image", "text", "set", "case"],
        [*rows, *([names[3], "Seen.", s, "z"] for s in ("val", "test"))],
    )
    second = tmp_path / "second"
    build(image_text(root, "t.csv", split_column="set", group_column="case", on_bad_row="skip"), second)

    def reports(folder):
        node = {"_component_": "ift_components.data.report_dataset", "source": str(folder), "split": "train"}
        return {"weight": 1.0, "dataset": node}

    dataset = mixture(context, sources={"one": reports(first), "two": reports(second)}, epochs=1)
    leaks = [note for note in dataset.notes() if note.startswith("leak")]
    leak = "2 identical image(s), 0 more that look alike, 1 group(s) of one name"
    assert leaks == [f"leak: source 'two' trains on what 'test' of {first.resolve()} holds: {leak}"]
    alone = mixture(context, sources={"two": reports(second)}, epochs=1, tested_on=[str(first)])
    assert [note for note in alone.notes() if note.startswith("leak")] == leaks


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "dataset.sources: names no source"),
        ({"a": source(-1)}, "dataset.sources.a.weight: -1 is not a number of 0 or more"),
        ({"a": source(float("nan"))}, "weight: nan is not a number of 0 or more"),
        ({"a": source("much")}, "weight: much is not a number of 0 or more"),
        ({"a": source(0), "b": source(0)}, "all weights are 0 at 2% of the run"),
        ({"a": source({"start": 1, "end": 0}), "b": source({"start": 1, "end": -0.1})}, "b.weight.end: -0.1 is not"),
        ({"a": source({"start": 0, "end": 1, "from": 0.5})}, "all weights are 0 at 2% of the run"),
        ({"a": source({"start": 0, "end": 1, "from": 1})}, "weight.from: 1.0 is not a share of the run"),
        ({"a": source({"start": 0, "until": 1})}, "neither a number nor a mapping of start, end and from"),
        ({"a": {"weight": 1}}, "dataset.sources.a: {'weight': 1} is not a mapping of weight, dataset and"),
        ({"a": source(1, kind="odd")}, "source 'a': dataset.kind: 'odd' is not plain"),
        ({"a": source(1, balance="rare")}, "balance: rare is neither 'words' nor a mapping"),
        ({"a": source(1, balance={"attribute": "x"})}, "balance: no sample has the attribute 'x'"),
    ],
)
def test_bad_sources_are_named(context, sources, message):
    with pytest.raises(ConfigError) as error:
        mixture(context, sources=sources, epochs=2, samples=10)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_two_sources_of_one_name_are_refused(tmp_path):
    config = tmp_path / "two.yaml"
    config.write_text("output_dir: x\ndataset:\n  sources:\n    a: {weight: 1}\n    a: {weight: 2}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="found duplicate key a") as error:
        load_config(str(config), [], TrainSettings)
    assert "\n" not in str(error.value)
