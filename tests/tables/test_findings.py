"""Verdicts on claims from hand-made tables: each outcome by its rule, and the page."""

import json
import shutil
import sys

import numpy as np
import pytest
from scipy.stats import ttest_ind

from ift_components.errors import ConfigError, DataError
from ift_components.tables.findings import __main__ as command
from ift_components.tables.findings.claims import read_claims
from ift_components.tables.findings.verdicts import Verdict, decide, from_intervals, from_seeds, read_table

TITLE = "Table 1 on the miniature"
CLAIMS = """
- paper: A paper
  claims:
    - {says: plain, where: T1, tests: [{plan: p, column: accuracy, higher: good, than: base}]}
    - {says: turned, where: T1, tests: [{plan: p, column: accuracy, higher: base, than: bad}]}
    - {says: wrong, where: T1, tests: [{plan: p, column: accuracy, higher: bad, than: base}]}
    - {says: of two others, where: T1, tests: [{plan: p, column: accuracy, higher: good, than: fair}]}
    - {says: unclear, where: T1, tests: [{plan: p, column: accuracy, higher: close, than: base}]}
    - {says: both, where: T1, tests: [{plan: p, column: accuracy, higher: [good, close], than: base}]}
    - {says: alike, where: T1, tests: [{plan: p, column: accuracy, same: [close, base], within: 0.05}]}
    - {says: one blind, where: T1, tests: [{plan: p, column: accuracy, higher: good, than: base}, &blind
        {plan: p, column: grade, higher: bad, than: base, control: read}]}
    - {says: not and blind, where: T1, tests: [{plan: p, column: accuracy, higher: bad, than: base}, *blind]}
    - {says: not alike, where: T1, tests: [{plan: p, column: accuracy, same: [close, base], within: 0.01}]}
    - {says: by intervals, where: T1, tests: [{plan: p, column: accuracy, higher: good, than: bad}]}
    - {says: by seeds, where: T1, tests: [{plan: p, column: grade, higher: good, than: base}]}
    - {says: one run each, where: T1, tests: [{plan: p, column: grade, higher: bad, than: base}]}
    - {says: seen, where: T1, tests: [{plan: p, column: accuracy, higher: good, than: bad, control: [accuracy, other image]}]}
    - says: not seen
      where: T1
      tests: [{plan: p, column: accuracy, same: [close, base], within: 0.05, control: [accuracy, other image]}]
    - {says: no control, where: T1, tests: [{plan: p, column: grade, higher: good, than: base, control: [empty]}]}
    - {says: graded, where: T1, tests: [{plan: p, column: grade, higher: good, than: base, control: [accuracy, other image]}]}
    - {says: from the image, where: T1, tests: [{plan: p, column: grade, higher: good, than: base, control: read}]}
    - {says: blind, where: T1, tests: [{plan: p, column: grade, higher: bad, than: base, control: [accuracy, other image]}]}
    - {says: nor here, where: T1, tests: [{plan: p, column: grade, higher: bad, than: base, control: read}]}
    - {says: to come, where: T1, tests: [{plan: p, column: accuracy, higher: half, than: base}]}
    - {says: another plan, where: T1, tests: [{plan: q, column: accuracy, higher: good, than: base}]}
    - {says: secret, where: T1, cannot: no data, tests: [{plan: q, column: accuracy, higher: good, than: base}]}
    - {says: never, where: T1, cannot: no experts}
"""


def cell(row, column, values, *, planned=None, interval=None, difference=None, p=None, than="base"):
    """Make a cell as table.json has it; `difference` is (value, low, high), less that of `than`."""
    return {
        "row": row, "dataset": "d", "column": column, "values": values, "planned": planned or len(values),
        "finished": len(values), "mean": float(np.mean(values)) if values else None, "interval": interval,
        "differences": {than: {**dict(zip(("value", "low", "high"), difference, strict=True)), "p_holm": p}}
        if difference
        else {},
    }  # fmt: skip


def write_table(folder, title=TITLE, cells=None):
    """Write a table folder by hand."""
    if cells is None:
        cells = [
            cell("base", "accuracy", [0.5, 0.5], interval=[0.47, 0.53]),
            cell("good", "accuracy", [0.6, 0.62], interval=[0.58, 0.64], difference=[0.11, 0.08, 0.14], p=0.001),
            cell(
                "fair",
                "accuracy",
                [0.58, 0.58],
                interval=[0.5, 0.66],
                difference=[-0.03, -0.05, -0.01],
                p=0.04,
                than="good",
            ),
            cell("bad", "accuracy", [0.4, 0.4], interval=[0.37, 0.43], difference=[-0.1, -0.13, -0.07], p=0.002),
            cell("close", "accuracy", [0.51, 0.51], interval=[0.48, 0.54], difference=[0.01, -0.02, 0.04], p=0.6),
            cell("half", "accuracy", [0.9], planned=2),
            *(cell(row, "other image", [0.5]) for row in ("base", "good", "bad", "close")),
            *(cell(row, "empty", []) for row in ("base", "good")),
            cell("base", "read", [0.02], interval=[-0.01, 0.05]),
            cell("good", "read", [0.03], interval=[0.01, 0.05]),
            cell("bad", "read", [0.0], interval=[-0.1, 0.1]),
            cell("base", "grade", [3.0]),
            cell("good", "grade", [5.0, 5.2, 5.1]),
            cell("bad", "grade", [2.0]),
        ]
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "bars.png").write_bytes(b"png")
    (folder / "table.md").write_text("# A table\n")
    content = {"title": title, "cells": cells, "notes": []}
    (folder / "table.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def claims(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(CLAIMS)
    return read_claims(path)


def test_every_verdict_by_its_rule(tmp_path, claims):
    ((_, findings),) = decide(claims, {"p": read_table(write_table(tmp_path / "t"))})
    said = {finding.claim.says: finding.verdict for finding in findings}
    assert said == {
        "plain": Verdict.SHOWS, "turned": Verdict.SHOWS, "wrong": Verdict.NOT, "unclear": Verdict.NOT,
        "of two others": Verdict.SHOWS, "one blind": Verdict.PART, "not and blind": Verdict.NOT,
        "both": Verdict.PART, "alike": Verdict.SHOWS, "not alike": Verdict.NOT, "by intervals": Verdict.SHOWS,
        "seen": Verdict.SHOWS, "not seen": Verdict.CANNOT, "no control": Verdict.CANNOT,
        "graded": Verdict.SHOWS, "blind": Verdict.CANNOT, "from the image": Verdict.SHOWS, "nor here": Verdict.CANNOT,
        "by seeds": Verdict.SHOWS, "one run each": Verdict.CANNOT, "to come": Verdict.NOT_RUN,
        "another plan": Verdict.NOT_RUN, "secret": Verdict.CANNOT, "never": Verdict.CANNOT,
    }  # fmt: skip
    turned = next(f for f in findings if f.claim.says == "turned").outcomes[0].measured
    assert (turned.difference, turned.low, turned.high, turned.how) == (0.1, 0.07, 0.13, "paired")
    table = read_table(tmp_path / "t")
    more = {**table.cells, ("base", "e", "accuracy"): table.cells["base", "d", "accuracy"]}
    ((_, with_more),) = decide(claims, {"p": type(table)(table.title, more)})
    assert [f.verdict for f in with_more] == [f.verdict for f in findings]  # of dataset e only one row is there
    blind = next(f for f in findings if f.claim.says == "blind").outcomes[0]
    assert blind.reason.startswith(
        "neither is in 'accuracy' above 'other image' (40.0 % beside 50.0 %, 50.0 % beside 50.0 %)"
    )
    blind = next(f for f in findings if f.claim.says == "nor here").outcomes[0]
    assert blind.reason.startswith("neither is in 'read' above 0 (0.0 %, 2.0 %), so that")


def test_with_other_figures_the_verdicts_turn(tmp_path, claims):
    """What showed does not where the difference is as large and not significant, or significant and the other way."""
    table = read_table(write_table(tmp_path / "t"))
    cells = dict(table.cells)
    changed = cell("good", "accuracy", [0.6, 0.62], interval=[0.2, 0.95], difference=[0.11, 0.08, 0.14], p=0.06)
    cells["good", "d", "accuracy"] = changed
    cells["good", "d", "grade"] = cell("good", "grade", [2.0, 9.0, 4.0])
    turned = type(table)(table.title, cells)
    said = {f.claim.says: f.verdict for _, some in decide(claims, {"p": turned}) for f in some}
    assert {said[name] for name in ("plain", "both", "by intervals", "by seeds")} == {Verdict.NOT}
    assert said["turned"] is Verdict.SHOWS


def test_rows_that_answer_every_question_alike_are_judged_by_their_intervals(tmp_path, claims):
    """No pair differs, which is no proof to the last digit that the methods are the same."""
    table = read_table(write_table(tmp_path / "t"))
    twin = cell("close", "accuracy", [0.5, 0.5], interval=[0.47, 0.53], difference=[0.0, 0.0, 0.0], p=1.0)
    ((_, findings),) = decide(
        claims, {"p": type(table)(table.title, {**table.cells, ("close", "d", "accuracy"): twin})}
    )
    judged = next(f for f in findings if f.claim.says == "not alike")
    measured = judged.outcomes[0].measured
    assert (judged.verdict, measured.how) == (Verdict.NOT, "intervals")
    assert (measured.low, measured.high) == pytest.approx((-0.03 * 2**0.5, 0.03 * 2**0.5))


def test_own_tests_are_corrected_together(tmp_path, claims):
    """Two tests are made beside the table's own: by Holm the smaller p is doubled."""
    table = read_table(write_table(tmp_path / "t"))
    alone = from_intervals(table.cells["good", "d", "accuracy"], table.cells["bad", "d", "accuracy"])
    ((_, findings),) = decide(claims, {"p": table})
    shown = next(f for f in findings if f.claim.says == "by intervals").outcomes[0].measured
    assert shown.p == pytest.approx(2 * alone.p)


def test_intervals_of_normal_estimates_give_the_usual_test():
    """With symmetric intervals MOVER is the z-test of two independent estimates."""
    first, second = {"mean": 0.6, "interval": [0.55, 0.65]}, {"mean": 0.5, "interval": [0.46, 0.54]}
    found = from_intervals(first, second)
    reach = np.hypot(0.05, 0.04)
    assert (found.difference, found.low, found.high) == pytest.approx((0.1, 0.1 - reach, 0.1 + reach))
    assert from_intervals(second, first).p == pytest.approx(found.p)
    edge = from_intervals({"mean": 0.5 + reach, "interval": [0.45 + reach, 0.55 + reach]}, second)
    assert edge.p == pytest.approx(0.05)


def test_seeds_are_compared_by_welch():
    first, second = [0.5, 0.55, 0.6], [0.41, 0.4, 0.47, 0.3]
    found, theirs = from_seeds(first, second), ttest_ind(first, second, equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert from_seeds([1.0], [2.0]) is None
    assert from_seeds([1.0, 1.0], [2.0]) is None


def test_the_page_and_what_lies_beside_it(tmp_path, monkeypatch, capsys):
    """With no table nothing has been run; a table that was given once stays when another is given."""
    out = tmp_path / "findings"

    def run(*folders):
        monkeypatch.setattr(sys, "argv", ["findings", *map(str, folders), "--out", str(out)])
        command.main()
        return (out / "README.md").read_text()

    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    page = run(unfinished)
    assert "0 shows here" in page
    assert "holds no table yet" in capsys.readouterr().err
    assert "**cannot be tested here** | MIMIC-CXR needs" in page
    three = [0.5, 0.52, 0.51]
    cells = [
        cell("untuned", "accuracy", [0.3], interval=[0.28, 0.32], difference=[-0.2, -0.23, -0.17], p=0.001, than="FT"),
        *(
            cell(row, "accuracy", v, interval=[0.49, 0.53], difference=d, p=p, than="FT")
            for row, v, d, p in (("FT", three, None, None), ("FT + shuffling", [0.51], [0.0, -0.02, 0.02], 1.0),
                                 ("InstFree", three, [0.05, 0.03, 0.07], 0.001),
                                 ("InstFree + shuffling", three, [0.06, 0.04, 0.08], 0.001))
        ),
    ]  # fmt: skip
    table = write_table(tmp_path / "first", cells=cells)
    page = run(table)
    assert (
        "| Tuning is needed, every tuned model answers better than the untuned one. | Table 1 | **shows here** |"
        in page
    )
    assert "| Response shuffling helps ordinary tuning. | Tables 1 and 4 | **does not show** |" in page
    assert (
        "FT less untuned, accuracy, d: +20.0 points (+17.0 to +23.0), p = 0.001, paired, one run of untuned<br>" in page
    )
    assert (
        "InstFree + shuffling less InstFree, accuracy, d: +0.0 points (-2.8 to +2.8), p = 1, by both intervals |"
        in page
    )
    assert (
        "FT + shuffling less FT, accuracy, d: +0.0 points (-2.0 to +2.0), p = 1, paired, one run of FT + shuffling |"
        in page
    )
    assert "### Table 1 on the miniature: d" in page
    assert "[table](table1_tiny-d/table.md)" in page
    assert (out / "table1_tiny-d" / "figures" / "bars.png").read_bytes() == b"png"
    shutil.rmtree(table)
    again = run(write_table(tmp_path / "second", title="Table 2 on the miniature, update rules"))
    assert "**shows here**" in again
    assert (out / "table2_tiny-d" / "table.md").is_file()
    for one in cells:
        one["dataset"] = "e"
    cells[3] = {**cells[3], "mean": 0.2, "interval": [0.18, 0.22]}
    apart = write_table(tmp_path / "apart", cells=cells)
    page = run(apart)
    assert "| Table 1 | **shows in part** |" in page
    assert "InstFree less untuned, accuracy, d: +21.0 points" in page
    assert "InstFree less untuned, accuracy, e: -10.0 points" in page
    assert {path.name for path in out.glob("table1_tiny*")} == {"table1_tiny-d", "table1_tiny-e"}
    with pytest.raises(SystemExit):
        run(write_table(tmp_path / "third", title="Nobody's"))
    assert "its table is called 'Nobody's', as no packaged plan is" in capsys.readouterr().err
    with pytest.raises(DataError, match="is not there"):
        command.write_findings([tmp_path / "nowhere"], out)
    del cells[0]["differences"]
    with pytest.raises(DataError, match="the cell of 'untuned' has no differences; write the table anew"):
        command.write_findings([write_table(tmp_path / "old", cells=cells)], out)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("{says: a, where: b}", "give tests, or cannot"),
        ("{says: a, where: b, tests: [{plan: p, column: c, higher: x}]}", "a test has plan, column"),
        ("{says: a, where: b, test: []}", "test is unknown or missing"),
    ],
)
def test_a_wrong_claim_is_named(tmp_path, claim, message):
    path = tmp_path / "claims.yaml"
    path.write_text(f"- paper: P\n  claims:\n    - {claim}\n")
    with pytest.raises(ConfigError, match=f"claims.yaml: 'a': .*{message}"):
        read_claims(path)
