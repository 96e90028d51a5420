"""Our engine under `tile_padding: meta` gives transformers' logits; what differs without it, and where transformers errs."""

import copy

import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

import mllama  # noqa: E402 (beside this file)

from ift_components.data.images import ImageTransform  # noqa: E402
from ift_components.data.prompts import Text, prompt_tokens  # noqa: E402
from ift_components.errors import ConfigError  # noqa: E402
from ift_components.evaluation.engine import Engine  # noqa: E402
from ift_components.models import tiny_llama3_2_vision  # noqa: E402
from ift_components.models.hf_layout import hf_config, save_checkpoint  # noqa: E402
from ift_components.models.tile_padding import set_tile_padding  # noqa: E402
from ift_components.models.tiny import TINY_CHECKPOINT  # noqa: E402


@pytest.fixture(scope="module")
def model():
    """Random weights with every gate open, so that each part of the encoder matters."""
    opened = tiny_llama3_2_vision(num_layers=4).eval().requires_grad_(requires_grad=False)
    clip = opened.encoder.clip
    generator = torch.Generator().manual_seed(0)
    for name, parameter in clip.named_parameters():
        if name.endswith(("pos_embed.gate", "embedding.gate")):
            parameter.fill_(0.4)
        elif "pos_embed" in name or "ln_" in name or "_norm" in name:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return opened


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "checkpoint"
    save_checkpoint(path, model.state_dict(), hf_config(model), dtype=torch.float32)
    return path


@pytest.fixture(scope="module")
def meta(model):
    return set_tile_padding(copy.deepcopy(model), "meta")


@pytest.fixture(scope="module")
def picture(items, transform):
    return ImageTransform(transform)(items[0].picture())


@pytest.fixture(scope="module")
def prompt(items, transform):
    return prompt_tokens(transform, Text(items[0].prompt))


@torch.inference_mode()
def ours(model, transform, picture, prompt):
    engine = Engine(model, transform)
    return engine.start(engine.encode(picture.unsqueeze(0)), [prompt], 1).logits[0]


@torch.inference_mode()
def theirs(model, transform, picture, prompt):
    return model(**mllama.inputs(transform, picture, prompt)).logits[0, -1]


def gap(a, b):
    return (a - b).abs().max().item()


def test_logits_are_transformers(model, meta, folder, *, transform, picture, prompt):
    expected = theirs(mllama.load(folder), transform, picture, prompt)
    assert gap(ours(meta, transform, picture, prompt), expected) < 1e-4
    assert gap(ours(model, transform, picture, prompt), expected) > 1e-2  # the layouts are not the same thing


@pytest.mark.parametrize("grid", mllama.RATIOS)
def test_logits_are_transformers_for_every_aspect_ratio(meta, folder, grid, *, transform, prompt):
    """A whole picture through Meta's processor and the corrected model, and through our tiles and engine."""
    down, across = grid
    size = (84 * across - 9 if across > 1 else 60, 84 * down - 9 if down > 1 else 60)
    whole = Image.effect_noise(size, 90).convert("RGB")
    tiles = ImageTransform(transform, tiles=4)(whole)
    assert tiles.shape[:2] == grid
    expected = mllama.inputs(transform, tiles, prompt)
    # The shipped miniature's processor is the one that every checkpoint's is made like.
    processor = transformers.AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    inputs = {**expected, **processor.image_processor(images=[[whole]], return_tensors="pt")}
    inputs.pop("num_tiles")
    assert torch.equal(inputs["aspect_ratio_ids"], expected["aspect_ratio_ids"])
    assert torch.equal(inputs["aspect_ratio_mask"], expected["aspect_ratio_mask"])
    with torch.inference_mode():
        logits = mllama.load(folder)(**inputs).logits[0, -1]
    assert gap(ours(meta, transform, tiles, prompt), logits) < 1e-4


def test_without_our_corrections_transformers_differs(meta, folder, transform, picture, prompt):
    """If a version puts the taps right this fails, and the correction can go."""
    mine = ours(meta, transform, picture, prompt)
    assert gap(mine, theirs(mllama.load(folder, taps=False), transform, picture, prompt)) > 1e-2
    assert gap(mine, theirs(mllama.load(folder, rows=False), transform, picture, prompt)) > 1e-3


def test_a_prompt_that_begins_with_the_image_needs_no_correction_of_rows(meta, folder, transform, picture, prompt):
    image = transform.tokenizer.image_id
    moved = [image, *(token for token in prompt if token != image)]
    expected = theirs(mllama.load(folder, rows=False), transform, picture, moved)
    assert gap(ours(meta, transform, picture, moved), expected) < 1e-4


@torch.inference_mode()
def test_generated_text_is_transformers(trained, checkpoint, transform, items):
    """Taught weights, so that answers end by themselves; ours batched, theirs one at a time."""
    padded = set_tile_padding(copy.deepcopy(trained), "meta")
    engine, reference = Engine(padded, transform), mllama.load(checkpoint)
    chosen = items[:8]
    pictures = [ImageTransform(transform)(item.picture()) for item in chosen]
    prompts = [prompt_tokens(transform, Text(item.prompt)) for item in chosen]
    state = engine.start(engine.encode(torch.stack(pictures[::4])), prompts, 20)
    texts = engine.generate(state, 20)
    for picture, prompt, text in zip(pictures, prompts, texts, strict=True):
        inputs = mllama.inputs(transform, picture, prompt)
        stops = transform.stop_tokens
        generated = reference.generate(
            **inputs, max_new_tokens=20, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
        tokens = generated[0, len(prompt) :].tolist()
        assert text == transform.tokenizer.decode(tokens, truncate_at_eos=False, skip_special_tokens=True)


def test_training_in_metas_layout(meta, model, transform, picture, prompt):
    """Gradients reach every encoder parameter, and the state dict is the same as without padding."""
    trainable = copy.deepcopy(meta).requires_grad_(requires_grad=True)
    trainable.encoder(picture.unsqueeze(0), torch.ones(1, 1, 2, dtype=torch.int)).square().sum().backward()
    silent = [name for name, p in trainable.encoder.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []
    assert list(trainable.state_dict()) == list(model.state_dict())


def test_wrong_layouts_are_refused(meta):
    with pytest.raises(ConfigError, match="tile_padding: 'Meta' is not one of none, meta"):
        set_tile_padding(tiny_llama3_2_vision(), "Meta")
    with pytest.raises(ConfigError, match="needs torchtune's own encoder, fresh; got TiledClip"):
        set_tile_padding(meta, "meta")
    with pytest.raises(ValueError, match=r"expected one image a sample and as many tiles .* got 1 images of 4 tiles"):
        meta.encoder(torch.zeros(1, 1, 4, 3, 84, 84), None)
