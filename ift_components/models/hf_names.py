"""Where a model's parameters are in transformers' Mllama, under the names that it has had since 4.52."""

import torch
from torch import Tensor
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models.adapters import is_added
from ift_components.models.hf_layout import hf_config, tune_to_hf

_EMBEDDINGS = ("decoder.tok_embeddings.weight", "decoder.tok_embeddings.fusion_embedding.weight")
_OLD_AND_NEW = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_model.", "model.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def state_name(name: str) -> str:
    """Return what a module's parameters are called in state dicts: without wrappers, as torchtune's layers have it."""
    return name.replace("_checkpoint_wrapped_module.", "").replace(".layer.", ".")


def newer_name(key: str) -> str:
    """Return a weight's newer name for its older one."""
    return next((new + key.removeprefix(old) for old, new in _OLD_AND_NEW if key.startswith(old)), key)


class HFNames:
    """Where a model's parameters are in transformers' Mllama.

    Args:
        model: the model.
    """

    def __init__(self, model: DeepFusionModel) -> None:
        self.config = hf_config(model)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if not is_added(name)}
        self.of: dict[str, str] = {}
        """Name in this package's model to name in transformers'; both halves of the embedding have one there."""
        for name in shapes:
            pair = _EMBEDDINGS if name in _EMBEDDINGS else (name,)
            empty = {other: torch.empty(shapes[other], device="meta") for other in pair}
            (key,) = tune_to_hf(empty, self.config)
            self.of[name] = newer_name(key)
        self._shapes = shapes

    def module(self, name: str) -> str:
        """Return the module in transformers' model of a linear layer here."""
        return self.of[f"{state_name(name)}.weight"].removesuffix(".weight")

    def rows(self, name: str) -> Tensor:
        """Return, [out], which row of a linear layer's weight here is each row in transformers' (rotary layers differ)."""
        weight = f"{state_name(name)}.weight"
        out, into = self._shapes[weight]
        numbered = torch.arange(out, dtype=torch.int32).unsqueeze(1).expand(out, into)
        (rows,) = tune_to_hf({weight: numbered}, self.config).values()
        return rows[:, 0].long()
