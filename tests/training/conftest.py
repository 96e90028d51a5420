"""What the tests of this room share: a trainer built as a run builds it."""

import pytest

from ift_components.models.trainable import FINE_TUNING
from ift_components.proxy import UpdateRule
from ift_components.training.loop import Trainer
from ift_components.training.setup import build_module, build_optimizer, build_proxy, parameter_groups


@pytest.fixture
def make_trainer(world):
    """A function that gives a trainer of the miniature's encoder and fusion layers under a rule, or under a text."""

    def make(cfg, rule=UpdateRule.TRACK, tuning=FINE_TUNING):
        module = build_module(cfg, world, tuning)
        proxy = build_proxy(cfg, world, rule, 128)
        groups = parameter_groups(module, proxy)
        return Trainer(
            module=module,
            proxy=proxy,
            groups=groups,
            optimizer=build_optimizer(cfg, tuning, groups),
            world=world,
            clip_grad_norm=cfg.clip_grad_norm,
        )

    return make
