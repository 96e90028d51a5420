"""Reading a folder of papers: a table of figures and their pictures, everything left out counted by reason.

Each paper's result is written as it is read, so that an interrupted run goes on where it stopped and a paper that is added
later is the only one read. The folder appears under its name when it is complete.
"""

import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ift_components.errors import ConfigError, DataError, UserError
from ift_components.files import (
    atomic_path,
    complete_folder,
    locked,
    partial_folder,
    require_new_folder,
    sha256,
    write_json,
)
from ift_components.papers.article import Article, LeftOut
from ift_components.papers.jats import SUFFIXES as PICTURES
from ift_components.papers.jats import read_jats
from ift_components.papers.pdf import read_pdf
from ift_components.papers.quality import PictureFilter

COLUMNS = (
    "image", "text", "mentions", "article", "figure", "label", "licence", "source", "place", "width", "height", "sharpness",
)  # fmt: skip
_SUFFIXES = {".xml": "jats", ".nxml": "jats", ".pdf": "pdf"}


@dataclass(frozen=True)
class PaperOptions:
    """What decides the result, apart from the papers.

    Attributes:
        pictures: limits below which pictures are dropped.
        language: ISO 639-1 code of the papers, for splitting sentences.
    """

    pictures: PictureFilter
    language: str = "en"


def collect_papers(root: str | Path, output_dir: str | Path, options: PaperOptions, workers: int = 1) -> dict[str, Any]:
    """Write `figures.csv`, `images/` and `manifest.json` and return the manifest.

    `figures.csv` has a row for each figure: `image` (path in the folder), `text` (caption), `mentions` (the sentences that
    refer to it), `article` (figures of one article must stay in one split), `figure`, `label`, `licence`, `source` (the
    paper's file), `place` (page or picture file), `width`, `height` (pixels) and `sharpness` (variance of the Laplacian).

    Args:
        root: folder of papers, at any depth: `.xml`, `.nxml` (JATS, pictures beside or below the file) and `.pdf`.
        output_dir: the folder to write; absent, empty or the same papers' result.
        options: what decides the result.
        workers: processes that read papers; 1 reads them in this one.

    Raises:
        ConfigError: for values that cannot be.
        DataError: if there are no papers, or no figure is left.
        UserError: if the folder holds something else, or another process is writing it.
    """
    options.pictures.check()
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"root: '{root}' is not a folder; give the folder that holds the papers")
    folder = folder.resolve()
    out = Path(output_dir).expanduser().absolute()
    sources, dropped = _sources(folder)
    if not sources:
        raise DataError(f"root: {folder} holds no papers ({', '.join(_SUFFIXES)})")
    identity = _identity(folder, sources, options)
    with locked(out, f"output_dir: another process is writing {out}; wait for it"):
        if (out / "manifest.json").is_file():
            manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
            if manifest.get("fingerprint") == identity["fingerprint"]:
                print(f"{out}: unchanged, nothing to do")
                return manifest
        require_new_folder(out)
        if partial_folder(out).is_dir():
            print(f"going on in {partial_folder(out)}")
        # Whatever stops the run, the papers read until then stay; only a finished folder loses its parts.
        with complete_folder(out, keep=(BaseException,)) as growing:
            parts = _read_all(folder, sources, growing, options, workers)
            manifest = identity | _assemble(parts, growing, dropped)
            write_json(growing / "manifest.json", manifest)
            shutil.rmtree(growing / "parts")
    return manifest


def _sources(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return the papers under a folder, sorted, and how many files are none of them, by reason.

    A package of PubMed Central holds an article as XML and as PDF; beside XML, a PDF is not read. Archives made on a Mac hold a
    `._NAME` beside every file NAME, which repeats its suffix and holds the file system's attributes: no paper.
    """
    dropped: Counter[str] = Counter()
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith("._") and path.is_file()
    ]
    with_xml = {path.parent for path in files if _SUFFIXES[path.suffix.lower()] == "jats"}
    sources = []
    for path in files:
        if not path.resolve().is_relative_to(root):
            dropped["link out of the folder"] += 1
        elif _SUFFIXES[path.suffix.lower()] == "pdf" and path.parent in with_xml and path.parent != root:
            dropped["PDF beside the same article's XML"] += 1
        else:
            sources.append(path)
    return sources, dropped


def _identity(root: Path, sources: list[Path], options: PaperOptions) -> dict[str, Any]:
    identity = {
        "kind": "papers",
        "package": {"name": "instruction-free-tuning", "version": version("instruction-free-tuning")},
        "options": asdict(options),
        "sources": {str(path.relative_to(root)): sha256(path) for path in sources},
        "pictures": _listing(root, root.rglob("*")),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return {**identity, "fingerprint": digest}


def _read_all(root: Path, sources: list[Path], growing: Path, options: PaperOptions, workers: int) -> list[Path]:
    """Read the papers whose part is not there yet; returns the parts in the order of the sources."""
    (growing / "parts").mkdir(exist_ok=True)
    parts = [growing / "parts" / f"{_key(path, root, options)}.json" for path in sources]
    work = [(path, part) for path, part in zip(sources, parts, strict=True) if not part.is_file()]
    read = partial(_read_paper, root, growing, options)
    with tqdm(total=len(sources), initial=len(sources) - len(work), desc="papers", unit="paper") as bar:
        for _ in _mapped(read, work, workers):
            bar.update()
    return parts


def _listing(root: Path, paths: Iterable[Path]) -> str:
    """Return a hash of the names and sizes of the pictures among some files."""
    pictures = sorted(path for path in paths if path.suffix.lower() in PICTURES and path.is_file())
    state = [(str(path.relative_to(root)), path.stat().st_size) for path in pictures]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _key(path: Path, root: Path, options: PaperOptions) -> str:
    stat = path.stat()
    beside = _listing(root, path.parent.iterdir())
    state = [str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns, beside, asdict(options)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]


def _mapped(read: Callable[[tuple[Path, Path]], None], work: list[tuple[Path, Path]], workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(read, work)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(read, work)
    except BrokenProcessPool as error:
        raise UserError(
            "a process died while it read a paper (a damaged PDF, or memory); what was read is kept. With workers=1 the "
            "progress bar stops at the paper; take it out of the folder and run the same command again"
        ) from error


def _read_paper(root: Path, growing: Path, options: PaperOptions, job: tuple[Path, Path]) -> None:
    """Read one paper and write its part: rows of the table, and what was left out; its pictures go to `images/`."""
    path, part = job
    name = str(path.relative_to(root))
    result: dict[str, Any] = {"source": name, "articles": [], "refused": None}
    try:
        if _SUFFIXES[path.suffix.lower()] == "jats":
            articles = list(read_jats(path, root, options.language))
        else:
            articles = [read_pdf(path, root, options.language)]
        result["articles"] = [_write_article(article, name, growing, options) for article in articles]
    except LeftOut as reason:
        result["refused"] = str(reason)
    write_json(part, result)


def _write_article(article: Article, source: str, growing: Path, options: PaperOptions) -> dict[str, Any]:
    digest = hashlib.sha256(f"{source}\n{article.id}".encode()).hexdigest()[:8]
    folder = growing / "images" / f"{_safe(article.id)}-{digest}"
    rows = []
    for number, figure in enumerate(article.figures):
        reason, sharpness, (width, height) = options.pictures.reason(figure.content)
        if reason:
            article.dropped[reason] += 1
            continue
        suffix = ".jpg" if figure.content[:2] == b"\xff\xd8" else ".png"
        path = folder / f"{number + 1:02}-{_safe(figure.name)}{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(figure.content)
        rows.append(
            {
                "image": str(path.relative_to(growing)),
                "text": figure.caption,
                "mentions": " ".join(figure.mentions),
                "article": article.id,
                "figure": figure.name,
                "label": figure.label,
                "licence": article.licence,
                "source": source,
                "place": figure.place,
                "width": width,
                "height": height,
                "sharpness": round(sharpness, 1),
                "sha256": hashlib.sha256(figure.content).hexdigest(),
            }
        )
    return {"id": article.id, "rows": rows, "dropped": dict(+article.dropped)}


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name, flags=re.ASCII)[:60].strip("_") or "figure"


def _assemble(parts: list[Path], growing: Path, dropped_files: Counter[str]) -> dict[str, Any]:
    """Write `figures.csv` from the parts, remove pictures that are in no row, and return the counts for the manifest."""
    refused = Counter(dropped_files)
    dropped: Counter[str] = Counter()
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        result = json.loads(part.read_text(encoding="utf-8"))
        if result["refused"]:
            refused[result["refused"]] += 1
        for article in result["articles"]:
            if article["id"] in rows:
                refused["article that occurs a second time"] += 1
                continue
            rows[article["id"]] = article["rows"]
            dropped.update(article["dropped"])
    kept = list(_without_logos(rows, dropped))
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in (refused + dropped).most_common()) or "no figures"
        raise DataError(f"root: no figure is left of {len(parts)} paper(s): {reasons}")
    with atomic_path(growing / "figures.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
    images = {growing / row["image"] for row in kept}
    for path in [path for path in (growing / "images").rglob("*") if path.is_file() and path not in images]:
        path.unlink()
    for path in [path for path in (growing / "images").iterdir() if not any(path.iterdir())]:
        path.rmdir()
    counts = {
        "papers": len(parts),
        "articles": len(rows),
        "articles_with_figures": len({row["article"] for row in kept}),
        "figures": len(kept),
        "figures_with_mentions": sum(bool(row["mentions"]) for row in kept),
    }
    return {"counts": counts, "refused": dict(refused.most_common()), "dropped": dict(dropped.most_common())}


def _without_logos(rows: dict[str, list[dict[str, Any]]], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows without pictures that several articles, or several figures of one, share to the byte."""
    times = Counter(row["sha256"] for article in rows.values() for row in article)
    for article in rows.values():
        for row in article:
            if times[row["sha256"]] == 1:
                yield row
            else:
                dropped["logo (the same picture in several figures)"] += 1
