"""Chat formats for training elsewhere: LLaMA-Factory and ms-swift."""

import json
from collections.abc import Iterator
from typing import Any

from ift_components.data.exports.common import ImageFiles, Job, stored_rows
from ift_components.data.prepared import read_manifest
from ift_components.errors import ConfigError


def export_llama_factory(job: Job) -> None:
    """Write `NAME_SPLIT.json` for each split, `images/` and `dataset_info.json`: use OUT as `dataset_dir`."""
    info: dict[str, Any] = {}
    files = ImageFiles(job.out / "images")
    for split in job.filled("reports"):
        name = f"{job.name}_{split}"
        with (job.out / f"{name}.json").open("w", encoding="utf-8") as file:
            file.write("[\n")
            for place, sample in enumerate(_samples(job, split, files)):
                file.write((",\n" if place else "") + json.dumps(sample, ensure_ascii=False))
            file.write("\n]\n")
        info[name] = {
            "file_name": f"{name}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }
    (job.out / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def export_ms_swift(job: Job) -> None:
    """Write `SPLIT.jsonl` for each split and `images/`; the images' paths are absolute, so that any folder will do."""
    files = ImageFiles(job.out / "images")
    for split in job.filled("reports"):
        with (job.out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for sample in _samples(job, split, files):
                sample["images"] = [str(job.final / path) for path in sample["images"]]
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")


def _samples(job: Job, split: str, files: ImageFiles) -> Iterator[dict[str, Any]]:
    if not read_manifest(job.folder).get("has_reports", True):
        raise ConfigError(f"export.format: the chat formats hold reports, but {job.folder} has questions only")
    for row in stored_rows(job.folder, "reports", split):
        messages = [
            {"role": "user", "content": f"<image>{job.instruction}"},
            {"role": "assistant", "content": row["report"]},
        ]
        yield {"messages": messages, "images": [f"images/{files.name(row['id'], row['image'])}"]}
