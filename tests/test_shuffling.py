"""Response shuffling: what is shuffled, and that the order depends on (seed, epoch, index) alone."""

from collections import Counter
from itertools import permutations

import pytest

from ift_components.shuffling import random_order, shuffle_parts, shuffle_sections

REPORT = "small cell size, light blue cytoplasm colour, Neutrophil"


def test_parts_are_kept_and_joined_as_written():
    shuffled = shuffle_parts(",")(REPORT, [], (0, 0, 0))
    assert sorted(shuffled.split(", ")) == sorted(REPORT.split(", "))
    orders = {shuffle_parts(",")(REPORT, [], (0, epoch, 0)) for epoch in range(50)}
    assert orders == {", ".join(order) for order in permutations(REPORT.split(", "))}


def test_space_separator_is_the_papers_ablation():
    shuffled = shuffle_parts(" ")(REPORT, [], (0, 1, 0))
    assert sorted(shuffled.split(" ")) == sorted(REPORT.split(" "))
    assert shuffled != REPORT


def test_sections_swap():
    attributes = [("findings", "Clear lungs. No effusion."), ("impression", "Normal.")]
    seen = {shuffle_sections()("", attributes, (0, epoch, 4)) for epoch in range(20)}
    assert seen == {"Clear lungs. No effusion. Normal.", "Normal. Clear lungs. No effusion."}


def test_order_is_a_function_of_seed_epoch_and_index():
    assert random_order(12, (1, 2, 3)) == random_order(12, (1, 2, 3))
    others = [(0, 2, 3), (1, 0, 3), (1, 2, 0), (3, 2, 1)]
    assert all(random_order(12, (1, 2, 3)) != random_order(12, key) for key in others)


def test_orders_are_uniform():
    counts = Counter(tuple(random_order(3, (0, epoch, index))) for epoch in range(3) for index in range(2000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())  # 5 standard deviations


def test_empty_separator_is_refused():
    with pytest.raises(ValueError, match="separator: is empty"):
        shuffle_parts("")
