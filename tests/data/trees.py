"""Generated dataset folders with the real layouts and the real dirt, and small helpers around prepared folders."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ift_components.data.build import BuildOptions, prepare
from ift_components.data.mcq import QuestionOptions
from ift_components.data.source import Source

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

WBCATT_COLUMNS = [
    "img_name", "label", "cell_size", "cell_shape", "nucleus_shape", "nuclear_cytoplasmic_ratio",
    "chromatin_density", "cytoplasm_vacuole", "cytoplasm_texture", "cytoplasm_colour", "granule_type", "granule_colour",
    "granularity", "path",
]  # fmt: skip
NEUTROPHIL = "Neutrophil,big,round,unsegmented-band,low,densely,no,clear,light blue,small,pink,yes"
LYMPHOCYTE = "Lymphocyte,small,irregular,irregular,high,densely,no,frosted,purple blue,nil,nil,no"
MONOCYTE = "Monocyte,big,irregular,unsegmented-indented,low,loosely,yes,clear,blue,nil,nil,no"


def picture(seed: int, size: tuple[int, int] = (16, 12), mode: str = "RGB") -> Image.Image:
    """Return a noise image that no other seed gives."""
    channels = () if mode == "L" else (3,)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def save_picture(path: Path, seed: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **options).save(path)
    return path


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **options)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def wbcatt_tree(root: Path, cells: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write a WBCAtt folder; `cells` gives the attribute cells of each split's rows, as one comma-joined text a row."""
    cells = cells or {"train": [NEUTROPHIL, LYMPHOCYTE, MONOCYTE], "val": [NEUTROPHIL, LYMPHOCYTE], "test": [MONOCYTE]}
    seed = 0
    for split, texts in cells.items():
        rows = []
        for text in texts:
            seed += 1
            name = f"{text[:2].upper()}_{seed}.jpg"
            path = f"PBC_dataset_normal_DIB/{text.split(',')[0].lower()}/{name}"
            save_picture(root / path, seed)
            rows.append([name, *text.split(","), path])
        save_csv(root / f"pbc_attr_v1_{split}.csv", WBCATT_COLUMNS, rows)
    return root


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def build(source: Source, out: Path, **questions: Any) -> dict[str, Any]:
    """Prepare a folder with the defaults of the shipped configs."""
    return prepare(source, out, QuestionOptions(**questions), BuildOptions(workers=2))


def rows(out: Path, kind: str, split: str) -> list[dict[str, Any]]:
    return pq.read_table(out / kind / f"{split}.parquet").to_pylist()


def leftovers(out: Path) -> list[str]:
    """Return what lies beside a prepared folder, hidden files included, locks excepted."""
    paths = out.parent.iterdir() if out.parent.is_dir() else ()
    return sorted(path.name for path in paths if path != out and path.suffix != ".lock")
