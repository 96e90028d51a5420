"""The corrected classes of transformers: pictures of any shape, what is refused. Logits: tests/evaluation."""

import json
import shutil

import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

from ift_components.data.images import ImageTransform  # noqa: E402
from ift_components.models import tiny_vision_transform  # noqa: E402
from ift_components.models.hf_files import IMAGE_LAYOUT  # noqa: E402
from ift_components.models.tiny import TINY_CHECKPOINT  # noqa: E402
from ift_components.models.transformers_patch import (  # noqa: E402
    ImageRowsLayer,
    SquashingImageProcessor,
    TapBeforeEncoder,
    load,
)

SHAPES = [(84, 84), (230, 230), (40, 84), (300, 60), (20, 500), (1, 1)]


@pytest.fixture(scope="module")
def loaded():
    return load(TINY_CHECKPOINT, dtype=torch.float32)


def picture(width, height, mode="RGB"):
    generator = torch.Generator().manual_seed(width)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_trainings_for_pictures_of_any_shape(loaded, shape, mode):
    image = picture(*shape, mode)
    inputs = loaded[1](images=[[image]], text=["<|image|>"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 4, 3, 84, 84)
    expected = ImageTransform(tiny_vision_transform())(image)[0]
    torch.testing.assert_close(inputs["pixel_values"][0, 0, :1], expected, atol=1e-5, rtol=0)
    assert not inputs["pixel_values"][0, 0, 1:].any()
    assert inputs["aspect_ratio_ids"].tolist() == [[1]]
    assert inputs["aspect_ratio_mask"].tolist() == [[[1, 0, 0, 0]]]


def test_stock_transformers_cuts_what_is_larger_than_a_tile():
    """Why pictures are to be resized to the tile's size before the stock processor."""
    processor = transformers.AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    tiles = [int(processor(images=[[picture(*s)]], return_tensors="pt")["aspect_ratio_mask"].sum()) for s in SHAPES]
    assert tiles == [1, 4, 1, 4, 4, 1]


def test_a_smaller_max_image_tiles_fails_in_the_stock_model():
    """Why the processor's file says four tiles although training uses one."""
    processor = transformers.AutoProcessor.from_pretrained(TINY_CHECKPOINT)
    model = transformers.AutoModelForImageTextToText.from_pretrained(TINY_CHECKPOINT)
    processor.image_processor.max_image_tiles = 1
    inputs = processor(images=[[picture(84, 84)]], text=["<|image|>"], return_tensors="pt")
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        model(**inputs)


def test_a_model_that_was_not_trained_on_squashed_pictures_keeps_its_tiles(tmp_path):
    folder = shutil.copytree(TINY_CHECKPOINT, tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    del config[IMAGE_LAYOUT]
    (folder / "config.json").write_text(json.dumps(config))
    _, processor = load(folder)
    assert not isinstance(processor.image_processor, SquashingImageProcessor)
    assert processor(images=[[picture(230, 230)]], return_tensors="pt")["aspect_ratio_mask"].sum() == 4


def test_every_part_that_is_wrong_is_replaced(loaded):
    model, processor = loaded
    stock = transformers.AutoModelForImageTextToText.from_pretrained(TINY_CHECKPOINT, dtype=torch.float32)
    assert type(model) is type(stock)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stock.parameters(), strict=True))
    assert isinstance(model.model.vision_model.transformer, TapBeforeEncoder)
    assert [isinstance(layer, ImageRowsLayer) for layer in model.model.language_model.layers] == [
        index in model.config.text_config.cross_attention_layers for index in range(9)
    ]
    assert isinstance(processor.image_processor, SquashingImageProcessor)


def test_what_is_no_picture_is_refused(loaded):
    with pytest.raises(TypeError, match="Tensor given as an image; expected pictures of Pillow, paths or URLs"):
        loaded[1].image_processor(torch.zeros(3, 84, 84))
