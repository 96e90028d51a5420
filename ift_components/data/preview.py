"""A page to look at a prepared dataset: images with their reports and questions, and statistics as plots.

The page is one file without scripts. Everything from the dataset is escaped, images are encoded anew, and a content
security policy forbids whatever might slip through.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ift_components.data.mcq import LETTERS
from ift_components.data.parts import part_rows, rows_at
from ift_components.data.prepared import QUESTION_SPLITS, SPLITS

SAMPLES = 8  # images shown of each split
QUESTIONS = 12  # questions shown of each image
THUMBNAIL = 224
_COLOURS = {"train": "#3b6ea5", "val": "#c98a2b", "test": "#5a9367"}

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;background:#f6f7f9;margin:0}
main{max-width:1180px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px}h3{font-size:14px;margin:0 0 8px}
p{margin:4px 0}.quiet{color:#66727f;font-size:13px}
.warn{background:#fff6e3;border-left:4px solid #c98a2b;padding:8px 14px;margin:6px 0;border-radius:4px}
.fine{background:#ecf5ee;border-left:4px solid #5a9367;padding:8px 14px;border-radius:4px}
.grid{display:grid;gap:16px;align-items:start;grid-template-columns:repeat(auto-fill,minmax(340px,1fr))}
.card{background:#fff;border:1px solid #e1e5ea;border-radius:8px;padding:14px 16px;overflow-wrap:anywhere}
.bar{display:grid;grid-template-columns:minmax(70px,38%) 1fr 76px;gap:8px;align-items:center;font-size:13px;margin:5px 0}
.bar svg{width:100%;height:100%;min-height:14px;display:block}
.bar span:last-child{text-align:right;font-variant-numeric:tabular-nums;color:#66727f}
.key i{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 5px 0 14px;vertical-align:-1px}
table{border-collapse:collapse;background:#fff;border:1px solid #e1e5ea;font-size:13px;width:100%}
th,td{padding:5px 12px;text-align:right;border-bottom:1px solid #eceff2;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}
.sample img{max-width:100%;max-height:224px;border-radius:4px;display:block;margin:0 auto 10px;background:#000}
.sample .report{margin:8px 0}
.question{border-top:1px solid #eceff2;padding:7px 0;font-size:13px}
.question b{font-weight:600}
.option{display:inline-block;padding:0 7px;margin:2px 4px 0 0;border-radius:4px;background:#eef1f4}
.option.right{background:#d5ead9;outline:1px solid #5a9367;font-weight:600}
.scroll{overflow-x:auto}
"""


def preview_page(folder: Path, manifest: Mapping[str, Any], *, private: bool) -> str:
    """Return the page of a build whose Parquet files are written.

    Args:
        folder: the prepared folder.
        manifest: its manifest.
        private: show no image, report or question, statistics only.
    """
    parts = [
        *_head(manifest),
        *_splits(manifest),
        *_balance(manifest["checks"]["balance"]),
        *_question_table(manifest["checks"]["questions"]),
    ]
    if private:
        parts.append('<h2>Images</h2><p class="quiet">This dataset is private: the page shows statistics only.</p>')
    else:
        parts += _samples(folder, manifest["counts"]["reports"])
    title = f"{escape(manifest['builder']['name'])}: prepared data"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(manifest: Mapping[str, Any]) -> Iterator[str]:
    questions, package = manifest["questions"], manifest["package"]
    yield f"<h1>{escape(manifest['builder']['name'])}</h1>"
    yield (
        f'<p class="quiet">prepared by {escape(package["name"])} {escape(package["version"])}; questions: protocol '
        f"{escape(questions['protocol'])}, seed {questions['seed']}</p>"
    )
    lines = [f"{count} left out: {reason}" for reason, count in manifest["left_out"].items()]
    if manifest["skipped"]["count"]:
        lines.append(f"{manifest['skipped']['count']} bad rows skipped")
    yield from (f'<p class="quiet">{escape(line)}</p>' for line in [*lines, *manifest["notes"]])
    yield "<h2>Checks</h2>"
    warnings = manifest["checks"]["warnings"]
    yield from (f'<p class="warn">{escape(warning)}</p>' for warning in warnings)
    if not warnings:
        yield '<p class="fine">Nothing to warn of: no leak between splits, no answer in a file name.</p>'


def _splits(manifest: Mapping[str, Any]) -> Iterator[str]:
    counts = manifest["counts"]
    most = max(1, *counts["reports"].values(), *counts["questions"].values())
    yield '<h2>Splits</h2><div class="grid">'
    for kind in ("reports", "questions"):
        yield f'<div class="card"><h3>{kind}</h3>'
        for split, count in counts[kind].items():
            yield _bar(split, [(split, count / most)], f"{count:,}")
        yield "</div>"
    yield "</div>"


def _bar(label: str, shares: list[tuple[str, float]], figure: str) -> str:
    """Return one labelled line with a bar for each share (0 to 1) in its split's colour."""
    height = 14 if len(shares) == 1 else 9 * len(shares)
    rows = "".join(
        f'<rect x="0" y="{place * height / len(shares):.1f}" width="{100 * share:.2f}" '
        f'height="{height / len(shares) - 1:.1f}" fill="{_COLOURS[split]}"/>'
        for place, (split, share) in enumerate(shares)
    )
    svg = f'<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" style="height:{height}px">{rows}</svg>'
    return f'<div class="bar"><span>{escape(label)}</span>{svg}<span>{escape(figure)}</span></div>'


def _balance(balance: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterator[str]:
    if not balance:
        return
    yield '<h2>Values of each attribute</h2><p class="quiet key">share of the split\'s images that have the attribute'
    yield "".join(f'<i style="background:{colour}"></i>{split}' for split, colour in _COLOURS.items()) + "</p>"
    yield '<div class="grid">'
    for name, by_split in balance.items():
        totals = {split: sum(counts.values()) for split, counts in by_split.items()}
        filled = [split for split in SPLITS if totals[split]]
        values = sorted({v for counts in by_split.values() for v in counts}, key=lambda v: -by_split["train"].get(v, 0))
        yield f'<div class="card"><h3>{escape(name)}</h3>'
        for value in values:
            found = {split: by_split[split].get(value, 0) for split in filled}
            shares = [(split, found[split] / totals[split]) for split in filled]
            yield _bar(value, shares, f"{sum(found.values()):,}")
        yield "</div>"
    yield "</div>"


def _question_table(questions: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    if not any(questions.values()):
        return
    yield '<h2>Questions</h2><p class="quiet">accuracy of guessing: at random, always the most frequent answer, always '
    yield 'the most frequent letter</p><div class="scroll"><table><tr><th>attribute</th>'
    splits = [split for split in QUESTION_SPLITS if questions.get(split)]
    for split in splits:
        yield "".join(f"<th>{split} {what}</th>" for what in ("questions", "chance", "majority", "letter"))
    yield "</tr>"
    for name in dict.fromkeys(name for split in splits for name in questions[split]):
        yield f"<tr><td>{escape(name)}</td>"
        for split in splits:
            row = questions[split].get(name)
            shares = [f"{row[key]:.1%}" for key in ("chance", "majority", "letter")] if row else [""] * 3
            yield "".join(f"<td>{text}</td>" for text in (f"{row['count']:,}" if row else "", *shares))
        yield "</tr>"
    yield "</table></div>"


def _samples(folder: Path, counts: Mapping[str, int]) -> Iterator[str]:
    for split in SPLITS:
        rows = rows_at(folder / "reports" / f"{split}.parquet", (n * counts[split] // SAMPLES for n in range(SAMPLES)))
        if not rows:
            continue
        asked = _asked(folder, split, {row["id"] for row in rows}) if split in QUESTION_SPLITS else {}
        yield f'<h2>Images of {split}</h2><div class="grid">'
        for row in rows:
            yield from _card(row, asked.get(row["id"], []))
        yield "</div>"


def _asked(folder: Path, split: str, ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ["image_id", "question", "options", "answer", "rotation"]
    for row in part_rows(folder / "questions" / f"{split}.parquet", columns):
        if row["image_id"] in ids and not row["rotation"] and len(asked[row["image_id"]]) < QUESTIONS:
            asked[row["image_id"]].append(row)
    return asked


def _card(row: Mapping[str, Any], questions: list[dict[str, Any]]) -> Iterator[str]:
    yield f'<div class="card sample"><img alt="" src="{_thumbnail(row["image"])}">'
    group = f", group {row['group']}" if row["group"] is not None else ""
    yield f'<p class="quiet">{escape(row["id"] + group)}</p><p class="report">{escape(row["report"])}</p>'
    for question in questions:
        options = "".join(
            f'<span class="option{" right" if place == question["answer"] else ""}">'
            f"{LETTERS[place]}. {escape(text)}</span>"
            for place, text in enumerate(question["options"])
        )
        yield f'<div class="question"><b>{escape(question["question"])}</b><br>{options}</div>'
    yield "</div>"


def _thumbnail(image: Mapping[str, Any]) -> str:
    """Return a small JPEG of a stored image as a data URI."""
    with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as opened:
        opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        small = opened.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
