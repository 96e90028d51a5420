"""The proxy varied in training by noise, dropout and a bank: as they say, however a step is divided, resumed exactly."""

import json

import pytest
import torch

from ift_components.errors import ConfigError
from ift_components.models.forward import fill_slots
from ift_components.proxy import UpdateRule, random_theta, save_proxy
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.run import TrainingRun
from ift_components.training.variation import ProxyVariation


@pytest.fixture
def batch(train_config, world):
    """Eight samples, two responses each behind one prompt."""
    cfg = train_config("batch_size=8", "dataset.responses_per_image=2")
    return next(epoch_batches(build_loader(cfg, world), 0, 1))[0]


@pytest.fixture
def bank(tmp_path):
    """Paths of three proxies."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_proxy(path, random_theta(8, 128, seed), model="x", step=1, rule=UpdateRule.UPDATE)
    return paths


def test_noise_and_dropout_are_what_they_say(batch):
    proxy = (3 * torch.randn(8, 128, generator=torch.Generator().manual_seed(0))).requires_grad_()
    steps = [ProxyVariation(noise=0.5)(proxy, batch, step) for step in range(40)]
    noise = torch.stack(steps).detach() - proxy.detach()  # [40, 8 rows, 8, 128]
    assert noise.std().item() == pytest.approx(0.5 * proxy.detach().square().mean().sqrt().item(), rel=0.01)
    assert abs(noise.mean().item()) < 0.01
    both = ProxyVariation(noise=0.5, dropout=0.25, seed=1)
    varied = torch.stack([both(proxy, batch, step) for step in range(40)])
    dropped = (varied == 0).all(dim=-1)  # whole vectors
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not (varied == 0).any(dim=-1)[~dropped].any()
    varied.sum().backward()  # the gradient of each vector counts how often it was kept
    torch.testing.assert_close(proxy.grad, (~dropped).sum(dim=(0, 1)).float().unsqueeze(1).expand(8, 128))


def test_rows_get_their_own_vectors(batch):
    vectors = torch.randn(8, 8, 128)
    h = fill_slots(torch.zeros(*batch.tokens.shape, 128), batch.slot_index, vectors)
    for row in range(8):
        assert torch.equal(h[row][h[row].abs().sum(dim=-1) > 0], vectors[row])


def test_each_sample_draws_from_the_bank(batch):
    bank = torch.randn(3, 8, 128)
    varied = ProxyVariation(bank=bank)
    numbers = []
    for step in range(200):
        for vectors in varied(bank[0], batch, step):
            numbers += [number for number in range(3) if torch.equal(vectors, bank[number])]
    assert len(numbers) == 1600
    counts = torch.bincount(torch.tensor(numbers)).float() / 1600
    assert (counts - 1 / 3).abs().max() < 0.04  # the standard deviation is 0.012


@pytest.mark.parametrize("kind", ["noise", "bank"])
def test_a_step_is_the_same_however_it_is_divided(train_config, world, make_trainer, bank, kind):
    cfg = train_config("batch_size=8", *([f"proxy.path={bank[0]}"] if kind == "bank" else []))
    proxies = torch.stack([random_theta(8, 128, seed) for seed in range(3)])
    vary = ProxyVariation(noise=0.3, dropout=0.2) if kind == "noise" else ProxyVariation(bank=proxies)
    (whole,) = next(epoch_batches(build_loader(cfg, world), 0, 1))
    parts = next(epoch_batches(build_loader(train_config("batch_size=2"), world), 0, 4))
    rule = UpdateRule.TRACK if kind == "noise" else UpdateRule.FIX
    at_once, accumulated, plain = (make_trainer(cfg, rule) for _ in range(3))
    at_once.variation = accumulated.variation = vary
    a, b = at_once.step([whole]), accumulated.step(parts)
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert a["loss"] != pytest.approx(plain.step([whole])["loss"], abs=1e-4)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["varied", "bank"])
def test_resumed_run_is_bit_identical(train_config, world, tmp_path, bank, kind):
    options = ["proxy.noise=0.2", "proxy.dropout=0.2"]
    if kind == "bank":
        options = ["proxy.path=[" + ",".join(map(str, bank)) + "]", "proxy.rule=fix"]

    def run(name, *overrides, stop_after=None):
        cfg = train_config(*options, f"output_dir={tmp_path / name}", "max_steps=4", *overrides)
        stage = check_settings(train_config("proxy.path=x", *options))
        training = TrainingRun(cfg, world, stage)
        training.prepare()
        step = training.trainer.step

        def stopped(batches):
            training.trainer.stop = training.trainer.steps + 1 == stop_after
            return step(batches)

        training.trainer.step = stopped
        training.train()
        return training.trainer

    whole = run("whole")
    with pytest.raises(SystemExit):
        run("parts", stop_after=2)
    parts = run("parts", "resume=true")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert all(torch.equal(p, q) for p, q in zip(whole.module.parameters(), parts.module.parameters(), strict=True))
    assert torch.equal(whole.proxy.seen, parts.proxy.seen)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["proxy.path=[a,b]"], r"proxy\.path: a bank of 2 proxies does not move, and proxy\.rule is 'track'"),
        (["proxy.path=[1,b]"], r"proxy\.path: \[1, 'b'\] is neither a path nor a list of paths"),
        (["proxy.path=x", "proxy.noise=-1"], r"proxy\.noise: -1\.0 is below 0"),
        (["proxy.path=x", "proxy.dropout=1"], r"proxy\.dropout: 1\.0 is not a probability"),
        (["instruction=x", "proxy.noise=0.1"], r"proxy\.noise: 0\.1 has no effect under an instruction"),
    ],
)
def test_wrong_variation_is_refused(train_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config(*overrides))
