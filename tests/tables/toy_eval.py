"""A recipe that leaves an evaluation of what `toy_train` left: the larger its weights' value, the more answers are right."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from ift_components.config import entry_point
from ift_components.files import write_json, write_text

ATTRIBUTES = {"colour": ("red", "blue"), "shape": ("round", "oval"), "size": ("big", "small")}


@dataclass
class Settings:
    output_dir: str = MISSING
    data: str = MISSING
    weights: str | None = None
    questions: int = 240
    first: int = 0
    parser_version: int = 0


@entry_point(Settings)
def main(cfg: Settings) -> None:
    """Answer questions."""
    out = Path(cfg.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    value = json.loads(Path(cfg.weights).read_text())["value"] if cfg.weights else 0.3
    generator, lines, right = random.Random(str(value)), [], []
    for number in range(cfg.first, cfg.first + cfg.questions):
        attribute = list(ATTRIBUTES)[number % 3]
        answer = (number * 7 // 3) % 2
        given = answer if generator.random() < value else 1 - answer
        right.append(given == answer)
        facts = {"task": "choice", "dataset": "toy", "id": f"q{number}", "image_id": f"i{number // 3}"}
        facts |= {"attribute": attribute, "prompt": f"What is the {attribute}?", "options": ATTRIBUTES[attribute]}
        facts |= {"answer": answer, "circular_group": None, "run": 0}
        lines.append(json.dumps({**facts, "generated": f"The correct answer is {'AB'[given]}.", "seconds": 0.1}))
    write_text(out / "predictions.jsonl", "\n".join(lines) + "\n")
    accuracy = sum(right) / len(right)
    results = {
        "label": None,
        "dataset": "toy",
        "split": "test",
        "parser": "authors",
        "parser_version": cfg.parser_version,
        "config": {"scoring": "generate", "unrelated": {}},
        "instruction_following": {},
        "accuracy": accuracy,
        "balanced_accuracy": accuracy,
        "prior_shown": 0.6,
        "image_control": {"accuracy": 0.5},
        "constant": ["size"],
        "attributes": {
            name: {"accuracy": sum(right[index::3]) / len(right[index::3]), "chance": 0.5}
            for index, name in enumerate(ATTRIBUTES)
        },
    }
    write_json(out / "results.json", results)
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
