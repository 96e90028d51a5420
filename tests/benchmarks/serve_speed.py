"""Questions per second: the server asked by many clients against one question at a time with transformers' `generate`.

    python tests/benchmarks/serve_speed.py            # the miniature, one CPU thread a process

Same random weights, same multiple-choice questions about the same images, greedy, 50 new tokens. The server is started by
`tune run` and pads images as transformers does (`tile_padding=meta`); its clients pay for HTTP, PNG and base64.
Rounds take turns.
"""

import argparse
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import logging as transformers_logging

sys.path += [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "evaluation")]
import eval_speed
import mllama

from ift_components.evaluation.predictors import ServerPredictor
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.hf_layout import hf_config, save_checkpoint


def start(checkpoint: Path, out: Path) -> tuple[subprocess.Popen, str]:
    """Start a server; return its process and address."""
    tune = Path(sys.executable).with_name("tune")
    options = [f"checkpoint_dir={checkpoint}", "samples=null", "port=0", "tile_padding=meta", "batch_size=96"]
    with out.open("wb") as file:
        process = subprocess.Popen(
            [tune, "run", "ift_serve_recipe", "--config", "tiny_serve.yaml", *options],
            stdout=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    while not (address := re.search(r"http://\S+", out.read_text())):
        time.sleep(0.1)
    return process, address.group()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8, help="images, twelve questions each")
    parser.add_argument("--clients", type=int, default=64)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    transform = tiny_vision_transform()
    items = eval_speed.questions(args.images, 12)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_llama3_2_vision()
        save_checkpoint(Path(folder) / "c", model.state_dict(), hf_config(model), dtype=torch.float32)
        reference = mllama.load(Path(folder) / "c")
        process, address = start(Path(folder) / "c", Path(folder) / "out")
        try:
            predictor = ServerPredictor(f"{address}/v1", "tuned", concurrency=args.clients)
            eval_speed.theirs(reference, transform, items[:2])
            eval_speed.ours(predictor, items[:2])
            theirs, ours = [], []
            for _ in range(args.rounds):
                seconds, expected = eval_speed.theirs(reference, transform, items)
                theirs.append(len(items) / seconds)
                seconds, texts = eval_speed.ours(predictor, items)
                ours.append(len(items) / seconds)
                same = sum(a == b for a, b in zip(texts, expected, strict=True))
                if same < 0.9 * len(items):
                    raise SystemExit(f"only {same} of {len(items)} texts are the same: nothing to compare")
        finally:
            process.terminate()
            process.wait()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"{len(items)} questions, {args.images} images: transformers one at a time {statistics.median(theirs):.2f}/s")
    print(
        f"  the server, {args.clients} clients: {statistics.median(ours):.1f}/s, {statistics.median(ratios):.1f} x "
        f"({min(ratios):.1f} to {max(ratios):.1f}); {same} of {len(items)} texts are the same"
    )


if __name__ == "__main__":
    main()
