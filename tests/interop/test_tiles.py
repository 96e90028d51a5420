"""A model tuned on pictures of several tiles answers in transformers, with the stock processor, as it does here."""

import json

import pytest
from interop import questions, tune_miniature

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

from ift_components.evaluation.predictors import HuggingFacePredictor, Work  # noqa: E402
from ift_components.evaluation.predictors.own import OwnPredictor  # noqa: E402
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform  # noqa: E402
from ift_components.models.build import layout_for_answers  # noqa: E402
from ift_components.models.hf_layout import load_weights  # noqa: E402
from ift_components.models.image_layout import ImageLayout  # noqa: E402
from ift_components.models.tile_padding import set_tile_padding  # noqa: E402
from ift_components.models.transformers_patch import SquashingImageProcessor, load  # noqa: E402
from ift_components.proxy import load_proxy  # noqa: E402


@pytest.fixture(scope="module")
def tuned(prepared, world, tmp_path_factory):
    return tune_miniature(prepared, tmp_path_factory.mktemp("tiles"), world, "max_steps=2", "batch_size=4", "tiles=4")


def test_the_layout_is_noted_wherever_it_is_needed(tuned):
    assert layout_for_answers(str(tuned)) == ImageLayout(4, "meta")
    _, metadata = load_proxy(tuned / "proxy_instruction.safetensors", 8, 128)
    assert {key: metadata[key] for key in ("tiles", "tile_padding", "resize")} == {
        "tiles": "4", "tile_padding": "meta", "resize": "bilinear",
    }  # fmt: skip
    assert json.loads((tuned / "preprocessor_config.json").read_text())["max_image_tiles"] == 4
    assert "cut into up to four tiles" in (tuned / "README.md").read_text()


def test_the_stock_processor_lays_pictures_out_as_training_did(tuned, prepared):
    _, processor = load(tuned)
    assert not isinstance(processor.image_processor, SquashingImageProcessor)
    model = tiny_llama3_2_vision()
    load_weights(model, tuned)
    layout = layout_for_answers(str(tuned))
    set_tile_padding(model, layout.answering_padding, layout.tiles).requires_grad_(requires_grad=False)
    work = [Work(item) for item in questions(prepared)]
    ours = OwnPredictor(model, tiny_vision_transform(), batch_size=16, tiles=layout.tiles)
    theirs = HuggingFacePredictor(str(tuned), batch_size=16, device="cpu", corrected=True)
    texts = [{unit.item.id: answer.generated.strip() for unit, answer in one.answer(work)} for one in (ours, theirs)]
    equal = sum(texts[0][name] == texts[1][name] for name in texts[0])
    assert equal / len(work) >= 0.99


def test_a_model_tuned_without_padding_is_warned_of(prepared, world, tmp_path, capsys):
    """Transformers pads in any case; the proxy and the base, which were trained without padding, are named in training."""
    tuned = tune_miniature(prepared, tmp_path, world, "max_steps=1", "batch_size=4", "tile_padding=none")
    assert "warning" not in capsys.readouterr().err
    HuggingFacePredictor(str(tuned), device="cpu")
    assert (
        "was tuned without padding (tile_padding none), and transformers pads every picture" in capsys.readouterr().err
    )


def test_another_layout_than_the_warm_ups_is_warned_of(prepared, world, tmp_path, capsys):
    tune_miniature(prepared, tmp_path, world, "max_steps=1", "batch_size=4", "tiles=4")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2
    assert (
        "tiny_checkpoint was tuned with tiles 1 and not 4; tile_padding none and not meta: the model has to" in lines[0]
    )
    assert "proxy_instruction.safetensors was warmed up with tiles 1 and not 4; tile_padding none and not" in lines[1]
