"""Training steps at the 11B model's shape on one GPU: `python tests/benchmarks/gpu_shape.py --out rows.json`.

Random weights are drawn on the device; nothing is read but this package. Every row is a step of the package's own loop
(`ours`), or of the authors' way (`authors_way.py`; all in bf16, torch's AdamW as it comes), in a setting of its own: stage,
what is recomputed, batch, responses an image, activations offloaded or not. A row that fails says why; the next one goes on,
and the file is written after each. `--report` adds operations and the memory table's predictions to such a file, on any
machine, and prints the table. `--tiny` does all of it with the miniature, on the CPU too.
"""

import argparse
import gc
import json
import statistics
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from authors_way import AuthorsModel
from torch import nn
from torch.distributed.tensor import DTensor
from torchtune.models.llama3_2_vision import llama3_2_vision_11b
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

from ift_components.data.dataset import Sample, collate
from ift_components.data.prompts import Slots, prompt_tokens
from ift_components.distributed import distributed
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.adapters import added_to_device, initialise_added
from ift_components.models.build import compute_buffers
from ift_components.models.forward import ResponseLoss
from ift_components.models.quantised import quantisable, quantise, store_others
from ift_components.models.sharding import checkpoint_activations, set_precision, shard
from ift_components.models.trainable import FINE_TUNING, WARM_UP, Tuning, apply_tuning
from ift_components.proxy import ProxyInstruction, UpdateRule, random_theta
from ift_components.training.activations import meta_model
from ift_components.training.flops import batch_flops
from ift_components.training.loop import Trainer
from ift_components.training.memory import peak_bytes, quantised_bytes
from ift_components.training.setup import offload_activations, parameter_groups

K, RESPONSE, BF16 = 8, 60, torch.bfloat16
_BLOCK = 2**20  # numbers that are drawn; weights repeat them
TUNINGS = {
    "warm-up": WARM_UP,
    "fine-tuning": FINE_TUNING,
    "LoRA on NF4": Tuning.parse({part: {"method": "lora", "rank": 64} for part in ("encoder", "fusion", "decoder")}),
}
PEAKS = {"H100": 989.4e12, "H200": 989.4e12}
"""Operations a second in bf16 without sparsity, of the SXM modules (NVIDIA's data sheets)."""


@dataclass(frozen=True)
class Setting:
    """One row: who trains what, and how."""

    who: str
    stage: str
    recomputed: str
    batch: int
    responses: int = 1
    offloaded: bool = False


def settings():
    """Return all rows, the most telling ones first; rows of one model stand together, so that it is built once."""
    ours, authors = "ours", "authors"
    rows = [Setting(ours, "fine-tuning", "none", batch) for batch in (1, 2, 4)]
    rows += [Setting(ours, "fine-tuning", "none", batch, 4) for batch in (1, 2)]
    rows += [Setting(ours, "fine-tuning", "none", 2, 1, offloaded=True)]
    rows += [Setting(authors, "fine-tuning", "all", batch) for batch in (1, 2)]
    rows += [Setting(ours, "warm-up", "none", batch) for batch in (1, 2, 4)]
    rows += [Setting(authors, "warm-up", "all", batch) for batch in (1, 2)]
    rows += [Setting(ours, "fine-tuning", "encoder", batch) for batch in (2, 4)]
    rows += [
        Setting(ours, "fine-tuning", "all", batch, responses) for batch, responses in ((1, 1), (2, 1), (4, 1), (2, 4))
    ]
    rows += [Setting(ours, "fine-tuning", "all", 2, 1, offloaded=True)]
    rows += [Setting(ours, "LoRA on NF4", "none", batch) for batch in (1, 2)]
    rows += [Setting(authors, "fine-tuning", "none", 2), Setting(authors, "warm-up", "none", 2)]
    rows += [Setting(ours, "fine-tuning", "language", 2), Setting(ours, "warm-up", "all", 2)]
    return [*rows, Setting(ours, "LoRA on NF4", "all", 2)]


def make_batch(setting, side):
    """Random pixels and reports in the collated form of a real batch."""
    generator = torch.Generator().manual_seed(0)
    transform = tiny_vision_transform()
    prompt = prompt_tokens(transform, Slots(K))
    samples = [
        Sample(
            str(number),
            prompt,
            torch.randint(0, 1000, (setting.responses, RESPONSE), generator=generator).tolist(),
            torch.randn(1, 1, 3, side, side, generator=generator),
        )
        for number in range(setting.batch)
    ]
    return collate(samples, transform)


def fill(matrix):
    """Fill a matrix with one random block again and again: to draw billions of numbers takes a CPU longer than the steps."""
    flat = matrix.view(-1)
    block = torch.randn(min(_BLOCK, flat.numel()), device=flat.device).mul_(0.02).to(flat.dtype)
    for piece in flat.split(_BLOCK):
        piece.copy_(block[: piece.numel()])


@torch.no_grad()
def draw(model):
    """Fill weights: matrices at random, norms with 1, gates open."""
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if local.dim() > 1:
            fill(local)
        elif name.endswith("bias"):
            local.zero_()
        else:
            local.fill_(0.5 if local.numel() == 1 else 1.0)


@torch.no_grad()
def quantise_random(model, device):
    """Give the layers that `quantisable` names random weights in NF4, and the others storage."""
    layers = store_others(model, device)
    for layer in layers.values():
        layer.weight = quantise(torch.randn(layer.weight.shape, device=device, dtype=BF16) * 0.02)
    return {id(layer.weight) for layer in layers.values()}


def ours(setting, world, build):
    """Build the package's trainer as a run does, weights drawn instead of read; return its step.

    Args:
        setting: the row.
        world: one process.
        build: builds the model on the current device.
    """
    tuning = TUNINGS[setting.stage]
    quantised = "NF4" in setting.stage
    with torch.device("meta"):
        model = build()
    apply_tuning(model, tuning)
    set_precision(model, BF16)
    checkpoint_activations(model, setting.recomputed)
    module = ResponseLoss(model, BF16)
    whole = [layer.weight for layer in quantisable(model).values()] if quantised else []
    shard(module, world.mesh, BF16, whole=whole)
    if quantised:
        in_nf4 = quantise_random(model, world.device)
        rest = nn.ParameterDict({str(n): p for n, p in enumerate(model.parameters()) if id(p) not in in_nf4})
        draw(rest)
    else:
        model.to_empty(device=world.device)
        draw(model)
    compute_buffers(model, world.device)
    added_to_device(model, world.device)
    initialise_added(model, 0)
    rule = UpdateRule.UPDATE if setting.stage == "warm-up" else UpdateRule.TRACK
    theta = random_theta(K, model.decoder.output.in_features, 0).to(world.device)
    proxy = ProxyInstruction(theta, rule)
    groups = parameter_groups(module.train(), proxy)
    optimizer = torch.optim.AdamW([{"params": p} for p in groups.values()], lr=2e-5, fused=True)
    trainer = Trainer(module=module, proxy=proxy, groups=groups, optimizer=optimizer, world=world, clip_grad_norm=1.0)

    def step(batch, *, offloaded):
        trainer.saved_activations = offload_activations(world) if offloaded else nullcontext()
        return trainer.step([batch])["loss"]

    return step


def authors(setting, world, build):
    """Build the authors' way; return its step. Arguments as of `ours`."""
    with torch.device("meta"):
        model = build()
    if setting.recomputed == "all":  # torchtune's recipes wrap the self-attention layers alone
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    apply_tuning(model, FINE_TUNING)
    model = model.to(BF16).to_empty(device=world.device)
    draw(model)
    compute_buffers(model, world.device)
    module = AuthorsModel(model, K, model.encoder.clip.get_image_tokens_per_tile())
    trained = [p for p in module.parameters() if p.requires_grad] if setting.stage == "fine-tuning" else [module.proxy]
    optimizer = torch.optim.AdamW(trained, lr=2e-5)

    def step(batch, *, offloaded):
        if offloaded:
            raise ValueError("the authors' way has no offloading here")
        loss = module(batch.to(world.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        module.zero_grad()
        return float(loss.detach())

    return step


def measure(step, setting, world, *, steps, side):
    """Time steps after two that are not counted, on pictures of so many pixels a side; the peak is over all of them."""
    batch = make_batch(setting, side)
    cuda = world.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for _ in range(steps + 2):
        start = time.perf_counter()
        losses.append(step(batch, offloaded=setting.offloaded))
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    reserved = torch.cuda.max_memory_reserved() if cuda else None
    return {
        "seconds": statistics.median(seconds[2:]),
        "fastest": min(seconds[2:]),
        "slowest": max(seconds[2:]),
        "peak_bytes": peak,
        "reserved_bytes": reserved,
        "losses": [losses[0], losses[-1]],
    }


def free(world):
    """Give memory back before the next model."""
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()


def run(args):
    """Measure every row that time is left for, writing the file after each."""
    started = time.monotonic()
    cuda = torch.cuda.is_available() and not args.cpu
    with distributed("cuda" if cuda else "cpu") as world:
        record = {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "device_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
            "torch": torch.__version__,
            "tiny": args.tiny,
            "rows": [],
        }
        build = tiny_llama3_2_vision if args.tiny else llama3_2_vision_11b
        step, built = None, None
        for setting in settings():
            if args.only and args.only not in f"{setting.who}, {setting.stage}":
                continue
            row = asdict(setting)
            if time.monotonic() - started > args.seconds:
                row["error"] = f"not run: {args.seconds} s were over"
            else:
                try:
                    if step is None or built != (setting.who, setting.stage, setting.recomputed):
                        step, begun = None, time.monotonic()
                        free(world)
                        make = {"ours": ours, "authors": authors}[setting.who]
                        step, built = make(setting, world, build), (setting.who, setting.stage, setting.recomputed)
                        row["building_seconds"] = time.monotonic() - begun
                    row |= measure(step, setting, world, steps=args.steps, side=84 if args.tiny else 560)
                except Exception as error:  # noqa: BLE001 (a row's failure must not cost the others)
                    row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    traceback.print_exc(limit=-4)
                    del error
                    step, built = None, None  # it may be in the middle of a step
                    free(world)
            record["rows"].append(row)
            print(f"[{time.monotonic() - started:.0f} s] {json.dumps(row)}", flush=True)
            args.out.write_text(json.dumps(record, indent=1))


def report(args):
    """Print a measured file as Markdown, with operations and predicted memory."""
    record = json.loads(args.out.read_text())
    build = tiny_llama3_2_vision if record["tiny"] else llama3_2_vision_11b
    peak = next((value for name, value in PEAKS.items() if name in record["device"]), None)
    print(f"{record['device']}, {(record['device_bytes'] or 0) / 1e9:.1f} GB, torch {record['torch']}\n")
    print(
        "| | recomputed | batch | responses | step, ms | responses/s | TFLOP | MFU | peak, GiB | table, GiB | table/peak |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in record["rows"]:
        name = f"{row['who']}, {row['stage']}{', offloaded' if row['offloaded'] else ''}"
        settings = f"| {name} | {row['recomputed']} | {row['batch']} | {row['responses']} |"
        if "error" in row:
            print(f"{settings} {row['error'][:60]} | | | | | | |")
            continue
        setting = Setting(*(row[key] for key in ("who", "stage", "recomputed", "batch", "responses", "offloaded")))
        batch = make_batch(setting, 84 if record["tiny"] else 560)
        model = meta_model(build, TUNINGS[setting.stage], BF16, batch.tokens.shape[1])
        operations = batch_flops(model, batch, BF16)  # what the step needs, without what is computed again
        share = f"{100 * operations / row['seconds'] / peak:.1f} %" if peak else ""
        responses = row["batch"] * row["responses"] / row["seconds"]
        cells = [f"{1e3 * row['seconds']:.0f}", f"{responses:.1f}", f"{operations / 1e12:.1f}", share]
        cells.append(f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else "")
        if row["who"] == "ours" and not row["offloaded"]:
            checkpoint_activations(model, setting.recomputed)
            row["table_bytes"] = peak_bytes(model, batch, BF16)
            if "NF4" in setting.stage:
                row["table_bytes"] -= round(quantised_bytes(model))
            cells.append(f"{row['table_bytes'] / 2**30:.1f}")
            cells.append(f"{row['table_bytes'] / row['peak_bytes']:.2f}" if row["peak_bytes"] else "")
        row["operations"] = operations
        print(f"{settings} {' | '.join(cells)} |", flush=True)
    args.out.write_text(json.dumps(record, indent=1))


def main():
    """Measure, or report what has been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_shape.json"))
    parser.add_argument("--seconds", type=float, default=200, help="begin no row later than this")
    parser.add_argument("--steps", type=int, default=6, help="timed steps a row")
    parser.add_argument("--only", help="rows whose 'who, stage' contains this")
    parser.add_argument("--tiny", action="store_true", help="the miniature in the 11B model's place")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--report", action="store_true", help="print what `--out` holds already")
    args = parser.parse_args()
    (report if args.report else run)(args)


if __name__ == "__main__":
    main()
