"""Reading adapter folders: into a model that answers, or onto one without storage, to be merged."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.files import sha256
from ift_components.models.adapter_files import CONFIG, FACTS, FORMAT, PEFT_PREFIX, WEIGHTS, base_hash, literal
from ift_components.models.adapters import LowRank, Scaling, added_parameters, linear_layers, replace_layer
from ift_components.models.hf_layout import hf_to_tune, older_name
from ift_components.models.hf_names import HFNames
from ift_components.models.parts import PARTS
from ift_components.models.prompts_by_layer import LayerPrompt, Prefix, prompt_attention, prompted_layers


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
    if facts.get("format") != FORMAT:
        raise ConfigError(f"adapter_dir: {folder} is of format {facts.get('format')}; this version reads {FORMAT}")
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


def put_adapter(model: DeepFusionModel, folder: Path) -> tuple[dict[str, Tensor], bool]:
    """Put an adapter's modules into a model, whose own weights are not touched and need no storage.

    Args:
        model: the model; what is added is frozen, in fp32, on the decoder's device, on the CPU for a model without storage.
        folder: what `save_adapter` wrote.

    Returns:
        The weights of modules that were saved whole, by name, and whether virtual tokens were put in.

    Raises:
        ConfigError: if the folder is no adapter, or holds a key or a shape that the model has no place for.
    """
    read_facts(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise ConfigError(f"adapter_dir: {folder / WEIGHTS} cannot be read: {error}; save it again") from error
    names = HFNames(model)
    device = model.decoder.output.weight.device
    device = torch.device("cpu") if device.type == "meta" else device
    has_prompts = _put_prompts(model, tensors, device)
    for part in PARTS:
        for name, layer in linear_layers(model, part).items():
            adapter = _read_layer(names, name, layer, tensors, config)
            if adapter is not None:
                replace_layer(model, name, adapter.to(device))
    whole = _whole_weights(model, names, tensors, folder)
    for parameter in added_parameters(model):
        parameter.requires_grad = False
    return whole, has_prompts


@torch.no_grad()
def load_adapter(model: DeepFusionModel, folder: Path, base: Path) -> None:
    """Put an adapter into a model that holds its base's weights.

    Args:
        model: the model, frozen.
        folder: what `save_adapter` wrote.
        base: the checkpoint that the model was loaded from.

    Raises:
        ConfigError: if the folder is no adapter, belongs to another base or does not fit the model.
    """
    check_base(folder, base)
    whole, _ = put_adapter(model, folder)
    parameters = model.state_dict()
    for name, tensor in whole.items():
        parameters[name].copy_(tensor)


def _fits(tensor: Tensor, shape: tuple[int, ...], key: str) -> nn.Parameter:
    if tuple(tensor.shape) != shape:
        raise ConfigError(f"adapter_dir: {key} is {list(tensor.shape)} and the model needs {list(shape)}")
    return nn.Parameter(tensor)


def _read_layer(
    names: HFNames, name: str, layer: nn.Linear, tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> LowRank | Scaling | None:
    """Take a layer's tensors out of `tensors` and return its adapter, or None if there are none."""
    module = names.module(name)
    key, out, into = PEFT_PREFIX + module, layer.out_features, layer.in_features
    if f"{key}.ia3_l" in tensors:
        scale = tensors.pop(f"{key}.ia3_l").flatten()
        scaling = Scaling(layer, inputs=module in config["feedforward_modules"])
        ordered = scale if scaling.inputs else scale[names.rows(name).argsort()]
        scaling.scale = _fits(ordered, (into if scaling.inputs else out,), key)
        return scaling
    if f"{key}.lora_A.weight" not in tensors:
        return None
    a, b = tensors.pop(f"{key}.lora_A.weight"), tensors.pop(f"{key}.lora_B.weight")
    magnitude = tensors.pop(f"{key}.lora_magnitude_vector", None)
    order = names.rows(name).argsort()
    alpha = config["alpha_pattern"].get(literal(module), config["lora_alpha"])
    adapter = LowRank(layer, len(a), alpha, magnitudes=magnitude is not None)
    adapter.a, adapter.b = _fits(a, (len(a), into), key), _fits(b, (out, len(a)), key)
    adapter.b = nn.Parameter(b[order])
    if magnitude is not None:
        adapter.magnitude = _fits(magnitude[order], (out,), key)
    return adapter


def _put_prompts(model: DeepFusionModel, tensors: dict[str, Tensor], device: torch.device) -> bool:
    before = len(tensors)
    for part in PARTS:
        for name, attention in prompted_layers(model, part).items():
            if f"prompt.{name}.keys" in tensors:
                keys, values = tensors.pop(f"prompt.{name}.keys"), tensors.pop(f"prompt.{name}.values")
                shape = (len(keys), attention.num_kv_heads, attention.head_dim)
                prompt = LayerPrompt(attention, len(keys))
                prompt.keys, prompt.values = _fits(keys, shape, name), _fits(values, shape, name)
                prompt_attention(attention, prompt.to(device))
    if "prompt.decoder.vectors" in tensors:
        model.decoder.adapter = Prefix(tensors.pop("prompt.decoder.vectors").to(device))
    return len(tensors) < before


def _whole_weights(
    model: DeepFusionModel, names: HFNames, tensors: Mapping[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    """Return the weights that were saved whole by their names here; every key must have a place in the model."""
    keys = set(names.of.values())
    unknown = [key for key in tensors if key.removeprefix(PEFT_PREFIX) not in keys]
    if unknown:
        raise ConfigError(f"adapter_dir: {folder} holds {unknown[0]}, which the model has no place for")
    parameters = model.state_dict()
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        converted = hf_to_tune({older_name(key.removeprefix(PEFT_PREFIX)): value}, names.config)
        for name, tensor in converted.items():
            if parameters[name].shape != tensor.shape:
                shapes = f"{list(tensor.shape)} and the model's {list(parameters[name].shape)}"
                raise ConfigError(f"adapter_dir: {folder}: {name} is {shapes}; the adapter is of another model")
            whole[name] = tensor
    return whole
