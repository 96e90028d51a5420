"""Training speed at the 11B model's proportions from slices of it: `python tests/benchmarks/slice_speed.py --out slices.json`.

A slice has every width of the 11B model (encoder 1,280 with 1,601 tokens, language and cross-attention layers 4,096, a
projection from 7,680, a vocabulary of 128,256) and few layers of each kind. A whole optimizer step is timed on slices that
differ in the number of layers; least squares with no cost below zero give what a layer of each kind costs in its role (frozen,
trained, recomputed), its share of the optimizer included, and what is left at no layer. Times the number of layers, that is
the step at full depth. A deeper slice is measured too: the projection's error on it stands beside. Ways take turns, step by
step, on a CPU `--together` of them. Slices that `--out` has are not measured again. On a CPU set THP_MEM_ALLOC_ENABLE=1 (large
pages).

What the authors' way is says `authors_way.py`: all in one dtype, every trainable weight gets its gradient in the warm-up too.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import scipy.optimize
import torch
from gpu_shape import Setting, authors, free, make_batch, ours
from torchtune.models.llama3_2_vision import llama3_2_vision_decoder, llama3_2_vision_encoder
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.distributed import distributed

KINDS = ("encoder", "projection", "language", "fusion")
FULL = {"encoder": 32, "projection": 8, "language": 32, "fusion": 8}
SMALLEST = {"encoder": 1, "projection": 1, "language": 1, "fusion": 1}
SLICES = [  # cheap layers are added by several at a time, or noise hides them
    SMALLEST,
    SMALLEST | {"encoder": 5},
    SMALLEST | {"projection": 5},
    SMALLEST | {"language": 2},
    SMALLEST | {"language": 3},
    SMALLEST | {"language": 2, "fusion": 2},
]
DEEPER = {"encoder": 4, "projection": 2, "language": 4, "fusion": 2}
_TAPPED = 5  # layers of the encoder whose output the projection takes beside the last one's
WAYS = {
    "authors, warm-up": Setting("authors", "warm-up", "none", 1),
    "ours, warm-up": Setting("ours", "warm-up", "none", 1),
    "authors, fine-tuning": Setting("authors", "fine-tuning", "none", 1),
    "authors, fine-tuning, recomputed": Setting("authors", "fine-tuning", "all", 1),
    "ours, fine-tuning": Setting("ours", "fine-tuning", "none", 1),
    "ours, fine-tuning, recomputed": Setting("ours", "fine-tuning", "all", 1),
    "ours, fine-tuning, 4 responses": Setting("ours", "fine-tuning", "none", 1, 4),
}
BASES = {"warm-up": "authors, warm-up", "fine-tuning": "authors, fine-tuning"}


def build_slice(layers, *, tiny):
    """Build a slice with so many layers of each kind, at the 11B model's widths, or at 1/16 of them."""
    share = 16 if tiny else 1
    encoder = llama3_2_vision_encoder(
        patch_size=14,
        num_heads=16 // share,
        clip_embed_dim=1280 // share,
        clip_num_layers=layers["encoder"],
        clip_hidden_states=[0],
        decoder_embed_dim=4096 // share,
        num_layers_projection=layers["projection"],
        tile_size=84 if tiny else 560,
    )
    # The first layer's input stands in for all tapped layers, so that the projection has its full width at any depth.
    encoder.clip.register_forward_hook(lambda module, inputs, output: (output[0], output[1] * _TAPPED))
    encoder.projection.num_hidden = _TAPPED
    encoder.projection.output = torch.nn.Linear((_TAPPED + 1) * 1280 // share, 4096 // share)
    decoder = llama3_2_vision_decoder(
        vocab_size=128_256 // share,
        num_layers=layers["language"],
        fusion_interval=layers["language"] // layers["fusion"],
        num_special_tokens=8,
        num_heads=32 // share,
        num_kv_heads=8 // min(share, 8),
        embed_dim=4096 // share,
        max_seq_len=2048,
        encoder_max_seq_len=4 * 1601,
        intermediate_dim=14336 // share,
    )
    return DeepFusionModel(decoder, encoder, encoder_trainable=True)


def time_slice(layers, world, args):
    """Return the seconds of every way's step on a slice; ways of a group take turns."""
    cuda = world.device.type == "cuda"
    seconds = {}
    # Ways of one stage are compared; all of them at a time, which keep a model each, are too much for a small machine.
    names = [name for name in WAYS if not args.only or args.only in name]
    by_stage = [[name for name in names if WAYS[name].stage == stage] for stage in BASES]
    size = len(WAYS) if cuda else args.together
    groups = [group[start : start + size] for group in by_stage for start in range(0, len(group), size)]
    for group in groups:
        steps = {}
        for name in group:
            make = {"ours": ours, "authors": authors}[WAYS[name].who]
            steps[name] = make(WAYS[name], world, lambda: build_slice(layers, tiny=args.tiny))
        batches = {name: make_batch(replace(WAYS[name], batch=args.batch), 84 if args.tiny else 560) for name in group}
        for number in range(args.rounds + 1):  # the first, which makes the optimizer's state, is not counted
            for name, step in steps.items():
                start = time.perf_counter()
                for _ in range(args.steps):
                    step(batches[name], offloaded=False)
                if cuda:
                    torch.cuda.synchronize()
                if number:
                    seconds.setdefault(name, []).append((time.perf_counter() - start) / args.steps)
        steps = step = None
        free(world)
    # Costs are differences of slices: the fastest round is the one that the machine disturbed least.
    return {name: min(values) for name, values in seconds.items()}


def project(kinds, rest, layers):
    """Return the seconds of a step with so many layers of each kind."""
    return rest + sum(kinds[kind] * layers[kind] for kind in KINDS)


def table(record):
    """Print the record as Markdown."""
    print(f"\n{record['device']}, batch {record['batch']}, {record['threads']} threads, torch {record['torch']}\n")
    print(
        "| seconds | encoder | projection | language | fusion | rest | full depth | responses/s | x authors | error |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, way in record["ways"].items():
        setting = WAYS[name]
        base = record["ways"].get(BASES[setting.stage])
        speed = record["batch"] * setting.responses / way["full"]
        ratio = f"{speed * base['full'] / record['batch']:.2f}" if base else ""
        cells = [f"{way['kinds'][kind]:.4f}" for kind in KINDS] + [
            f"{way['rest']:.4f}",
            f"{way['full']:.3f}",
            f"{speed:.3f}",
        ]
        print(f"| {name} | {' | '.join(cells)} | {ratio} | {100 * way['error']:+.1f} % |")


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds a slice")
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument(
        "--together", type=int, default=2, help="ways that take turns on a CPU, each of them a model in memory"
    )
    parser.add_argument("--only", help="ways whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="a sixteenth of the widths")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    with distributed("cuda" if torch.cuda.is_available() and not args.cpu else "cpu") as world:
        kept = args.out.with_suffix(".slices.json") if args.out else None  # a slice is not measured again
        measured = json.loads(kept.read_text()) if kept and kept.is_file() else {}
        for layers in [*SLICES, DEEPER]:
            key = json.dumps(layers)
            if key not in measured:
                measured[key] = time_slice(layers, world, args)
                print(f"measured {layers}: {measured[key]}", flush=True)
                if kept:
                    kept.write_text(json.dumps(measured, indent=1))
        record = {
            "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "batch": args.batch,
            "tiny": args.tiny,
            "ways": {},
        }
    for name in measured[json.dumps(SMALLEST)]:
        of = {key: times[name] for key, times in measured.items()}
        counts = [[*(layers[kind] for kind in KINDS), 1] for layers in SLICES]
        (*costs, rest), _ = scipy.optimize.nnls(counts, [of[json.dumps(layers)] for layers in SLICES])
        kinds = dict(zip(KINDS, costs, strict=True))
        record["ways"][name] = {
            "kinds": kinds,
            "rest": rest,
            "full": project(kinds, rest, FULL),
            "deeper": of[json.dumps(DEEPER)],
            "error": project(kinds, rest, DEEPER) / of[json.dumps(DEEPER)] - 1,
            "slices": of,
        }
    table(record)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
