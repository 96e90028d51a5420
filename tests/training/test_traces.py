"""Losses of a few steps of every kind of run on the shipped miniature, as they were recorded: a refactoring changes none.

They were recorded with bicubic resizing. The figures hold to 1e-4 across CPUs; a difference means that what is computed has
changed, and then the change says why and records them anew (the failing assertion shows the new ones).
"""

import pytest

from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, epoch_batches

TUNE = ("tiny_ift.yaml", f"proxy.path={TINY_PROXY}", "proxy.momentum=0.9")
RUNS = {
    "warm-up": ("tiny_warmup.yaml",),
    "restart": (*TUNE, "proxy.rule=restart"),
    "track": (*TUNE, "proxy.rule=track"),
    "fix": (*TUNE, "proxy.rule=fix"),
    "update": (*TUNE, "proxy.rule=update"),
    "instruction": (*TUNE, "instruction=Describe this medical scan."),
    "four responses": (*TUNE, "dataset.responses_per_image=4"),
    "tile padding": (*TUNE, "tile_padding=meta"),
}
RECORDED = {
    "warm-up": [8.2281204, 5.2797888, 6.5963522, 5.1242432],
    "restart": [7.2290426, 5.4180026, 6.4160913, 5.4887441],
    "track": [7.2290426, 5.4180026, 6.4137743, 5.4901591],
    "fix": [7.2290426, 5.4289713, 6.4244537, 5.4996999],
    "update": [7.2290426, 5.351263, 6.3228572, 5.3186466],
    "instruction": [8.2374781, 6.6061355, 7.3050737, 6.3934679],
    "four responses": [6.9456875, 5.7321123, 6.2801085, 5.5567863],
    "tile padding": [7.3394286, 5.4942461, 6.5329167, 5.706347],
}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_recorded(train_config, make_trainer, world, name):
    config, *overrides = RUNS[name]
    common = [f"checkpoint_dir={TINY_CHECKPOINT}", "batch_size=8", "resize=bicubic"]
    cfg = train_config(*common, *overrides, config=config)
    stage = check_settings(cfg)
    trainer = make_trainer(cfg, stage.rule, stage.tuning)
    steps = epoch_batches(build_loader(cfg, world), 0, 1)
    losses = [trainer.step(next(steps))["loss"] for _ in range(4)]
    assert losses == pytest.approx(RECORDED[name], rel=1e-4)
