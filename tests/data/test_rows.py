"""Prepared rows, read in place: against pyarrow's own reading, in workers, and without a copy elsewhere."""

import io
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from trees import LYMPHOCYTE, MONOCYTE, NEUTROPHIL, build, rows, wbcatt_tree

from ift_components.data import parts
from ift_components.data import rows as rows_module
from ift_components.data.builders import wbcatt
from ift_components.data.prepared import load_questions, load_reports
from ift_components.data.rows import Rows
from ift_components.errors import DataError

CELLS = {"train": [NEUTROPHIL, LYMPHOCYTE, MONOCYTE] * 7, "val": [LYMPHOCYTE], "test": [MONOCYTE]}


@pytest.fixture(params=["embed", "path"])
def prepared(request, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "READ_BYTES", 3000)  # several row groups
    build(wbcatt(wbcatt_tree(tmp_path / "in", CELLS), images=request.param), tmp_path / "out", protocol="full")
    return tmp_path / "out"


def pixels(image) -> bytes:
    with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as opened:
        return opened.tobytes()


@pytest.mark.parametrize(
    ("kind", "split", "load"), [("reports", "train", load_reports), ("questions", "val", load_questions)]
)
def test_every_cell_is_what_the_file_holds(prepared, monkeypatch, kind, split, load):
    monkeypatch.setattr(rows_module, "_REMEMBERED", 1)  # one row group at a time
    expected = rows(prepared, kind, split)
    assert parts.pq.ParquetFile(prepared / kind / f"{split}.parquet").num_row_groups > (kind == "reports")
    loaded = load(prepared, split)
    assert loaded.column_names == list(expected[0])
    order = [*range(len(expected) - 1, -1, -2), *range(0, len(expected), 2)]
    for place, row in zip(order, loaded.select(order), strict=True):
        assert row.pop("image").tobytes() == pixels(expected[place]["image"])
        assert row == {name: cell for name, cell in expected[place].items() if name != "image"}
    assert loaded["id"] == [row["id"] for row in expected]
    assert loaded[-1]["id"] == expected[-1]["id"]
    assert loaded[2:4].select_columns("id")["id"] == [row["id"] for row in expected[2:4]]
    assert list(loaded.remove_columns(["image", "id"])[0]) == [n for n in expected[0] if n not in ("image", "id")]
    with pytest.raises(KeyError, match="no column colour"):
        loaded.select_columns(["colour"])
    with pytest.raises(IndexError):
        loaded[len(expected)]


class Pixels(Dataset):
    def __init__(self, loaded):
        self.rows = loaded
        self.rows[0]  # opened in the parent first

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]["image"].tobytes()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_the_same(prepared, start):
    loaded = Pixels(load_reports(prepared, "train"))
    expected = [pixels(row["image"]) for row in rows(prepared, "reports", "train")]
    loader = DataLoader(loaded, batch_size=None, num_workers=2, multiprocessing_context=start)
    assert list(loader) == expected
    assert len(pickle.dumps(loaded.rows)) < 3000  # no image and no report travels


LAYOUTS = {
    # How the file is written, and whether images can be read where they lie.
    "ours": (None, True),
    "no dictionary": ({"use_dictionary": False, "compression": "none"}, True),
    "many pages": ({"use_dictionary": False, "compression": "none", "data_page_size": 1, "write_batch_size": 1}, True),
    "pages of version 2": ({"data_page_version": "2.0", "compression": "none"}, True),
    "dictionary given up": ({"dictionary_pagesize_limit": 900, "write_batch_size": 2, "compression": "none"}, True),
    "compressed": ({"compression": "zstd"}, False),
    "lengths apart": (
        {
            "use_dictionary": False,
            "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"},
            "compression": "none",
        },
        False,
    ),
}


@pytest.mark.parametrize(("arguments", "in_place"), LAYOUTS.values(), ids=LAYOUTS)
def test_images_are_read_where_they_lie_or_by_pyarrow(tmp_path, monkeypatch, arguments, in_place):
    """Repeated images, an empty one, one that begins another, rows without bytes; each row twice, in random order."""
    monkeypatch.setattr(rows_module, "_REMEMBERED", 1)
    draw = random.Random(0)
    contents = [draw.randbytes(draw.randint(1, 20)) * 20 for _ in range(40)] + [b"", b"\0" * 9]
    contents += [contents[3], contents[4], contents[5][:7], None, None, contents[3], contents[5]]
    images = [None if content is None else {"bytes": content, "path": f"{n}.png"} for n, content in enumerate(contents)]
    images[-1]["bytes"] = None  # named where it lies
    table = pa.table({"id": [str(n) for n in range(len(images))], "image": images})
    path = tmp_path / "train.parquet"
    if arguments is None:
        with parts.Writer(path, table.schema, rows=8) as writer:
            for row in table.to_pylist():
                writer.write(row)
    else:
        pq.write_table(table, path, row_group_size=8, **arguments)
    loaded = Rows(path)
    expected = [(image or {"bytes": None})["bytes"] for image in images]
    order = draw.sample(range(len(images)), len(images)) * 2
    assert [loaded._file.image(place)[0] for place in order] == [expected[place] for place in order]
    reads = []
    monkeypatch.setattr(rows_module._Reader, "_remembered", lambda *group: reads.append(group))
    if in_place:
        assert [loaded._file.image(place)[0] for place in order] == [expected[place] for place in order]
        assert not reads
    else:
        with pytest.raises(TypeError):  # row groups are read again
            loaded._file.image(order[0])


@pytest.mark.parametrize("compression", ["ours", "zstd"])
def test_threads_share_a_file(prepared, monkeypatch, compression):
    """Threads, the first of which opens the file, and of which each drops the row groups of the others."""
    monkeypatch.setattr(rows_module, "_REMEMBERED", 1)
    if compression != "ours":
        path = prepared / "reports" / "train.parquet"
        pq.write_table(pq.read_table(path), path, compression=compression, row_group_size=4)
    expected = [pixels(row["image"]) for row in rows(prepared, "reports", "train")]
    for _ in range(5):
        loaded = load_reports(prepared, "train")
        with ThreadPoolExecutor(8) as threads:
            read = list(
                threads.map(lambda index, rows=loaded: rows[index]["image"].tobytes(), [*range(len(loaded))] * 4)
            )
        assert read == expected * 4


def test_nothing_is_copied_into_a_cache(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = sorted(tmp_path.rglob("*"))
    for loaded in (load_reports(prepared, "train"), load_questions(prepared, "val")):
        assert [row["image"].size for row in loaded] == [(16, 12)] * len(loaded)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_and_damaged_images_are_named(prepared):
    loaded = load_reports(prepared, "train")
    assert loaded.missing_images() == []
    first = rows(prepared, "reports", "train")[0]
    if first["image"]["bytes"] is None:
        (prepared.parent / "in" / first["id"]).write_bytes(b"")
        with pytest.raises(DataError, match=rf"'{first['id']}': its image cannot be decoded"):
            loaded[0]
        (prepared.parent / "in" / first["id"]).unlink()
        assert loaded.missing_images() == [f"'{first['id']}' ({first['image']['path']} is missing)"]
    path = prepared / "reports" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"train.parquet is not a readable Parquet file; prepare the folder again"):
        load_reports(prepared, "train")
