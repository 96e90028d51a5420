"""The memory table's function against what a step of the miniature really holds."""

import pytest

from ift_components.models.trainable import FINE_TUNING, WARM_UP
from ift_components.proxy import UpdateRule
from ift_components.training.data import build_loader, epoch_batches
from ift_components.training.memory import activation_bytes, parameter_counts, static_bytes


@pytest.mark.parametrize(("dtype", "frozen_bytes"), [("fp32", 4), ("bf16", 2)])
def test_static_memory_is_what_a_step_holds(train_config, world, make_trainer, *, dtype, frozen_bytes):
    cfg = train_config(f"dtype={dtype}", "clip_grad_norm=null")
    trainer = make_trainer(cfg, UpdateRule.FIX)
    module = trainer.module
    held = []

    def measure(*_):  # the optimizer has its state and the gradients are still there
        tensors = [*module.parameters(), *(p.grad for p in module.parameters() if p.grad is not None)]
        tensors += [v for state in trainer.optimizer.state.values() for key, v in state.items() if key != "step"]
        held.append(sum(t.numel() * t.element_size() for t in tensors))

    trainer.optimizer.register_step_post_hook(measure)
    trainer.step(next(epoch_batches(build_loader(cfg, world), 0, 1)))
    expected = static_bytes(*parameter_counts(module), 1, frozen_bytes)
    assert held == [pytest.approx(expected, rel=1e-3)]


def test_activations_of_more_tiles_are_the_layers_inputs():
    """In bf16: image tokens 1280 wide into 40 layers and 7680 wide into the output, 4096 wide out of it; the text; logits."""
    text = 2 * 80 * 4096 * 40 + 4 * 60 * 128_256
    for grid, tile_padding, seen, inside in (((1, 2), "none", 2 * 1601, 2 * 1601), ((1, 1), "meta", 1601, 2 * 1602)):
        image = 2 * (seen * (7680 + 4096) + inside * 1280 * 40)
        kept = activation_bytes(FINE_TUNING, grid=grid, tile_padding=tile_padding)
        assert kept == pytest.approx(image + text, rel=0.15)
    assert activation_bytes(WARM_UP, grid=(2, 2)) == pytest.approx(2 * 4 * 1601 * 4096 + text, rel=0.05)
