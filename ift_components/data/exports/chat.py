"""Chat formats for training elsewhere: LLaMA-Factory and ms-swift."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ift_components.data.exports.common import ImageFiles, stored_rows
from ift_components.data.prepared import SPLITS


def export_llama_factory(folder: Path, manifest: Mapping[str, Any], out: Path, instruction: str) -> None:
    """Write `NAME_SPLIT.json` for each split, `images/` and `dataset_info.json`: use OUT as `dataset_dir`.

    Args:
        folder: the prepared folder.
        manifest: its manifest.
        out: the folder to write.
        instruction: the user's turn before a report.
    """
    info: dict[str, Any] = {}
    files = ImageFiles(out / "images")
    for split in SPLITS:
        if not manifest["counts"]["reports"][split]:
            continue
        name = f"{manifest['builder']['name']}_{split}"
        with (out / f"{name}.json").open("w", encoding="utf-8") as file:
            file.write("[\n")
            for place, sample in enumerate(_samples(folder, split, files, instruction)):
                file.write((",\n" if place else "") + json.dumps(sample, ensure_ascii=False))
            file.write("\n]\n")
        info[name] = {
            "file_name": f"{name}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }
    (out / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def export_ms_swift(folder: Path, out: Path, instruction: str) -> None:
    """Write `SPLIT.jsonl` for each split and `images/`; paths are relative to the folder.

    Args:
        folder: the prepared folder.
        out: the folder to write.
        instruction: the user's turn before a report.
    """
    files = ImageFiles(out / "images")
    for split in SPLITS:
        samples = _samples(folder, split, files, instruction)
        first = next(samples, None)
        if first is None:
            continue
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for sample in (first, *samples):
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")


def _samples(folder: Path, split: str, files: ImageFiles, instruction: str) -> Iterator[dict[str, Any]]:
    for row in stored_rows(folder, "reports", split):
        messages = [
            {"role": "user", "content": f"<image>{instruction}"},
            {"role": "assistant", "content": row["report"]},
        ]
        yield {"messages": messages, "images": [f"images/{files.name(row['id'], row['image'])}"]}
