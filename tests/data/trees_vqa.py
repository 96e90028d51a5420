"""Generated folders of published question sets and captions, in their real layouts and with their real dirt."""

import json
from pathlib import Path

from trees import save_csv, save_picture


def write_json(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


def vqa_rad_row(image, question, answer, answer_type="CLOSED", **more):
    return {
        "qid": 1, "image_name": image, "image_organ": "HEAD", "question": question, "answer": answer,
        "answer_type": answer_type, "question_type": "PRES", "phrase_type": "freeform", **more,
    }  # fmt: skip


def vqa_rad_tree(root: Path) -> Path:
    train = [
        vqa_rad_row("a.jpg", "Is it dark?", "Yes"),
        vqa_rad_row("a.jpg", "How many?", 5, "OPEN", question_type="COUNT"),
        vqa_rad_row("b.jpg", "Is it\tdark? ", "left side ", "CLOSED ", question_type="PRSE, POS", phrase_type="para"),
        vqa_rad_row("b.jpg", "is it dark?", "no", question_type="ATRIB", phrase_type="frame"),
    ]
    test = [vqa_rad_row("a.jpg", "is it dark?", "yes", phrase_type="test_para")]
    test.append(vqa_rad_row("a.jpg", "Where?", "left", "OPEN", question_type="POS"))
    write_json(root / "trainset.json", train)
    write_json(root / "testset.json", test)
    for seed, name in enumerate("ab"):
        save_picture(root / "images" / f"{name}.jpg", seed)
    return root


def slake_row(number, question, answer, language="en", **more):
    return {
        "img_id": number, "img_name": f"xmlab{number}/source.jpg", "question": question, "answer": answer,
        "q_lang": language, "location": "Lung", "modality": "CT", "answer_type": "OPEN", "base_type": "vqa",
        "content_type": "Modality", "qid": 0, **more,
    }  # fmt: skip


def slake_tree(root: Path) -> Path:
    train = [slake_row(1, "Which modality?", "CT")]
    train.append(slake_row(1, "Is it healthy?", "Yes", answer_type="CLOSED", content_type="Abnormality"))
    train += [slake_row(2, "模态", "CT", "zh"), slake_row(1, "What?", "")]
    write_json(root / "train.json", train)
    write_json(root / "validate.json", [slake_row(3, "Which organ?", "Lung", content_type="Organ")])
    test = [slake_row(1, "Which plane?", "Axial", content_type="Plane")]
    write_json(root / "test.json", [*test, slake_row(4, "器官", "肺", "zh")])
    for number in range(1, 5):
        save_picture(root / "imgs" / f"xmlab{number}" / "source.jpg", number)
    return root


PMC_COLUMNS = [
    "index",
    "Figure_path",
    "Caption",
    "Question",
    "Choice A",
    "Choice B",
    "Choice C",
    "Choice D",
    "Answer",
    "split",
]


def pmc_vqa_tree(root: Path) -> Path:
    choices = [" A:CT", " B:MRI", " C:X-ray", " D:PET"]
    train = [
        [0, "1.jpg", "A scan. Of a head.", "Which modality?", *choices, "B", "train"],
        [1, "1.jpg", "A scan. Of a head.", "Which organ?", "A:head", "B:foot", "C:hand", "D:Head", "A", "train"],
        [2, "2.jpg", "Another.", "Which modality?", *choices, "C:X-ray", "train"],
    ]
    save_csv(root / "train_2.csv", PMC_COLUMNS, train)
    save_csv(root / "test_2.csv", PMC_COLUMNS, [[0, "3.jpg", "A third.", "What is it?", *choices, "CT", "test"]])
    for number in range(1, 4):
        save_picture(root / "figures" / f"{number}.jpg", number)
    return root


def roco_tree(root: Path) -> Path:
    """The second edition."""
    for seed, (split, count) in enumerate((("train", 3), ("valid", 1), ("test", 1))):
        names = [f"ROCOv2_2023_{split}_{number:06}" for number in range(count)]
        save_csv(
            root / f"{split}_captions.csv", ["ID", "Caption"], [[name, f"{name}. A mass, dark."] for name in names]
        )
        for number, name in enumerate(names):
            save_picture(root / split / f"{name}.jpg", 10 * seed + number)
    return root


def medpix2_row(case, image, caption="A mass.", location="Abdomen", **description):
    stated = {"Caption": caption, "Modality": "CT - noncontrast", "Plane": "Axial", "Age": "60", "Sex": "female"}
    return {"Type": "CT", "U_id": case, "image": image, "Description": stated | description, "Location": location}


def medpix2_tree(root: Path) -> Path:
    splits = {
        "train": [
            medpix2_row("C1", "C1_a"), medpix2_row("C1", "C1_b", Modality=" MR - FLAIR ", Plane="NOS - Not specified"),
            medpix2_row("C2", "C2_a", "Two masses. One is dark.", "Left Blank", Modality="CTA", Plane="Coronal"),
        ],
        "dev": [medpix2_row("C3", "C3_a", "A cyst.", "Head", Plane=None)],
    }  # fmt: skip
    seed = 0
    for split, rows in splits.items():
        write_lines(root / "splitted_dataset" / f"descriptions_{split}.jsonl", rows)
        cases = dict.fromkeys(row["U_id"] for row in rows)
        data = [
            {"U_id": case, "Case": {"Findings": f"Finding of {case}. Second.", "History": "Pain."}} for case in cases
        ]
        data[0]["Case"]["Findings"] = None if split == "dev" else data[0]["Case"]["Findings"]
        write_lines(root / "splitted_dataset" / f"data_{split}.jsonl", data)
        for row in rows:
            seed += 1
            save_picture(root / "images" / f"{row['image']}.png", seed)
    return root
