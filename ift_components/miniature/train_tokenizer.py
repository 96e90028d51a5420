"""Trains the miniature's tokenizer: `python -m ift_components.miniature.train_tokenizer FOLDER`.

Byte-level BPE over the miniature's instructions, answers and reports and the docstrings of Python's standard library (general
English), written in tiktoken's format, with Llama 3's special tokens after the last entry in the order in which Llama 3 numbers
them. The shipped one was made by Python 3.11 before lists of findings and quizzes joined the tasks.
"""

import argparse
import ast
import base64
import json
import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torchtune.models.llama3._tokenizer import CL100K_PATTERN, LLAMA3_SPECIAL_TOKENS

from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.miniature import tasks
from ift_components.miniature.scenes import SCENE_SCHEMA

_LLAMA3_BASE_VOCABULARY = 128_000


def miniature_texts(count: int = 1500) -> Iterator[str]:
    """Yield the miniature's text: `count` times every task and a report, for cells and for shapes, and some choices."""
    rng = random.Random(0)
    for schema in (SCHEMA, SCENE_SCHEMA):
        choices = {attribute.name: attribute.values or () for attribute in schema.attributes}
        for _ in range(count):
            values = {name: rng.choice(options) for name, options in choices.items()}
            for task in tasks.IMAGE_TASKS:
                yield "\n".join(task(values, choices, rng))
            parts = (attribute.in_report(values[attribute.name]) for attribute in schema.attributes)
            yield ", ".join(part for part in parts if part)
    for instruction in tasks.DESCRIBE:
        yield from [instruction] * 100
    for _ in range(count // 5):
        yield "\n".join(tasks.find(("red", "blue", "green", "round", "small", "large"), rng))


def _english() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def train_tokenizer(texts: Iterable[str], size: int = 1024) -> tuple[list[bytes], dict[str, int]]:
    """Train a byte-level BPE vocabulary.

    Args:
        texts: the texts whose words should become whole tokens; they weigh more than the general English added to them.
        size: entries without special tokens, the 256 bytes included.

    Returns:
        The entries in rank order, and the id of every special token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*texts, *_english()], trainer)
    to_byte = {char: byte for byte, char in _byte_to_char().items()}
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # tiktoken wants the 256 single bytes to rank before every merge.
    entries = sorted((bytes(to_byte[char] for char in token) for token, _ in ranked), key=lambda entry: len(entry) > 1)
    special = {}
    for token, llama_id in LLAMA3_SPECIAL_TOKENS.items():
        special[token] = llama_id - _LLAMA3_BASE_VOCABULARY + len(entries)
    return entries, special


def _byte_to_char() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte, which `tokenizers` uses in its vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def main() -> None:
    """Train and write `tokenizer.model` and `tokenizer.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=1024)
    args = parser.parse_args()
    entries, special = train_tokenizer(miniature_texts(), args.size)
    lines = [f"{base64.b64encode(entry).decode()} {rank}\n" for rank, entry in enumerate(entries)]
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "tokenizer.model").write_text("".join(lines), encoding="ascii")
    added = [{"id": id_, "content": token, "special": True} for token, id_ in special.items()]
    (args.folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
