"""What the tests of this room share: a miniature that answers in the form asked for, and configs of evaluations."""

import pytest
import torch

from ift_components.config import load_config
from ift_components.data.dataset import Sample, collate
from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Text, prompt_tokens, response_tokens
from ift_components.evaluation.items import question_items
from ift_components.evaluation.settings import EvalSettings
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.forward import ResponseLoss
from ift_components.models.hf_layout import hf_config, save_checkpoint
from ift_components.models.image_layout import ImageLayout

STEPS = 50


def batch_of(pairs, pictures, transform):
    """Make a batch of (prompt, response) token pairs and their pictures."""
    rows = zip(pairs, pictures, strict=True)
    samples = [Sample("", prompt, [response], image) for (prompt, response), image in rows]
    return collate(samples, transform)


@pytest.fixture(scope="session")
def transform():
    return tiny_vision_transform()


@pytest.fixture(scope="session")
def items(prepared):
    return question_items(prepared, "test", "shapes")


@pytest.fixture(scope="session")
def trained(items, transform):
    """A miniature taught for a few seconds to answer as asked: with letter, bracketed letter, or something else entirely."""
    model = tiny_llama3_2_vision(num_layers=4)
    loss = ResponseLoss(model)
    picture = ImageTransform(transform)
    forms = {"colour": "The correct answer is [{}].", "border": "It is round, I think"}
    pairs, pictures = [], []
    for item in items:
        response = forms.get(item.attribute, "The correct answer is {}.").format("ABCDEFGH"[item.answer])
        pairs.append((prompt_tokens(transform, Text(item.prompt)), response_tokens(transform, response)))
        pictures.append(picture(item.picture()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = torch.randperm(len(pairs) * 16, generator=torch.Generator().manual_seed(0)) % len(pairs)
    for rows in order.split(8)[:STEPS]:
        batch = batch_of([pairs[i] for i in rows], [pictures[i] for i in rows], transform)
        optimizer.zero_grad()
        (loss(batch, None) / len(batch.labels)).backward()
        optimizer.step()
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def checkpoint(trained, tmp_path_factory):
    """The trained miniature as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    save_checkpoint(folder, trained.state_dict(), hf_config(trained), dtype=torch.float32, layout=ImageLayout())
    return folder


@pytest.fixture
def eval_config(prepared, checkpoint, tmp_path):
    """A function that gives the miniature's evaluation config with overrides."""

    def make(*overrides, out="out"):
        given = [
            f"data={prepared}",
            f"checkpoint_dir={checkpoint}",
            f"output_dir={tmp_path / out}",
            "bootstrap=200",
            "image_control=false",
            "model.num_layers=4",
        ]
        return load_config("tiny_eval.yaml", [*given, *overrides], EvalSettings)

    return make
