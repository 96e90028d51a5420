"""The demonstration from beginning to end, as `make demo` runs it."""

import subprocess
import sys

import pytest
from PIL import Image


@pytest.mark.slow
def test_demo(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "ift_components.miniature.demo", str(out)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    rows = {line[:20].strip(): line.split()[-7:] for line in result.stdout.splitlines() if line[-5:-3] in ("0.", "1.")}
    assert {"without fine-tuning", "FT", "InstFree + shuffling"} <= set(rows)
    before, tuned, free = (
        [float(x) for x in rows[name]] for name in ("without fine-tuning", "FT", "InstFree + shuffling")
    )
    # Fine-tuning learns little that a question brings out and forgets; instruction-free tuning learns, and forgets less.
    assert free[3] > 0.97
    assert free[0] > before[0] + 0.15
    assert free[0] > max(tuned[0], tuned[4]) + 0.05
    assert free[5] > max(before[5], tuned[5]) + 0.2
    assert before[6] > free[6] > tuned[6]
    for name in ("contact_sheet.png", "comparison.png"):
        assert min(Image.open(out / name).size) > 400
    again = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode != 0
    assert "already holds files" in again.stderr
