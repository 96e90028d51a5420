"""The supervised reference: classes of the training images, learning, and answers on the questions' own options."""

import json
import sys
from contextlib import nullcontext

import pytest
import torch
from safetensors import safe_open

from ift_components.config import CONFIG_DIR, load_config
from ift_components.data.images import ImageTransform
from ift_components.data.prepared import load_questions, load_reports, read_manifest
from ift_components.data.schema import Schema
from ift_components.errors import ConfigError
from ift_components.evaluation import reference as reference_module
from ift_components.evaluation.items import question_items
from ift_components.evaluation.parsing import PARSERS
from ift_components.evaluation.predictors.base import Work
from ift_components.evaluation.reference import (
    ReferenceOptions,
    ReferencePredictor,
    attribute_classes,
    main,
    train_reference,
)
from ift_components.evaluation.settings import EvalSettings
from ift_components.models import tiny_vision_transform
from ift_components.models.build import build_for_inference

CPU = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def reference(prepared, tmp_path_factory):
    """A reference of drawn shapes, trained for some epochs."""
    cfg = load_config("tiny_eval.yaml", [f"data={prepared}"], EvalSettings)
    options = ReferenceOptions(epochs=12, batch_size=8, lr=5e-4)
    return train_reference(cfg, tmp_path_factory.mktemp("reference"), options)


def test_classes_are_the_answers_that_training_images_show(prepared):
    rows = load_reports(prepared, "train")
    classes = attribute_classes(Schema.from_dict(read_manifest(prepared)["schema"]), rows)
    assert classes == {
        "shape": ["circle", "square", "triangle"],
        "colour": ["blue", "green", "red", "yellow"],
        "size": ["large", "small"],
        "border": ["no", "yes"],
    }


def test_it_learns_and_answers_by_its_most_probable_option(prepared, reference):
    predictor = ReferencePredictor(str(reference))
    items = question_items(prepared, "test", "shapes")
    predictor.check(items)
    answers = dict(predictor.answer([Work(item) for item in items]))
    chosen = {
        work.item.id: PARSERS["strict"](work.item.prompt, answer.generated, work.item.options)
        for work, answer in answers.items()
    }
    assert sum(chosen[item.id] == item.answer for item in items) / len(items) > 0.7
    images = torch.stack([ImageTransform(tiny_vision_transform())(item.picture()) for item in items])
    with torch.no_grad():
        logits = dict(zip(predictor._classifier.classes, predictor._classifier(images), strict=True))
    for number, item in enumerate(items):
        texts = predictor._classifier.classes[item.attribute]
        best = max(
            item.options, key=lambda text, n=number, a=item.attribute, t=texts: float(logits[a][n][t.index(text)])
        )
        assert item.options[chosen[item.id]] == best


def test_what_it_cannot_answer_is_named(prepared, reference, tmp_path):
    predictor = ReferencePredictor(str(reference))
    item = question_items(prepared, "test", "shapes", limit=1)[0]
    with pytest.raises(ConfigError, match="multiple choice about attributes it learnt"):
        predictor.check([type(item)(**{**vars(item), "attribute": "weight"})])
    with pytest.raises(ConfigError, match="is no reference"):
        ReferencePredictor(str(tmp_path / "none.safetensors"))
    assert len(load_questions(prepared, "test")) == 32


def test_the_command_takes_another_config_and_checkpoint_and_computes_in_its_dtype(
    prepared, tmp_path, monkeypatch, capsys, world
):
    """As for a large model: weights come from the checkpoint that is named, they stay fp32 and are computed with in bf16."""
    shipped = load_config("tiny_eval.yaml", [f"data={prepared}"], EvalSettings).checkpoint_dir
    (tmp_path / "mine.yaml").write_text(
        (CONFIG_DIR / "tiny_eval.yaml").read_text().replace("${shipped:tiny_checkpoint}", "???")
    )
    words = [
        str(prepared),
        str(tmp_path / "out"),
        "--config",
        str(tmp_path / "mine.yaml"),
        "--epochs",
        "1",
        "--batch-size",
        "16",
    ]
    monkeypatch.setattr(sys, "argv", ["reference", *words, "dtype=bf16"])
    with pytest.raises(SystemExit, match="give a value for checkpoint_dir"):
        main()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", ["reference", *words, "--checkpoint-dir", str(shipped), "--lr", "0", "dtype=bf16"])
    monkeypatch.setattr(reference_module, "distributed", lambda _: nullcontext(world))
    main()
    assert "border " in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "evaluation" / "results.json").read_text())["label"] == "supervised reference"
    with safe_open(tmp_path / "out" / "reference.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        assert json.loads(file.metadata()["reference"])["dtype"] == "bf16"
    model = build_for_inference(load_config("tiny_eval.yaml", [f"data={prepared}"], EvalSettings).model, shipped, *CPU)
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(saved[f"encoder.{name}"], weight), name  # its learning rate was 0
    classifier = ReferencePredictor(str(tmp_path / "out" / "reference.safetensors"))._classifier
    images = torch.stack(
        [ImageTransform(tiny_vision_transform())(row["image"]) for row in load_reports(prepared, "test")]
    )
    features = []
    classifier.norm.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        classifier(images)
        classifier.dtype = torch.float32
        classifier(images)
    difference = float((features[0] - features[1]).norm() / features[1].norm())
    assert 1e-5 < difference < 0.02
