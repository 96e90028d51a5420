"""Exports, loaded back by the packages that read them where they install, otherwise as their documents describe."""

import base64
import importlib
import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
import yaml
from PIL import Image
from trees import build, leftovers, rows, save_csv, save_picture, wbcatt_tree

from ift_components.data.builders import image_table, image_text, wbcatt
from ift_components.data.exports import ExportOptions, export
from ift_components.data.wording import multiple_choice_prompt
from ift_components.errors import ConfigError, DataError, UserError


@pytest.fixture(params=["embed", "path"])
def prepared(request, tmp_path):
    build(wbcatt(wbcatt_tree(tmp_path / "in"), images=request.param), tmp_path / "out", protocol="full")
    return tmp_path / "out"


def pixels(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def stored(prepared, row) -> bytes:
    path = prepared.parent / "in" / row.get("image_id", row["id"])
    return path.read_bytes()


def test_parquet_with_a_card(prepared, tmp_path):
    out = export(prepared, ExportOptions("parquet"))
    assert out == tmp_path / "out-parquet"
    cache = str(tmp_path / "cache")
    reports = datasets.load_dataset(str(out), "reports", cache_dir=cache)
    assert reports.num_rows == {"train": 3, "validation": 2, "test": 1}
    assert reports["train"]["report"][0].startswith("big cell size")
    asked = datasets.load_dataset(str(out), "questions", cache_dir=cache)
    assert asked.num_rows == {"validation": 22, "test": 10}
    raw = rows(out, "questions", "validation")
    assert all(row["image"]["bytes"] == stored(prepared, row) for row in raw)
    assert "| reports | 3 | 2 | 1 |" in (out / "README.md").read_text()


def test_imagefolder(prepared, tmp_path):
    out = export(prepared, ExportOptions("imagefolder"))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == {"train": 3, "validation": 2, "test": 1}
    for given, row in zip(rows(prepared, "reports", "train"), loaded["train"], strict=True):
        assert row["id"] == given["id"]
        assert row["report"] == given["report"]
        assert row["attributes"] == given["attributes"]
        assert row["image"].convert("RGB").tobytes() == pixels(stored(prepared, given))


def test_vlmevalkit_table(prepared):
    """Read as VLMEvalKit's image_base.py documents: pandas, tab-separated, repeated images by the index of the first."""
    out = export(prepared, ExportOptions("vlmevalkit"))
    assert sorted(path.name for path in out.iterdir()) == [".export.json", "wbcatt_test.tsv", "wbcatt_val.tsv"]
    table = pd.read_csv(out / "wbcatt_val.tsv", sep="\t")
    assert {"index", "image", "question", "A", "B", "C", "D", "E", "F", "answer", "category", "split"} == set(table)
    assert list(table["index"]) == list(range(22))
    images = {str(index): image for index, image in zip(table["index"], table["image"], strict=True)}
    for given, (_, row) in zip(rows(prepared, "questions", "val"), table.iterrows(), strict=True):
        image = images[row["image"]] if len(row["image"]) <= 64 else row["image"]
        assert base64.b64decode(image) == stored(prepared, given)
        options = [str(row[letter]) for letter in "ABCDEF" if not pd.isna(row[letter])]
        assert options == given["options"]
        assert "ABCDEF".index(row["answer"]) == given["answer"]
        assert row["question"] == given["question"]
    assert sum(len(image) > 64 for image in table["image"]) == 2


@pytest.mark.parametrize(("value", "message"), [("None", "as missing"), ("1e5", "as '100000.0'")])
def test_options_that_vlmevalkit_would_change_are_refused(tmp_path, value, message):
    root = tmp_path / "in"
    table = [
        [save_picture(root / f"{n}.png", n).name, (value, "7")[n % 2], ("train", "val", "test")[n % 3]]
        for n in range(6)
    ]
    save_csv(root / "t.csv", ["image", "kind", "set"], table)
    schema = tmp_path / "s.yaml"
    schema.write_text(f"attributes: [{{name: kind, values: ['{value}', '7']}}]")
    build(image_table(root, "t.csv", schema=str(schema), split_column="set"), tmp_path / "out")
    with pytest.raises(DataError, match=f"VLMEvalKit reads the option '{value}' {message}"):
        export(tmp_path / "out", ExportOptions("vlmevalkit"))
    assert leftovers(tmp_path / "out") == ["in", "s.yaml"]


def task_of(out, name):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    return yaml.load((out / f"{name}.yaml").read_text(), Loader)  # noqa: S506 (derived from SafeLoader)


def test_lmms_eval_folder(prepared):
    """Read as lmms-eval's task guide documents; `test_lmms_eval_itself` uses the package."""
    out = export(prepared, ExportOptions("lmms_eval"))
    task = task_of(out, "wbcatt_val")
    assert task["dataset_path"] == str(out / "data")
    assert task["dataset_kwargs"] == {"load_from_disk": True}
    docs = datasets.load_from_disk(task["dataset_path"])[task["test_split"]]
    spec = importlib.util.spec_from_file_location("utils", out / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    for key in ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results"):
        assert callable(getattr(utils, task[key].removeprefix("utils.")))
    for given, doc in zip(rows(prepared, "questions", "val"), docs, strict=True):
        assert utils.doc_to_text(doc) == multiple_choice_prompt(given["question"], given["options"])
        assert utils.doc_to_visual(doc)[0].tobytes() == pixels(stored(prepared, given))
        right = "ABCDEF"[given["answer"]]
        assert utils.doc_to_target(doc) == right
        assert utils.process_results(doc, [f"The correct answer is [{right}]."]) == {"accuracy": 1.0}
        wrong = "B" if right == "A" else "A"
        assert utils.process_results(doc, [f"The correct answer is {wrong}."]) == {"accuracy": 0.0}


def test_lmms_eval_itself(prepared):
    """lmms-eval finds the task by `--include_path`, loads the data and scores answers."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    tasks = importlib.import_module("lmms_eval.tasks")
    out = export(prepared, ExportOptions("lmms_eval"))
    manager = tasks.TaskManager(include_path=str(out), include_defaults=False)
    task = tasks.get_task_dict(["wbcatt_val"], manager, "simple")["wbcatt_val"]
    docs = list(task.test_docs())
    given = rows(prepared, "questions", "val")
    assert [task.doc_to_text(doc) for doc in docs] == [
        multiple_choice_prompt(r["question"], r["options"]) for r in given
    ]
    assert task.doc_to_visual(docs[0])[0].size == (16, 12)
    right = [task.doc_to_target(doc) for doc in docs]
    assert right == ["ABCDEF"[row["answer"]] for row in given]
    scores = [task.process_results(doc, [f"The correct answer is [{x}]."]) for doc, x in zip(docs, right, strict=True)]
    assert task.aggregation()["accuracy"]([score["accuracy"] for score in scores]) == 1.0


def test_llama_factory_folder(prepared):
    """Read as LLaMA-Factory's data/README documents: dataset_info.json names files, columns and roles."""
    out = export(prepared, ExportOptions("llama_factory", instruction="Describe."))
    info = json.loads((out / "dataset_info.json").read_text())
    assert list(info) == ["wbcatt_train", "wbcatt_val", "wbcatt_test"]
    for split in ("train", "val", "test"):
        entry = info[f"wbcatt_{split}"]
        assert entry["formatting"] == "sharegpt"
        samples = json.loads((out / entry["file_name"]).read_text())
        for given, sample in zip(rows(prepared, "reports", split), samples, strict=True):
            said = [
                (turn[entry["tags"]["role_tag"]], turn[entry["tags"]["content_tag"]]) for turn in sample["messages"]
            ]
            assert said == [("user", "<image>Describe."), ("assistant", given["report"])]
            assert (out / sample["images"][0]).read_bytes() == stored(prepared, given)


def test_ms_swift_lines(prepared):
    out = export(prepared, ExportOptions("ms_swift"))
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [line["messages"][1]["content"] for line in lines] == [
        row["report"] for row in rows(prepared, "reports", "train")
    ]
    assert lines[0]["messages"][0]["content"] == "<image>Describe this medical scan."
    loaded = datasets.load_dataset("json", data_files=str(out / "train.jsonl"), cache_dir=str(out.parent / "cache"))
    assert loaded["train"].num_rows == 3
    assert lines[2]["images"][0] == str(out / "images" / "000002.jpg")
    assert (out / lines[2]["images"][0]).is_file()


def test_wrong_requests(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"export.format is 'tsv', expected one of: parquet, imagefolder, vlmevalkit"):
        export(prepared, ExportOptions("tsv"))
    with pytest.raises(DataError, match="is not a prepared folder"):
        export(tmp_path, ExportOptions("parquet"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UserError, match=r"export.output_dir: .* already holds files"):
        export(prepared, ExportOptions("parquet", str(tmp_path / "full")))


def test_datasets_without_questions(tmp_path):
    for n in range(10):
        save_picture(tmp_path / "in" / f"{n}.png", n).with_suffix(".txt").write_text("It is. So there.")
    build(image_text(tmp_path / "in"), tmp_path / "out")
    for name in ("vlmevalkit", "lmms_eval"):
        with pytest.raises(DataError, match="no multiple-choice questions to export"):
            export(tmp_path / "out", ExportOptions(name))
    out = export(tmp_path / "out", ExportOptions("parquet"))
    assert datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache")).num_rows == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }


def test_images_that_have_gone_since(tmp_path):
    build(wbcatt(wbcatt_tree(tmp_path / "in"), images="path"), tmp_path / "out")
    next((tmp_path / "in").rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        export(tmp_path / "out", ExportOptions("imagefolder"))
    assert leftovers(tmp_path / "out") == ["in"]


def test_vlmevalkit_itself(prepared, monkeypatch):
    """VLMEvalKit takes the table for a custom multiple-choice set, finds every image and forms the prompts."""
    pytest.importorskip("vlmeval", reason="VLMEvalKit is not installed")
    monkeypatch.setenv("LMUData", str(export(prepared, ExportOptions("vlmevalkit"))))
    loaded = importlib.import_module("vlmeval.dataset.image_mcq").CustomMCQDataset("wbcatt_val")
    given = rows(prepared, "questions", "val")
    assert len(loaded) == len(given)
    for place, row in enumerate(given):
        image, text = loaded.build_prompt(place)
        with Image.open(image["value"]) as opened:
            assert opened.size == (16, 12)
        lines = [f"{letter}. {option}" for letter, option in zip("ABCDEF", row["options"], strict=False)]
        assert "\n".join([row["question"], "Options:", *lines]) in text["value"]
        assert loaded.data.iloc[place]["answer"] == "ABCDEF"[row["answer"]]


def test_llama_factory_itself(prepared, tmp_path):
    """LLaMA-Factory finds the set in `dataset_info.json`, converts it and resolves the image paths."""
    pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed")
    out = str(export(prepared, ExportOptions("llama_factory")))
    arguments = importlib.import_module("llamafactory.hparams").DataArguments(dataset_dir=out, media_dir=out)
    found = importlib.import_module("llamafactory.data.parser").get_dataset_list(["wbcatt_train"], out)[0]
    model = SimpleNamespace(
        cache_dir=str(tmp_path), hf_hub_token=None, ms_hub_token=None, om_hub_token=None, trust_remote_code=False
    )
    training = SimpleNamespace(do_train=True, local_process_index=0, should_log=False, world_size=1)
    loader = importlib.import_module("llamafactory.data.loader")
    converted = loader._load_single_dataset(found, model, arguments, training)
    for row, given in zip(converted, rows(prepared, "reports", "train"), strict=True):
        assert row["_prompt"] == [{"role": "user", "content": "<image>Describe this medical scan."}]
        assert row["_response"] == [{"role": "assistant", "content": given["report"]}]
        assert Path(row["_images"][0]).read_bytes() == stored(prepared, given)


def test_ms_swift_itself(prepared, monkeypatch):
    """ms-swift reads a split's lines as a chat dataset."""
    pytest.importorskip("swift", reason="ms-swift is not installed")
    monkeypatch.chdir(export(prepared, ExportOptions("ms_swift")))
    loaded, _ = importlib.import_module("swift.dataset").load_dataset("train.jsonl", use_hf=True)
    for row, given in zip(loaded, rows(prepared, "reports", "train"), strict=True):
        assert row["messages"][-1]["content"] == given["report"]
        image = row["images"][0]
        assert Path(image["path"] if isinstance(image, dict) else image).read_bytes() == stored(prepared, given)
