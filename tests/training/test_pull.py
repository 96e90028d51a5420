"""A part pulled back to its start: L2-SP."""

import pytest
import torch

from ift_components.errors import ConfigError
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.models.trainable import Tuning, part_of
from ift_components.training.checks import check_settings
from ift_components.training.data import epoch_batches
from ift_components.training.run import TrainingRun


def trained(train_config, world, *overrides):
    """Return trainable weights before and after one step by plain SGD, by name."""
    sgd = ["optimizer._component_=torch.optim.SGD", "optimizer.lr=0.1"]
    cfg = train_config(f"checkpoint_dir={TINY_CHECKPOINT}", f"proxy.path={TINY_PROXY}", *sgd, *overrides)
    run = TrainingRun(cfg, world, check_settings(cfg))
    run.prepare()
    before = {n: p.detach().clone() for n, p in run.trainer.module.model.named_parameters() if p.requires_grad}
    for batches, _ in zip(epoch_batches(run.loader, 0, 1), range(1), strict=False):
        run.trainer.step(batches)
    return before, {n: p.detach() for n, p in run.trainer.module.model.named_parameters() if p.requires_grad}


def test_a_step_is_shortened_by_rate_times_pull(train_config, world):
    start, plain = trained(train_config, world)
    _, pulled = trained(train_config, world, "tuning.fusion={method: full, pull: 4}")
    for name, weight in plain.items():
        kept = 1 - 0.1 * 4 if part_of(name) == "fusion" else 1
        torch.testing.assert_close(pulled[name], start[name] + kept * (weight - start[name]), rtol=0, atol=1e-6)
    assert any(not torch.equal(plain[name], start[name]) for name in plain if part_of(name) == "fusion")


@pytest.mark.parametrize("pull", [-1, "far", True])
def test_bad_pull_is_named(pull):
    node = {"encoder": "frozen", "fusion": {"method": "full", "pull": pull}, "decoder": "frozen"}
    with pytest.raises(ConfigError, match=r"tuning\.fusion\.pull: .* is not a number of 0 or more"):
        Tuning.parse(node)
