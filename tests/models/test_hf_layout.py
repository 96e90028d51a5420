"""Checkpoints: torchtune's own checkpointer reads ours, ours survive a round trip, broken ones are named."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchtune.training import FullModelHFCheckpointer

from ift_components.errors import ConfigError
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.hf_files import INDEX
from ift_components.models.hf_layout import checkpoint_files, hf_config, load_weights, save_checkpoint

# Positions of tile grids that four tiles cannot form; the layout drops them and torchtune fills them with zeros.
UNUSED = ("pre_tile_pos_embed.embedding", "post_tile_pos_embed.embedding", "global_token_positional_embedding")


@pytest.fixture
def model():
    return tiny_llama3_2_vision(decoder_dim=32, encoder_dim=16, num_layers=4, image_size=28)


@pytest.fixture
def folder(model, tmp_path):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, model.state_dict(), hf_config(model), dtype=torch.float32, max_file_bytes=200_000)
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


def newer_names(folder):
    """Rename a checkpoint's weights as transformers 4.52 and later name them."""

    def newer(key):
        key = re.sub(r"^language_model\.lm_head", "lm_head", key)
        key = re.sub(r"^language_model\.model", "model.language_model", key)
        return re.sub(r"^(vision_model|multi_modal_projector)", r"model.\1", key)

    for path in folder.glob("*.safetensors"):
        save_file({newer(key): value for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {newer(key): name for key, name in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    return index["weight_map"]


@pytest.mark.parametrize("size", [200_000, 10**9])
def test_newer_names_are_read_from_one_file_and_from_several(model, tmp_path, size):
    save_checkpoint(tmp_path / "c", model.state_dict(), hf_config(model), dtype=torch.float32, max_file_bytes=size)
    weight_map = newer_names(tmp_path / "c")
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} < weight_map.keys()
    assert (len(set(weight_map.values())) == 1) == (size == 10**9)
    other = tiny_llama3_2_vision(decoder_dim=32, encoder_dim=16, num_layers=4, image_size=28, init_seed=1)
    load_weights(other, tmp_path / "c")
    assert_same(other.state_dict(), model.state_dict())


def test_tensors_may_come_one_at_a_time(model, folder, tmp_path):
    """What is written does not depend on it, and files are there before the last tensors are asked for."""
    files_before_the_last = []

    def pairs():
        yield from list(model.state_dict().items())[::-1]
        files_before_the_last.extend((tmp_path / ".c.partial").glob("*.safetensors"))

    save_checkpoint(tmp_path / "c", pairs(), hf_config(model), dtype=torch.float32, max_file_bytes=200_000)
    assert len(files_before_the_last) > 2
    index = json.loads((tmp_path / "c" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(
        value.nbytes for path in checkpoint_files(tmp_path / "c") for value in load_file(path).values()
    )
    for path in checkpoint_files(tmp_path / "c"):
        values = load_file(path)
        assert sum(value.nbytes for value in values.values()) <= 200_000 or len(values) == 1
        assert all(index["weight_map"][key] == path.name for key in values)
    a, b = (
        {k: v for path in checkpoint_files(f) for k, v in load_file(path).items()} for f in (folder, tmp_path / "c")
    )
    assert a.keys() == b.keys() == index["weight_map"].keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_half_of_the_embedding_is_refused(model, tmp_path):
    state = model.state_dict()
    del state["decoder.tok_embeddings.fusion_embedding.weight"]
    with pytest.raises(ValueError, match="without the other half of the embedding"):
        save_checkpoint(tmp_path / "c", state, hf_config(model), dtype=torch.float32)
    assert not (tmp_path / "c").exists()


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


def test_a_weight_of_another_model_is_named(model, folder):
    path = checkpoint_files(folder)[0]
    weights = load_file(path)
    save_file({**weights, "model.embed_positions.weight": torch.zeros(2)}, path)
    with pytest.raises(
        ConfigError, match=r"1 weights differ; first: model.embed_positions.weight is not a weight of Ll"
    ):
        load_weights(model, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "qwen2_5_vl"}, "is of a model of type 'qwen2_5_vl'; expected 'mllama'"),
        ([], "is of a model of type 'None'"),
        ({"model_type": "mllama", "text_config": {}}, "lacks 'vision_config'"),
        ({"model_type": "mllama", "text_config": {}, "vision_config": {}}, "lacks 'num_attention_heads'"),
        (None, "is not JSON"),
    ],
)
def test_another_models_config_is_an_error_of_one_line(model, folder, content, message):
    (folder / "config.json").write_text("{" if content is None else json.dumps(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_weights(model, folder)
    assert "\n" not in str(caught.value)


def test_a_config_of_other_widths_is_an_error_of_one_line(model, folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError,
        match=r"8 weights differ; first: .*k_proj.weight is \[16, 32\], which config.json does not let it be",
    ):
        load_weights(model, folder)


def test_a_broken_index_is_named(folder):
    (folder / INDEX).write_text('{"weight_map": []}')
    with pytest.raises(ConfigError, match=f"{INDEX} is no index of weights"):
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
