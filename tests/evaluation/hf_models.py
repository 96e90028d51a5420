"""Tiny randomly initialised models of other architectures, each saved as a checkpoint folder with its processor."""

# ruff: noqa: S106 (tokens of a vocabulary, not secrets)

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

SIDE = 28
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def tokenizer(*special, **named):
    """A tokenizer of single bytes and special tokens; `named` become attributes, such as `image_token`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<bos>", "<eos>", "<pad>", *special, *named.values()])
    standard = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **standard, extra_special_tokens=named)


def _ids(words):
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(words), **{name: getattr(words, name) for name in names}}


def qwen2_5_vl():
    words = tokenizer("<|vision_start|>", "<|vision_end|>", image_token="<|image_pad|>", video_token="<|video_pad|>")
    size = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    images = Qwen2VLImageProcessor(size=size, patch_size=14, merge_size=2)
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = Qwen2_5_VLProcessor(images, words, Qwen2VLVideoProcessor(), chat_template=template)
    ids = {name: words.convert_tokens_to_ids(f"<|{token}|>") for name, token in (
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    text = {
        **TEXT,
        **_ids(words),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    vision |= {"fullatt_block_indexes": [1], "window_size": 28}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    ), processor


def medgemma():
    """MedGemma is Gemma 3 with a SigLIP vision encoder."""
    words = tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    images = Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Gemma3Processor(
        images, words, chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"), image_seq_length=4
    )
    vision = {**VISION, "image_size": SIDE, "patch_size": 7, "vision_use_head": False}
    text = {**TEXT, **_ids(words), "head_dim": 8, "sliding_window": 512}
    ids = {f"{name}_index": words.convert_tokens_to_ids(getattr(words, f"{short}_token")) for name, short in (
        ("boi_token", "boi"), ("eoi_token", "eoi"), ("image_token", "image"),
    )}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **ids)
    return Gemma3ForConditionalGeneration(config), processor


def pubmedvision():
    """The models trained on PubMedVision (HuatuoGPT-Vision) are LLaVA with Qwen2 as the language model."""
    words = tokenizer(image_token="<image>")
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    vision = {"model_type": "clip_vision_model", **VISION, "image_size": SIDE, "patch_size": 14}
    text = {"model_type": "qwen2", **TEXT, **_ids(words)}
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=words.convert_tokens_to_ids("<image>")
    )
    return LlavaForConditionalGeneration(config), processor


def blip2():
    words = tokenizer("<image>")
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Blip2Processor(images, words, num_query_tokens=4)
    vision = {**VISION, "image_size": SIDE, "patch_size": 14}
    former = {**VISION, "vocab_size": 30, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    text = {"model_type": "opt", **_ids(words), "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 512}
    config = Blip2Config(vision_config=vision, qformer_config=former, text_config=text, num_query_tokens=4)
    config.image_token_index = words.convert_tokens_to_ids("<image>")
    return Blip2ForConditionalGeneration(config), processor


def llama3_2_vision():
    words = tokenizer("<|python_tag|>", image_token="<|image|>")
    images = MllamaImageProcessor(size={"height": SIDE, "width": SIDE}, max_image_tiles=4)
    processor = MllamaProcessor(images, words, chat_template=TEMPLATE.replace("IMAGE", "<|image|>"))
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_global_layers": 1}
    vision |= {"attention_heads": 4, "image_size": SIDE, "patch_size": 14, "intermediate_layers_indices": [0, 1]}
    vision |= {"vision_output_dim": 96}
    text = {**TEXT, **_ids(words), "num_hidden_layers": 3, "cross_attention_layers": [1]}
    # The embedding has 8 rows more than the output, and <|image|> is one of them.
    text["vocab_size"] -= 1
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=words.image_token_id)
    model = MllamaForConditionalGeneration(config)
    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn_attn_gate"):
            layer.cross_attn_attn_gate.data.fill_(1.0)
    return model, processor


ARCHITECTURES = {
    "Qwen2.5-VL": qwen2_5_vl,
    "MedGemma": medgemma,
    "PubMedVision": pubmedvision,
    "BLIP-2": blip2,
    "Llama-3.2-Vision": llama3_2_vision,
}


def save(name, folder):
    """Save a tiny model of an architecture and its processor."""
    torch.manual_seed(3)
    model, processor = ARCHITECTURES[name]()
    with torch.no_grad():
        # The usual 0.02 lets a model this small say one thing whatever it sees, and so do large embeddings tied to the output.
        for part, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1 if "embed_tokens" in part else 0.4)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
