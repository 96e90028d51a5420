"""What torchtune does not promise and this package uses: each fails here first if it changes."""

import inspect

import torch

from ift_components.models import tiny_llama3_2_vision
from ift_components.models import torchtune_private as private


def test_conversions_take_what_hf_layout_gives():
    shared = ["num_heads", "num_kv_heads", "dim", "vocab_size", "cross_attention_layers", "encoder_dim", "tile_size"]
    shared += ["num_tiles", "supported_aspect_ratios"]
    for function in (private.llama3_vision_hf_to_tune, private.llama3_vision_tune_to_hf):
        parameters = list(inspect.signature(function).parameters)
        assert set(shared) <= set(parameters[1:])
        assert parameters[0] == "state_dict"


def test_projection_head_is_the_one_that_models_have():
    projection = tiny_llama3_2_vision().encoder.projection
    assert type(projection) is private.Llama3VisionProjectionHead
    assert {name for name, _ in projection.named_children()} == {"layers", "output"}
    assert list(inspect.signature(projection.forward).parameters) == ["x", "hidden_states"]


@torch.no_grad()
def test_attention_goes_through_the_replaceable_call():
    model = tiny_llama3_2_vision()
    attention = model.decoder.layers[0].attn
    h = torch.randn(2, 5, 128)
    calls = []

    def wrap(name, call):
        def attend(query, key, value, *, mask, dropout_p, is_causal):
            calls.append((name, query.shape, key.shape, mask, dropout_p, is_causal))
            return call(query, key, value, mask=mask, dropout_p=dropout_p, is_causal=is_causal) + 1

        return attend

    plain = attention(h, h)
    with private.replaced_attention_calls(model, wrap):
        changed = attention(h, h)
    assert calls == [("decoder.layers.0.attn", (2, 4, 5, 32), (2, 4, 5, 32), None, 0.0, True)]
    torch.testing.assert_close(changed, plain + attention.output_proj(torch.ones(128)))
    assert torch.equal(attention(h, h), plain)  # put back


@torch.no_grad()
def test_a_cache_of_our_own_is_read_and_extended():
    class Cache:
        size = 3
        k_cache, v_cache = torch.randn(2, 2, 2, 3, 32)

        def update(self, keys, values):
            self.given = keys.shape
            return keys, values

    model = tiny_llama3_2_vision()
    cache = Cache()
    layer, h = model.decoder.layers[1], torch.randn(2, 5, 128)
    for attention in (layer.layer.attn, layer.fusion_layer.attn):
        attention.kv_cache, attention.cache_enabled = cache, True
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, -1, -1)
    cached = layer.layer(h, mask=mask)
    assert cache.given == (2, 2, 5, 32)
    attended = layer.fusion_layer(h)  # without an image: the cache's keys and values
    cache.k_cache = -cache.k_cache
    assert not torch.allclose(layer.fusion_layer(h), attended)
    layer.layer.attn.kv_cache, layer.layer.attn.cache_enabled = None, False
    torch.testing.assert_close(layer.layer(h), cached)
