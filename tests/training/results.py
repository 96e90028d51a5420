"""What a run has left behind, to be compared with another's."""

import json

import torch
from safetensors.torch import load_file


def weights(folder, result="checkpoint"):
    return {path.name: load_file(path) for path in (folder / result).glob("*.safetensors")}


def assert_identical(left, right):
    assert left.keys() == right.keys()
    for name, tensors in left.items():
        assert tensors.keys() == right[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, right[name][key]), f"{name}: {key}"


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]
