"""Adapters on disk: what tuning has added to a model and the parts it has trained in full, without the base they belong to.

A folder holds `adapter_config.json` and `adapter_model.safetensors` as peft writes them for transformers' Mllama, so that
`peft.PeftModel.from_pretrained` loads LoRA, DoRA and (IA)3; parts trained in full are in the same file, their modules named in
`modules_to_save`. A layer inside such a module is saved merged with its adapter. `ift_adapter.json` names the base by its hash.

Virtual tokens have no place in peft's Mllama: with them the config's `peft_type` is `IFT`, which peft refuses, and their keys
are `prompt.<module of this package's model>.<keys|values|vectors>`, [p, kv heads, head dim] or [p, d].
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.files import complete_folder, partial_folder, sha256, write_json, write_text
from ift_components.models.adapters import AdaptedLinear, LowRank, Scaling, is_added, linear_layers, replace_layer
from ift_components.models.blend import blend
from ift_components.models.hf_layout import (
    checkpoint_files,
    hf_to_tune,
    older_name,
    read_weights,
    tune_to_hf,
)
from ift_components.models.hf_names import HFNames, newer_name, state_name
from ift_components.models.model_card import base_name
from ift_components.models.parts import PARTS, part_of
from ift_components.models.prompts_by_layer import (
    LayerPrompt,
    Prefix,
    prefix_of,
    prompt_attention,
    prompted_layers,
)
from ift_components.models.trainable import Tuning

WEIGHTS, CONFIG, FACTS = "adapter_model.safetensors", "adapter_config.json", "ift_adapter.json"
_FORMAT = 1
_PEFT_PREFIX = "base_model.model."


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
        key, adapter, rows = _PEFT_PREFIX + names.module(name), layer.adapter, names.rows(name)
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
        config["rank_pattern"] = {_literal(k): a.rank for k, a in low_rank.items() if a.rank != first.rank}
        config["alpha_pattern"] = {_literal(k): a.alpha for k, a in low_rank.items() if a.alpha != first.alpha}
    if scalings:
        feedforward = sorted(key for key, adapter in scalings.items() if adapter.inputs)
        config |= {"peft_type": "IA3", "feedforward_modules": feedforward}
    if has_prompts:
        config["peft_type"] = "IFT"
    return config


def _literal(key: str) -> str:
    return key.replace(".", r"\.")


def save_adapter(
    folder: Path,
    model: DeepFusionModel,
    tuning: Tuning,
    base: Path,
    *,
    dtype: torch.dtype,
    card: str | None = None,
    is_main: bool = True,
) -> None:
    """Write an adapter folder; it appears complete or not at all.

    Args:
        folder: the folder to create.
        model: the tuned model; if it is sharded, all processes must call this.
        tuning: how its parts were trained; parts set back to their start in full are not saved.
        base: the checkpoint that training started from.
        dtype: type of parts saved in full; adapters are fp32.
        card: text of the folder's `README.md`.
        is_main: whether this process writes.
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
    layers = _adapted(model)
    prompts = _prompt_tensors(model)
    if not is_main:
        return
    shares = {part: how.share for part, how in tuning.items()}
    if min(shares.values()) < 1:
        start = ((name, tensor) for name, tensor in read_weights(base) if name in weights)
        weights |= dict(blend(start, weights, shares))
    merged = dict(merged_weights(model, iter(weights.items())))
    tensors = {
        _PEFT_PREFIX + newer_name(key): value.to(dtype).contiguous()
        for key, value in tune_to_hf(merged, names.config).items()
    }
    layers = {name: layer for name, layer in layers.items() if not _is_inside(names.module(name), whole)}
    tensors |= {key: value.contiguous() for key, value in (_added_tensors(names, layers) | prompts).items()}
    shutil.rmtree(partial_folder(folder), ignore_errors=True)  # what an earlier run left when it was killed
    with complete_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        config = _peft_config(names, layers, whole, base_name(base), has_prompts=bool(prompts))
        write_json(temporary / CONFIG, config)
        facts = {"format": _FORMAT, "base_sha256": base_hash(base), "tuning": tuning.as_dict()}
        write_json(temporary / FACTS, facts | {"full_parts": sorted(full_parts)})
        if card is not None:
            write_text(temporary / "README.md", card)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return an adapter's `ift_adapter.json`.

    Raises:
        ConfigError: if the folder is no adapter of this package's.
    """
    missing = [name for name in (FACTS, CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"adapter_dir: {folder} has no {missing[0]}; expected the adapter folder that ift_recipe wrote"
        )
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if facts.get("format") != _FORMAT:
        raise ConfigError(f"adapter_dir: {folder} is of format {facts.get('format')}; this version reads {_FORMAT}")
    return facts


def adapter_hash(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights.

    Raises:
        ConfigError: if the folder is no adapter of this package's.
    """
    read_facts(folder)
    return sha256(folder / WEIGHTS)


def check_base(folder: Path, base: Path) -> None:
    """Check that an adapter belongs to a base.

    Raises:
        ConfigError: if it was trained on other weights.
    """
    expected, actual = read_facts(folder)["base_sha256"], base_hash(base)
    if expected != actual:
        trained_on = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ConfigError(
            f"adapter_dir: {folder} was trained on a base with hash {expected[:12]} ({trained_on}), and checkpoint_dir {base} "
            f"has {actual[:12]}; give the checkpoint that it was trained on"
        )


def load_adapter(model: DeepFusionModel, folder: Path, base: Path) -> None:
    """Put an adapter into a model that holds its base's weights, whole.

    Args:
        model: the model, frozen; what is added is frozen too, and stays in fp32.
        folder: what `save_adapter` wrote.
        base: the checkpoint that the model was loaded from.

    Raises:
        ConfigError: if the folder is no adapter, belongs to another base, or holds a key that the model has no place for.
    """
    check_base(folder, base)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise ConfigError(f"adapter_dir: {folder / WEIGHTS} cannot be read: {error}; save it again") from error
    names = HFNames(model)
    _load_prompts(model, tensors)
    for part in PARTS:
        for name, layer in linear_layers(model, part).items():
            adapter = _read_layer(names, name, layer, tensors, config)
            if adapter is not None:
                replace_layer(model, name, adapter.to(layer.weight.device))
    _load_whole(model, names, tensors, folder)
    model.requires_grad_(requires_grad=False)


def _read_layer(
    names: HFNames, name: str, layer: nn.Linear, tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> LowRank | Scaling | None:
    """Take a layer's tensors out of `tensors` and return its adapter, or None if there are none."""
    module = names.module(name)
    key = _PEFT_PREFIX + module
    if f"{key}.ia3_l" in tensors:
        scale = tensors.pop(f"{key}.ia3_l")
        scaling = Scaling(layer, inputs=module in config["feedforward_modules"])
        scaling.scale.data = scale.flatten() if scaling.inputs else scale.flatten()[names.rows(name).argsort()]
        return scaling
    if f"{key}.lora_A.weight" not in tensors:
        return None
    a, b = tensors.pop(f"{key}.lora_A.weight"), tensors.pop(f"{key}.lora_B.weight")
    magnitude = tensors.pop(f"{key}.lora_magnitude_vector", None)
    order = names.rows(name).argsort()
    alpha = config["alpha_pattern"].get(_literal(module), config["lora_alpha"])
    adapter = LowRank(layer, len(a), alpha, magnitudes=magnitude is not None)
    adapter.a.data, adapter.b.data = a, b[order]
    if adapter.magnitude is not None and magnitude is not None:
        adapter.magnitude.data = magnitude[order]
    return adapter


def _load_prompts(model: DeepFusionModel, tensors: dict[str, Tensor]) -> None:
    device = model.decoder.output.weight.device
    for part in PARTS:
        for name, attention in prompted_layers(model, part).items():
            if f"prompt.{name}.keys" in tensors:
                keys = tensors.pop(f"prompt.{name}.keys")
                prompt = LayerPrompt(attention, len(keys))
                prompt.keys.data, prompt.values.data = keys, tensors.pop(f"prompt.{name}.values")
                prompt_attention(attention, prompt.to(device))
    if "prompt.decoder.vectors" in tensors:
        model.decoder.adapter = Prefix(tensors.pop("prompt.decoder.vectors").to(device))


@torch.no_grad()
def _load_whole(model: DeepFusionModel, names: HFNames, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy parts trained in full into the model; every key must have a place there."""
    parameters = model.state_dict()
    keys = set(names.of.values())
    unknown = [key for key in tensors if key.removeprefix(_PEFT_PREFIX) not in keys]
    if unknown:
        raise ConfigError(f"adapter_dir: {folder} holds {unknown[0]}, which the model has no place for")
    for key, value in tensors.items():
        for name, tensor in hf_to_tune({older_name(key.removeprefix(_PEFT_PREFIX)): value}, names.config).items():
            if parameters[name].shape != tensor.shape:
                shapes = f"{list(tensor.shape)} and the model's {list(parameters[name].shape)}"
                raise ConfigError(f"adapter_dir: {folder}: {name} is {shapes}; the adapter is of another model")
            parameters[name].copy_(tensor)
