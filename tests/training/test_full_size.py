"""The benchmark at full size, with the miniature's shape: every stage runs, and none is run twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "full_size.py"


def start(folder, *, check=True):
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), "--tiny"]
    return subprocess.run(command, capture_output=True, text=True, check=check)


@pytest.mark.slow
def test_every_stage_runs_once_and_goes_on_where_it_stopped(tmp_path):
    start(tmp_path)
    record = tmp_path / "stages.json"
    done = json.loads(record.read_text())
    assert list(done) == ["checkpoint", "data", "warm-up", "fine-tuning", "evaluation"]
    assert all(row["peak_bytes"] > row["private_peak_bytes"] > 10**8 for row in done.values())
    record.write_text(json.dumps({name: row for name, row in done.items() if name != "evaluation"}))
    output = start(tmp_path).stdout
    assert output.count("evaluation: {") == 1
    assert 'warm-up: {"seconds' not in output
    assert json.loads(record.read_text()).keys() == done.keys()


@pytest.mark.slow
def test_failed_stage_is_named_with_the_end_of_its_log(tmp_path):
    (tmp_path / "stages.json").write_text(json.dumps({"checkpoint": {}, "data": {}}))
    result = start(tmp_path, check=False)
    assert result.returncode == 1
    assert "warm-up: ended with 2; the end of" in result.stderr
    assert "is not a prepared folder" in result.stderr
