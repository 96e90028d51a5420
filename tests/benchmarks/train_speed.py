"""Training speed and memory against the authors' way, on the CPU: `python tests/benchmarks/train_speed.py`.

One model with the 11B model's proportions at an eighth of its width: 560 px images (1601 tokens), encoder 160 wide with 8 + 2
layers, language model 512 wide with 8 layers and cross-attention at every fourth, heads as wide as the 11B model's (80 and 128)
and an eighth as many, a vocabulary of 16,032, 70 text tokens, batch 2. Every arm runs in a process of its own, so that its peak
memory is its own; arms take turns, round after round.

- `authors`: every trainable weight gets its gradient in the warm-up too, logits at all positions, a dense cross-attention mask,
  torchtune's own forward with the embedding swapped by a hook, weights and optimizer (torch's AdamW as it comes) in one
  dtype, no loader workers. Two processes: DistributedDataParallel.
- `ours`: this package's training step. Two processes: FSDP2, all weights sharded, or a whole copy on each process as
  DistributedDataParallel has it (`data_parallel_replicate_dim`).
- `encoder`: the vision encoder's forward pass and, in fine-tuning, its backward pass, and nothing else: no way can do without.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from authors_way import AuthorsModel
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchtune.models.llama3_2_vision import llama3_2_vision_decoder, llama3_2_vision_encoder
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.data.dataset import Sample, collate
from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Slots, prompt_tokens
from ift_components.distributed import distributed
from ift_components.models import tiny_vision_transform
from ift_components.models.forward import ResponseLoss
from ift_components.models.sharding import set_precision, shard
from ift_components.models.trainable import FINE_TUNING, WARM_UP, apply_tuning
from ift_components.proxy import ProxyInstruction, UpdateRule, random_theta
from ift_components.training.loop import Trainer
from ift_components.training.setup import parameter_groups

SIZE, BATCH, K, WIDTH, VOCABULARY, TEXT = 560, 2, 8, 512, 16_032, 70
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Reports(Dataset[Sample]):
    """JPEG images, decoded and squashed each time they are read, with random reports."""

    def __init__(self, count: int, responses: int) -> None:
        self._transform = tiny_vision_transform(image_size=SIZE)
        self._image = ImageTransform(self._transform)
        self._prompt = prompt_tokens(self._transform, Slots(K))
        generator = np.random.default_rng(0)
        self._length = TEXT - len(self._prompt)
        self._reports = generator.integers(0, 1024, (count, responses, self._length))
        self._jpegs = []
        for _ in range(count):
            buffer = io.BytesIO()
            pixels = generator.integers(0, 256, (23, 23, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((360, 363), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            self._jpegs.append(buffer.getvalue())

    def __len__(self) -> int:
        return len(self._jpegs)

    def __getitem__(self, index: int) -> Sample:
        image = Image.open(io.BytesIO(self._jpegs[index]))
        responses = self._reports[index].tolist()
        return Sample(str(index), self._prompt, responses, self._image(image))

    def loader(self, world, workers):
        """A loader over this process's share."""
        sampler = DistributedSampler(self, world.size, world.rank, shuffle=False)
        transform = self._transform

        def make(samples):
            return collate(samples, transform)

        return DataLoader(self, BATCH, sampler=sampler, collate_fn=make, num_workers=workers)


def build():
    """The model, with open gates so that every path carries gradient."""
    torch.manual_seed(0)
    encoder = llama3_2_vision_encoder(
        patch_size=14,
        num_heads=2,
        clip_embed_dim=160,
        clip_num_layers=8,
        clip_hidden_states=[1, 2, 4, 6, 7],
        num_layers_projection=2,
        decoder_embed_dim=WIDTH,
        tile_size=SIZE,
    )
    decoder = llama3_2_vision_decoder(
        vocab_size=VOCABULARY,
        num_layers=8,
        fusion_interval=4,
        num_special_tokens=8,
        num_heads=4,
        num_kv_heads=1,
        embed_dim=WIDTH,
        max_seq_len=2048,
        encoder_max_seq_len=1601,
        rope_base=500_000,
        intermediate_dim=1792,
    )
    model = DeepFusionModel(decoder, encoder, encoder_trainable=True)
    for name, parameter in model.named_parameters():
        if name.endswith("scale.scale"):
            nn.init.constant_(parameter, 0.5)
    return model


def run_authors(args, world):
    module = AuthorsModel(build().to(DTYPES[args.dtype]), K)
    trained = [p for p in module.parameters() if p.requires_grad] if args.stage == "ift" else [module.proxy]
    optimizer = torch.optim.AdamW(trained, lr=2e-5)
    run = DistributedDataParallel(module, find_unused_parameters=True) if world.size > 1 else module

    def step(batch):
        run(batch).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        module.zero_grad()

    return step, Reports(args.images, 1).loader(world, 0)


def run_ours(args, world):
    dtype = DTYPES[args.dtype]
    model = build()
    apply_tuning(model, WARM_UP if args.stage == "warm-up" else FINE_TUNING)
    set_precision(model, dtype)
    module = ResponseLoss(model, dtype)
    if world.size > 1 or dtype is not torch.float32:
        shard(module, world.sharding_mesh(args.copies), dtype)
    rule = UpdateRule.UPDATE if args.stage == "warm-up" else UpdateRule.TRACK
    proxy = ProxyInstruction(random_theta(K, WIDTH, 0), rule)
    groups = parameter_groups(module, proxy)
    optimizer = torch.optim.AdamW([{"params": p} for p in groups.values()], lr=2e-5, fused=True)
    trainer = Trainer(module=module, proxy=proxy, groups=groups, optimizer=optimizer, world=world, clip_grad_norm=1.0)
    return (lambda batch: trainer.step([batch])), Reports(args.images, args.responses).loader(world, 1)


def run_encoder(args, world):
    encoder = build().encoder.to(DTYPES[args.dtype])
    encoder.requires_grad_(args.stage == "ift")

    def step(batch):
        image = encoder(batch.images.to(DTYPES[args.dtype]), batch.aspect_ratio)
        if args.stage == "ift":
            image.sum().backward()

    return step, Reports(args.images, 1).loader(world, 1)


def run_arm(args):
    """Time one arm's steps after two that are not counted; print its row."""
    with distributed("cpu") as world:
        step, loader = RUN[args.arm](args, world)
        if args.profile:
            return profile(step, loader)
        seconds = []
        last = None
        for number, batch in enumerate(loader):
            step(batch)
            now = time.perf_counter()
            if last is not None and number > 1:
                seconds.append(now - last)
            last = now
        if world.is_main:
            speed = BATCH * world.size / statistics.median(seconds)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print("ROW " + json.dumps({"images_per_second": speed, "peak_gib": memory}))
    return None


def profile(step, loader):
    """Print where the time of the last step goes; the steps before it settle memory and threads."""
    *before, last = loader
    for batch in before:
        step(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        step(last)
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


RUN = {"authors": run_authors, "ours": run_ours, "encoder": run_encoder}
ARMS = {  # name: arm, dtype, responses per image, whether each process holds a copy of the model
    "authors, bf16": ("authors", "bf16", 1, True),
    "authors, fp32": ("authors", "fp32", 1, True),
    "ours, fp32": ("ours", "fp32", 1, False),
    "ours, bf16": ("ours", "bf16", 1, False),
    "ours, bf16, a copy on each": ("ours", "bf16", 1, True),
    "ours, bf16, 4 responses": ("ours", "bf16", 4, False),
    "the encoder alone, bf16": ("encoder", "bf16", 1, False),
}


def arms(stage, processes):
    """Return the names of a table's rows: one process has nothing to copy, the warm-up reads one response."""
    return [
        name
        for name, (arm, _, responses, copied) in ARMS.items()
        if not (stage == "warm-up" and responses > 1)
        and not (processes == 1 and arm == "ours" and copied)
        and not (processes > 1 and arm == "encoder")
    ]


def measure(name, stage, processes, images):
    """Run one arm in its own process (or two) and return its row."""
    arm, dtype, responses, copied = ARMS[name]
    launch = [sys.executable, __file__]
    if processes > 1:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            __file__,
        ]
    copies = processes if copied else 1
    options = {"arm": arm, "stage": stage, "dtype": dtype, "responses": responses, "images": images, "copies": copies}
    command = [*launch, *(f"--{name}={value}" for name, value in options.items())]
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    row = json.loads(next(line for line in output.splitlines() if line.startswith("ROW "))[4:])
    return row | {"responses_per_second": row["images_per_second"] * responses}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=list(RUN))
    parser.add_argument("--stage", choices=["warm-up", "ift"], default="ift")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--responses", type=int, default=1)
    parser.add_argument("--copies", type=int, default=1, help="of the model, among the processes")
    parser.add_argument("--images", type=int, default=16, help="images each arm reads, two a step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    args = parser.parse_args()
    if args.arm:
        return run_arm(args)
    rows = {}
    for processes in args.processes:
        for stage in ("warm-up", "ift"):
            names = arms(stage, processes)
            measured = {name: [] for name in names}
            for _ in range(args.rounds):
                for name in names:
                    measured[name].append(measure(name, stage, processes, args.images * processes))
            base = statistics.median(r["responses_per_second"] for r in measured["authors, bf16"])
            base32 = statistics.median(r["responses_per_second"] for r in measured["authors, fp32"])
            memory = statistics.median(r["peak_gib"] for r in measured["authors, bf16"])
            print(f"\n{stage}, {processes} process(es), {args.rounds} rounds")
            print("| | responses/s | x authors (bf16) | x authors (fp32) | peak GiB | x memory |")
            print("|---|---|---|---|---|---|")
            for name, runs in measured.items():
                speed = statistics.median(r["responses_per_second"] for r in runs)
                peak = statistics.median(r["peak_gib"] for r in runs)
                cells = (speed, speed / base, speed / base32, peak, peak / memory)
                print(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
                rows[f"{stage}/{processes}/{name}"] = runs
            sys.stdout.flush()
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))
    return None


if __name__ == "__main__":
    main()
