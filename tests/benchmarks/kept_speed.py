"""What `keep_encoded` saves in the warm-up: `python tests/benchmarks/kept_speed.py PREPARED [--steps 40] [key=value ...]`.

Steps on the same batches of a prepared folder take turns in one process, with what the encoder gives kept and computed; the
pictures have been seen once before. Further arguments are overrides of `tiny_warmup.yaml`.
"""

import argparse
import statistics
import tempfile
import time

import torch

from ift_components.config import load_config
from ift_components.distributed import distributed
from ift_components.training.checks import check_settings
from ift_components.training.data import epoch_batches
from ift_components.training.encoded import KeptEncodings
from ift_components.training.run import TrainingRun
from ift_components.training.settings import TrainSettings


def main():
    """Measure and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder, distributed("cpu") as world:
        overrides = [f"data={args.prepared}", f"output_dir={folder}/run", "num_workers=0", *args.overrides]
        cfg = load_config("tiny_warmup.yaml", overrides, TrainSettings)
        run = TrainingRun(cfg, world, check_settings(cfg))
        run.prepare()
        trainer, steps = run.trainer, list(epoch_batches(run.loader, 0, 1))[: args.steps]
        kept = KeptEncodings(trainer.module, len(run.loader.dataset), None, 0)
        for (batch,) in steps:
            kept.fill(batch, world.device)
        seconds = {"computed": [], "kept": []}
        for batches in steps:
            for name, store in (("computed", None), ("kept", kept)):
                trainer.kept, start = store, time.process_time()
                trainer.step(batches)
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{len(steps)} steps of {cfg.batch_size}, {torch.get_num_threads()} thread(s), processor time:", end=" ")
    print(", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians.items()), end="; ")
    print(f"ratio {medians['computed'] / medians['kept']:.2f}")


if __name__ == "__main__":
    main()
