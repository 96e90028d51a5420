"""The facts of a run's model card."""

import json
import shutil

from ift_components.training.card import run_facts


def test_a_runs_facts(train_config, prepared, world):
    overrides = (
        "tuning.encoder.method=full",
        "tuning.encoder.lr=1e-5",
        "dataset.limit=16",
        "gradient_accumulation_steps=2",
    )
    facts = run_facts(train_config(*overrides, "seed=7", "tile_padding=meta"), world)
    assert facts.base is None
    assert facts.base_licence is None
    assert facts.data == {"image_table": {"reports": 64}}
    assert not facts.private
    assert facts.trained == {"encoder": "full, learning rate 1e-05", "fusion": "full, learning rate 0.0003"}
    assert (
        facts.prompt
        == "in place of an instruction stood a proxy of 8 vectors, random at first (rule track, momentum 0.999)"
    )
    assert facts.settings["samples a step"] == 8
    assert facts.settings["samples at most"] == 16
    assert facts.seed == 7
    assert facts.layout.tile_padding == "meta"


def test_an_instruction_and_private_data(train_config, prepared, world, tmp_path):
    private = shutil.copytree(prepared, tmp_path / "private")
    manifest = json.loads((private / "manifest.json").read_text())
    (private / "manifest.json").write_text(json.dumps({**manifest, "private": True}))
    facts = run_facts(train_config(f"data={private}", "instruction=Describe this."), world)
    assert facts.private
    assert facts.prompt == 'the instruction was "Describe this."'
