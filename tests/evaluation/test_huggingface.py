"""The Hugging Face predictor on tiny random models of the architectures it is for."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

import hf_models  # noqa: E402 (beside this file)

from ift_components.config import load_config  # noqa: E402
from ift_components.errors import ConfigError, UserError  # noqa: E402
from ift_components.evaluation.predictors import HuggingFacePredictor, Sampling, Work  # noqa: E402
from ift_components.evaluation.run import Evaluation  # noqa: E402
from ift_components.evaluation.settings import EvalSettings  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of saved models, made when first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            hf_models.save(name, made[name])
        return str(made[name])

    return folder


def answers(path, work, **drawing):
    predictor = HuggingFacePredictor(path, device="cpu")
    return {(w.item.id, w.run): a.generated for w, a in predictor.answer(work, Sampling(**drawing))}


@pytest.mark.parametrize("name", hf_models.ARCHITECTURES)
@torch.inference_mode()
def test_batches_answer_as_single_questions_do(folders, items, name):
    """Prompts of different lengths about different images: padding, image tokens and masks must all be right."""
    predictor = HuggingFacePredictor(folders(name), device="cpu", batch_size=4)
    asked = [Work(replace(item, max_new_tokens=12)) for item in (items[0], items[1], items[4], items[9])]
    assert len({len(work.item.prompt) for work in asked}) > 1

    def logits(*batch):
        return predictor._model(**predictor._inputs(batch)).logits[:, -1]

    together = logits(*asked)
    alone = torch.cat([logits(work) for work in asked])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    noise = Image.effect_noise((64, 64), 120)
    other = logits(*(Work(replace(work.item, picture=lambda: noise)) for work in asked))
    assert (other - together).abs().amax(dim=1).min() > 1e-3  # the image matters
    texts = {work.item.id: answer.generated for work, answer in predictor.answer(asked)}
    assert texts.keys() == {work.item.id for work in asked}
    assert all(texts.values())
    assert not any("What is" in text for text in texts.values())  # the prompt is not part of the answer


@pytest.mark.parametrize("name", hf_models.ARCHITECTURES)
def test_no_special_token_is_written_twice(folders, items, name):
    predictor = HuggingFacePredictor(folders(name), device="cpu")
    seen = []
    generate = predictor._model.generate
    predictor._model.generate = lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs)
    list(predictor.answer([Work(items[0])]))
    assert (seen[0] == predictor._processor.tokenizer.bos_token_id).sum() <= 1


def test_a_whole_evaluation(folders, prepared, world, tmp_path):
    component = "predictor._component_=ift_components.evaluation.predictors.HuggingFacePredictor"
    given = [
        component,
        f"predictor.path={folders('Qwen2.5-VL')}",
        "predictor.device=cpu",
        f"data={prepared}",
        "checkpoint_dir=null",
    ]
    given += [
        f"output_dir={tmp_path / 'out'}",
        "scoring=generate",
        "bootstrap=100",
        "image_control=false",
        "limit=6",
        "max_new_tokens=8",
    ]
    results = Evaluation(load_config("tiny_eval.yaml", given, EvalSettings), world).run()
    assert results["questions"] == 6
    assert results["weights"]["class"] == "Qwen2_5_VLForConditionalGeneration"
    assert len(results["weights"]["sha256"]) == 64
    assert results["versions"]["transformers"] == transformers.__version__


def test_sampling_depends_on_the_seed(folders, items):
    work = [Work(items[0], run) for run in range(3)]
    first = answers(folders("PubMedVision"), work, temperature=2.0, seed=1)
    assert len(set(first.values())) == 3
    assert first == answers(folders("PubMedVision"), work, temperature=2.0, seed=1)
    assert first != answers(folders("PubMedVision"), work, temperature=2.0, seed=2)


def test_repeated_runs_differ(folders, prepared, world, tmp_path):
    """Temperature, top_p and seed stand at the top level of the config and reach this predictor too."""
    component = "predictor._component_=ift_components.evaluation.predictors.HuggingFacePredictor"
    base = [component, f"predictor.path={folders('PubMedVision')}", "predictor.device=cpu", f"data={prepared}"]
    base += [
        "checkpoint_dir=null",
        "scoring=generate",
        "bootstrap=100",
        "image_control=false",
        "limit=3",
        "max_new_tokens=8",
    ]

    def texts(*overrides):
        out = tmp_path / "-".join(overrides)
        cfg = load_config("tiny_eval.yaml", [*base, *overrides, f"output_dir={out}"], EvalSettings)
        Evaluation(cfg, world).run()
        rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        return [row["generated"] for row in rows if row["id"] == rows[0]["id"]]

    first = texts("n_runs=5", "temperature=0.7")
    assert len(set(first)) == 5
    assert texts("n_runs=5", "temperature=0.7", "seed=1") != first


def test_mistakes(folders, items, tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded by transformers"):
        HuggingFacePredictor(str(tmp_path))
    with pytest.raises(ConfigError, match=r"does not hold \{prompt\}"):
        HuggingFacePredictor(folders("BLIP-2"), prompt_format="Question:")
    with pytest.raises(UserError, match="needs this package's engine"):
        HuggingFacePredictor(folders("BLIP-2"), device="cpu").check(
            [type(items[0])(**{**vars(items[0]), "prompt": ""})]
        )
    assert torch.is_grad_enabled()
