"""Adapters on disk: what tuning has added to a model and the parts it has trained in full, without the base they belong to.

A folder holds `adapter_config.json` and `adapter_model.safetensors` as peft writes them for transformers' Mllama, so that
`peft.PeftModel.from_pretrained` loads LoRA, DoRA and (IA)3; parts trained in full are in the same file, their modules named in
`modules_to_save`. A layer inside such a module is saved merged with its adapter. `ift_adapter.json` names the base by its hash.

Virtual tokens have no place in peft's Mllama: with them the config's `peft_type` is `IFT`, which peft refuses, and their keys
are `prompt.<module of this package's model>.<keys|values|vectors>`, [p, kv heads, head dim] or [p, d].
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.files import complete_folder, partial_folder, sha256, write_json, write_text
from ift_components.models.adapters import (
    AdaptedLinear,
    LowRank,
    Scaling,
    is_added,
)
from ift_components.models.blend import blend
from ift_components.models.hf_layout import (
    checkpoint_files,
    read_weights,
    tune_to_hf,
)
from ift_components.models.hf_names import HFNames, newer_name, state_name
from ift_components.models.image_layout import IMAGE_LAYOUT, ImageLayout
from ift_components.models.model_card import base_name
from ift_components.models.parts import PARTS, part_of
from ift_components.models.prompts_by_layer import (
    LayerPrompt,
    prefix_of,
    prompted_layers,
)
from ift_components.models.trainable import Tuning

WEIGHTS, CONFIG, FACTS = "adapter_model.safetensors", "adapter_config.json", "ift_adapter.json"
FORMAT = 1
PEFT_PREFIX = "base_model.model."


def base_hash(folder: Path) -> str:
    """Return the SHA-256 that names a checkpoint: over the hashes of its weight files, in order."""
    return new_sha256("".join(sha256(path) for path in checkpoint_files(folder)).encode()).hexdigest()


def _whole_modules(names: HFNames, full_parts: set[str]) -> list[str]:
    """Return transformers' modules that hold every parameter of the parts, none inside another."""
    modules = sorted({key.rpartition(".")[0] for name, key in names.of.items() if part_of(name) in full_parts})
    return [m for m in modules if not any(m.startswith(f"{other}.") for other in modules)]


def _is_inside(key: str, modules: list[str]) -> bool:
    return any(key == module or key.startswith(f"{module}.") for module in modules)


def _adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    return {state_name(name): module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def _gather(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


def merged_weights(model: DeepFusionModel, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the plain model that does what an adapted one does; adapted layers in fp32.

    Args:
        model: the adapted model; its virtual tokens cannot be merged and are left out.
        weights: names and whole tensors of the base.
    """
    layers = _adapted(model)
    for name, tensor in weights:
        layer_name, _, kind = name.rpartition(".")
        layer = layers.get(layer_name)
        if layer is None:
            yield name, tensor
        elif kind == "weight":
            yield name, layer.adapter.merge_weight(tensor)
        else:
            yield name, layer.adapter.merge_bias(tensor)


def _added_tensors(names: HFNames, layers: Mapping[str, AdaptedLinear]) -> dict[str, Tensor]:
    """Return peft's keys and tensors of adapted layers, in transformers' order of rows."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        key, adapter, rows = PEFT_PREFIX + names.module(name), layer.adapter, names.rows(name)
        if isinstance(adapter, LowRank):
            tensors[f"{key}.lora_A.weight"] = _gather(adapter.a)
            tensors[f"{key}.lora_B.weight"] = _gather(adapter.b)[rows]
            if adapter.magnitude is not None:
                tensors[f"{key}.lora_magnitude_vector"] = _gather(adapter.magnitude)[rows]
        else:
            scale = _gather(adapter.scale)
            tensors[f"{key}.ia3_l"] = scale.unsqueeze(0) if adapter.inputs else scale[rows].unsqueeze(1)
    return tensors


def _prompt_tensors(model: DeepFusionModel) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        for name, attention in prompted_layers(model, part).items():
            prompt = getattr(attention, "adapter", None)
            if isinstance(prompt, LayerPrompt):
                plain = name.replace("_checkpoint_wrapped_module.", "")
                tensors |= {f"prompt.{plain}.{kind}": _gather(value) for kind, value in prompt.named_parameters()}
    prefix = prefix_of(model.decoder)
    if prefix is not None:
        tensors["prompt.decoder.vectors"] = _gather(prefix())
    return tensors


def _peft_config(
    names: HFNames, layers: Mapping[str, AdaptedLinear], whole: list[str], base: str, *, has_prompts: bool
) -> dict[str, Any]:
    config: dict[str, Any] = {"base_model_name_or_path": base, "inference_mode": True, "task_type": None}
    config |= {"peft_type": "IFT", "modules_to_save": whole or None}
    modules = {names.module(name): layer.adapter for name, layer in layers.items()}
    low_rank = {key: adapter for key, adapter in modules.items() if isinstance(adapter, LowRank)}
    scalings = {key: adapter for key, adapter in modules.items() if isinstance(adapter, Scaling)}
    config["target_modules"] = sorted(modules)
    if low_rank:
        first = next(iter(low_rank.values()))
        config |= {"peft_type": "LORA", "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": 0.0, "bias": "none"}
        config["use_dora"] = first.magnitude is not None
        # peft takes these as regular expressions.
        config["rank_pattern"] = {literal(k): a.rank for k, a in low_rank.items() if a.rank != first.rank}
        config["alpha_pattern"] = {literal(k): a.alpha for k, a in low_rank.items() if a.alpha != first.alpha}
    if scalings:
        feedforward = sorted(key for key, adapter in scalings.items() if adapter.inputs)
        config |= {"peft_type": "IA3", "feedforward_modules": feedforward}
    if has_prompts:
        config["peft_type"] = "IFT"
    return config


def literal(key: str) -> str:
    """Return a key as the regular expression that peft takes it for."""
    return key.replace(".", r"\.")


def gather_adapter(
    model: DeepFusionModel,
    tuning: Tuning,
    base: Path,
    *,
    dtype: torch.dtype,
    card: str | None = None,
    is_main: bool = True,
    layout: ImageLayout | None = None,
) -> Callable[[Path], None]:
    """Gather what an adapter folder holds in host memory and return the function that writes it.

    Args:
        model: the tuned model; if it is sharded, all processes must call this.
        tuning: how its parts were trained; parts set back to their start in full are not saved.
        base: the checkpoint that training started from.
        dtype: type of parts saved in full; adapters are fp32.
        card: text of the folder's `README.md`.
        is_main: whether this process will write.
        layout: how pictures were laid out in training.

    Returns:
        A function that takes the folder to create, which appears complete or not at all.
    """
    names = HFNames(model)
    full_parts = {part for part, how in tuning.items() if how.trains_base and how.share > 0}
    whole = _whole_modules(names, full_parts)
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not is_added(name) and _is_inside(names.of[name], whole):
            gathered = _gather(value)
            if is_main:
                weights[name] = gathered
    prompts = _prompt_tensors(model)

    def write(folder: Path) -> None:
        shares = {part: how.share for part, how in tuning.items()}
        if min(shares.values()) < 1:
            start = ((name, tensor) for name, tensor in read_weights(base) if name in weights)
            weights.update(blend(start, weights, shares))
        merged = dict(merged_weights(model, iter(weights.items())))
        tensors = {
            PEFT_PREFIX + newer_name(key): value.to(dtype).contiguous()
            for key, value in tune_to_hf(merged, names.config).items()
        }
        layers = {n: layer for n, layer in _adapted(model).items() if not _is_inside(names.module(n), whole)}
        tensors |= {key: value.contiguous() for key, value in (_added_tensors(names, layers) | prompts).items()}
        shutil.rmtree(partial_folder(folder), ignore_errors=True)  # what an earlier run left when it was killed
        with complete_folder(folder) as temporary:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
            config = _peft_config(names, layers, whole, base_name(base), has_prompts=bool(prompts))
            write_json(temporary / CONFIG, config)
            facts = {"format": FORMAT, "base_sha256": base_hash(base), "tuning": tuning.as_dict()}
            facts |= {"full_parts": sorted(full_parts)}
            facts |= {IMAGE_LAYOUT: layout.note()} if layout is not None else {}
            write_json(temporary / FACTS, facts)
            if card is not None:
                write_text(temporary / "README.md", card)

    return write


def save_adapter(folder: Path, model: DeepFusionModel, tuning: Tuning, base: Path, *, dtype: torch.dtype) -> None:
    """Write an adapter folder of a model that is whole here; see `gather_adapter`."""
    gather_adapter(model, tuning, base, dtype=dtype)(folder)
