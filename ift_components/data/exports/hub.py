"""Hugging Face: Parquet files with a dataset card, and ImageFolder."""

import json
from pathlib import Path

from ift_components.data.exports.common import HUB_SPLITS, ImageFiles, Job, image_bytes, stored_rows
from ift_components.data.parts import Writer
from ift_components.data.prepared import QUESTION_FEATURES, REPORT_FEATURES

_FEATURES = {"reports": REPORT_FEATURES, "questions": QUESTION_FEATURES}


def export_parquet(job: Job) -> None:
    """Write Parquet files with every image inside and a card that declares them: `load_dataset(out, "reports")`."""
    for kind, features in _FEATURES.items():
        (job.out / kind).mkdir()
        for split in job.filled(kind):
            with Writer(job.out / kind / f"{HUB_SPLITS[split]}.parquet", features.arrow_schema) as writer:
                for row in stored_rows(job.folder, kind, split):
                    image = {"bytes": image_bytes(row["image"]), "path": Path(row["image"]["path"]).name}
                    writer.write({**row, "image": image})
    (job.out / "README.md").write_text(_card(job), encoding="utf-8")


def _card(job: Job) -> str:
    """Return the dataset card: a YAML header that Hugging Face reads, then prose."""
    lines = ["---", "configs:"]
    for kind in _FEATURES:
        filled = job.filled(kind)
        if filled:
            lines += [f"- config_name: {kind}", *(["  default: true"] if kind == "reports" else []), "  data_files:"]
            for split in filled:
                lines += [f"  - split: {HUB_SPLITS[split]}", f"    path: {kind}/{HUB_SPLITS[split]}.parquet"]
    lines += ["task_categories:", "- image-to-text", "- visual-question-answering", "---", ""]
    package = job.manifest["package"]
    lines += [f"# {job.name}", "", f"Prepared by {package['name']} {package['version']}.", ""]
    lines += ["| | " + " | ".join(HUB_SPLITS.values()) + " |", "|---|---|---|---|"]
    for kind, counts in job.manifest["counts"].items():
        lines.append(f"| {kind} | " + " | ".join(str(counts.get(split, 0)) for split in HUB_SPLITS) + " |")
    lines += ["", "`reports`: id, image, report, attributes (name and source value), group (patient, if known).", ""]
    lines += [
        "`questions`: id, image_id, image, attribute, question, kind (choice, closed or open), answer_text, and for a"
    ]
    lines += ["choice options and answer (index of the right option).", ""]
    lines += ["Checks at build time:", ""]
    lines += [f"- {warning}" for warning in job.manifest["checks"]["warnings"]] or ["- nothing to warn of"]
    lines += ["", "The licence and the terms of use are those of the source dataset.", ""]
    return "\n".join(lines)


def export_imagefolder(job: Job) -> None:
    """Write `SPLIT/NUMBER.jpg` and `SPLIT/metadata.jsonl`: `load_dataset("imagefolder", data_dir=out)`."""
    for split in job.filled("reports"):
        target = job.out / HUB_SPLITS[split]
        files = ImageFiles(target)
        with (target / "metadata.jsonl").open("w", encoding="utf-8") as file:
            for row in stored_rows(job.folder, "reports", split):
                line = {key: row[key] for key in ("id", "report", "attributes", "group")}
                line = {"file_name": files.name(row["id"], row["image"]), **line}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
