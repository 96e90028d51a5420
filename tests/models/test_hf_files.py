"""A checkpoint folder's other files: the converted tokenizer, the chat template, what is copied and what is made."""

import json
import random

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torchtune.models.llama3 import llama3_tokenizer

from ift_components.data.prompts import Text, prompt_tokens
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.hf_files import IMAGE_LAYOUT, convert_tokenizer, write_files
from ift_components.models.hf_layout import hf_config, save_checkpoint
from ift_components.models.image_layout import ImageLayout
from ift_components.models.tiny import TINY_CHECKPOINT

MADE = {
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
PIECES = (
    "The", " nucleus", "'s", "'LL", " don't", "BASOPHIL", " 12345", "3.5 µm", "\n\n", " \n ", "\t\t", "   ", "\r\n", "--",
    "\u00a0", "é", "e\u0301", "ß", "\ufb01", "Ω", "中文", "العربية", "👩\u200d🔬", "🩸", "\u200b", "\ufeff", "\x00", "\x1b",
    "\u2028", "...", "?!", " (a)", "<|", "|>",
)  # fmt: skip


@pytest.fixture(scope="module")
def transform():
    return tiny_vision_transform()


def random_texts(count):
    """Texts of pieces that split differently, and of any characters at all."""
    rng = random.Random(0)
    for _ in range(count):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randrange(30)))
        codes = (rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(rng.randrange(30)))
        yield "".join(map(chr, codes))


def assert_equal(tokenizer, fast, texts):
    for text in texts:
        ids = tokenizer.encode(text, add_bos=False, add_eos=False)
        assert fast.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert fast.encode(text).ids == [tokenizer.bos_id, *ids]
        decoded = tokenizer.decode(ids, truncate_at_eos=False, skip_special_tokens=False)
        assert fast.decode(ids) == decoded == text


def test_converted_tokenizer_is_our_own(transform):
    assert_equal(transform.tokenizer, convert_tokenizer(transform.tokenizer), random_texts(1000))


def test_bytes_that_are_no_text_are_decoded_the_same_way(transform):
    fast, rng = convert_tokenizer(transform.tokenizer), random.Random(1)
    for _ in range(500):
        ids = [rng.randrange(1024) for _ in range(rng.randrange(1, 12))]
        assert fast.decode(ids) == transform.tokenizer.decode(ids, truncate_at_eos=False, skip_special_tokens=False)


def test_special_tokens(transform):
    fast = convert_tokenizer(transform.tokenizer)
    assert fast.get_vocab_size() == 1281  # 1,024 entries, 256 special tokens and the image's
    for name, number in transform.tokenizer.special_tokens.items():
        assert fast.token_to_id(name) == number
        assert fast.encode(f"a{name} b", add_special_tokens=False).ids[1] == number
        assert fast.decode([number], skip_special_tokens=False) == name
        assert fast.decode([number]) == ""
    unassigned = set(range(1281)) - set(transform.tokenizer.special_tokens.values()) - set(range(1024))
    assert {number: fast.id_to_token(number) for number in unassigned} == {1035: "<|unassigned_token_11|>"}


@pytest.mark.slow
def test_llamas_own_tokenizer_is_converted_too():
    llama3 = pytest.importorskip(
        "llama_models.llama3", reason="llama-models, which ships Llama 3's tokenizer, is missing"
    )
    tokenizer = llama3_tokenizer(f"{llama3.__path__[0]}/tokenizer.model")
    assert_equal(tokenizer, convert_tokenizer(tokenizer), random_texts(500))


def test_files_are_made_from_the_transform(transform, tmp_path):
    model = tiny_llama3_2_vision(num_layers=2)
    save_checkpoint(
        tmp_path / "c",
        model.state_dict(),
        hf_config(model),
        dtype=torch.float32,
        transform=transform,
        layout=ImageLayout(tiles=4, tile_padding="meta", resize="bicubic"),
    )
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        *MADE, "config.json", "model.safetensors", "model.safetensors.index.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "c/config.json").read_text())[IMAGE_LAYOUT] == {
        "tiles": 4, "tile_padding": "meta", "resize": "bicubic",
    }  # fmt: skip
    processor = json.loads((tmp_path / "c/preprocessor_config.json").read_text())
    assert (processor["max_image_tiles"], processor["resample"]) == (4, Image.Resampling.BICUBIC)


def test_files_of_the_source_are_kept(transform, tmp_path):
    """Whatever training started from keeps its own tokenizer, settings and licence; its index, card and pickles stay there."""
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "original").mkdir(parents=True)
    out.mkdir()
    kept = ["generation_config.json", "preprocessor_config.json", "tokenizer.json", "LICENSE.txt", "USE_POLICY.md"]
    kept += ["chat_template.json", "original/tokenizer.model"]
    others = ["model.safetensors.index.json", "README.md", "original/consolidated.00.pth", "model.bin", "config.json"]
    for name in [*kept, *others]:
        (source / name).write_text(f'"{name} of the source"')
    write_files(out, hf_config(tiny_llama3_2_vision(num_layers=2)), source=source, transform=transform)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {*kept, "tokenizer_config.json"}
    assert all((out / name).read_text() == f'"{name} of the source"' for name in kept)


def test_the_shipped_miniatures_files_are_what_is_made_now(transform, tmp_path):
    config = json.loads((TINY_CHECKPOINT / "config.json").read_text())
    write_files(tmp_path, config, source=None, transform=transform)
    assert {path.name for path in tmp_path.iterdir()} == MADE
    for name in MADE:
        assert (tmp_path / name).read_text() == (TINY_CHECKPOINT / name).read_text(), name
    assert config[IMAGE_LAYOUT] == {"tiles": 1, "tile_padding": "none"}


def test_the_chat_template_writes_our_prompts(transform):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_CHECKPOINT)
    for text in random_texts(200):
        if any(mark in text for mark in ("<|", "|>")) or not text.strip():
            continue
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        made = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert made == prompt_tokens(transform, Text(text)), repr(text)
    with pytest.raises(Exception, match="content of type 'video': this model takes text and image"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], tokenize=False)


def test_a_saved_tokenizer_is_read_again(transform, tmp_path):
    convert_tokenizer(transform.tokenizer).save(str(tmp_path / "tokenizer.json"))
    assert_equal(transform.tokenizer, Tokenizer.from_file(str(tmp_path / "tokenizer.json")), random_texts(100))
