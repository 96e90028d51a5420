"""The weights that SGLang's Mllama looks up, written down from its model's definition and `load_weights`.

SGLang takes a checkpoint's names as they are, stacks `q_proj`, `k_proj`, `v_proj` and `gate_proj`, `up_proj` itself, and fails
with a `KeyError` at a name that it does not have; a weight that the checkpoint lacks stays as the memory was.
"""


def _linear(name, rows, columns, *, bias=False):
    return {f"{name}.weight": [rows, columns]} | ({f"{name}.bias": [rows]} if bias else {})


def _norm(name, width, *, bias=False):
    return {f"{name}.weight": [width]} | ({f"{name}.bias": [width]} if bias else {})


def _text_layer(name, text, *, cross):
    width, hidden = text["hidden_size"], text["intermediate_size"]
    head = width // text["num_attention_heads"]
    attention = f"{name}.{'cross_attn' if cross else 'self_attn'}"
    keys = text["num_key_value_heads"] * head
    weights = _norm(f"{name}.input_layernorm", width) | _norm(f"{name}.post_attention_layernorm", width)
    weights |= _linear(f"{attention}.q_proj", width, width) | _linear(f"{attention}.o_proj", width, width)
    weights |= _linear(f"{attention}.k_proj", keys, width) | _linear(f"{attention}.v_proj", keys, width)
    weights |= _linear(f"{name}.mlp.gate_proj", hidden, width) | _linear(f"{name}.mlp.up_proj", hidden, width)
    weights |= _linear(f"{name}.mlp.down_proj", width, hidden)
    if cross:
        weights |= _norm(f"{attention}.q_norm", head) | _norm(f"{attention}.k_norm", head)
        weights |= {f"{name}.cross_attn_attn_gate": [1], f"{name}.cross_attn_mlp_gate": [1]}
    return weights


def _vision_layer(name, vision, *, gated):
    width, hidden = vision["hidden_size"], vision["intermediate_size"]
    weights = {}
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        weights |= _linear(f"{name}.self_attn.{part}", width, width)
    weights |= _linear(f"{name}.mlp.fc1", hidden, width, bias=True) | _linear(
        f"{name}.mlp.fc2", width, hidden, bias=True
    )
    weights |= _norm(f"{name}.input_layernorm", width, bias=True)
    weights |= _norm(f"{name}.post_attention_layernorm", width, bias=True)
    return weights | ({f"{name}.gate_attn": [1], f"{name}.gate_ffn": [1]} if gated else {})


def expected_weights(config):
    """Return name to shape of every weight of a `config.json`."""
    text, vision = config["text_config"], config["vision_config"]
    width, encoder = text["hidden_size"], vision["hidden_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    ratios, tiles = len(vision["supported_aspect_ratios"]) + 1, vision["max_num_tiles"]
    weights = _linear("language_model.model.embed_tokens", text["vocab_size"] + 8, width)
    weights |= _linear("language_model.lm_head", text["vocab_size"], width) | _norm("language_model.model.norm", width)
    for layer in range(text["num_hidden_layers"]):
        cross = layer in text["cross_attention_layers"]
        weights |= _text_layer(f"language_model.model.layers.{layer}", text, cross=cross)
    weights["vision_model.class_embedding"] = [encoder]
    # SGLang flattens what stands behind the first dimension.
    weights["vision_model.patch_embedding.weight"] = [encoder, 3, vision["patch_size"], vision["patch_size"]]
    positions = "vision_model.gated_positional_embedding"
    weights |= {f"{positions}.embedding": [patches, encoder], f"{positions}.gate": [1]}
    weights |= _linear(f"{positions}.tile_embedding", ratios, tiles * patches * encoder)
    for name in ("pre", "post"):
        tile = f"vision_model.{name}_tile_positional_embedding"
        weights |= {f"{tile}.gate": [1]} | _linear(f"{tile}.embedding", ratios, tiles * encoder)
        weights |= _norm(f"vision_model.layernorm_{name}", encoder, bias=True)
    for layer in range(vision["num_hidden_layers"]):
        weights |= _vision_layer(f"vision_model.transformer.layers.{layer}", vision, gated=False)
    for layer in range(vision["num_global_layers"]):
        weights |= _vision_layer(f"vision_model.global_transformer.layers.{layer}", vision, gated=True)
    return weights | _linear("multi_modal_projector", width, vision["vision_output_dim"], bias=True)
