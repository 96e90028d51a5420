"""The curves of accuracy against time: what is read from runs' records, and where a curve reaches a value."""

import json

import pytest
from time_to_accuracy import average, draw, first_reaching, points, table


@pytest.fixture
def records(tmp_path):
    """A function that writes a run's records: 2 seconds a step, and 10 more for the look after every second one."""

    def write(name, measures):
        rows = []
        for step in range(1, 2 * len(measures) + 1):
            looks = step % 2 == 0
            row = {"step": step, "samples": 32, "samples_per_second": 32 / (12 if looks else 2)}
            rows.append(row | ({"val_balanced": measures[step // 2 - 1]} if looks else {}))
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return points(tmp_path / name)

    return write


def test_curves_leave_out_the_time_of_looking(records, tmp_path):
    first, second = records("a", [0.4, 0.5, 0.7]), records("b", [0.4, 0.7, 0.7])
    assert first == [(pytest.approx(4 * n), 64 * n, value) for n, value in ((1, 0.4), (2, 0.5), (3, 0.7))]
    mean = average([first, second])
    assert [point[2] for point in mean] == pytest.approx([0.4, 0.6, 0.7])
    assert first_reaching(mean, 0.4, 0) == 4
    assert first_reaching(mean, 0.5, 0) == pytest.approx(6)  # halfway between two looks
    assert first_reaching(mean, 0.65, 1) == pytest.approx(160)
    assert first_reaching(mean, 0.71, 1) is None
    curves = {1: [first, second], 4: [records("c", [0.4, 0.7, 0.8])]}
    lines = table(curves).splitlines()
    assert lines[2:] == [
        "| 1 | 2 | 0.700 | 6 | 96 | 8 | 128 | 12 | 192 | - | - |",
        "| 4 | 1 | 0.800 | 5 | 85 | 7 | 107 | 8 | 128 | 12 | 192 |",
    ]
    draw(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
