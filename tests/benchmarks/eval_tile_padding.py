"""What `tile_padding: meta` costs: seconds of the vision encoder with one tile alone and padded to four.

    python tests/benchmarks/eval_tile_padding.py              # the miniature, one CPU thread
    python tests/benchmarks/eval_tile_padding.py --shape 11b  # a local and a global layer of the 11B model's size

Forward alone (evaluation) and with backward (training), interleaved; the median ratio of the rounds is given.
"""

import argparse
import statistics
import time

import torch
from torchtune.models.llama3_2_vision import llama3_2_vision_decoder, llama3_2_vision_encoder
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.models import tiny_llama3_2_vision
from ift_components.models.tile_padding import LAYOUTS, set_tile_padding


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


def seconds(encoder: torch.nn.Module, images: torch.Tensor, *, backward: bool) -> float:
    """Return the seconds of one pass."""
    ratio = torch.ones(len(images), 1, 2, dtype=torch.int)
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
    encoders = {layout: set_tile_padding(build(), layout).encoder for layout in LAYOUTS}
    images = torch.randn(batch, 1, 1, 3, side, side)
    for backward in (False, True):
        times: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        for _ in range(args.rounds):
            for layout, encoder in encoders.items():
                times[layout].append(seconds(encoder, images, backward=backward))
        ratios = [b / a for a, b in zip(times["none"], times["meta"], strict=True)]
        what = "forward and backward" if backward else "forward"
        both = ", ".join(f"{layout} {1000 * statistics.median(values):.0f} ms" for layout, values in times.items())
        print(f"{args.shape}, {batch} images, {what}: {both}; meta costs {statistics.median(ratios):.1f} x")


if __name__ == "__main__":
    main()
