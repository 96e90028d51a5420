"""Drawn cells: the same for a seed, every attribute visible and learnable in both styles, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.errors import ConfigError, DataError
from ift_components.smears import STYLES, contact_sheet, draw_cells, sample_cells
from ift_components.smears.render import _Cell, draw_cells_and_masks
from ift_components.smears.sampler import COLUMNS, COUNTS, VALUES
from ift_components.smears.shapes import grid

NAMES = [attribute.name for attribute in SCHEMA.attributes]
WIDTHS = (16, 32, 64, 96)
styles = pytest.mark.parametrize("style", STYLES)


@styles
@pytest.mark.parametrize(("count", "side"), [(0, 84), (1, 84), (35, 84), (3, 57), (2, 160)])
def test_images_are_bytes_and_the_same_for_a_seed(style, count, side):
    codes = sample_cells(count, np.random.default_rng(0), independent=True)
    images = draw_cells(codes, style, np.random.default_rng(1), side=side)
    assert images.shape == (count, side, side, 3)
    assert images.dtype == np.uint8
    assert (images == draw_cells(codes.astype(np.int64), style, np.random.default_rng(1), side=side)).all()
    if count:
        assert (images != draw_cells(codes, style, np.random.default_rng(2), side=side)).any()
        assert images.std((1, 2, 3)).min() > 5


@styles
@pytest.mark.parametrize("place", range(12), ids=NAMES)
def test_an_attribute_changes_its_own_pixels(style, place):
    """One attribute changed, chance the same: every image changes somewhere, clearly, and the next random number does not."""
    codes = sample_cells(48, np.random.default_rng(place), independent=True)
    codes[:, 3] = 1  # enough cytoplasm to see it in
    if NAMES[place].startswith("granule "):
        codes[:, 8:11] = np.where(codes[:, 8:9] == 1, (0, 0, 0), codes[:, 8:11])
    changed = codes.copy()
    if NAMES[place] == "granularity":
        changed[:, 8:11] = np.where(codes[:, 8:9] == 1, (0, 0, 0), (1, -1, -1))
    else:
        changed[:, place] = (codes[:, place] + 1) % COUNTS[place]
    first, second = np.random.default_rng(9), np.random.default_rng(9)
    before = draw_cells(codes, style, first).astype(np.int16)
    difference = np.abs(draw_cells(changed, style, second) - before).max(-1)
    assert first.random() == second.random()
    assert (difference > 20).sum((1, 2)).min() >= 8
    if NAMES[place] != "cell size":  # red cells make way for a bigger cell
        assert np.median((difference > 0).mean((1, 2))) < 0.6


@styles
def test_the_nucleus_stays_inside_the_cell(style):
    codes = sample_cells(200, np.random.default_rng(0), independent=True)
    look = STYLES[style]
    code = {name: codes[:, place].astype(np.intp) for name, place in COLUMNS.items()}
    cell = _Cell(np.random.default_rng(1), look, code, grid(84, look.blur))
    assert (cell.nucleus <= cell.inside + 0.02).all()
    share = cell.nucleus.sum((1, 2)) / cell.inside.sum((1, 2))
    round_nuclei = codes[:, 2] == VALUES[2].index("unsegmented-round")
    high = codes[:, 3] == VALUES[3].index("high")
    assert share[round_nuclei & high].min() > 1.4 * share[round_nuclei & ~high].max()
    assert share.min() > 0.04


class Probe(nn.Module):
    """A small convolutional encoder with a linear head for each attribute."""

    def __init__(self):
        super().__init__()
        channels = (3, *WIDTHS)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3 if place else 5, 2, 1 if place else 2, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for place, (before, after) in enumerate(zip(channels, WIDTHS, strict=False))
        )
        self.heads = nn.ModuleList(nn.Linear(36 * WIDTHS[-1] + 2 * sum(WIDTHS), size) for size in COUNTS)

    def forward(self, images):
        seen = []
        for block in self.blocks:
            images = block(images)
            seen += [images.mean((2, 3)), images.amax((2, 3))]
        features = torch.cat([*seen, images.flatten(1)], 1)
        return [head(features) for head in self.heads]


def pictures(style, count, generator):
    codes = sample_cells(count, generator, independent=True)
    pixels = torch.from_numpy(draw_cells(codes, style, generator)).permute(0, 3, 1, 2)
    return pixels.float() / 255 - 0.5, torch.from_numpy(codes).long()


def probe(style, images, steps):
    """Train a probe on independent attributes; its accuracy on 1,000 new images by attribute."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    train, codes = pictures(style, images, generator)
    model = Probe()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        picked = torch.randint(images, (32,))
        batch = train[picked]
        if step % 2:
            batch = batch.transpose(2, 3)
        if step % 4 > 1:
            batch = batch.flip(2)
        answers = zip(model(batch), codes[picked].T, strict=True)
        loss = sum(F.cross_entropy(scores, truth, ignore_index=-1) for scores, truth in answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    test, codes = pictures(style, 1000, generator)
    with torch.no_grad():
        answers = zip(NAMES, model.eval()(test), codes.T, strict=True)
        found = {name: (scores.argmax(1) == truth)[truth >= 0].float().mean().item() for name, scores, truth in answers}
    print(style, {name: round(share, 2) for name, share in found.items()}, f"mean {np.mean(list(found.values())):.3f}")
    return found


@styles
def test_plain_attributes_are_learnt_quickly(style):
    found = probe(style, 800, 100)
    for name, least in (("label", 0.6), ("cell size", 0.85), ("cytoplasm colour", 0.6)):
        assert found[name] > least, found


@pytest.mark.slow
@pytest.mark.parametrize(("style", "mean"), [("schematic", 0.85), ("smear", 0.82)])
def test_every_attribute_is_learnt(style, mean):
    found = probe(style, 4000, 1500)
    for name, size in zip(NAMES, COUNTS, strict=True):
        assert found[name] > 1 / size + 0.2, found
    assert np.mean(list(found.values())) > mean, found


def test_contact_sheet_shows_both_styles(tmp_path):
    codes = sample_cells(30, np.random.default_rng(0), independent=True)
    path = tmp_path / "sheet.png"
    sheet = contact_sheet(codes, np.random.default_rng(1), path)
    assert sheet.size == Image.open(path).size
    assert sheet.width > 2 * 6 * 84
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    one = contact_sheet(codes[:1], np.random.default_rng(1))
    assert one.width == sheet.width
    assert one.height < sheet.height / 2
    with pytest.raises(DataError, match="no cells"):
        contact_sheet(codes[:0], np.random.default_rng(1))


def test_wrong_arguments_are_refused_by_name():
    codes = sample_cells(2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="style is 'photo'; expected one of: schematic, smear"):
        draw_cells(codes, "photo", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="side is 16; expected 32 or more"):
        draw_cells(codes, "smear", np.random.default_rng(0), side=16)
    with pytest.raises(DataError, match=r"shape \[2, 3\]"):
        draw_cells(codes[:, :3], "smear", np.random.default_rng(0))


def test_masks_lie_where_the_parts_are_drawn():
    codes = sample_cells(40, np.random.default_rng(5), independent=True)
    images, masks = draw_cells_and_masks(codes, "smear", np.random.default_rng(6))
    assert np.array_equal(images, draw_cells(codes, "smear", np.random.default_rng(6)))
    assert not (masks.nucleus & ~masks.cell).any()
    assert np.array_equal(masks.cytoplasm, masks.cell & ~masks.nucleus)
    assert not (masks.granules & ~masks.cell).any()
    granular = codes[:, COLUMNS["granularity"]] == VALUES[COLUMNS["granularity"]].index("yes")
    assert np.array_equal(masks.granules.any((1, 2)), granular)
    dense = codes[:, COLUMNS["chromatin density"]] == VALUES[COLUMNS["chromatin density"]].index("densely")
    brightness = images.astype(float).mean(-1)
    for index in np.flatnonzero(dense & ~granular):
        # A dense nucleus is the darkest part, the ground around the cell the brightest.
        assert brightness[index][masks.nucleus[index]].mean() < brightness[index][masks.cytoplasm[index]].mean()
        assert brightness[index][masks.cell[index]].mean() < brightness[index][~masks.cell[index]].mean()
