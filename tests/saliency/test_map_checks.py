"""The tests of maps: a planted map passes, a map of nothing does not, and the model has its own weights afterwards."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from ift_components.data.wording import multiple_choice_prompt
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.saliency.checks import MethodScores, Question, measure, sanity, summary, verdict
from ift_components.saliency.faithfulness import centre_grid, curves, order_of
from ift_components.saliency.localisation import locate, part_asked
from ift_components.saliency.mapper import Mapper
from ift_components.saliency.sanity import correlation, stages

PROMPT = multiple_choice_prompt("What is the cell size?", ["big", "small"])


class BrightPatch:
    """Answers with the brightness of one patch of 14 pixels."""

    def __init__(self, row, column):
        self.rows, self.columns = slice(14 * row, 14 * row + 14), slice(14 * column, 14 * column + 14)

    def probabilities(self, pixels, asked, chosen):
        return pixels[:, 0, 0, 0, self.rows, self.columns].mean(dim=(-2, -1))


def planted(row, column):
    grid = np.zeros((6, 6), np.float32)
    grid[row, column] = 1
    return grid


def picture_of_patch(row, column):
    pixels = torch.zeros(1, 1, 3, 84, 84)
    pixels[..., 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = 1
    return pixels


def test_the_patch_that_matters_is_deleted_and_inserted_first():
    pixels = picture_of_patch(0, 5)
    right, wrong = curves(
        BrightPatch(0, 5),
        pixels,
        None,
        (),
        grids=[planted(0, 5), 1 - planted(0, 5)],
        generator=np.random.default_rng(0),
    )
    assert len(right.shares) == 13
    mean = 1 / 36
    # The first of twelve steps takes three of 36 patches, the planted one among them.
    np.testing.assert_allclose(right.deletion, [1] + [mean] * 12, atol=1e-5)
    np.testing.assert_allclose(wrong.deletion, [1] * 12 + [mean], atol=1e-5)
    np.testing.assert_allclose(right.insertion[1:], 1, atol=1e-5)
    assert right.insertion[0] < 0.5  # blurred
    assert right.areas[0] < wrong.areas[0] - 0.8
    assert right.areas[1] > wrong.areas[1] + 0.4
    step = 1 / 12
    assert right.areas[0] == pytest.approx(step * (1 + mean) / 2 + 11 * step * mean, abs=1e-5)


def test_a_map_that_knows_beats_the_masks_and_one_that_does_not_is_marked():
    generator, scores = (
        np.random.default_rng(1),
        {name: MethodScores() for name in ("knows", "corner", "centre", "random")},
    )
    for number in range(30):
        row, column = generator.integers(0, 6, 2)
        grids = [planted(row, column), planted(0, 0), centre_grid(6, 6), generator.random((6, 6)).astype(np.float32)]
        made = curves(
            BrightPatch(row, column), picture_of_patch(row, column), None, (), grids=grids, generator=generator
        )
        for name, one in zip(scores, made, strict=True):
            scores[name].add_curves(str(number), [one])
    table = summary(scores, draws=500)
    assert table["knows"]["beats_centre"]
    assert not table["corner"]["beats_centre"]
    assert verdict(table["knows"]).startswith(
        "Beats a mask at the picture's centre on 30 questions; gain in area: deletion +0."
    )
    assert verdict(table["corner"]).startswith("Does not beat a mask")
    gain = table["knows"]["against_centre"]["deletion"]
    assert gain["low"] < gain["value"] < gain["high"]
    assert gain["value"] == pytest.approx(table["centre"]["deletion"]["value"] - table["knows"]["deletion"]["value"])
    assert "beats_centre" not in table["centre"]


def test_equal_patches_come_in_random_order():
    firsts = {int(order_of(np.ones((6, 6)), np.random.default_rng(seed))[0]) for seed in range(20)}
    assert len(firsts) > 5
    assert order_of(planted(2, 3), np.random.default_rng(0))[0] == 15


def test_location_is_the_share_within_the_mask():
    mask = np.zeros((84, 84), bool)
    mask[:14, :28] = True  # two patches
    mask[14:21, :14] = True  # and half of a third
    grid = planted(0, 0) * 0.25 + planted(1, 0) * 0.75
    found = locate(grid, mask)
    assert found.share == pytest.approx(0.25 + 0.75 / 2)
    assert found.pointing == pytest.approx(0.5)
    assert found.area == pytest.approx(2.5 / 36)
    nothing = locate(np.zeros((6, 6), np.float32), mask)
    assert nothing.share == nothing.pointing == pytest.approx(2.5 / 36)
    fine = locate(np.ones((12, 12), np.float32), mask)  # other sizes than the mask's patches
    assert fine.share == pytest.approx(2.5 / 36)


def test_the_part_asked_about():
    masks = {name: np.ones((2, 2), bool) for name in ("cell", "nucleus", "cytoplasm", "granules")}
    assert part_asked("chromatin density", masks) == "nucleus"
    assert part_asked("granule type", masks) == "granules"
    assert part_asked("granularity", masks | {"granules": np.zeros((2, 2), bool)}) == "cytoplasm"
    assert part_asked("something else", masks) == "cell"


def test_rank_correlation():
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 6, 6))
    assert correlation(first, second) == pytest.approx(spearmanr(first.ravel(), second.ravel()).statistic)
    assert correlation(first, np.ones((6, 6))) == 0


def test_sanity_makes_all_weights_random_and_gives_them_back():
    model = tiny_llama3_2_vision().requires_grad_(requires_grad=False)
    mapper = Mapper(model, tiny_vision_transform())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (84, 84, 3), dtype=np.uint8)) for _ in range(3)]
    asked = mapper.walk.ask(PROMPT, "The correct answer is A.")
    questions = [Question(str(n), mapper.pixels(picture), asked) for n, picture in enumerate(pictures)]
    made = sanity(mapper, questions, ["rollout", "relevance"])
    names = list(stages(model))
    assert names[0] == "output"
    assert names[-1] == "vision encoder"
    touched = {id(p) for modules in stages(model).values() for module in modules for p in module.parameters()}
    left = [name for name, parameter in model.named_parameters() if id(parameter) not in touched]
    assert left == ["decoder.tok_embeddings.embedding.weight", "decoder.tok_embeddings.fusion_embedding.weight"]
    assert made["rollout"]["output"] == pytest.approx(1)  # it does not look at the output
    assert made["relevance"]["output"] < 0.9
    assert abs(made["rollout"]["vision encoder"]) < 0.6
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_measure_keeps_methods_and_masks_apart():
    mapper = Mapper(tiny_llama3_2_vision().requires_grad_(requires_grad=False), tiny_vision_transform())
    mask = np.zeros((84, 84), bool)
    mask[28:56, 28:56] = True
    masks = dict.fromkeys(("cell", "nucleus", "cytoplasm", "granules"), mask)
    generator = np.random.default_rng(0)
    questions = [
        Question(
            str(n),
            mapper.pixels(Image.fromarray(generator.integers(0, 256, (84, 84, 3), dtype=np.uint8))),
            mapper.walk.ask(PROMPT, "The correct answer is A."),
            "label",
            masks,
        )
        for n in range(3)
    ]
    table = summary(measure(mapper, questions, ["attention"]), draws=200)
    assert list(table) == ["attention", "centre", "random"]
    assert table["centre"]["cell"]["share"]["value"] > 1.5 * table["centre"]["cell"]["area"]
    assert table["centre"]["cell"]["pointing"]["value"] == pytest.approx(1)
    assert table["random"]["cell"]["share"]["value"] == pytest.approx(4 / 36, abs=0.05)
    for row in table.values():  # both ends of the curves are the same for all: the whole picture and none of it
        np.testing.assert_allclose(row["deletion_curve"][0], table["centre"]["deletion_curve"][0], atol=1e-6)
        np.testing.assert_allclose(row["insertion_curve"][-1], row["deletion_curve"][0], atol=1e-5)
