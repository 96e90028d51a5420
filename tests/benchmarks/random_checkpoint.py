"""A checkpoint of the 11B shape with random weights: `python tests/benchmarks/random_checkpoint.py FOLDER [--tiny]`.

In Hugging Face layout, 21 GB in bf16. The 11B model's tokenizer is not free: the miniature's entries are filled up to as many.
`--tiny` is the miniature's shape.
"""

import argparse
import base64
from pathlib import Path

import torch
from torchtune.models.llama3_2_vision import llama3_2_vision_11b

from ift_components.models import tiny_llama3_2_vision
from ift_components.models.hf_layout import hf_config, save_checkpoint
from ift_components.models.tiny import TINY_TOKENIZER

VOCABULARY = 128_000  # without the special ones
FILE = 2_500_000_000  # bytes
POOL = 20_000_003


def draw(name, shape, pool):
    """Random weights that keep activations of one size: norms at 1, biases at 0, gates half open.

    Matrices are stretches of one pool of normal numbers, because 10.6 billion drawn one by one take minutes.
    """
    if len(shape) > 1:
        fan_in = shape[-1] if len(shape) == 2 else shape[1:].numel()
        start = int(torch.randint(len(pool) // 2, ()))
        stretch = pool[start:].repeat(1 + shape.numel() // (len(pool) - start))[: shape.numel()]
        return stretch.view(shape) * (0.02 if "embed" in name else fan_in**-0.5)
    value = 0.0 if name.endswith("bias") else 1.0 if shape.numel() > 1 else 0.5
    return torch.full(shape, value, dtype=torch.bfloat16)


def write_tokenizer(path):
    """The miniature's entries, and after them ones that no text has, since its bytes are none of UTF-8."""
    lines = (TINY_TOKENIZER / "tokenizer.model").read_text().splitlines()
    fillers = (b"\xff" + number.to_bytes(3, "big") for number in range(VOCABULARY - len(lines)))
    lines += [f"{base64.b64encode(entry).decode()} {rank}" for rank, entry in enumerate(fillers, start=len(lines))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_checkpoint(folder, *, tiny):
    """Draw one tensor after the other; no more than one file of them is in memory."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = tiny_llama3_2_vision() if tiny else llama3_2_vision_11b()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    pool = torch.randn(POOL, dtype=torch.bfloat16)
    weights = ((name, draw(name, shape, pool)) for name, shape in shapes.items())
    save_checkpoint(folder, weights, hf_config(model), dtype=torch.bfloat16, max_file_bytes=FILE)
    if not tiny:
        write_tokenizer(folder / "original" / "tokenizer.model")


def main():
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the miniature's shape")
    args = parser.parse_args()
    write_checkpoint(args.folder, tiny=args.tiny)


if __name__ == "__main__":
    main()
