"""Prepared folders: complete or absent, never written over, continued after an interruption, read back by `datasets`."""

import json
import re
import resource
import shutil
import threading

import datasets
import pytest
from trees import LYMPHOCYTE, MONOCYTE, NEUTROPHIL, build, edit, leftovers, picture, rows, save_picture, wbcatt_tree

from ift_components.data import build as build_module
from ift_components.data import parts
from ift_components.data.builders import wbcatt
from ift_components.data.prepared import load_questions, load_reports, read_manifest
from ift_components.errors import DataError, UserError
from ift_components.files import locked

CELLS = {"train": [NEUTROPHIL, LYMPHOCYTE, MONOCYTE] * 4, "val": [LYMPHOCYTE] * 3, "test": [MONOCYTE] * 3}


@pytest.fixture
def source(tmp_path):
    return wbcatt_tree(tmp_path / "in", CELLS)


def listing(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def test_plain_datasets_reads_the_files(source, tmp_path):
    out = tmp_path / "out"
    build(wbcatt(source), out)
    files = {split: str(out / "reports" / f"{split}.parquet") for split in ("train", "val", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == {"train": 12, "val": 3, "test": 3}
    assert list(loaded["train"].features) == ["id", "image", "report", "attributes", "group"]
    assert loaded["train"][0]["image"].size == (16, 12)
    assert loaded["train"][0]["attributes"][0] == {"name": "cell size", "value": "big"}


def test_unchanged_sources_are_left_alone_and_changed_ones_refused(source, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = build(wbcatt(source), out)
    before = listing(out)
    assert build(wbcatt(source), out) == manifest
    assert "unchanged, nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="already holds files"):
        build(wbcatt(source), out, protocol="full")
    edit(source / "pbc_attr_v1_train.csv", lambda text: text.replace("big", "small"))
    with pytest.raises(UserError, match="already holds files"):
        build(wbcatt(source), out)
    assert listing(out) == before


def test_a_folder_of_before_an_argument_was_there_is_unchanged(source, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = build(wbcatt(source), out)
    arguments = manifest["builder"]["arguments"]
    del arguments["private"], arguments["follow_links"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    build(wbcatt(source), out)
    assert "unchanged, nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="another argument private"):
        build(wbcatt(source, private=True), out)


def test_a_changed_image_is_noticed(source, tmp_path):
    out = tmp_path / "out"
    build(wbcatt(source), out)
    save_picture(source / rows(out, "reports", "train")[0]["id"], 999, size=(5, 5))
    with pytest.raises(UserError, match="already holds files"):
        build(wbcatt(source), out)


def test_other_files_are_not_touched(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds files"):
        build(wbcatt(source), out)
    assert (out / "notes.txt").read_text() == "mine"
    assert leftovers(out) == ["in"]


def test_an_interrupted_build_continues(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "PART_ROWS", 4)
    out, opened, stop = tmp_path / "out", [], threading.Event()
    real = build_module.open_image

    def counting(path, **options):
        if len(opened) >= 9 and not stop.is_set():
            raise KeyboardInterrupt
        opened.append(path)
        return real(path, **options)

    monkeypatch.setattr(build_module, "open_image", counting)
    with pytest.raises(KeyboardInterrupt):
        build(wbcatt(source), out)
    assert not out.exists()
    assert sorted(p.name for p in (tmp_path / ".out.partial" / "parts").iterdir()) == [
        "train-000000.parquet",
        "train-000001.parquet",
    ]
    stop.set()
    opened.clear()
    build(wbcatt(source), out)
    assert len(opened) == 18 - 8
    build(wbcatt(source), tmp_path / "fresh")
    for kind, split in (("reports", "train"), ("questions", "val"), ("questions", "test")):
        assert rows(out, kind, split) == rows(tmp_path / "fresh", kind, split)
    assert leftovers(out) == ["fresh", "in"]


def test_an_interrupted_build_of_other_sources_is_not_continued(source, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_merge_parts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(wbcatt(source), out)
    edit(source / "pbc_attr_v1_train.csv", lambda text: text.replace("round,", "irregular,"))
    build(wbcatt(source), out)
    assert "round cell shape" not in rows(out, "reports", "train")[0]["report"]


def test_a_full_disk_keeps_what_is_finished(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "PART_ROWS", 4)
    monkeypatch.setattr(parts, "READ_BYTES", 10**9)
    for n, path in enumerate(sorted(source.rglob("*.jpg"))):
        picture(n, size=(200, 200)).save(path, quality=95)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be written: .*the same command continues where this one stopped"):
            build(wbcatt(source), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
    finished = sorted((tmp_path / ".out.partial" / "parts").iterdir())
    assert len(finished) == 5  # the shards fit, the merged file does not
    monkeypatch.setattr(build_module, "open_image", lambda *_, **__: pytest.fail("opened again"))
    assert sum(build(wbcatt(source), tmp_path / "out")["counts"]["reports"].values()) == 18
    assert leftovers(tmp_path / "out") == ["in"]


def test_a_folder_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        build(wbcatt(source), tmp_path / "file" / "out")


def test_two_builds_of_one_folder(source, tmp_path):
    out = tmp_path / "out"
    with locked(out), pytest.raises(UserError, match="another process is preparing"):
        build(wbcatt(source), out)


def test_bad_images_are_collected_over_all_splits(source, tmp_path, monkeypatch):
    paths = sorted(source.rglob("*.jpg"))
    paths[0].write_bytes(b"")
    paths[-1].write_bytes(paths[-1].read_bytes()[:300])
    with pytest.raises(DataError) as error:
        build(wbcatt(source), tmp_path / "out")
    assert "2 bad row(s)" in str(error.value)
    assert "is an empty file" in str(error.value)
    assert re.search(r"image '\w+.jpg' cannot be decoded", str(error.value))
    assert "the same command continues" in str(error.value)
    opened = []
    real = build_module.open_image
    monkeypatch.setattr(build_module, "open_image", lambda paths, **more: opened.append(paths) or real(paths, **more))
    manifest = build(wbcatt(source, on_bad_row="skip"), tmp_path / "out")
    assert opened == []  # nothing that was finished is done again
    assert leftovers(tmp_path / "out") == ["in"]
    assert sum(manifest["counts"]["reports"].values()) == 16
    assert manifest["skipped"]["count"] == 2
    for split in ("val", "test"):
        asked = rows(tmp_path / "out", "questions", split)
        assert {row["image_id"] for row in asked} == {row["id"] for row in rows(tmp_path / "out", "reports", split)}


@pytest.mark.parametrize("kind", ["climbing", "absolute", "link", "repeated", "none", "folder"])
def test_paths_that_may_not_be_read(source, tmp_path, kind):
    secret = save_picture(tmp_path / "secret.jpg", 77)
    table = source / "pbc_attr_v1_train.csv"
    lines = table.read_text().splitlines()
    old = lines[1].split(",")[-1]
    new = {"climbing": "../secret.jpg", "absolute": str(secret), "link": old, "repeated": lines[2].split(",")[-1]}
    if kind == "link":
        (source / old).unlink()
        (source / old).symlink_to(secret)
    edit(table, lambda text: text.replace(old, new.get(kind, "" if kind == "none" else "PBC_dataset_normal_DIB")))
    expected = {"repeated": "occurs a second time", "none": "has no image path", "folder": "is missing in"}
    with pytest.raises(DataError, match=expected.get(kind, "lies outside of")):
        build(wbcatt(source), tmp_path / "out")


def test_links_inside_the_root_are_fine(source, tmp_path):
    path = min(source.rglob("*.jpg"))
    shutil.move(path, source / "elsewhere.jpg")
    path.symlink_to(source / "elsewhere.jpg")
    assert build(wbcatt(source), tmp_path / "out")["counts"]["reports"]["train"] == 12


def test_row_groups_stay_small_and_repeated_images_are_stored_once(tmp_path):
    source = wbcatt_tree(tmp_path / "in", CELLS)
    for n, path in enumerate(sorted(source.rglob("*.jpg"))):
        picture(n, size=(100, 100)).save(path, quality=95)
    build(wbcatt(source), tmp_path / "out", protocol="full")
    asked = tmp_path / "out" / "questions" / "val.parquet"
    single = sum(len(row["image"]["bytes"]) for row in rows(tmp_path / "out", "reports", "val"))
    assert len(rows(tmp_path / "out", "questions", "val")) == 30
    assert asked.stat().st_size < 1.3 * single + 20_000
    with parts.Writer(tmp_path / "w.parquet", parts.FILE_SCHEMA, rows=3) as writer:
        for n in range(7):
            writer.write({"id": str(n)})
    assert parts.pq.ParquetFile(tmp_path / "w.parquet").num_row_groups == 3


def test_reading_errors_name_the_fix(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"is not a prepared folder .*ift_data_recipe"):
        read_manifest(tmp_path)
    build(wbcatt(source), out)
    with pytest.raises(DataError, match="reports split 'dev' does not exist; expected one of train, val, test"):
        load_reports(out, "dev")
    with pytest.raises(DataError, match=r"no questions in split 'train'; splits with questions: val \(3\), test \(3\)"):
        load_questions(out, "train")
    manifest = read_manifest(out)
    manifest["counts"]["reports"]["val"] = 0
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"no reports in split 'val'; splits with reports: train \(12\), test \(3\)"):
        load_reports(out, "val")
    (out / "reports" / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"train.parquet is missing"):
        load_reports(out, "train")
    (out / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_manifest(out)
    (out / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="has format 99, expected 1 or 2"):
        read_manifest(out)


def test_images_by_path_are_held_only_where_they_had_to_be_converted(source, tmp_path):
    odd = min((source / "PBC_dataset_normal_DIB" / "neutrophil").iterdir())
    picture(3).convert("CMYK").save(odd)
    build(wbcatt(source, images="path"), tmp_path / "out")
    images = {row["id"].rsplit("/", 1)[-1]: row["image"] for row in rows(tmp_path / "out", "reports", "train")}
    assert images[odd.name]["bytes"].startswith(b"\x89PNG")
    assert images[odd.name]["path"] == odd.name
    assert sum(image["bytes"] is None for image in images.values()) == 11
    converted = {fact["converted"] for fact in rows(tmp_path / "out", ".", "files")}
    assert converted == {None, "CMYK to RGB"}
