"""The proxy instruction: each update rule against a hand-written loop, and its file."""

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from ift_components.data.dataset import Sample, collate
from ift_components.data.prompts import Slots, Text, prompt_tokens, response_tokens
from ift_components.errors import ConfigError
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.forward import ResponseLoss
from ift_components.models.trainable import FINE_TUNING, apply_tuning
from ift_components.proxy import ProxyInstruction, UpdateRule, load_proxy, random_theta, save_proxy
from ift_components.training.loop import Trainer
from ift_components.training.setup import parameter_groups

K, D, M, LR = 3, 32, 0.9, 1e-2


def small_model():
    model = tiny_llama3_2_vision(decoder_dim=D, encoder_dim=16, num_layers=2, image_size=28)
    apply_tuning(model, FINE_TUNING)
    return model


def random_batches(count, prompt):
    """Batches of two different samples, as `collate` makes them."""
    transform = tiny_vision_transform(image_size=28)
    generator = torch.Generator().manual_seed(1)
    texts = ["red circle", "small blue square, border", "a cell", "round cell shape, Neutrophil", "label"]
    return [
        collate(
            [
                Sample(
                    f"{step}-{row}",
                    prompt_tokens(transform, prompt),
                    [response_tokens(transform, texts[(step + 2 * row) % len(texts)])],
                    torch.randn(1, 1, 3, 28, 28, generator=generator),
                )
                for row in range(2)
            ],
            transform,
        )
        for step in range(count)
    ]


def reference_loss(model, batch, slots):
    """Mean cross-entropy through torchtune's own forward, with the dense cross-attention mask and a hook for the slots."""
    tokens = batch.tokens

    def insert(module, inputs, output):
        out = output.clone()
        if slots is not None:
            out.view(-1, out.shape[-1])[batch.slot_index] = slots.repeat(tokens.shape[0], 1)
        return out

    handle = model.decoder.tok_embeddings.register_forward_hook(insert)
    image_tokens = model.encoder.clip.get_image_tokens_per_tile()
    mask = batch.sees_image.unsqueeze(-1).expand(-1, -1, image_tokens)
    logits = model(
        tokens, encoder_input={"images": batch.images, "aspect_ratio": batch.aspect_ratio}, encoder_mask=mask
    )
    handle.remove()
    return F.cross_entropy(logits.view(-1, logits.shape[-1])[batch.response_index], batch.labels)


@pytest.mark.parametrize("rule", [*UpdateRule, None])
def test_rule_follows_hand_written_loop(rule, world):
    batches = random_batches(5, Text("Describe this medical scan.") if rule is None else Slots(K))
    theta0 = random_theta(K, D, seed=3, bound=0.5)

    module = ResponseLoss(small_model())
    proxy = None if rule is None else ProxyInstruction(theta0, rule, M)
    groups = parameter_groups(module, proxy)
    optimizer = torch.optim.AdamW([{"params": p} for p in groups.values()], lr=LR)
    trainer = Trainer(module=module, proxy=proxy, groups=groups, optimizer=optimizer, world=world)
    losses = [trainer.step([batch])["loss"] for batch in batches]

    model = small_model()
    theta = theta0.clone().requires_grad_()
    momentum = theta0.clone()
    weights = [p for p in model.parameters() if p.requires_grad]
    own = torch.optim.AdamW([*weights, theta], lr=LR)
    expected = []
    for batch in batches:
        if rule is UpdateRule.RESTART:
            theta.data = momentum.clone()
        if rule is None:
            seen = None
        elif rule in (UpdateRule.RESTART, UpdateRule.TRACK):
            seen = momentum.clone().requires_grad_()
        else:
            seen = theta
        loss = reference_loss(model, batch, seen)
        loss.backward()
        if rule in (UpdateRule.RESTART, UpdateRule.TRACK):
            theta.grad = seen.grad
        if rule is UpdateRule.FIX:
            theta.grad = None
        own.step()
        own.zero_grad()
        momentum = M * momentum + (1 - M) * theta.data
        expected.append(loss.item())

    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    if proxy is not None:
        torch.testing.assert_close(proxy.theta.data, theta.data, atol=1e-6, rtol=0)
        final = momentum if rule in (UpdateRule.RESTART, UpdateRule.TRACK) else theta.data
        torch.testing.assert_close(proxy.seen.data, final, atol=1e-6, rtol=0)
        moved = (proxy.seen.data - theta0).abs().max().item()
        assert moved == 0 if rule is UpdateRule.FIX else moved > 1e-4
    for mine, theirs in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)


def test_momentum_closes_the_gap_that_bf16_would_not():
    theta = torch.full((1, 1), 0.5)
    proxy = ProxyInstruction(theta, UpdateRule.TRACK, 0.999)
    proxy.theta.data.fill_(1.0)
    for _ in range(1000):
        proxy.end_step()
    closed = (proxy.seen.item() - 0.5) / 0.5
    assert closed == pytest.approx(1 - 0.999**1000, abs=1e-4)  # 63 %; in bf16 it would be 9 %


def test_file_keeps_vectors_and_metadata(tmp_path):
    vectors = random_theta(K, D, seed=0)
    path = tmp_path / "proxy_instruction.safetensors"
    save_proxy(path, vectors.to(torch.bfloat16).float(), model="a.b", step=7, rule=UpdateRule.TRACK)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"K": "3", "d": "32", "model": "a.b", "step": "7", "rule": "track"}
    loaded, _ = load_proxy(path, K, D)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, vectors.to(torch.bfloat16).float(), atol=0, rtol=0)


@pytest.mark.parametrize(("count", "dim", "message"), [(4, D, r"num_vectors: 4.*3 vectors"), (K, 64, "32 wide.*64")])
def test_mismatch_is_named(tmp_path, count, dim, message):
    path = tmp_path / "proxy_instruction.safetensors"
    save_proxy(path, random_theta(K, D, seed=0), model="a.b", step=7, rule=UpdateRule.UPDATE)
    with pytest.raises(ConfigError, match=message):
        load_proxy(path, count, dim)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; run ift_warmup_recipe"):
        load_proxy(tmp_path / "none.safetensors", K, D)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a tensor file")
    with pytest.raises(ConfigError, match=r"broken.safetensors is no proxy instruction"):
        load_proxy(broken, K, D)


def test_random_theta_is_the_authors_uniform():
    theta = random_theta(64, 4096, seed=0)
    bound = 768**-0.5
    assert theta.abs().max() <= bound
    assert theta.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert torch.equal(theta, random_theta(64, 4096, seed=0))
    assert not torch.equal(theta, random_theta(64, 4096, seed=1))
