"""Building a model from its config node, with random or a checkpoint's weights."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.config import instantiate
from ift_components.errors import ConfigError
from ift_components.models.adapter_files import FACTS
from ift_components.models.hf_layout import load_weights
from ift_components.models.image_layout import ImageLayout, answering_layout, noted_layout
from ift_components.models.quantised import NF4, fill_quantised


def build_model(node: Mapping[str, Any], *, meta: bool) -> DeepFusionModel:
    """Build the model that a config node names.

    Args:
        node: the `model` node.
        meta: whether to build it without storage, for weights that are loaded later.

    Raises:
        ConfigError: if the component is wrong or builds something else.
    """
    flags = sorted(key for key in node if str(key).endswith("_trainable"))
    if flags:
        raise ConfigError(f"model.{flags[0]}: is no longer read; the section `tuning` says what is trained: remove it")
    with torch.device("meta" if meta else "cpu"):
        model = instantiate(node, "model")
    if not isinstance(model, DeepFusionModel):
        raise ConfigError(f"model: {node['_component_']} built a {type(model).__name__}; expected a DeepFusionModel")
    return model


def fill(model: DeepFusionModel, folder: Path, device: torch.device, *, weights_on: torch.device) -> None:
    """Give a model built on the meta device storage and a checkpoint's weights.

    Args:
        model: the model, sharded or not.
        folder: a checkpoint in Hugging Face layout.
        device: where it computes.
        weights_on: where its weights stay; the host's memory under CPU offload, otherwise `device`.

    Raises:
        ConfigError: if the checkpoint does not fit.
    """
    model.to_empty(device=weights_on)
    compute_buffers(model, device)
    load_weights(model, folder)


def check_weights(checkpoint_dir: str | None, adapter_dir: str | None, frozen_dtype: str | None) -> None:
    """Check the keys that name a model's weights.

    Raises:
        ConfigError: if the type is unknown, or an adapter or a type is given without the checkpoint that it is about.
    """
    if frozen_dtype not in (None, NF4):
        raise ConfigError(f"frozen_dtype: '{frozen_dtype}' is not {NF4} or null")
    for key, value in {"adapter_dir": adapter_dir, "frozen_dtype": frozen_dtype}.items():
        if value is not None and checkpoint_dir is None:
            raise ConfigError(f"checkpoint_dir: give the checkpoint that {key} ({value}) is about")


def compute_buffers(model: DeepFusionModel, device: torch.device) -> None:
    """Compute what a model built on the meta device needs besides the checkpoint's weights: the tables of rotary embeddings."""
    with device:
        for module in model.modules():
            if hasattr(module, "rope_init"):
                module.rope_init()


def layout_for_answers(
    checkpoint_dir: str | None,
    adapter_dir: str | None = None,
    asked: Mapping[str, Any] = MappingProxyType({}),
    *,
    anyway: bool = False,
) -> ImageLayout:
    """Return the layout of pictures in which a model is to be asked: what its adapter, or else its checkpoint, notes.

    Args:
        checkpoint_dir: a checkpoint in Hugging Face layout, or None for random weights.
        adapter_dir: an adapter on it, or None.
        asked: `tiles`, `tile_padding` and `resize` as the user wants them; None or left out takes what is noted.
        anyway: whether another layout than training's is meant.

    Raises:
        ConfigError: if a value is unknown, or it is another layout than training's.
    """
    noted = None if checkpoint_dir is None else noted_layout(Path(checkpoint_dir) / "config.json")
    where = str(checkpoint_dir)
    if adapter_dir is not None:
        noted, where = noted_layout(Path(adapter_dir) / FACTS) or noted, adapter_dir
    return answering_layout(noted, asked, where, is_trained=checkpoint_dir is not None, anyway=anyway)


def build_for_inference(
    node: Mapping[str, Any],
    checkpoint_dir: str | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    frozen_dtype: str | None = None,
) -> DeepFusionModel:
    """Build a whole, frozen model in one dtype.

    Args:
        node: the `model` node.
        checkpoint_dir: a checkpoint in Hugging Face layout, or None to keep the builder's random weights.
        device: where it goes.
        dtype: dtype of every weight.
        frozen_dtype: `nf4` quantises the linear layers of a checkpoint as it is read.

    Raises:
        ConfigError: if the component or the checkpoint is wrong.
    """
    model = build_model(node, meta=checkpoint_dir is not None)
    model.requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if checkpoint_dir is None:
        return model.to(device).eval()
    if frozen_dtype == NF4:
        fill_quantised(model, Path(checkpoint_dir), device, dtype)
        compute_buffers(model, device)
    else:
        fill(model, Path(checkpoint_dir), device, weights_on=device)
    return model.eval()
