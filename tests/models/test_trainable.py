"""What is trained: parts as torchtune cuts them, and the section of a config."""

import pytest
import torch
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.models import tiny_llama3_2_vision
from ift_components.models.build import build_model
from ift_components.models.trainable import FINE_TUNING, PARTS, WARM_UP, PartTuning, Tuning, apply_tuning, part_of


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_those_of_torchtunes_flags(part):
    with torch.device("meta"):
        model = tiny_llama3_2_vision()
    apply_tuning(model, Tuning(**{part: PartTuning("full")}))
    flags = {f"{name}_trainable": name == part for name in PARTS}
    mine = trained_names(model)
    theirs = trained_names(DeepFusionModel(model.decoder, model.encoder, **flags))
    assert mine == theirs
    assert mine == {name for name, _ in model.named_parameters() if part_of(name) == part}
    assert mine


def test_fine_tuning_and_warm_up():
    model = tiny_llama3_2_vision()
    apply_tuning(model, FINE_TUNING)
    assert {part_of(name) for name in trained_names(model)} == {"encoder", "fusion"}
    apply_tuning(model, WARM_UP)
    assert trained_names(model) == set()
    assert (WARM_UP.is_frozen, FINE_TUNING.is_frozen) == (True, False)


def test_section_is_read():
    section = {"encoder": {"method": "full", "lr": 1e-5}, "fusion": "full", "decoder": "frozen"}
    assert Tuning.parse(section) == Tuning(PartTuning("full", 1e-5), PartTuning("full"), PartTuning("frozen"))


def test_flags_of_a_builder_are_refused():
    node = {"_component_": "ift_components.models.tiny_llama3_2_vision", "encoder_trainable": False}
    with pytest.raises(ConfigError, match=r"model.encoder_trainable: is no longer read; the section `tuning`"):
        build_model(node, meta=True)
