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
    rows = {line[:20].strip(): line.split()[-5:] for line in result.stdout.splitlines() if line[-5:-3] in ("0.", "1.")}
    assert {"without fine-tuning", "FT", "InstFree + shuffling"} <= set(rows)
    before, tuned, free = (
        [float(x) for x in rows[name]] for name in ("without fine-tuning", "FT", "InstFree + shuffling")
    )
    assert tuned[1] < 0.7  # fine-tuning forgets the form of answers, instruction-free tuning does not, and it learns
    assert free[1] > 0.97
    assert free[0] > max(before[0], tuned[2]) + 0.1
    assert free[3] > before[3] + 0.2
    for name in ("contact_sheet.png", "comparison.png"):
        assert min(Image.open(out / name).size) > 400
    again = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode != 0
    assert "already holds files" in again.stderr
