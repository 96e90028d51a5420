"""Reading and writing a checkpoint's config and weights in Hugging Face's file layout; `hf_files.py` writes its other files.

A folder holds `config.json`, `model-0000i-of-0000n.safetensors` and `model.safetensors.index.json`. Weights are written under
the older names (`language_model.model...`), which Meta's published checkpoints, torchtune, SGLang and transformers all read;
the newer ones (`model.language_model...`, `lm_head`) are read too.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel, FusionLayer

from ift_components.errors import ConfigError
from ift_components.files import complete_folder, partial_folder, write_json, write_text
from ift_components.models.adapters import is_added
from ift_components.models.hf_files import INDEX, write_files
from ift_components.models.image_layout import IMAGE_LAYOUT, ImageLayout
from ift_components.models.torchtune_private import llama3_vision_hf_to_tune, llama3_vision_tune_to_hf

_MODEL_TYPE = "mllama"
# The two halves of the embedding matrix, one in the layout.
_EMBEDDINGS = ("decoder.tok_embeddings.weight", "decoder.tok_embeddings.fusion_embedding.weight")
# transformers 4.52 and later save the newer names; both name the same weights.
_OLDER_NAMES = (
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^model\.(vision_model|multi_modal_projector)\."), r"\1."),
)
# Hugging Face numbers the shapes (in tiles) that an image can be cut into; 0 is kept for padding.
_ASPECT_RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


def hf_config(model: DeepFusionModel) -> dict[str, Any]:
    """Return the `config.json` of a Llama-3.2-Vision model, read off its modules.

    Args:
        model: the model; its encoder must take up to four tiles, as Llama-3.2-Vision's does.
    """
    decoder, clip = model.decoder, model.encoder.clip
    layers = list(decoder.layers)
    fused = [i for i, layer in enumerate(layers) if isinstance(layer, FusionLayer)]
    first = layers[0].layer if isinstance(layers[0], FusionLayer) else layers[0]
    rope = first.attn.pos_embeddings
    patch_size = clip.conv.kernel_size[0]
    hidden = clip.conv.out_channels
    special = decoder.output.out_features - 256  # Llama 3 keeps its 256 special tokens at the vocabulary's end
    text_config = {
        "model_type": "mllama_text_model",
        "vocab_size": decoder.output.out_features,
        "hidden_size": decoder.output.in_features,
        "num_hidden_layers": len(layers) + len(fused),
        "cross_attention_layers": [layer + shift for shift, layer in enumerate(fused)],
        "num_attention_heads": first.attn.num_heads,
        "num_key_value_heads": first.attn.num_kv_heads,
        "intermediate_size": first.mlp.w1.out_features,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": decoder.max_seq_len,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": special,
        "eos_token_id": [special + 1, special + 8, special + 9],  # end of text, of message, of turn
        "pad_token_id": special + 4,
        "rope_theta": float(rope.base),
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": float(rope.scale_factor),
            "low_freq_factor": float(rope.low_freq_factor),
            "high_freq_factor": float(rope.high_freq_factor),
            "original_max_position_embeddings": rope.old_context_len,
        },
    }
    vision_config = {
        "model_type": "mllama_vision_model",
        "hidden_size": hidden,
        "attention_heads": clip.layers[0].attn.num_heads,
        "intermediate_size": clip.layers[0].mlp.w1.out_features,
        "num_hidden_layers": len(clip.layers),
        "num_global_layers": len(model.encoder.projection.layers),
        "intermediate_layers_indices": list(clip.out_indices),
        "vision_output_dim": hidden * (len(clip.out_indices) + 1),
        "image_size": patch_size * round(clip.patches_per_tile**0.5),
        "patch_size": patch_size,
        "max_num_tiles": clip.pre_tile_pos_embed.embedding.shape[0],
        "num_channels": clip.conv.in_channels,
        "supported_aspect_ratios": _ASPECT_RATIOS,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": _MODEL_TYPE,
        "image_token_index": decoder.output.out_features,
        "text_config": text_config,
        "vision_config": vision_config,
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a Llama-3.2-Vision checkpoint.

    Raises:
        ConfigError: if it is missing, no JSON, of another kind of model, or lacks what the weights' conversion needs.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"checkpoint_dir: {folder} has no config.json; expected a checkpoint in Hugging Face layout")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"checkpoint_dir: {path} is not JSON ({error}); download or save it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != _MODEL_TYPE:
        raise ConfigError(
            f"checkpoint_dir: {path} is of a model of type '{model_type}'; expected '{_MODEL_TYPE}' (Llama-3.2-Vision)"
        )
    try:
        _converter(llama3_vision_hf_to_tune, config)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"checkpoint_dir: {path} lacks {error}; expected Llama-3.2-Vision's config") from error
    return dict(config)


def _converter(
    function: Callable[..., dict[str, Tensor]], config: Mapping[str, Any]
) -> Callable[..., dict[str, Tensor]]:
    text, vision = config["text_config"], config["vision_config"]
    return partial(
        function,
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        dim=text["hidden_size"],
        vocab_size=text["vocab_size"],
        cross_attention_layers=text["cross_attention_layers"],
        encoder_dim=vision["hidden_size"],
        tile_size=vision["image_size"],
        num_tiles=vision["max_num_tiles"],
        supported_aspect_ratios=vision["supported_aspect_ratios"],
    )


def tune_to_hf(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights under their (older) names in the layout, converted; both halves of the embedding come together."""
    return _converter(llama3_vision_tune_to_hf, config)(dict(weights))


def hf_to_tune(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of the layout, under their older names, as torchtune's model has them."""
    return _converter(llama3_vision_hf_to_tune, config)(dict(weights))


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the `.safetensors` files of a checkpoint folder, in order.

    Raises:
        ConfigError: if the folder, its index or one of the files that the index names is missing.
    """
    if not folder.is_dir():
        raise ConfigError(f"checkpoint_dir: {folder} is not a folder; expected a checkpoint in Hugging Face layout")
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"checkpoint_dir: {index} is no index of weights; download or save it again") from error
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("proxy_"))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        what = f"lacks {', '.join(missing)}" if missing else "holds no .safetensors file"
        raise ConfigError(f"checkpoint_dir: {folder} {what}; download or save the whole checkpoint again")
    return [folder / name for name in names]


def older_name(key: str) -> str:
    """Return a weight's name in the form that Meta's published checkpoints have, whichever form it is given in."""
    for pattern, replacement in _OLDER_NAMES:
        key = pattern.sub(replacement, key)
    return key


def _weights(folder: Path, config: Mapping[str, Any], unread: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield (torchtune name, tensor), one tensor in memory at a time; why others cannot be converted joins `unread`."""
    convert = _converter(llama3_vision_hf_to_tune, config)
    for path in checkpoint_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    tensor = file.get_tensor(key)
                    try:
                        converted = convert({older_name(key): tensor})
                    except RuntimeError:
                        unread.append(f"{key} is {list(tensor.shape)}, which config.json does not let it be")
                    except Exception:  # noqa: BLE001 (torchtune raises no narrower one for a name it does not know)
                        unread.append(f"{key} is not a weight of Llama-3.2-Vision")
                    else:
                        yield from converted.items()
        except SafetensorError as error:
            raise ConfigError(f"checkpoint_dir: {path} cannot be read: {error}; download or save it again") from error


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (torchtune name, tensor) of a checkpoint in Hugging Face layout, one tensor in memory at a time.

    Raises:
        ConfigError: if the folder is no such checkpoint; after the last tensor, if others could not be converted.
    """
    unread: list[str] = []
    yield from _weights(folder, read_config(folder), unread)
    if unread:
        raise ConfigError(f"checkpoint_dir: {folder}: {len(unread)} weights cannot be read; first: {unread[0]}")


@torch.no_grad()
def copy_weight(name: str, target: Tensor, value: Tensor) -> None:  # noqa: ARG001 (other ways to store need the name)
    """Copy a weight into a model's parameter, whole or sharded, in the dtype that this has."""
    value = value.to(target.dtype)
    if isinstance(target, DTensor):
        # Every rank reads the same file: each takes its own slice, nothing is sent.
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def load_weights(
    model: DeepFusionModel, folder: Path, store: Callable[[str, Tensor, Tensor], None] = copy_weight
) -> None:
    """Load a checkpoint into a model whose parameters exist, whole or sharded (`DTensor`), in whatever dtype they have.

    Tensors are read one at a time, so that no rank ever holds the whole model in host memory.

    Args:
        model: the model; its parameters are overwritten.
        folder: a checkpoint in Hugging Face layout, under the older or the newer names, in one file or several.
        store: takes a weight's name, the model's tensor and the checkpoint's, and stores it.

    Raises:
        ConfigError: if the folder is no such checkpoint or does not fit the model: every missing, unknown or misshapen
            weight is counted and the first is named.
    """
    config = read_config(folder)
    parameters = {name: tensor for name, tensor in model.state_dict().items() if not is_added(name)}
    unread: list[str] = []
    problems: list[str] = []
    seen = set()
    for name, tensor in _weights(folder, config, unread):
        target = parameters.get(name)
        seen.add(name)
        if target is None:
            problems.append(f"{name} is not part of the model")
        elif target.shape != tensor.shape:
            problems.append(f"{name} is {list(tensor.shape)} in the checkpoint and {list(target.shape)} in the model")
        else:
            store(name, target, tensor)
    # A weight that could not be converted would be counted again as missing.
    problems += unread or [f"{name} is missing from the checkpoint" for name in parameters if name not in seen]
    if problems:
        raise ConfigError(
            f"checkpoint_dir: {folder} does not fit the model: {len(problems)} weights differ; first: {problems[0]}"
        )


def _converted(
    weights: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the layout, tensor in host memory), each as soon as the tensors that it is made of have come."""
    convert = _converter(llama3_vision_tune_to_hf, config)
    embeddings: dict[str, Tensor] = {}
    for name, tensor in weights:
        ready = {name: tensor}
        # The layout holds both halves of the embedding in one matrix: the first to come waits for the other.
        if name in _EMBEDDINGS:
            embeddings[name] = tensor
            ready = embeddings if len(embeddings) == len(_EMBEDDINGS) else {}
        for key, value in convert(ready).items():
            yield key, value.to("cpu", dtype).contiguous()
    if len(embeddings) == 1:
        raise ValueError(f"the weights hold {next(iter(embeddings))} without the other half of the embedding")


def _write_weights(folder: Path, weights: Iterable[tuple[str, Tensor]], max_file_bytes: int) -> None:
    """Write tensors to numbered files and their index, holding no more than one file's in memory."""
    files: list[tuple[Path, list[str]]] = []
    waiting: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        path = folder / f"part-{len(files)}.safetensors"
        save_file(waiting, path, metadata={"format": "pt"})
        files.append((path, list(waiting)))
        waiting.clear()

    for name, tensor in weights:
        if waiting and size + tensor.nbytes > max_file_bytes:
            write()
            size = 0
        waiting[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    # A file's name holds the number of files, which is known only now.
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(files, start=1):
        suffix = f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else ""
        target = path.rename(folder / f"model{suffix}.safetensors")
        weight_map |= dict.fromkeys(names, target.name)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    source: Path | None = None,
    transform: Llama3VisionTransform | None = None,
    layout: ImageLayout | None = None,
    model_card: str | None = None,
    max_file_bytes: int = 5_000_000_000,
) -> None:
    """Write a checkpoint folder in Hugging Face layout; it appears complete or not at all.

    Args:
        folder: the folder to create; it must not exist.
        weights: torchtune names and whole tensors on any device. Pairs may come one at a time, in any order, each gathered
            when it is asked for: at most `max_file_bytes` of them are held in host memory.
        config: what `hf_config` gives.
        dtype: type of the saved weights.
        source: the checkpoint that training started from; its config, tokenizer and processor files are copied.
        transform: the model's transform, from which the files that `source` lacks are made.
        layout: how pictures were laid out in training, noted in `config.json`; None keeps what `source` notes.
        model_card: text of the folder's `README.md`.
        max_file_bytes: largest size of one file of weights; a larger tensor has a file of its own.
    """
    pairs = weights.items() if isinstance(weights, Mapping) else weights
    shutil.rmtree(partial_folder(folder), ignore_errors=True)  # what an earlier run left when it was killed
    with complete_folder(folder) as temporary:
        _write_weights(temporary, _converted(pairs, config, dtype), max_file_bytes)
        content = {**(read_config(source) if source is not None else config)}
        content["torch_dtype"] = str(dtype).removeprefix("torch.")
        content.pop("dtype", None)  # the newer name, which transformers would prefer
        if layout is not None:
            content[IMAGE_LAYOUT] = layout.note()
        write_json(temporary / "config.json", content)
        write_files(temporary, content, source=source, transform=transform, layout=layout)
        if model_card is not None:
            write_text(temporary / "README.md", model_card)
