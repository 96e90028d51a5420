"""Reading and writing checkpoints in Hugging Face's file layout, with the key names of torchtune's `FullModelHFCheckpointer`.

A folder holds `config.json`, `model-0000i-of-0000n.safetensors` and `model.safetensors.index.json`. Names are the old ones
(`language_model.model...`), which Meta's published checkpoints, torchtune and transformers' loader all read.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtune.modules.model_fusion import DeepFusionModel, FusionLayer

from ift_components.errors import ConfigError
from ift_components.files import complete_folder, partial_folder, write_json
from ift_components.models.torchtune_private import llama3_vision_hf_to_tune, llama3_vision_tune_to_hf

_INDEX = "model.safetensors.index.json"
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
        "model_type": "mllama",
        "image_token_index": decoder.output.out_features,
        "text_config": text_config,
        "vision_config": vision_config,
    }


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


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the `.safetensors` files of a checkpoint folder, in order.

    Raises:
        ConfigError: if the folder, its index or one of the files that the index names is missing.
    """
    if not folder.is_dir():
        raise ConfigError(f"checkpoint_dir: {folder} is not a folder; expected a checkpoint in Hugging Face layout")
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("proxy_"))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        what = f"lacks {', '.join(missing)}" if missing else "holds no .safetensors file"
        raise ConfigError(f"checkpoint_dir: {folder} {what}; download or save the whole checkpoint again")
    return [folder / name for name in names]


def _weights(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (torchtune name, tensor), one tensor in memory at a time, converting each by itself."""
    convert = _converter(llama3_vision_hf_to_tune, config)
    for path in checkpoint_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield from convert({key: file.get_tensor(key)}).items()
        except SafetensorError as error:
            raise ConfigError(f"checkpoint_dir: {path} cannot be read: {error}; download or save it again") from error


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (torchtune name, tensor) of a checkpoint in Hugging Face layout, one tensor in memory at a time.

    Raises:
        ConfigError: if the folder is no such checkpoint.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"checkpoint_dir: {folder} has no config.json; expected a checkpoint in Hugging Face layout")
    yield from _weights(folder, json.loads(path.read_text(encoding="utf-8")))


def load_weights(model: DeepFusionModel, folder: Path) -> None:
    """Load a checkpoint into a model whose parameters exist, whole or sharded (`DTensor`), in whatever dtype they have.

    Tensors are read one at a time, so that no rank ever holds the whole model in host memory.

    Args:
        model: the model; its parameters are overwritten.
        folder: a checkpoint in Hugging Face layout.

    Raises:
        ConfigError: if the folder is no such checkpoint or does not fit the model: every missing, unknown or misshapen
            weight is counted and the first is named.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ConfigError(f"checkpoint_dir: {folder} has no config.json; expected a checkpoint in Hugging Face layout")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    parameters = model.state_dict()
    wrong: list[str] = []
    seen = set()
    for name, tensor in _weights(folder, config):
        target = parameters.get(name)
        seen.add(name)
        if target is None:
            wrong.append(f"{name} is not part of the model")
        elif target.shape != tensor.shape:
            wrong.append(f"{name} is {list(tensor.shape)} in the checkpoint and {list(target.shape)} in the model")
        else:
            _copy(target, tensor)
    wrong += [f"{name} is missing from the checkpoint" for name in parameters if name not in seen]
    if wrong:
        raise ConfigError(
            f"checkpoint_dir: {folder} does not fit the model: {len(wrong)} weights differ; first: {wrong[0]}"
        )


@torch.no_grad()
def _copy(target: Tensor, value: Tensor) -> None:
    value = value.to(target.dtype)
    if isinstance(target, DTensor):
        # Every rank reads the same file: each takes its own slice, nothing is sent.
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def save_checkpoint(
    folder: Path,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    source: Path | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a whole state dict as a checkpoint folder in Hugging Face layout; it appears complete or not at all.

    Args:
        folder: the folder to create; it must not exist.
        state_dict: torchtune names to whole tensors on any device.
        config: what `hf_config` gives.
        dtype: type of the saved weights.
        source: the checkpoint that training started from; its config, tokenizer and processor files are copied.
        max_shard_size: largest size of one file.
    """
    weights = _converter(llama3_vision_tune_to_hf, config)(dict(state_dict))
    weights = {key: value.to("cpu", dtype).contiguous() for key, value in weights.items()}
    split = split_torch_state_dict_into_shards(
        weights, max_shard_size=max_shard_size, filename_pattern="model{suffix}.safetensors"
    )
    shutil.rmtree(partial_folder(folder), ignore_errors=True)  # what an earlier run left when it was killed
    with complete_folder(folder) as temporary:
        for name, keys in split.filename_to_tensors.items():
            save_file({key: weights[key] for key in keys}, temporary / name, metadata={"format": "pt"})
        write_json(temporary / _INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
        if source is not None:
            for path in sorted(source.iterdir()):
                if path.suffix in (".json", ".model", ".txt", ".jinja") and path.name != _INDEX:
                    shutil.copy2(path, temporary / path.name)
        path = temporary / "config.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else config
        write_json(path, {**kept, "torch_dtype": str(dtype).removeprefix("torch.")})
