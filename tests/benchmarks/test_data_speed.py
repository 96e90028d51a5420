"""Time and memory of the data recipe: `pytest -m slow tests/benchmarks/test_data_speed.py -s` prints the figures."""

import csv
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ift_components.data.prepared import load_reports, read_manifest

pytestmark = pytest.mark.slow
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ENTRIES = 377_000
SENTENCES = (
    "The lungs are clear.", "There is no pleural effusion or pneumothorax.", "The heart is of normal size.",
    "Mild pulmonary edema is present.", "A left basilar opacity may be atelectasis.", "The bones are unremarkable.",
)  # fmt: skip


def run(*arguments: str) -> tuple[float, float, float]:
    """Run the data recipe; returns wall and processor time in seconds and the heaviest run's peak memory in GB."""
    tune = shutil.which("tune", path=str(Path(sys.executable).parent)) or "tune"
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([tune, "run", "ift_data_recipe", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, processor, after.ru_maxrss * 1024 / 1e9


def milliseconds_a_row(folder: Path) -> list[float]:
    """Return the processor's time of reading a row with its decoded image, rows in random order, for each of three passes."""
    loaded = load_reports(folder, "train")
    order, means = random.Random(0), []
    for _ in range(3):
        places = order.sample(range(len(loaded)), min(len(loaded), 3000))
        start = time.process_time()
        for place in places:
            loaded[place]
        means.append(1000 * (time.process_time() - start) / len(places))
    return means


@pytest.mark.skipif(not (SHARED / "wbcatt").is_dir(), reason="../shared/data/wbcatt is not there")
def test_wbcatt_in_ninety_seconds_of_the_processor(tmp_path):
    command = ("--config", "data_wbcatt.yaml", f"builder.root={SHARED / 'wbcatt'}", f"output_dir={tmp_path / 'out'}")
    seconds, processor, memory = run(*command)
    again, unchanged, _ = run(*command)
    print(f"\nWBCAtt, 8199 images: {processor:.0f} s of the processor ({seconds:.0f} s by the clock), {memory:.2f} GB")
    print(f"unchanged: {unchanged:.0f} s ({again:.0f} s)")
    first, second, third = milliseconds_a_row(tmp_path / "out")
    print(f"a row at random, decoded: {first:.2f} ms of the processor, in later passes {second:.2f} and {third:.2f} ms")
    manifest = read_manifest(tmp_path / "out")
    assert sum(manifest["counts"]["reports"].values()) == 8199
    assert manifest["checks"]["leaks"]["identical_images"]["pairs"] == {"train and test": 2}
    assert processor < 90
    assert unchanged < 30


def mimic_sized_tree(root: Path, count: int) -> None:
    """Write a MIMIC-CXR folder of `count` images, links of a thousand small ones, with a mask table of 7 kB a row."""
    draw = random.Random(0)
    root.mkdir()
    for n in range(1000):
        pixels = np.random.default_rng(n).integers(0, 256, (24, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{n}.jpg")
    parts = {"train": [], "dev": [], "test": []}
    for n in range(count):
        part = "dev" if n % 128 == 1 else "test" if n % 128 == 2 else "train"
        parts[part].append(
            (10_000_000 + n // 6, 50_000_000 + n // 2, f"{n:08x}-{n * 7919 % 2**32:08x}-{n:08x}-00000000")
        )
    for items in parts.values():
        for subject, study, dicom in items:
            folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{dicom}.jpg").hardlink_to(root / f"{int(dicom[:8], 16) % 1000}.jpg")
    for part, items in parts.items():
        with (root / f"chat_{part}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json").open("w") as file:
            for place, (subject, study, dicom) in enumerate(items):
                said = " ".join(draw.choices(SENTENCES, k=12))
                entry = {
                    "id": f"{subject}_{study}",
                    "image": f"mimic/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg",
                    "generate_method": "gpt4", "reason": said[:200], "impression": said[:120], "indication": None,
                    "history": None, "view": "PA", "chexpert_labels": {"Edema": float("nan")},
                    "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": said}],
                }  # fmt: skip
                file.write(("[" if place == 0 else ",\n") + json.dumps(entry))
            file.write("]")
    rows = [(*item, {"dev": "validate"}.get(part, part)) for part, items in parts.items() for item in items]
    tables = {
        "metadata": [["dicom_id", "subject_id", "study_id", "ViewPosition"]] + [[d, s, t, "PA"] for s, t, d, _ in rows],
        "split": [["dicom_id", "study_id", "subject_id", "split"]] + [[d, t, s, part] for s, t, d, part in rows],
    }
    for name, lines in tables.items():
        with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt", newline="", compresslevel=1) as file:
            csv.writer(file).writerows(lines)
    mask = "1234 56 " * 440
    with (root / "MIMIC-CXR-JPG.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["dicom_id", "Left Lung", "Right Lung", "Dice RCA (Mean)"])
        file.writelines(
            f"{dicom},{mask},{mask},{0.6 if n % 50 == 0 else 0.9}\n" for n, (_, _, dicom, _) in enumerate(rows)
        )
    with (root / "medical-cxr-vqa-questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["study_id", "subject_id", "question_type", "question", "answer"])
        for n, (subject, study, _, _) in enumerate(rows):
            answer = ("edema", "atelectasis, effusion", "pneumonia", "nodule", "fracture", "mass")[n % 6]
            writer.writerow([study, subject, "abnormality", "what abnormalities are seen in this image?", answer])
            writer.writerow([study, subject, "presence", "is there any edema?", ("yes", "no")[n % 2]])


def test_mimic_sized_tree_in_fifteen_minutes_and_two_gigabytes(tmp_path):
    mimic_sized_tree(tmp_path / "in", ENTRIES)
    masks = (tmp_path / "in" / "MIMIC-CXR-JPG.csv").stat().st_size / 1e9
    command = ("--config", "data_mimic_cxr.yaml", f"builder.root={tmp_path / 'in'}", f"output_dir={tmp_path / 'out'}")
    seconds, processor, memory = run(*command)
    again, unchanged, _ = run(*command)
    print(f"\nMIMIC-sized, {ENTRIES} entries, masks {masks:.1f} GB: {processor:.0f} s of the processor", end=" ")
    print(f"({seconds:.0f} s by the clock), {memory:.2f} GB; unchanged: {unchanged:.0f} s ({again:.0f} s)")
    counts = read_manifest(tmp_path / "out")["counts"]["reports"]
    assert sum(counts.values()) == ENTRIES - -(-ENTRIES // 50)
    assert seconds < 15 * 60
    assert memory < 2
