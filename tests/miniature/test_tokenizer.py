"""The miniature's tokenizer: Llama 3's layout, the miniature's words whole."""

import itertools

from torchtune.models.llama3._tokenizer import LLAMA3_SPECIAL_TOKENS

from ift_components.miniature.train_tokenizer import miniature_texts, train_tokenizer
from ift_components.models import tiny_vision_transform
from ift_components.models.tiny import TINY_TOKENIZER


def test_words_of_the_miniature_are_whole_tokens():
    transform = tiny_vision_transform()
    assert transform.tokenizer.base_vocab_size <= 2048
    for text in (" nucleus", " Basophil", " densely", "The correct answer is B.", " background"):
        tokens = transform.tokenizer.encode(text, add_bos=False, add_eos=False)
        assert len(tokens) == len(text.strip().replace(".", " .").split())
        assert transform.tokenizer.decode(tokens, skip_special_tokens=False) == text
    strange = "Ärzte\t\u2705 3.5 µm"
    tokens = transform.tokenizer.encode(strange, add_bos=False, add_eos=False)
    assert transform.tokenizer.decode(tokens, skip_special_tokens=False) == strange


def test_training_gives_tiktoken_entries_and_llamas_special_tokens():
    entries, special = train_tokenizer(itertools.islice(miniature_texts(), 200), 400)
    assert len(entries) == len(set(entries)) == 400
    assert all(len(entry) == 1 for entry in entries[:256])
    assert max(map(len, entries)) > 4
    assert {name: number - 400 for name, number in special.items()} == {
        name: number - 128_000 for name, number in LLAMA3_SPECIAL_TOKENS.items()
    }


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "tokenizer.model"
    lines = (TINY_TOKENIZER / "tokenizer.model").read_text().splitlines(keepends=True)
    path.write_text("".join(lines))
    before = tiny_vision_transform(path=str(path)).tokenizer.encode(" nucleus", add_bos=False, add_eos=False)
    path.write_text(
        "".join([*lines[:256], *(f"{line.split()[0]} {rank}\n" for rank, line in enumerate(lines[:255:-1], 256))])
    )
    after = tiny_vision_transform(path=str(path)).tokenizer.encode(" nucleus", add_bos=False, add_eos=False)
    assert before != after
