"""What more tiles and `tile_padding: meta` cost: seconds of the vision encoder, beside one tile alone.

    python tests/benchmarks/eval_tile_padding.py              # the miniature, one CPU thread
    python tests/benchmarks/eval_tile_padding.py --shape 11b  # a local and a global layer of the 11B model's size

Forward alone (evaluation) and with backward (training), interleaved; medians of the rounds, and of their ratios to one tile.
"""

import argparse
import statistics
import time

import torch
from torchtune.models.llama3_2_vision import llama3_2_vision_decoder, llama3_2_vision_encoder
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models import tiny_llama3_2_vision
from ift_components.models.tile_padding import set_tile_padding

ARMS = {
    "one tile": ("none", 1, (1, 1)),
    "one tile, padded": ("meta", 1, (1, 1)),
    "two tiles": ("none", 4, (1, 2)),
    "two tiles, padded": ("meta", 4, (1, 2)),
    "four tiles": ("none", 4, (2, 2)),
    "four tiles, padded": ("meta", 4, (2, 2)),
}


def large() -> DeepFusionModel:
    """Build the 11B model's encoder with one layer of either kind, and a decoder of no size."""
    encoder = llama3_2_vision_encoder(
        patch_size=14,
        num_heads=16,
        clip_embed_dim=1280,
        clip_num_layers=1,
        clip_hidden_states=[0],
        num_layers_projection=1,
        decoder_embed_dim=64,
        tile_size=560,
        max_num_tiles=4,
    )
    decoder = llama3_2_vision_decoder(
        vocab_size=16,
        num_layers=1,
        fusion_interval=1,
        num_special_tokens=8,
        num_heads=1,
        num_kv_heads=1,
        embed_dim=64,
        max_seq_len=16,
        encoder_max_seq_len=16,
    )
    return DeepFusionModel(decoder, encoder, encoder_trainable=True)


def seconds(encoder: torch.nn.Module, images: torch.Tensor, ratio: torch.Tensor, *, backward: bool) -> float:
    """Return the seconds of one pass."""
    begin = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = encoder(images, ratio)
        if backward:
            out.square().mean().backward()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("tiny", "11b"), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    build, side, batch = (large, 560, 1) if args.shape == "11b" else (tiny_llama3_2_vision, 84, 16)
    encoders = {name: set_tile_padding(build(), layout, tiles).encoder for name, (layout, tiles, _) in ARMS.items()}
    inputs = {
        name: (
            torch.randn(batch, 1, down * across, 3, side, side),
            torch.tensor([[[down, across]]] * batch, dtype=torch.int),
        )
        for name, (_, _, (down, across)) in ARMS.items()
    }
    print(f"{args.shape}, {batch} image(s), ms | forward | x | forward and backward | x")
    times: dict[str, list[list[float]]] = {name: [[], []] for name in ARMS}
    for _ in range(args.rounds):
        for name, encoder in encoders.items():
            for backward in (False, True):
                times[name][backward].append(seconds(encoder, *inputs[name], backward=backward))
    for name, passes in times.items():
        cells = [name]
        for mine, first in zip(passes, times["one tile"], strict=True):
            ratio = statistics.median(b / a for a, b in zip(first, mine, strict=True))
            cells += [f"{1000 * statistics.median(mine):.0f}", f"{ratio:.1f}"]
        print(" | ".join(cells))


if __name__ == "__main__":
    main()
