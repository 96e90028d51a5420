"""Generated SKINCON, CBIS-DDSM and MIMIC-CXR folders: the real layouts and the real dirt, made-up content."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from trees import picture, save_csv, save_picture

from ift_components.data.builders.skincon import CONCEPTS, EXCLUDED


def skincon_row(index: int, name: str, present: Sequence[str], excluded: int = 0) -> list[object]:
    return [index, name, *(int(concept in present) for concept in CONCEPTS), excluded]


def skincon_tree(root: Path, rows: Sequence[Sequence[object]], table: str = "annotations_fitzpatrick17k.csv") -> Path:
    """Write a SKINCON folder: an unnamed index column, stray spaces in headers; rows named `gone...` have no image."""
    header = ["", "ImageID", *(f"{name} " if name == "Papule" else name for name in CONCEPTS), EXCLUDED]
    save_csv(root / table, header, rows)
    folder = root / table.removeprefix("annotations_").removesuffix(".csv")
    folder.mkdir(exist_ok=True)
    for row in rows:
        if not str(row[1]).startswith("gone"):
            save_picture(folder / str(row[1]), int(str(row[0])), size=(20, 10))
    return root


MASS = (
    "patient_id", "breast_density", "left or right breast", "image view", "abnormality id",
    "abnormality type", "mass shape", "mass margins", "assessment", "pathology",
    "subtlety", "image file path", "cropped image file path", "ROI mask file path",
)  # fmt: skip
CALC = [
    "breast density"
    if name == "breast_density"
    else name.replace("mass shape", "calc type").replace("mass margins", "calc distribution")
    for name in MASS
]


def cbis_row(name: str, patient: str, first: str, second: str, pathology: str) -> list[str]:
    """Return a row as the real tables have it, a line break in the last path included."""
    key = f"{name}_{patient}_LEFT_CC_1"
    abnormality = "mass" if name.startswith("Mass") else "calcification"
    paths = [f"{key[:-2]}/1.2/1.3/000000.dcm", f"{key}/1.4/1.5/000001.dcm", f"{key}/1.4/1.5/000000.dcm\n"]
    return [patient, "3", "LEFT", "CC", "1", abnormality, first, second, "4", pathology, "0", *paths]


def cbis_tables(folder: Path, rows: Sequence[list[str]]) -> None:
    for kind, columns in (("mass", MASS), ("calc", CALC)):
        for part, name in (("train", "Training"), ("test", "Test")):
            key = f"{kind.title()}-{name}_"
            save_csv(
                folder / f"{kind}_case_description_{part}_set.csv",
                columns,
                [row for row in rows if row[-2].startswith(key)],
            )


def case_keys(folder: Path) -> list[str]:
    """Return the case keys of the four tables of a folder."""
    keys = []
    for path in sorted(folder.glob("*_case_description_*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            keys += [row["cropped image file path"].split("/")[0] for row in csv.DictReader(file)]
    return keys


def mask_image(size: tuple[int, int]) -> Image.Image:
    image = Image.new("L", size)
    image.paste(255, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    return image


def cbis_jpeg_files(root: Path) -> Path:
    """Write `dicom_info.csv` and the images of every case: crop and mask in alternating order, some unlabelled."""
    crop, mask = root / "jpeg" / "crop.jpg", root / "jpeg" / "mask.jpg"
    crop.parent.mkdir(parents=True)
    picture(1, (14, 10), "L").save(crop)
    mask_image((64, 48)).save(mask)
    rows = []
    for n, key in enumerate(case_keys(root / "csv")):
        series = root / "jpeg" / f"1.3.6.{n}"
        series.mkdir()
        for place, (file, label) in enumerate([(crop, "cropped images"), (mask, "ROI mask images")][:: (-1) ** n]):
            (series / f"1-00{place}.jpg").hardlink_to(file)
            label = "" if n % 5 == 0 else label
            rows.append([f"CBIS-DDSM/dicom/{n}", f"CBIS-DDSM/jpeg/1.3.6.{n}/1-00{place}.jpg", key, label])
        rows.append(["x", f"CBIS-DDSM/jpeg/1.3.6.{n}/full.jpg", key[:-2], "full mammogram images"])
    save_csv(root / "csv" / "dicom_info.csv", ["file_path", "image_path", "PatientID", "SeriesDescription"], rows)
    return root


def dicom_bytes(pixels: np.ndarray, *, bits: int = 16, monochrome: int = 2, **tags: object) -> bytes:
    """Return an uncompressed grey DICOM file of unsigned pixels `[h, w]`."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, f"MONOCHROME{monochrome}"
    allocated = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = allocated, bits, bits - 1, 0
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def cbis_dicom_files(root: Path, at: str = "CBIS-DDSM") -> Path:
    """Write the DICOM files of every case; the crop is `1-1.dcm` in one case and `1-2.dcm` in the next."""
    for n, key in enumerate(case_keys(root)):
        crop = np.random.default_rng(n).integers(5_000, 40_000, (10, 14), dtype=np.uint16)
        mask = np.asarray(mask_image((64, 48)))
        series = root / at / key / "07-20-2016-DDSM-NA" / "1.000000-cropped images"
        series.mkdir(parents=True)
        files = [dicom_bytes(crop), dicom_bytes(mask, bits=8)][:: (-1) ** n]
        for place, content in enumerate(files, 1):
            (series / f"1-{place}.dcm").write_bytes(content)
    return root


def mimic_entry(subject: int, study: int, dicom: str, findings: object, impression: object, **more: object) -> dict:
    image = f"mimic/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": findings}]
    entry = {"id": f"{subject}_{study}", "image": image, "generate_method": "gpt4", "reason": None}
    entry |= {"impression": impression, "indication": None, "history": None, "view": "PA", "orientation": None}
    return entry | {"chexpert_labels": {"Edema": float("nan")}, "conversations": turns} | more


def mimic_tree(
    root: Path, entries: dict[str, list], dice: dict[str, float], views: dict[str, str], questions: list[list[object]]
) -> Path:
    """Write a MIMIC-CXR folder; entries go by `train`, `dev`, `test`. Every image file shares one content."""
    root.mkdir(parents=True, exist_ok=True)
    splits, metadata = [], []
    for part, items in entries.items():
        path = root / f"chat_{part}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
        path.write_text(json.dumps(items), encoding="utf-8")
        for item in items:
            if not isinstance(item, dict) or "image" not in item:
                continue
            subject, study = item["id"].split("_")
            image = root / "files" / item["image"].removeprefix("mimic/")
            if not image.exists():
                save_picture(image, len(splits), mode="L")
                split = {"dev": "validate"}.get(part, part)
                splits.append([image.stem, study, subject, split])
                metadata.append([image.stem, subject, study, views.get(image.stem, "PA"), "CHEST (PA AND LAT)"])
    for name, columns, rows in (
        ("split", ["dicom_id", "study_id", "subject_id", "split"], splits),
        ("metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition", "Procedure"], metadata),
    ):
        text = io.StringIO()
        csv.writer(text).writerows([columns, *rows])
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    ids = [row[0] for row in splits]
    rle = "1 2 3 " * 50
    masks = [[name, dice.get(name, 0.9), 0.9, f"[1,2\n,{n}]", rle, 64, 64] for n, name in enumerate(ids)]
    columns = ["dicom_id", "Dice RCA (Mean)", "Dice RCA (Max)", "Landmarks", "Left Lung", "Height", "Width"]
    save_csv(root / "MIMIC-CXR-JPG.csv", columns, masks)
    asked = ["study_id", "subject_id", "question_type", "question", "answer"]
    save_csv(root / "medical-cxr-vqa-questions.csv", asked, questions)
    return root
