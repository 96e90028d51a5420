"""VQA-RAD, SLAKE, PMC-VQA, ROCO and MedPix 2.0: generated folders, and the real files where they are."""

import json
from collections import Counter

import pytest
from trees import SHARED, build, rows, save_csv, save_picture
from trees_vqa import (
    PMC_COLUMNS,
    medpix2_tree,
    pmc_vqa_tree,
    roco_tree,
    slake_tree,
    vqa_rad_row,
    vqa_rad_tree,
    write_json,
)

from ift_components.data.builders import medpix2, pmc_vqa, roco, slake, vqa_rad
from ift_components.data.exports import ExportOptions, export
from ift_components.data.source import Problems
from ift_components.errors import ConfigError, DataError


def questions(out, split, *columns):
    columns = columns or ("image_id", "attribute", "question", "kind", "answer_text")
    return [tuple(row[name] for name in columns) for row in rows(out, "questions", split)]


def test_vqa_rad(tmp_path):
    manifest = build(vqa_rad(vqa_rad_tree(tmp_path / "in")), tmp_path / "out")
    assert questions(tmp_path / "out", "train") == [
        ("train/a.jpg", "PRES", "Is it dark?", "closed", "Yes"),
        ("train/a.jpg", "COUNT", "How many?", "open", "5"),
        ("train/b.jpg", "PRES", "Is it dark?", "closed", "left side"),
        ("train/b.jpg", "ATTRIB", "is it dark?", "closed", "no"),
    ]
    assert [row[0] for row in questions(tmp_path / "out", "test")] == ["test/a.jpg"] * 2
    assert manifest["notes"] == [
        "1 of 1 test images occur in train too: the published split is by question, so a model has seen the image",
        "1 test questions stand word for word in train, about the same image",
        "1 train questions repeat another about their image word for word",
        "train: 2 freeform, 1 para, 1 frame",
        "train: 1 of 3 closed questions are not answered by yes or no, 1 answers are numbers, 1 questions have two types",
        "test: 1 freeform, 1 para, 0 frame",
        "test: 0 of 1 closed questions are not answered by yes or no, 0 answers are numbers, 0 questions have two types",
    ]
    assert manifest["checks"]["leaks"]["identical_images"]["pairs"] == {"train and test": 1}
    assert (manifest["has_reports"], rows(tmp_path / "out", "reports", "test")[0]["report"]) == (False, "")
    with pytest.raises(ConfigError, match="has questions only"):
        export(tmp_path / "out", ExportOptions(format="ms_swift"))
    only = build(vqa_rad(tmp_path / "in", phrases=["para"]), tmp_path / "para")
    assert only["counts"]["questions"] == {"train": 1, "val": 0, "test": 1}
    assert only["left_out"] == {"question of wording 'freeform'": 3, "question of wording 'frame'": 1}
    with pytest.raises(ConfigError, match=r"builder.phrases is \['poem'\]"):
        vqa_rad(tmp_path / "in", phrases=["poem"])


def test_slake_asks_in_the_language_that_was_chosen(tmp_path):
    root = slake_tree(tmp_path / "in")
    manifest = build(slake(root), tmp_path / "en")
    assert questions(tmp_path / "en", "train") == [
        ("train/xmlab1/source.jpg", "Modality", "Which modality?", "open", "CT"),
        ("train/xmlab1/source.jpg", "Abnormality", "Is it healthy?", "closed", "Yes"),
    ]
    assert manifest["left_out"] == {"question without an answer": 1, "question in language 'zh'": 2}
    assert manifest["counts"]["reports"] == {"train": 1, "val": 1, "test": 1}
    assert manifest["notes"] == [
        "1 of 2 test images occur in train too: the published split is by question, so a model has seen the image"
    ]
    row = rows(tmp_path / "en", "reports", "train")[0]
    assert (row["report"], row["group"]) == ("", "xmlab1/source.jpg")
    assert row["attributes"] == [{"name": "modality", "value": "CT"}, {"name": "location", "value": "Lung"}]
    assert build(slake(root, language="all"), tmp_path / "all")["counts"]["questions"] == {
        "train": 3,
        "val": 1,
        "test": 2,
    }
    with pytest.raises(ConfigError, match=r"builder.language is 'de', expected one of: en, zh, all"):
        slake(root, language="de")


def test_pmc_vqa_as_choices_and_blanks(tmp_path):
    root = pmc_vqa_tree(tmp_path / "in")
    manifest = build(pmc_vqa(root), tmp_path / "out")
    columns = ("image_id", "kind", "options", "answer", "answer_text")
    choices = ["CT", "MRI", "X-ray", "PET"]
    assert questions(tmp_path / "out", "train", *columns) == [
        ("train/1.jpg", "choice", choices, 1, "MRI"), ("train/2.jpg", "choice", choices, 2, "X-ray"),
    ]  # fmt: skip
    assert questions(tmp_path / "out", "test", *columns) == [("test/3.jpg", "choice", choices, 0, "CT")]
    assert manifest["left_out"] == {"question with an empty choice, or two that read the same": 1}
    assert [row["report"] for row in rows(tmp_path / "out", "reports", "train")] == ["A scan. Of a head.", "Another."]
    build(pmc_vqa(root, form="blank"), tmp_path / "blank")
    assert questions(tmp_path / "blank", "train", "kind", "options", "answer_text") == [
        ("open", None, "MRI"), ("open", None, "head"), ("open", None, "X-ray"),
    ]  # fmt: skip
    both = build(pmc_vqa(root, form="both", val_fraction=0.5), tmp_path / "both")
    assert both["counts"]["questions"]["train"] + both["counts"]["questions"]["val"] == 5
    assert both["counts"]["reports"] == {"train": 1, "val": 1, "test": 1}


def test_pmc_vqa_version_1_and_answers_that_are_no_choice(tmp_path):
    columns = [*(name for name in PMC_COLUMNS if name not in ("index", "Caption", "split")), "Answer_label"]
    row = ["1.jpg", "Which?", "A:CT", "B:MRI", "C:US", "D:PET"]
    save_csv(tmp_path / "train.csv", columns, [[*row, "MRI", "B"]])
    save_csv(tmp_path / "test.csv", columns, [[*row, "MRI", "B"], ["1.jpg", "Who?", *row[2:], "nobody", "E"]])
    save_picture(tmp_path / "pictures" / "1.jpg", 1)
    with pytest.raises(DataError, match="has no folder images, images_2, figures"):
        pmc_vqa(tmp_path, version=1)
    with pytest.raises(DataError, match=r"test.csv line 3: the answer is none of the choices"):
        build(pmc_vqa(tmp_path, version=1, image_folder="pictures"), tmp_path / "out")
    source = pmc_vqa(tmp_path, version=1, image_folder="pictures", on_bad_row="skip")
    assert build(source, tmp_path / "out")["counts"]["questions"] == {"train": 1, "val": 0, "test": 1}
    assert not source.has_reports
    for arguments, message in (({"version": 3}, "builder.version is 3"), ({"form": "open"}, "builder.form is 'open'")):
        with pytest.raises(ConfigError, match=message):
            pmc_vqa(tmp_path, **arguments)


def test_roco_both_editions(tmp_path):
    manifest = build(roco(roco_tree(tmp_path / "two")), tmp_path / "out2")
    assert manifest["counts"]["reports"] == {"train": 3, "val": 1, "test": 1}
    row = rows(tmp_path / "out2", "reports", "val")[0]
    assert row["report"] == "ROCOv2_2023_valid_000000. A mass, dark."
    assert [item["value"] for item in row["attributes"]] == ["ROCOv2_2023_valid_000000.", "A mass, dark."]
    for seed, split in enumerate(("train", "validation", "test")):
        folder = tmp_path / "one" / split / "radiology"
        save_picture(folder / "images" / f"ROCO_{seed}.jpg", seed)
        lines = [f"ROCO_{seed}\tA mass,\tdark.", "ROCO_99\tGone."] + (["no tab"] if split == "test" else [])
        (folder / "captions.txt").write_text("\n".join(lines) + "\n\n")
    with pytest.raises(DataError, match=r"4 bad row(.|\n)*ROCO_99.jpg' is missing(.|\n)*line 3: has no tab"):
        build(roco(tmp_path / "one"), tmp_path / "out1")
    manifest = build(roco(tmp_path / "one", on_bad_row="skip"), tmp_path / "out1")
    assert (manifest["counts"]["reports"], manifest["skipped"]["count"]) == ({"train": 1, "val": 1, "test": 1}, 4)
    assert rows(tmp_path / "out1", "reports", "train")[0]["report"] == "A mass, dark."


def test_medpix2(tmp_path):
    root = medpix2_tree(tmp_path / "in")
    manifest = build(medpix2(root), tmp_path / "out")
    first, _, third = rows(tmp_path / "out", "reports", "train")
    assert (first["id"], first["report"], first["group"]) == ("C1_a", "A mass.", "C1")
    assert [(item["name"], item["value"]) for item in third["attributes"]] == [
        ("modality", "CTA"), ("plane", "Coronal"), ("sentence", "Two masses."), ("sentence", "One is dark."),
        ("context", "Finding of C2."), ("context", "Second."),
    ]  # fmt: skip
    asked = questions(tmp_path / "out", "train", "image_id", "attribute", "question", "answer_text", "kind")
    assert asked[:2] == [
        ("C1_a", "modality", "What is the modality of this image?", "CT - noncontrast", "choice"),
        ("C1_a", "plane", "What is the plane of this image?", "Axial", "choice"),
    ]
    assert sorted(rows(tmp_path / "out", "questions", "train")[0]["options"]) == [
        "CT - noncontrast",
        "CTA",
        "MR - FLAIR",
    ]
    assert manifest["left_out"] == {
        "question about a plane that is not stated": 2, "question about a location that is not stated": 1,
    }  # fmt: skip
    assert manifest["notes"] == [
        "train: 3 images of 2 cases; 2 images share their caption with another",
        "val: 1 images of 1 cases; 0 images share their caption with another",
        "the official test split is not in the folder",
    ]
    plain = medpix2(root, context=False)
    assert all(name != "context" for record in plain.records(Problems()) for name, _ in record.sections)


def test_files_that_are_not_as_published(tmp_path):
    root = vqa_rad_tree(tmp_path / "in")
    row = vqa_rad_row("a.jpg", "x?", "y")
    for content, message in (
        ("{", "cannot be read as JSON"),
        (json.dumps([row, {"question": "x"}]), "entry 2 lacks image_name, image_organ, answer"),
        (json.dumps([1]), "entry 1 lacks"),
    ):
        (root / "trainset.json").write_text(content)
        with pytest.raises(DataError, match=f"trainset.json {message}"):
            vqa_rad(root)
    write_json(root / "trainset.json", [vqa_rad_row("../a.jpg", "x?", "y"), vqa_rad_row("c.jpg", "x?", "y")])
    with pytest.raises(DataError, match=r"2 bad row(.|\n)*lies outside of(.|\n)*'c.jpg' is missing"):
        build(vqa_rad(root), tmp_path / "out")
    (root / "testset.json").unlink()
    with pytest.raises(DataError, match=r"lacks testset.json"):
        vqa_rad(root)


def summary(source):
    problems = Problems()
    records = list(source.records(problems))
    kinds = Counter((record.split, question.kind) for record in records for question in record.questions)
    assert not problems.count
    return Counter(record.split for record in records), kinds, problems.left_out


@pytest.mark.skipif(not (SHARED / "vqa_rad").is_dir(), reason="../shared/data/vqa_rad is not there")
def test_real_vqa_rad():
    source = vqa_rad(SHARED / "vqa_rad")
    images, kinds, _ = summary(source)
    assert images == {"train": 314, "test": 203}
    assert kinds == {("train", "closed"): 1823, ("train", "open"): 1241, ("test", "closed"): 272, ("test", "open"): 179}
    assert source.notes[0].startswith("203 of 203 test images occur in train too")


@pytest.mark.skipif(not (SHARED / "slake_text").is_dir(), reason="../shared/data/slake_text is not there")
def test_real_slake(tmp_path):
    for path in (SHARED / "slake_text").glob("*.json"):
        (tmp_path / path.name).symlink_to(path)
        for row in json.loads(path.read_text(encoding="utf-8")):
            image = tmp_path / "imgs" / row["img_name"]
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    counts = {language: summary(slake(tmp_path, language=language)) for language in ("en", "all")}
    totals = {
        language: tuple(sum(n for (part, _), n in kinds.items() if part == split) for split in ("train", "val", "test"))
        for language, (_, kinds, _) in counts.items()
    }
    assert totals == {"en": (4918, 1053, 1061), "all": (9834, 2099, 2094)}
    assert counts["en"][1]["test", "closed"] == 416
    assert slake(tmp_path).notes[0].startswith("130 of 174 val images occur in train too")


@pytest.mark.skipif(not (SHARED / "medpix2").is_dir(), reason="../shared/data/medpix2 is not there")
def test_real_medpix2():
    source = medpix2(SHARED / "medpix2")
    images, kinds, left_out = summary(source)
    assert images == {"train": 1653, "val": 197}
    assert kinds == {("train", "choice"): 4885, ("val", "choice"): 583}
    assert left_out["question about a location that is not stated"] == 57
    cases = {
        split: {record.group for record in source.records(Problems()) if record.split == split} for split in images
    }
    assert (len(cases["train"]), len(cases["val"]), cases["train"] & cases["val"]) == (535, 67, set())


def test_an_article_of_roco_in_two_splits_is_told(tmp_path, capsys):
    root = roco_tree(tmp_path / "two")
    build(roco(root), tmp_path / "without")
    assert "whether one is in two splits cannot be told" in capsys.readouterr().out
    listed = [["ID", "Licence", "Source"], ["ROCOv2_2023_train_000000", "CC BY", "https://x/PMC77/"]]
    listed += [["ROCOv2_2023_test_000000", "CC BY", "https://x/PMC77/"], ["ROCOv2_2023_train_000001", "CC BY", ""]]
    save_csv(root / "license_information.csv", *[listed[0], listed[1:]])
    manifest = build(roco(root), tmp_path / "out")
    assert [row["group"] for row in rows(tmp_path / "out", "reports", "train")] == ["PMC77", None, None]
    assert "1 groups (patients) in more than one split (train and test 1)" in manifest["checks"]["warnings"]
    first = tmp_path / "one"
    for seed, split in enumerate(("train", "validation", "test")):
        folder = first / split / "radiology"
        save_picture(folder / "images" / f"ROCO_{seed}.jpg", seed)
        (folder / "captions.txt").write_text(f"ROCO_{seed}\tA mass.\n")
        fetched = f"ROCO_{seed}\twget -r ftp://ftp/oa_package/b2/94/PMC{seed}.tar.gz -O PMC{seed}.tar.gz\tA-g002.jpg\n"
        (folder / "dlinks.txt").write_text(fetched)
    build(roco(first), tmp_path / "out1")
    assert rows(tmp_path / "out1", "reports", "test")[0]["group"] == "PMC2"


def test_questions_whose_image_is_missing_are_counted(tmp_path, capsys):
    root = slake_tree(tmp_path / "in")
    (root / "imgs" / "xmlab3" / "source.jpg").unlink()
    with pytest.raises(DataError, match=r"validate.json entry 1: image 'xmlab3/source.jpg' is missing"):
        build(slake(root), tmp_path / "out")
    with pytest.raises(DataError, match=r"split 'val' is empty; 1 bad row"):
        build(slake(root, on_bad_row="skip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
