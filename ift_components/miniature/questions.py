"""Open questions about cells and tasks about shapes, as a file of free questions that the evaluation reads.

python -m ift_components.miniature.questions FOLDER DATA [--split test] [--count 300] [--seed 0]
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ift_components.data.prepared import load_reports
from ift_components.errors import UserError
from ift_components.files import write_text
from ift_components.miniature import tasks
from ift_components.miniature.scenes import SCENE_SCHEMA, draw_scenes, sample_scenes

OPEN, UNRELATED = "open questions", "unrelated tasks"


def write_questions(folder: Path, prepared: str | Path, *, count: int, seed: int = 0, split: str = "test") -> Path:
    """Write open questions about a prepared folder's images, and open and yes/no questions about drawn shapes.

    Args:
        folder: gets `questions.jsonl` and the images.
        prepared: a prepared folder with attributes.
        count: questions of each of the two sets, an image each.
        seed: seed of attributes asked, wording and shapes.
        split: whose images are asked about.

    Returns:
        The path of `questions.jsonl`; `set` in its rows is `open questions` or `unrelated tasks`.
    """
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    reports = load_reports(prepared, split)
    for number, row in enumerate(reports.select(range(min(count, len(reports))))):
        values = {item["name"]: item["value"] for item in row["attributes"]}
        question, answer = tasks.ask(values, {}, rng)
        name = f"cell-{number:05d}.png"
        row["image"].save(folder / name)
        rows.append({"image": name, "question": question, "answer": answer, "answer_type": "OPEN", "set": OPEN})
    choices = {attribute.name: attribute.values or () for attribute in SCENE_SCHEMA.attributes}
    codes = sample_scenes(count, generator)
    for number, (code, pixels) in enumerate(zip(codes, draw_scenes(codes, generator), strict=True)):
        values = {name: found[i] for (name, found), i in zip(choices.items(), code, strict=True)}
        task, kind = ((tasks.ask, "OPEN"), (tasks.yes_no, "CLOSED"))[number % 2]
        question, answer = task(values, choices, rng)
        name = f"shapes-{number:05d}.png"
        Image.fromarray(pixels).save(folder / name)
        rows.append({"image": name, "question": question, "answer": answer, "answer_type": kind, "set": UNRELATED})
    lines = [json.dumps({"id": f"{number:05d}", **row}) for number, row in enumerate(rows)]
    path = folder / "questions.jsonl"
    write_text(path, "\n".join(lines) + "\n")
    return path


def main() -> None:
    """Write the questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets questions.jsonl and the images")
    parser.add_argument("data", help="prepared folder with attributes")
    parser.add_argument("--split", default="test", help="whose images are asked about")
    parser.add_argument("--count", type=int, default=300, help="questions of each of the two sets")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        print(write_questions(args.folder, args.data, count=args.count, seed=args.seed, split=args.split))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
