"""The demonstration from beginning to end, as `make demo` runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def test_the_contact_sheet(tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    subprocess.run([sys.executable, "-m", "ift_components.smears", str(sheet)], check=True)
    assert min(Image.open(sheet).size) > 400


@pytest.mark.slow
def test_demo(tmp_path):
    out, tune = tmp_path / "demo", Path(sys.executable).with_name("tune")
    command = [tune, "run", "ift_table_recipe", "--config", "demo.yaml", "~datasets.wbcatt", f"output_dir={out}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    cells = json.loads((out / "table.json").read_text())["cells"]
    means = {(cell["row"], cell["column"]): cell["mean"] for cell in cells}
    before, tuned, free = (
        {column: mean for (row, column), mean in means.items() if row == name}
        for name in ("untuned", "FT", "InstFree + shuffling")
    )
    # Fine-tuning learns little that a question brings out and forgets; instruction-free tuning learns, and forgets less.
    assert free["well-formed"] > 0.97
    assert free["accuracy"] > before["accuracy"] + 0.15
    assert free["accuracy"] > tuned["accuracy"] + 0.05
    assert free["open"] > max(before["open"], tuned["open"]) + 0.2
    assert before["unrelated"] > free["unrelated"] > tuned["unrelated"]
    line = next(line for line in result.stdout.splitlines() if line.startswith("InstFree + shuffling"))
    assert f"{100 * free['accuracy']:.1f}" in line
    for name in ("accuracy", "unrelated"):
        assert min(Image.open(out / "figures" / f"bars-{name}.png").size) > 300
