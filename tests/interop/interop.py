"""What the tests of this folder share: tuning the miniature, questions about pictures of many shapes."""

from dataclasses import replace
from functools import partial

from PIL import Image

from ift_components.config import load_config
from ift_components.evaluation.items import question_items
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun
from ift_components.training.settings import TrainSettings

SHAPES = [(84, 84), (230, 230), (300, 90), (61, 200), (84, 40), (30, 30)]


def tune_miniature(prepared, folder, world, *overrides):
    """Fine-tune the shipped miniature in this process and return its checkpoint's folder."""
    settings = [f"data={prepared}", f"output_dir={folder / 'run'}", "num_workers=0", "tile_padding=meta", *overrides]
    cfg = load_config("tiny_ift.yaml", settings, TrainSettings)
    TrainingRun(cfg, world, check_settings(cfg)).run()
    return folder / "run" / "checkpoint"


def questions(prepared):
    """Multiple-choice questions about pictures of many shapes, each picture in one of them."""
    items = question_items(prepared, "test", "shapes")
    numbers = {name: number for number, name in enumerate(sorted({item.image_id for item in items}))}

    def reshaped(item):
        return item.picture().resize(SHAPES[numbers[item.image_id] % len(SHAPES)], Image.Resampling.BILINEAR)

    return [replace(item, picture=partial(reshaped, item)) for item in items]
