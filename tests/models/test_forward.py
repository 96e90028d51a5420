"""The training forward against torchtune's own, and what it computes gradients for."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ift_components.data.dataset import Sample, collate
from ift_components.data.prompts import Slots, Text, prompt_tokens, response_tokens
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.cache import DecoderCache, image_caches
from ift_components.models.forward import ResponseLoss, embed_tokens, encode_images, run_decoder
from ift_components.models.sharding import checkpoint_activations
from ift_components.models.trainable import FINE_TUNING, WARM_UP, apply_tuning

K = 4


@pytest.fixture
def batch():
    transform = tiny_vision_transform()
    responses = ["round cell shape, Neutrophil", "label", "a much longer report than the other two, to pad"]
    samples = [
        Sample(
            str(i),
            prompt_tokens(transform, Slots(K)),
            [response_tokens(transform, response)],
            torch.randn(1, 1, 3, 84, 84),
        )
        for i, response in enumerate(responses)
    ]
    return collate(samples, transform)


def fine_tuned():
    model = tiny_llama3_2_vision()
    apply_tuning(model, FINE_TUNING)
    return model


def tune_loss(model, batch, proxy):
    """The same sum through torchtune's forward: dense mask, embeddings swapped by a hook, logits everywhere."""

    def insert(module, inputs, output):
        out = output.clone()
        out.view(-1, out.shape[-1])[batch.slot_index] = proxy.repeat(len(batch.ids), 1)
        return out

    handle = model.decoder.tok_embeddings.register_forward_hook(insert)
    mask = batch.sees_image.unsqueeze(-1).expand(-1, -1, 37)
    encoder_input = {"images": batch.images, "aspect_ratio": batch.aspect_ratio}
    logits = model(batch.tokens, encoder_input=encoder_input, encoder_mask=mask)
    handle.remove()
    labels = torch.full(batch.tokens.shape, -100).flatten()
    labels[batch.response_index] = batch.labels
    return F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")


def gradients(loss, module, proxy):
    loss.backward()
    computed = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None} | {"proxy": proxy.grad}
    module.zero_grad()
    proxy.grad = None
    return computed


def test_loss_and_gradients_equal_torchtunes(batch):
    model = fine_tuned()
    proxy = torch.randn(K, 128, requires_grad=True)
    expected = tune_loss(model, batch, proxy)
    wanted = gradients(expected, model, proxy)
    loss = ResponseLoss(model)(batch, proxy).squeeze()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-6)
    computed = gradients(loss, model, proxy)
    assert computed.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            computed[name], gradient, atol=2e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(
    ("recomputed", "layers"),
    [
        ("none", 0),
        ("language", 6 + 3),
        ("encoder", 4 + 1),
        ("all", 4 + 1 + 6 + 3),
    ],  # self-, cross-attention; encoder, projection
)
def test_activation_checkpointing_changes_nothing(batch, recomputed, layers):
    proxy = torch.randn(K, 128, requires_grad=True)
    model = fine_tuned()
    plain = gradients(ResponseLoss(model)(batch, proxy), model, proxy)
    checkpoint_activations(model, recomputed)
    wrapped = [name for name, _ in model.named_modules() if name.endswith("_checkpoint_wrapped_module")]
    assert len(wrapped) == layers
    names = {name: name.replace("_checkpoint_wrapped_module.", "") for name, _ in model.named_parameters()}
    computed = gradients(ResponseLoss(model)(batch, proxy), model, proxy)
    for name, gradient in computed.items():
        torch.testing.assert_close(gradient, plain[names.get(name, name)], atol=1e-5, rtol=1e-4)


def test_frozen_encoder_leaves_no_graph(batch):
    model = tiny_llama3_2_vision()
    apply_tuning(model, WARM_UP)
    recorded = []
    model.encoder.register_forward_hook(lambda module, inputs, output: recorded.append(output.grad_fn))
    proxy = torch.randn(K, 128, requires_grad=True)
    ResponseLoss(model)(batch, proxy).backward()
    assert recorded == [None]
    assert proxy.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_padding_and_batch_mates_do_not_change_a_sample(batch):
    model = fine_tuned()
    proxy = torch.randn(K, 128)
    transform = tiny_vision_transform()
    whole = ResponseLoss(model)(batch, proxy)
    responses = ["round cell shape, Neutrophil", "label", "a much longer report than the other two, to pad"]
    alone = 0
    for i, response in enumerate(responses):
        prompt = prompt_tokens(transform, Slots(K))
        sample = Sample(str(i), prompt, [response_tokens(transform, response)], batch.images[i])
        alone += ResponseLoss(model)(collate([sample], transform), proxy)
    torch.testing.assert_close(whole, alone, atol=1e-4, rtol=1e-6)


def test_packed_responses_equal_separate_samples():
    """Three responses behind one prompt and one image: the loss and gradients of three samples."""
    transform = tiny_vision_transform()
    responses = [response_tokens(transform, text) for text in ("a, bb, ccc", "ccc, a", "round cell shape, label")]
    prompt, image = prompt_tokens(transform, Slots(K)), torch.randn(2, 1, 1, 3, 84, 84)
    rows = [(0, responses), (1, responses[:1])]  # and a batch mate with a single one
    packed = [Sample(str(i), prompt, r, image[i]) for i, r in rows]
    apart = [Sample(str(i), prompt, [response], image[i]) for i, r in rows for response in r]
    model = fine_tuned()
    proxy = torch.randn(K, 128, requires_grad=True)
    packed_batch, apart_batch = collate(packed, transform), collate(apart, transform)
    assert packed_batch.tokens.shape[0] == 2
    assert sorted(packed_batch.labels.tolist()) == sorted(apart_batch.labels.tolist())
    expected = ResponseLoss(model)(apart_batch, proxy).squeeze()
    wanted = gradients(expected, model, proxy)
    loss = ResponseLoss(model)(packed_batch, proxy).squeeze()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-6)
    for name, gradient in gradients(loss, model, proxy).items():
        torch.testing.assert_close(
            gradient, wanted[name], atol=2e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_without_images_is_the_model_with_closed_gates(batch):
    model = tiny_llama3_2_vision(init_gate=0.0)
    proxy = torch.randn(K, 128)
    module = ResponseLoss(model)
    expected = module(batch, proxy)
    torch.testing.assert_close(module(replace(batch, images=None), proxy), expected)
    torch.testing.assert_close(ResponseLoss(tiny_llama3_2_vision())(replace(batch, images=None), proxy), expected)


def test_slots_and_texts_share_a_batch():
    """A mixed batch has the losses and gradients of its rows alone, by source; without slots the proxy has none."""
    transform = tiny_vision_transform()
    texts = [("reports", Slots(K)), ("questions", Text("What is the colour?")), ("reports", Slots(K))]
    responses = ["round cell shape, Neutrophil", "The answer is blue.", "label"]
    samples = [
        Sample(name, prompt_tokens(transform, p), [response_tokens(transform, r)], torch.randn(1, 1, 3, 84, 84), name)
        for (name, p), r in zip(texts, responses, strict=True)
    ]
    sources = ("reports", "questions", "unused")
    model = fine_tuned()
    proxy = torch.randn(K, 128, requires_grad=True)
    module = ResponseLoss(model)
    losses = module(collate(samples, transform, sources), proxy)
    alone = [module(collate([sample], transform), proxy).squeeze() for sample in samples]
    torch.testing.assert_close(losses, torch.stack([alone[0] + alone[2], alone[1], alone[1] * 0]))
    lengths = [len(response_tokens(transform, response)) for response in responses]
    assert collate(samples, transform, sources).labels_by_source().tolist() == [lengths[0] + lengths[2], lengths[1], 0]
    wanted = gradients(sum(alone), model, proxy)
    for name, gradient in gradients(losses.sum(), model, proxy).items():
        torch.testing.assert_close(gradient, wanted[name], atol=2e-4, rtol=1e-4, msg=lambda t, n=name: f"{n}: {t}")
    module(collate(samples[1:2], transform), proxy).sum().backward()
    assert proxy.grad.abs().max() == 0  # there, and zero: processes that reduce it together all have one
    with pytest.raises(ValueError, match=r"8 proxy slots in a batch are no multiple of the proxy's 3 vectors"):
        module(collate(samples, transform, sources), proxy[:3])


class Notes:
    """Records names and shapes, and attends by hand where it is told to."""

    def __init__(self, by_hand=False):
        self.by_hand, self.hiddens, self.attentions = by_hand, {}, {}

    def hidden(self, layer, h):
        self.hiddens[layer] = h

    def attention(self, layer, query, key, value, mask, *, is_causal, attend):
        self.attentions[layer] = (query.shape, key.shape)
        weights = attend(torch.eye(key.shape[2]).expand(*key.shape[:3], -1))
        torch.testing.assert_close(weights @ value, attend(value), atol=1e-5, rtol=1e-5)
        if not self.by_hand:
            return None
        scores = query @ key.mT / query.shape[-1] ** 0.5
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril().unsqueeze(0)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
        return scores.softmax(-1) @ value


@torch.no_grad()
def test_recorder_sees_every_layer_and_changes_nothing(batch):
    model = tiny_llama3_2_vision()
    h = embed_tokens(model.decoder, batch.tokens)

    def walk(recorder):
        image = encode_images(model, batch.images, batch.aspect_ratio, recorder)
        return run_decoder(model, h, image=image, sees_image=batch.sees_image, recorder=recorder)

    plain, notes = walk(None), Notes()
    assert torch.equal(walk(notes), plain)
    cross = [f"decoder.layers.{i}.fusion_layer" for i in (1, 3, 5)]
    own = [f"decoder.layers.{i}" + (".layer" if i % 2 else "") for i in range(6)]
    assert set(notes.hiddens) == {*cross, *own}
    assert torch.equal(notes.hiddens["decoder.layers.5.layer"], plain)
    encoder = [f"encoder.clip.layers.{i}" for i in range(4)] + ["encoder.projection.layers.0"]
    assert set(notes.attentions) == {f"{layer}.attn" for layer in (*cross, *own, *encoder)}
    assert notes.attentions["decoder.layers.1.fusion_layer.attn"] == ((3, 4, len(h[0]), 32), (3, 4, 37, 32))
    torch.testing.assert_close(walk(Notes(by_hand=True)), plain, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_cached_walk_is_the_walk(batch):
    """Two rows about one image, fed in three pieces, one of them taken back, against the walk over the whole."""
    model = tiny_llama3_2_vision()
    h = embed_tokens(model.decoder, batch.tokens[:2])
    image = encode_images(model, batch.images[:1], batch.aspect_ratio[:1])
    whole = run_decoder(model, h, image=image.expand(2, -1, -1))
    cache = DecoderCache(model.decoder, image_caches(model.decoder), 2, h.shape[1], h)

    def feed(start, end):
        places = torch.arange(start, end).expand(2, -1)
        mask = torch.arange(end) <= places.unsqueeze(-1)
        return run_decoder(model, h[:, start:end], image=image, mask=mask, positions=places, cache=cache)

    pieces = [feed(0, 7), feed(7, 12)]
    cache.rewind(7)
    pieces[1] = feed(7, 12)
    pieces.append(feed(12, h.shape[1]))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert all(layer.attn.kv_cache is None for layer in model.decoder.layers if hasattr(layer, "attn"))
