"""The operations counted for the 11B model are those of its published shape, worked out by hand."""

import pytest

from ift_components.models.trainable import FINE_TUNING, WARM_UP
from ift_components.training.flops import step_flops

D, HIDDEN, KV, VOCABULARY, E = 4096, 14336, 1024, 128_256, 1280
IMAGE, TEXT, RESPONSE = 1601, 80, 60


def by_hand():
    """Forward operations of one image: encoder, language layers with attention, cross-attention's keys and values, logits."""
    clip = 32 * (12 * E**2 * IMAGE + 2 * IMAGE**2 * E) + 3 * 14 * 14 * E * 1600
    padded = 1608  # the projection's eight layers and output see tokens padded to a multiple of eight
    projection = 8 * (12 * E**2 * padded + 2 * padded**2 * E) + 6 * E * D * padded
    layer = (2 * D * D + 2 * D * KV + 3 * D * HIDDEN) * TEXT + 2 * TEXT**2 * D
    cross = (2 * D * D + 3 * D * HIDDEN) * TEXT + 2 * D * KV * IMAGE + 2 * TEXT * IMAGE * D
    logits = RESPONSE * D * VOCABULARY
    return 2 * (clip + projection), 2 * (32 * layer + 8 * cross + logits)


def test_operations_are_those_of_the_shape():
    encoder, decoder = by_hand()
    # Warm-up: the encoder forward alone; the decoder's backward pass has no gradient of weights.
    assert step_flops(WARM_UP) == pytest.approx(encoder + 2 * decoder, rel=0.04)
    fusion = 2 * 8 * ((2 * D * D + 3 * D * HIDDEN) * TEXT + 2 * D * KV * IMAGE)
    assert step_flops(FINE_TUNING) == pytest.approx(3 * encoder + 2 * decoder + fusion, rel=0.04)


def test_recomputing_adds_a_forward_pass_of_the_layers():
    """Torch stops recomputing a layer once it has what the backward pass needs, at the earliest before its last product."""
    encoder, decoder = by_hand()
    outside = 2 * (3 * 14 * 14 * E * 1600 + 6 * E * D * 1608 + RESPONSE * D * VOCABULARY)
    last = 2 * (4 * E**2 * (32 * 1601 + 8 * 1608) + 40 * D * HIDDEN * TEXT)
    more = step_flops(FINE_TUNING, recomputed="all") - step_flops(FINE_TUNING)
    assert encoder + decoder - outside - last < more < encoder + decoder - outside


def test_tiles_and_padding_add_their_operations():
    """The encoder's products grow with the tokens, its attention with queries times keys; of padding half is computed."""
    products, attention = 2 * 12 * E**2 * IMAGE * 40, 2 * 2 * IMAGE**2 * E * 40
    cross = 2 * 2 * 8 * (D * KV * IMAGE + TEXT * IMAGE * D)
    one = step_flops(WARM_UP)
    two = step_flops(WARM_UP, grid=(2, 1))
    assert two - one == pytest.approx(products + 3 * attention + cross, rel=0.08)
    # An empty tile beside the real one: real tokens attend to 4 tiles' tokens, empty ones to the real.
    padded = step_flops(WARM_UP, tile_padding="meta")
    assert padded - one == pytest.approx(products + 4 * attention, rel=0.08)
