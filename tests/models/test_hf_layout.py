"""Checkpoints: torchtune's own checkpointer reads ours, ours survive a round trip, broken ones are named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchtune.training import FullModelHFCheckpointer

from ift_components.errors import ConfigError
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.hf_layout import checkpoint_files, hf_config, load_weights, save_checkpoint

# Positions of tile grids that four tiles cannot form; the layout drops them and torchtune fills them with zeros.
UNUSED = ("pre_tile_pos_embed.embedding", "post_tile_pos_embed.embedding", "global_token_positional_embedding")


@pytest.fixture
def model():
    return tiny_llama3_2_vision(decoder_dim=32, encoder_dim=16, num_layers=4, image_size=28)


@pytest.fixture
def folder(model, tmp_path):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, model.state_dict(), hf_config(model), dtype=torch.float32, max_shard_size="200KB")
    return path


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        got = state[name]
        if name.endswith(UNUSED):  # [rows, columns, ...]: a grid of at most four tiles
            used = [(r, c) for r in range(4) for c in range(4) if (r + 1) * (c + 1) <= 4]
            got, value = (torch.stack([t[r, c] for r, c in used]) for t in (got, value))
        assert torch.equal(got, value), name


def test_round_trip_is_exact(model, folder):
    assert len(checkpoint_files(folder)) > 2
    other = tiny_llama3_2_vision(decoder_dim=32, encoder_dim=16, num_layers=4, image_size=28, init_seed=1)
    load_weights(other, folder)
    assert_same(other.state_dict(), model.state_dict())


def test_torchtunes_checkpointer_reads_it(model, folder, tmp_path):
    names = [path.name for path in checkpoint_files(folder)]
    checkpointer = FullModelHFCheckpointer(str(folder), names, "LLAMA3_VISION", str(tmp_path / "out"))
    assert_same(checkpointer.load_checkpoint()["model"], model.state_dict())


def test_names_are_the_old_hugging_face_ones(folder):
    weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert "language_model.model.embed_tokens.weight" in weights
    assert "language_model.model.layers.1.cross_attn.q_proj.weight" in weights
    assert "vision_model.patch_embedding.weight" in weights
    assert json.loads((folder / "config.json").read_text())["text_config"]["cross_attention_layers"] == [1, 4]


def test_special_tokens_are_the_tokenizers():
    text = hf_config(tiny_llama3_2_vision())["text_config"]
    tokenizer = tiny_vision_transform().tokenizer
    assert text["bos_token_id"] == tokenizer.bos_id
    assert text["eos_token_id"] == [tokenizer.eos_id, tokenizer.eom_id, tokenizer.eot_id]
    assert text["pad_token_id"] == tokenizer.pad_id


def test_transformers_loads_it(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = tiny_llama3_2_vision()
    save_checkpoint(tmp_path / "c", model.state_dict(), hf_config(model), dtype=torch.float32)
    loaded, report = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "c", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    projector = loaded.model.multi_modal_projector.weight
    assert torch.equal(projector, model.encoder.projection.output.weight)


def test_saved_dtype(model, tmp_path):
    save_checkpoint(tmp_path / "c", model.state_dict(), hf_config(model), dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "c" / "model.safetensors").values()} == {torch.bfloat16}


def test_model_of_another_shape_is_named(folder):
    other = tiny_llama3_2_vision(decoder_dim=32, encoder_dim=16, num_layers=2, image_size=28)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ConfigError, match=r"does not fit the model: \d+ weights differ; first: decoder\."):
        load_weights(other, folder)
    assert before.keys() == other.state_dict().keys()


def test_damage_is_named(folder):
    first, *_ = checkpoint_files(folder)
    first.write_bytes(first.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=f"{first.name} cannot be read"):
        load_weights(tiny_llama3_2_vision(decoder_dim=32, encoder_dim=16, num_layers=4, image_size=28), folder)
    first.unlink()
    with pytest.raises(ConfigError, match=f"lacks {first.name}"):
        checkpoint_files(folder)


def test_missing_weight_is_named(model, tmp_path):
    save_checkpoint(tmp_path / "c", model.state_dict(), hf_config(model), dtype=torch.float32)
    path = tmp_path / "c" / "model.safetensors"
    weights = load_file(path)
    del weights["multi_modal_projector.bias"]
    save_file(weights, path)
    with pytest.raises(ConfigError, match=r"1 weights differ; first: encoder.projection.output.bias is missing"):
        load_weights(model, tmp_path / "c")


def test_no_checkpoint_is_named(model, tmp_path):
    with pytest.raises(ConfigError, match=r"has no config.json"):
        load_weights(model, tmp_path)
