"""The scripted writer and judges: their rules, and a pass over them as a table's stages start it."""

import json
import sys
from pathlib import Path

import pytest

from ift_components.config import load_config
from ift_components.data.build import BuildOptions, prepare
from ift_components.data.builders import image_text
from ift_components.data.mcq import QuestionOptions
from ift_components.data.prepared import load_questions
from ift_components.evaluation.judging.grading import PREFERENCE, TEMPLATES
from ift_components.evaluation.judging.run import Judging
from ift_components.evaluation.judging.settings import JudgeSettings
from ift_components.evaluation.records import Item, Prediction
from ift_components.generation.templates import TEMPLATES as WRITTEN
from ift_components.miniature import scripted_writer
from ift_components.miniature.scripted import answer_as, coverage, overlap, scripted_server

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from trees import save_csv, save_picture


def test_grades_count_words():
    assert (coverage("a dark mass", "The mass, dark!"), overlap("a dark mass", "The mass, dark!")) == (10, 10)
    assert (coverage("dark mass", "dark"), overlap("dark mass", "dark")) == (5, 7)
    longer = "dark mass and much more beside"
    assert coverage("dark mass", longer) == 10 > overlap("dark mass", longer) == 5
    assert coverage("dark", "") == overlap("dark", "") == coverage("", "dark") == 0


def test_judges_answer_every_prompt():
    grade = TEMPLATES["description"]
    assert grade.read(answer_as("coverage", grade.render("Q", "dark mass", "mass"))) == (5, "")
    verdict = TEMPLATES["correct"]
    assert verdict.read(answer_as("overlap", verdict.render("Q", "dark mass", "mass")))[0] == 0
    assert verdict.read(answer_as("overlap", verdict.render("Q", "dark mass", "mass, dark")))[0] == 10
    assert PREFERENCE.read(answer_as("overlap", PREFERENCE.render("Q", "dark mass", "mass", "dark mass")))[0] == 0
    assert answer_as("other", "")[0] == 404


@pytest.mark.parametrize(
    ("context", "description"),
    [
        ("It is in the liver. It is small. It is new.", "A mass. It is dark. It is in the liver. It is small."),
        ("", "A mass. It is dark."),
    ],
)
def test_the_writer_takes_sentences_over(context, description):
    prompt = WRITTEN["detailed_description"].render("A mass. It is dark.", context, 1)
    assert answer_as("writer", prompt) == description
    reasoning = WRITTEN["complex_reasoning"]
    (pair,) = reasoning.parser(answer_as("writer", reasoning.render("A mass. It is dark.", context, 1))).pairs
    assert pair.answer == ("It is small. It is new." if context else "A mass. It is dark.")


def test_both_recipes(tmp_path, monkeypatch):
    """A folder is written from captions, and judged: the writer's own words get the highest grade of both judges."""
    rows = []
    for number, place in enumerate(("liver", "lung", "brain", "spleen", "heart", "neck")):
        save_picture(tmp_path / "raw" / f"{number}.png", number)
        rows.append(
            [f"{number}.png", f"A dark mass of the {place}.", f"Seen in the {place} for {number} days.", "train"]
        )
    save_csv(tmp_path / "raw" / "figures.csv", ["image", "text", "mentions", "split"], rows)
    source = image_text(str(tmp_path / "raw"), table="figures.csv", context_column="mentions", split_column="split")
    prepare(source, tmp_path / "prepared", QuestionOptions(), BuildOptions())
    out = tmp_path / "written" / "out"
    words = ["--config", "generate.yaml", f"data={tmp_path / 'prepared'}", f"output_dir={out}", "splits=[train]"]
    words += ["template=detailed_description", "server.model=writer", "~filters"]
    monkeypatch.setattr(sys, "argv", ["scripted_writer", *words])
    scripted_writer.main()
    texts = list(load_questions(out, "train").remove_columns("image"))
    assert texts[1]["answer_text"] == "A dark mass of the lung. Seen in the lung for 1 days."

    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": {"data": str(out)}, "fingerprint": {"data": str(out)}}))
    lines = []
    for row in texts:
        item = Item(
            id=row["id"], task="free", dataset="d", image_id=row["image_id"], prompt=row["question"],
            reference=row["answer_text"], kind="open",
        )  # fmt: skip
        given = Prediction(item, generated=row["answer_text"]).scored({"correct": True, "recall": 1.0})
        lines.append(json.dumps(given.line()))
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    with scripted_server() as server:
        names = [
            f"judge.servers.{j}.{key}"
            for j in ("coverage", "overlap")
            for key in (f"model={j}", f"base_url={server.url}")
        ]
        base = [f"evaluations=[{folder}]", f"output_dir={tmp_path / 'judged'}", "bootstrap=50", *names]
        results = Judging(load_config("judge.yaml", [*base, "judge.templates.free=description"], JudgeSettings)).run()
    assert {judged["scores"]["evaluation"]["free, open"]["mean"] for judged in results["judges"].values()} == {10}
    assert len(server.requests) > 0
