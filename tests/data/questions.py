"""A prepared folder with questions of every kind, for the tests."""

from pathlib import Path

from trees import build, save_csv, save_picture

from ift_components.data.builders import image_text
from ift_components.data.source import ImageStore

QUESTIONS = {  # of each image of a split, by its number there
    "Where is it?": ("choice", "left|right", "place", ("left", "right")),
    "What is seen?": ("open", "", "finding", ("a scar", "nothing", "a mass", "fluid")),
    "Is it normal?": ("closed", "", "normality", ("yes", "No")),
    "Which side is larger?": ("closed", "", "side", ("left side", "right side")),
}
IMAGES = {"train": 6, "val": 2, "test": 2}


def prepare_questions(folder: Path, images: ImageStore = "embed") -> Path:
    """Write six images to train with four questions each, two to validate and two to test, and return the prepared folder."""
    root = folder / "in"
    reports, questions = [], []
    for split, count in IMAGES.items():
        for number in range(count):
            name = save_picture(root / f"{split}{number}.png", len(reports)).name
            reports.append([name, f"Report {number}.", split, f"case {len(reports)}"])
            for text, (kind, options, attribute, answers) in QUESTIONS.items():
                questions.append([name, text, answers[number % len(answers)], kind, options, attribute])
    save_csv(root / "t.csv", ["image", "text", "set", "case"], reports)
    save_csv(root / "q.csv", ["image", "question", "answer", "kind", "options", "attribute"], questions)
    source = image_text(root, "t.csv", questions="q.csv", split_column="set", group_column="case", images=images)
    build(source, folder / "prepared")
    return folder / "prepared"
