"""What the host does in an optimizer step at the 11B model's number of tensors: `python tests/benchmarks/step_speed.py`.

The model has the 11B model's layers at a sixteenth of its widths, its trained weights sharded by FSDP2 over one process,
so that the host's work for each tensor is most of it. Norm, clipping and AdamW on DTensors, by torch's functions, and on each
process's own shards take turns; processor time of one thread.
"""

import argparse
import statistics
import time

import torch
from slice_speed import FULL, build_slice
from torch.distributed.tensor import DTensor

from ift_components.distributed import distributed
from ift_components.models.forward import ResponseLoss
from ift_components.models.sharding import set_precision, shard
from ift_components.models.trainable import FINE_TUNING, apply_tuning
from ift_components.training.setup import parameter_groups
from ift_components.training.shard_step import lend, own_shards, scale_gradients, squared_norms

MAX_NORM = 1e-3


def on_dtensors(groups, optimizer):
    """Take the step that holds sharded tensors."""
    norms = [torch.nn.utils.get_total_norm([p.grad for p in parameters]) for parameters in groups.values()]
    norm = sum(float(n.full_tensor() if isinstance(n, DTensor) else n) ** 2 for n in norms) ** 0.5
    scale_gradients(groups, MAX_NORM / norm)
    optimizer.step()


def on_shards(groups, optimizer):
    """Take the package's step."""
    norm = float(squared_norms(groups, 1, torch.device("cpu")).sum()) ** 0.5
    scale_gradients(groups, MAX_NORM / norm)
    for parameters, group in zip(groups.values(), optimizer.param_groups, strict=True):
        lend(parameters, group["params"])
    optimizer.step()


def main():
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--fused", action="store_true", help="AdamW's fused kernel, as in the 11B configs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with distributed("cpu") as world:
        model = build_slice(FULL, tiny=True)
        apply_tuning(model, FINE_TUNING)
        set_precision(model, torch.bfloat16)
        module = ResponseLoss(model, torch.bfloat16)
        shard(module, world.mesh, torch.bfloat16)
        groups = parameter_groups(module, None)
        for parameters in groups.values():
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 1e-3)
        ways = {"DTensors": (on_dtensors, list), "shards": (on_shards, own_shards)}
        optimizers = {
            name: torch.optim.AdamW([{"params": hold(p)} for p in groups.values()], lr=2e-5, fused=args.fused)
            for name, (_, hold) in ways.items()
        }
        seconds = {name: [] for name in ways}
        for number in range(args.rounds + 1):  # the first makes the optimizers' state
            for name, (step, _) in ways.items():
                start = time.process_time()
                step(groups, optimizers[name])
                if number:
                    seconds[name].append(time.process_time() - start)
    medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    print(f"{sum(len(p) for p in groups.values())} tensors,", end=" ")
    print(", ".join(f"{name} {value:.1f} ms" for name, value in medians.items()), end="; ")
    print(f"ratio {medians['DTensors'] / medians['shards']:.2f}")


if __name__ == "__main__":
    main()
