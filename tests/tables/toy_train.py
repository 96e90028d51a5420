"""A recipe that takes no time: counts its steps, goes on where it was stopped, fails if it is told to."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from ift_components.config import entry_point
from ift_components.files import write_json


@dataclass
class Settings:
    output_dir: str = MISSING
    data: str = MISSING
    seed: int = 0
    lr: float = 0.5
    start: str | None = None
    steps: int = 3
    seconds: float = 0.0
    fail: bool = False
    num_workers: int = 0
    resume: bool = False


@entry_point(Settings)
def main(cfg: Settings) -> None:
    """Train nothing."""
    out = Path(cfg.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    place = out / "place.json"
    done = json.loads(place.read_text()) if place.is_file() else 0
    before = json.loads(Path(cfg.start).read_text())["value"] if cfg.start else 0.0
    for step in range(done, cfg.steps):
        time.sleep(cfg.seconds)
        with (out / "steps.txt").open("a") as file:
            file.write(f"{step}\n")
        write_json(place, step + 1)
        print(f"step {step}")
        if cfg.fail and step == 1:
            print("the loss is not a number")
            sys.exit(3)
    write_json(out / "weights.json", {"value": before + cfg.lr + cfg.seed / 100})
    write_json(out / "run.json", {"trained_parameters": {"encoder": 25}, "parameters": 100})


if __name__ == "__main__":
    main()
