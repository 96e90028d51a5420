"""The data recipe through `tune run` and through its entry point."""

import sys
from pathlib import Path

import ift_data_recipe
import pytest

from ift_components.config import CONFIG_DIR, load_config
from ift_components.data.prepared import read_manifest

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
# The generated dataset folders lie with the tests of the data room.
import test_cbis_ddsm
import test_image_table
import test_image_text
import test_mimic_cxr
import test_skincon
from dirty import dirty_tree
from trees import save_csv, save_picture, wbcatt_tree
from trees_medical import cbis_jpeg_files, cbis_tables, mimic_tree
from trees_vqa import medpix2_tree, pmc_vqa_tree, roco_tree, slake_tree, vqa_rad_tree


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ift_data_recipe", *map(str, arguments)])
    ift_data_recipe.main()


def cbis(root):
    cbis_tables(root / "csv", test_cbis_ddsm.ROWS)
    cbis_jpeg_files(root)


def mimic(root):
    views = {"oblique": "LL", "lateral": "LATERAL"}
    mimic_tree(root, test_mimic_cxr.ENTRIES, {"poor": 0.1}, views, test_mimic_cxr.QUESTIONS)


@pytest.mark.parametrize(
    "case",
    [
        ("wbcatt", wbcatt_tree, [], [3, 2, 1, 0, 2, 1]),
        ("skincon", test_skincon.tree, [], [32, 4, 4, 0, 4, 4]),
        ("cbis", cbis, [], [11, 1, 3, 0, 3, 10]),
        ("mimic_cxr", mimic, [], [2, 1, 2, 0, 2, 8]),
        ("image_table", test_image_table.tree, ["builder.table=cells.csv"], [24, 3, 3, 0, 5, 6]),
        ("image_text", test_image_text.text_files, [], [8, 1, 1, 0, 0, 0]),
        ("pmc_vqa", pmc_vqa_tree, [], [2, 0, 1, 2, 0, 1]),
        ("roco", roco_tree, [], [3, 1, 1, 0, 0, 0]),
        ("medpix2", medpix2_tree, [], [3, 1, 0, 7, 2, 0]),
    ],
)
def test_every_shipped_config_runs_on_a_generated_tree(tmp_path, monkeypatch, case):
    name, tree, more, expected = case
    tree(tmp_path / "in")
    paths = [f"builder.root={tmp_path / 'in'}", f"output_dir={tmp_path / 'out'}"]
    run(monkeypatch, "--config", f"data_{name}.yaml", *paths, *more, "export.format=ms_swift")
    counts = read_manifest(tmp_path / "out")["counts"]
    counted = [*counts["reports"].values(), *counts["questions"].values()]
    assert counted == expected
    lines = (tmp_path / "out-ms_swift" / "train.jsonl").read_text().splitlines()
    assert len(lines) == expected[0]


@pytest.mark.parametrize(
    ("name", "tree", "expected"), [("vqa_rad", vqa_rad_tree, [4, 0, 2]), ("slake", slake_tree, [2, 1, 1])]
)
def test_configs_of_sets_without_reports(tmp_path, monkeypatch, name, tree, expected):
    tree(tmp_path / "in")
    run(
        monkeypatch,
        "--config",
        f"data_{name}.yaml",
        f"builder.root={tmp_path / 'in'}",
        f"output_dir={tmp_path / 'out'}",
    )
    assert list(read_manifest(tmp_path / "out")["counts"]["questions"].values()) == expected


def test_tune_run_from_another_folder(tune, tmp_path):
    wbcatt_tree(tmp_path / "in")
    given = ["builder.root=in", "output_dir=out"]
    done = tune("ift_data_recipe", "--config", "data_wbcatt.yaml", *given, cwd=tmp_path, real=True)
    assert "reports: train 3, val 2, test 1" in done.stdout
    assert read_manifest(tmp_path / "out")["counts"]["questions"] == {"train": 0, "val": 2, "test": 1}


EYES = '''from collections.abc import Iterator
from pathlib import Path

from ift_components.data.schema import Attribute, Schema
from ift_components.data.source import Problems, Record, Source, builder, find_image, require_files
from ift_components.data.tables import read_csv

SCHEMA = Schema((Attribute("redness", values=("none", "mild", "severe")),))


@builder
def eyes(root: str) -> Source:
    """Return the eyes dataset."""
    folder = Path(root)
    tables = require_files(folder, ["eyes.csv"])

    def records(problems: Problems) -> Iterator[Record]:
        for line, row in read_csv(tables[0], ("file", "person", "set", *SCHEMA.columns), problems):
            where = f"eyes.csv line {line}"
            values, faults = SCHEMA.read(row)
            for fault in faults:
                problems.add(where, fault)
            image = find_image(folder, row["file"], where, problems)
            if image and not faults:
                name, split = row["file"], row["set"]
                yield Record(id=name, split=split, image=image, where=where, values=values, group=row["person"])

    return Source(folder, SCHEMA, tables, records)
'''


def test_a_dataset_added_by_one_file(tune, tmp_path):
    """The README's worked example, in a folder of its own."""
    (tmp_path / "eyes.py").write_text(EYES)
    config = "builder:\n  _component_: eyes.eyes\n  root: ???\noutput_dir: ???\n"
    (tmp_path / "eyes.yaml").write_text(config)
    kinds = ("none", "mild", "severe")
    rows = [[f"{n}.png", f"p{n}", kinds[n % 3], ("train", "val", "test")[n // 3]] for n in range(9)]
    for n, row in enumerate(rows):
        save_picture(tmp_path / "in" / row[0], n)
    save_csv(tmp_path / "in" / "eyes.csv", ["file", "person", "redness", "set"], rows)
    tune("ift_data_recipe", "--config", "eyes.yaml", "builder.root=in", "output_dir=out", cwd=tmp_path)
    manifest = read_manifest(tmp_path / "out")
    assert manifest["counts"] == {
        "reports": {"train": 3, "val": 3, "test": 3},
        "questions": {"train": 0, "val": 3, "test": 3},
    }
    assert manifest["builder"]["name"] == "eyes"


def test_overrides_reach_builder_and_questions(tmp_path, monkeypatch):
    wbcatt_tree(tmp_path / "in")
    root, out = f"builder.root={tmp_path / 'in'}", f"output_dir={tmp_path / 'out'}"
    run(
        monkeypatch, "--config", "data_wbcatt", root, out, "questions.protocol=full", "builder.images=path", "workers=1"
    )
    manifest = read_manifest(tmp_path / "out")
    assert manifest["counts"]["questions"] == {"train": 0, "val": 22, "test": 10}
    assert manifest["builder"]["arguments"]["images"] == "path"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("builder.rot=x", "unexpected keyword argument 'rot'; did you mean 'root'?"),
        ("question.protocol=full", "unknown key 'question'; did you mean 'questions'?"),
        ("questions.protocoll=full", "protocoll"),
        ("questions.n_options=many", "questions.n_options"),
        ("questions.protocol=all", "questions.protocol is 'all', expected one of: paper, full"),
        ("builder.images=both", "builder.images is 'both'"),
        ("export.format=tsv", "export.format is 'tsv', expected one of: parquet"),
        ("builder.root=nowhere", "'nowhere' is not a folder"),
        ("builder._component_=ift_components.data.builders.wbcat", "cannot be imported"),
    ],
)
def test_mistakes_end_with_one_message(tmp_path, monkeypatch, capsys, override, message):
    wbcatt_tree(tmp_path / "in")
    with pytest.raises(SystemExit) as stop:
        run(
            monkeypatch,
            "--config",
            "data_wbcatt",
            f"builder.root={tmp_path / 'in'}",
            f"output_dir={tmp_path / 'out'}",
            override,
        )
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_every_data_config_names_its_command_and_declares_every_key(monkeypatch, capsys):
    names = sorted(path.name for path in CONFIG_DIR.glob("data_*.yaml"))
    assert {"data_wbcatt.yaml", "data_image_table.yaml"} <= set(names)
    for name in names:
        drawn = name in ("data_smears.yaml", "data_smear_questions.yaml")  # what is drawn has no folder to come from
        needs = "" if drawn else " builder.root=PATH"
        assert f"tune run ift_data_recipe --config {name}{needs}" in (CONFIG_DIR / name).read_text()
        if not needs:
            load_config(name, [], ift_data_recipe.DataSettings)
            continue
        with pytest.raises(SystemExit):
            run(monkeypatch, "--config", name)
        assert "give a value for builder.root" in capsys.readouterr().err.replace(", output_dir", "")


def test_an_interruption_ends_with_its_helpful_line(tmp_path, monkeypatch, capsys):
    root = wbcatt_tree(tmp_path / "in")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ift_components.data.build._merge_parts", interrupt)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--config", "data_wbcatt", f"builder.root={root}", f"output_dir={tmp_path / 'out'}")
    assert stop.value.code == 130
    error = capsys.readouterr().err
    last = f"interrupted; the same command continues where this one stopped ({tmp_path / '.out.partial'})"
    assert error.rstrip().splitlines()[-1] == last


@pytest.mark.slow
def test_from_a_spreadsheet_to_a_fine_tuned_model(tmp_path, tune):
    """The guide's tutorial on a workbook with the dirt of real ones: no command fails."""
    dirty_tree(tmp_path / "lesions", 120)

    def step(*arguments: str) -> None:
        tune(*arguments, cwd=tmp_path)

    table = (
        "ift_data_recipe",
        "--config",
        "data_image_table.yaml",
        "builder.root=lesions",
        "builder.table=lesions.xlsx",
    )
    step(*table, "output_dir=first")
    text = (tmp_path / "first" / "schema.yaml").read_text()
    (tmp_path / "schema.yaml").write_text(
        text.replace("- name: Dx\n", "- name: diagnosis\n  question: Which diagnosis is it?\n")
    )
    step(*table, "builder.schema=schema.yaml", "output_dir=prepared")
    step("ift_warmup_recipe", "--config", "tiny_warmup.yaml", "data=prepared", "output_dir=warm")
    proxy = "proxy.path=warm/proxy_instruction.safetensors"
    step("ift_recipe", "--config", "tiny_ift.yaml", "data=prepared", proxy, "output_dir=run")
    checkpoint = "checkpoint_dir=run/checkpoint"
    step("ift_eval_recipe", "--config", "tiny_eval.yaml", "data=prepared", checkpoint, "output_dir=scores")
    assert (tmp_path / "scores" / "results.json").is_file()
