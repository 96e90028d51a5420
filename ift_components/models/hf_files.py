"""A checkpoint folder's files beside its config and weights: what transformers and servers need to ask a model.

These are `generation_config.json`, `preprocessor_config.json` (pictures), `tokenizer.json`, `tokenizer_config.json` and
`chat_template.jinja`: copied from the checkpoint that training started from, and made from the model's own transform where that
one lacks them.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torchtune.models.llama3 import Llama3Tokenizer
from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.files import write_json, write_text
from ift_components.models.image_layout import IMAGE_LAYOUT, ImageLayout
from ift_components.models.pictures import RESIZING
from ift_components.models.torchtune_private import CL100K_PATTERN

INDEX = "model.safetensors.index.json"
_COPIED_SUFFIXES = (".json", ".model", ".txt", ".jinja")
_COPIED_NAMES = ("LICENSE", "NOTICE", "USE_POLICY.md")
_MADE_ANEW = (INDEX, "config.json")
_TIKTOKEN_FILE = "original/tokenizer.model"  # where Meta's repositories keep the file that torchtune reads
# Llama 3's chat format for a conversation about one image. Every text is trimmed, as torchtune trims it.
_CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message['content'] is string %}
{{- message['content'] | trim }}
{%- else %}
{%- for item in message['content'] %}
{%- if item['type'] == 'image' %}
{{- '<|image|>' }}
{%- elif item['type'] == 'text' %}
{{- item['text'] | trim }}
{%- else %}
{{- raise_exception("content of type '" + item['type'] + "': this model takes text and image") }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def is_squashed(config: Any) -> bool:
    """Tell whether a model was trained on pictures squashed into one tile, by what its `config.json` notes.

    Args:
        config: transformers' config of any model.
    """
    layout = getattr(config, IMAGE_LAYOUT, None)
    return layout is not None and layout["tiles"] == 1


def _byte_letters() -> dict[int, str]:
    """Return GPT-2's printable letter for each of the 256 bytes, which `tokenizers` writes its vocabularies in."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def convert_tokenizer(tokenizer: Llama3Tokenizer) -> Tokenizer:
    """Return a fast tokenizer that gives the same tokens as a torchtune one, to be saved as `tokenizer.json`.

    Unlike torchtune's it reads a special token's name in a text as that token, as every Llama 3 tokenizer of transformers does.

    Args:
        tokenizer: the tokenizer, made from a tiktoken file.
    """
    encoding = tokenizer.tt_model.tt_model
    ranks = {entry: encoding.encode_single_token(entry) for entry in encoding.token_byte_values()}
    letters = _byte_letters()
    names = {entry: "".join(letters[byte] for byte in entry) for entry in ranks}
    # tiktoken joins any two neighbours that together are an entry, the lowest rank first: every way to split an entry in two
    # entries becomes a merge, in the order of ranks. An entry that no merges lead to is found as a whole (`ignore_merges`).
    merges = [
        (names[entry[:cut]], names[entry[cut:]])
        for entry in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(entry))
        if entry[:cut] in ranks and entry[cut:] in ranks
    ]
    vocabulary = {names[entry]: rank for entry, rank in ranks.items()}
    fast = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(_special_tokens(tokenizer))
    start = next(name for name, number in tokenizer.special_tokens.items() if number == tokenizer.bos_id)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, tokenizer.bos_id)]
    )
    return fast


def _special_tokens(tokenizer: Llama3Tokenizer) -> list[AddedToken]:
    """Return the special tokens by id. `tokenizers` numbers them one after the other, so that ids without a name need one."""
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    first = tokenizer.base_vocab_size
    tokens = [names.get(number, f"<|unassigned_token_{number - first}|>") for number in range(first, max(names) + 1)]
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _tokenizer_config(tokenizer: Llama3Tokenizer, longest: int) -> dict[str, Any]:
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "MllamaProcessor",
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eot_id],
        "pad_token": names[tokenizer.pad_id],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }


def _of_layout(config: Mapping[str, Any], layout: ImageLayout) -> dict[str, int]:
    """Return the keys of `preprocessor_config.json` that the model and the layout of its pictures decide."""
    # The model adds the embeddings of so many tiles: with another number transformers' model fails, also for one tile.
    return {"max_image_tiles": config["vision_config"]["max_num_tiles"], "resample": int(RESIZING[layout.resize])}


def _preprocessor_config(
    transform: Llama3VisionTransform, config: Mapping[str, Any], layout: ImageLayout
) -> dict[str, Any]:
    pictures, decided = transform.transform_image, _of_layout(config, layout)
    return {
        "image_processor_type": "MllamaImageProcessor",
        "processor_class": "MllamaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": pictures.tile_size, "width": pictures.tile_size},
        "resample": decided["resample"],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pictures.mean),
        "image_std": list(pictures.std),
        "do_pad": True,
        "max_image_tiles": decided["max_image_tiles"],
    }


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config["text_config"]
    return {**{key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}, "do_sample": False}


def _copy_files(source: Path, folder: Path) -> None:
    names = [path.name for path in source.iterdir() if path.suffix in _COPIED_SUFFIXES or path.name in _COPIED_NAMES]
    names = [name for name in names if name not in _MADE_ANEW]
    names += [_TIKTOKEN_FILE] if (source / _TIKTOKEN_FILE).is_file() else []
    for name in sorted(names):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(source / name, folder / name)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and "chat_template" in json.loads(path.read_text(encoding="utf-8"))


def write_files(
    folder: Path,
    config: Mapping[str, Any],
    *,
    source: Path | None,
    transform: Llama3VisionTransform | None,
    layout: ImageLayout | None = None,
) -> None:
    """Write a checkpoint folder's files beside its config and weights.

    Args:
        folder: the folder.
        config: the content of its `config.json`.
        source: the checkpoint that training started from, whose files are copied.
        transform: the model's transform, from which those that `source` lacks are made; None makes none of them.
        layout: how pictures were laid out in training, which the processor's file is made to agree with; None leaves it.
    """
    if source is not None:
        _copy_files(source, folder)
    processor = folder / "preprocessor_config.json"
    if layout is not None and processor.is_file():
        content = json.loads(processor.read_text(encoding="utf-8"))
        write_json(processor, {**content, **_of_layout(config, layout)})
    if not (folder / "generation_config.json").is_file():
        write_json(folder / "generation_config.json", _generation_config(config))
    if transform is None:
        return
    if not processor.is_file():
        write_json(processor, _preprocessor_config(transform, config, layout or ImageLayout()))
    if not (folder / "tokenizer.json").is_file():
        convert_tokenizer(transform.tokenizer).save(str(folder / "tokenizer.json"))
    if not (folder / "tokenizer_config.json").is_file():
        longest = config["text_config"]["max_position_embeddings"]
        write_json(folder / "tokenizer_config.json", _tokenizer_config(transform.tokenizer, longest))
    if not _has_chat_template(folder):
        write_text(folder / "chat_template.jinja", _CHAT_TEMPLATE)
