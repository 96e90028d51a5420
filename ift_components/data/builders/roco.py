"""ROCO: radiology images out of papers with their captions, first and second edition, in the published splits."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ift_components.data.problems import Problems
from ift_components.data.schema import Schema
from ift_components.data.sentences import split_sentences
from ift_components.data.source import (
    ImageStore,
    OnBadRow,
    Record,
    Source,
    builder,
    find_image,
    require_files,
)  # fmt: skip
from ift_components.data.tables import read_csv
from ift_components.errors import DataError

FIRST = {
    "train": "train/radiology/captions.txt",
    "val": "validation/radiology/captions.txt",
    "test": "test/radiology/captions.txt",
}
SECOND = {"train": "train_captions.csv", "val": "valid_captions.csv", "test": "test_captions.csv"}
# Lists that come with the editions and name each image's source; whatever else a line holds, it names the article.
LINKS = {**{split: f"{Path(table).parent}/dlinks.txt" for split, table in FIRST.items()}, "": "license_information.csv"}
_ARTICLE = re.compile(r"PMC\d+")


@builder
def roco(root: str, *, images: ImageStore = "path", on_bad_row: OnBadRow = "error") -> Source:
    """Return ROCO's images with their captions as reports; which edition it is, the folder tells.

    Every sentence of a caption is an entry `sentence` of the `attributes` column, for response shuffling. An image's group is
    its article's PMC number, where the lists of sources (`dlinks.txt` beside the first edition's captions,
    `license_information.csv` in the second's folder) are there and name it.

    Args:
        root: of the first edition, holds `{train,validation,test}/radiology/` with `captions.txt` (id, tab, caption) and
            `images/<id>.jpg`; of the second (ROCOv2), `{train,valid,test}_captions.csv` (`ID`, `Caption`) and the images in
            `{train,valid,test}/<ID>.jpg`.
        images: name the images where they lie, or hold them in the prepared files.
        on_bad_row: stop at bad rows, such as images that could not be downloaded, or leave them out.

    Raises:
        DataError: if a file is missing or is not as published.
    """
    folder = Path(root)
    second = (folder / SECOND["train"]).is_file()
    tables = SECOND if second else FIRST
    paths = require_files(folder, tables.values())
    links = tuple(folder / name for name in LINKS.values() if (folder / name).is_file())
    articles = _articles(links)

    def records(problems: Problems) -> Iterator[Record]:
        for split, path in zip(tables, paths, strict=True):
            pictures = folder / path.name.removesuffix("_captions.csv") if second else path.parent / "images"
            for number, name, caption in _second(path, problems) if second else _first(path, problems):
                where = f"{tables[split]} line {number}"
                image = find_image(pictures, f"{name}.jpg", where, problems)
                sentences = split_sentences(caption)
                if image:
                    sections = tuple(("sentence", text) for text in sentences)
                    yield Record(
                        id=name, split=split, image=image, where=where, group=articles.get(name),
                        report=" ".join(sentences), sections=sections,
                    )  # fmt: skip

    known = (
        f"the articles of {len(articles)} images are known"
        if articles
        else ("no dlinks.txt or license_information.csv names articles: whether one is in two splits cannot be told")
    )
    notes = (f"ROCO, {'second' if second else 'first'} edition; {known}",)
    return Source(folder, Schema(()), (*paths, *links), records, images, on_bad_row, notes=notes)


def _articles(links: Iterable[Path]) -> dict[str, str]:
    """Return the article of each image that the lists of sources name."""
    articles = {}
    for path in links:
        for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            name, article = re.split(r"[,\t]", line.strip(), maxsplit=1)[0].strip('" '), _ARTICLE.search(line)
            if article:
                articles[name] = article.group()
    return articles


def _first(path: Path, problems: Problems) -> Iterator[tuple[int, str, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                name, tab, caption = line.rstrip("\n").partition("\t")
                if tab:
                    yield number, name.strip(), caption
                elif line.strip():
                    problems.add(f"{path.name} line {number}", "has no tab between id and caption")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8") from error


def _second(path: Path, problems: Problems) -> Iterator[tuple[int, str, str]]:
    for number, row in read_csv(path, ("ID", "Caption"), problems):
        yield number, row["ID"], row["Caption"]
