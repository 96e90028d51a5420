"""The model card: what Hugging Face reads of it, the facts of the run, scores put in later, the base's licence."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from ift_components.errors import ConfigError
from ift_components.models import model_card
from ift_components.models.image_layout import ImageLayout
from ift_components.models.model_card import RunFacts, base_licence, base_name, with_scores
from ift_components.models.tiny import TINY_CHECKPOINT

FACTS = RunFacts(
    base="Llama-3.2-11B-Vision-Instruct",
    base_licence="llama3.2",
    data={"wbcatt": {"reports": 6169}, "smears": {"reports": 2000, "questions": 40}},
    private=False,
    trained={"encoder": "full, learning rate 2e-05", "fusion": "full, learning rate 2e-05"},
    prompt="in place of an instruction stood a proxy of 8 vectors (rule track, momentum 0.999)",
    settings={"steps": 1250, "samples a step": 2, "dtype": "bf16"},
    seed=3,
    layout=ImageLayout(tile_padding="meta"),
)


def test_hugging_face_reads_it():
    card = ModelCard(model_card.model_card(FACTS))
    assert card.data.license == "llama3.2"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "transformers"
    assert "instruction-free-tuning" in card.data.tags


def test_it_holds_the_facts():
    text = model_card.model_card(FACTS)
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = {name.strip(): value.strip() for name, value in cells}
    assert rows["wbcatt"] == "6169 reports"
    assert rows["smears"] == "2000 reports, 40 questions"
    assert rows["encoder"] == "full, learning rate 2e-05"
    assert rows["seed"] == "3"
    assert rows["steps"] == "1250"
    assert FACTS.prompt in text
    assert "`tile_padding: meta`" in text
    assert 'show "Built with Llama"' in text
    assert "private" not in text
    assert "is private" in model_card.model_card(replace(FACTS, private=True))
    assert "Built with" not in model_card.model_card(replace(FACTS, base_licence="mit"))
    assert "declares none" in model_card.model_card(replace(FACTS, base_licence=None))
    assert "random ones" in model_card.model_card(replace(FACTS, base=None, base_licence=None))


def test_scores_take_the_place_of_earlier_ones():
    card = model_card.model_card(FACTS)
    assert "Not evaluated yet." in card
    first = with_scores(card, {"accuracy": 0.6666, "interval": [0.6, 0.7]}, "the test split of wbcatt")
    second = with_scores(first, {"questions": 100, "accuracy": 0.5}, "the test split of smears")
    assert "| accuracy | 0.667 |" in first
    assert "| interval | 0.600 to 0.700 |" in first
    assert "Not evaluated" not in first
    assert "| accuracy | 0.500 |" in second
    assert "| questions | 100 |" in second
    assert "0.667" not in second
    assert second.count("## Licence") == card.count("## Licence") == 1
    with pytest.raises(ConfigError, match="no '<!-- scores -->'"):
        with_scores("# A card of someone else", {}, "x")


def test_scores_are_put_in_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(model_card.model_card(FACTS))
    results = {"dataset": "cells", "split": "test", "accuracy": 0.75, "interval": [0.7, 0.8], "seconds": 12.5}
    (tmp_path / "results.json").write_text(json.dumps({**results, "attributes": {"size": {}}, "questions": 8}))
    monkeypatch.setattr("sys.argv", ["model_card", str(tmp_path), str(tmp_path / "results.json")])
    model_card.main()
    text = (tmp_path / "README.md").read_text()
    assert "| on the test split of cells | |\n|---|---|\n| accuracy | 0.750 |\n| questions | 8 |\n| interval |" in text
    assert "12.5" not in text


def test_a_base_is_named_without_its_path(tmp_path):
    assert base_name(TINY_CHECKPOINT) == "The miniature"
    cached = tmp_path / "models--meta-llama--Llama-3.2-11B-Vision-Instruct" / "snapshots" / "9eb2daaa"
    assert base_name(cached) == "meta-llama/Llama-3.2-11B-Vision-Instruct"
    assert base_name(tmp_path / "Llama-3.2-11B") == "Llama-3.2-11B"


def test_the_bases_licence_is_read_from_its_card(tmp_path):
    assert base_licence(TINY_CHECKPOINT) == "bsd-3-clause"
    assert base_licence(None) is None
    assert base_licence(tmp_path) is None
    (tmp_path / "README.md").write_text("# no header\nlicense: mit\n")
    assert base_licence(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    assert base_licence(tmp_path) == "llama3.2"
