"""What decides a build: to tell whether a prepared folder is still the same build, and what has changed if it is not."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ift_components.data.parts import part_rows, unchanged
from ift_components.data.prepared import FORMAT_VERSION
from ift_components.data.source import Source
from ift_components.errors import DataError
from ift_components.files import sha256

FILES = "files.parquet"
MANY = 20  # more source tables than these are listed as one


def build_identity(source: Source, questions: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a build's content, apart from the images.

    Args:
        source: the dataset.
        questions: the dataclass that says how questions are made.
        options: what is done to images.
    """
    return {
        "format": FORMAT_VERSION,
        "package": {"name": "instruction-free-tuning", "version": version("instruction-free-tuning")},
        "builder": {"name": source.name, "arguments": dict(source.arguments)},
        "questions": asdict(questions),
        "seed": questions.seed,
        "options": dict(options),
        "tables": _hashes(source),
        "schema": source.schema.to_dict(),
    }


def _hashes(source: Source) -> dict[str, str]:
    """Return the SHA-256 of each source table, or one over all where there are many (a text file an image)."""

    def name(path: Path) -> str:
        return str(path.relative_to(source.root) if path.is_relative_to(source.root) else path)

    hashes = {name(path): sha256(path) for path in source.tables}
    if len(hashes) <= MANY:
        return hashes
    return {f"{len(hashes)} files": hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}


def fingerprint(identity: Any) -> str:
    """Return the SHA-256 of what decides a build's content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def shards_fingerprint(identity: Mapping[str, Any], pools: Mapping[str, set[str]]) -> str:
    """Return the SHA-256 of what decides the finished shards of a build: whether bad rows are skipped does not."""
    builder = identity["builder"]
    arguments = {key: value for key, value in builder["arguments"].items() if key != "on_bad_row"}
    drawn_from = {name: sorted(pool) for name, pool in pools.items()}
    return fingerprint([{**identity, "builder": {**builder, "arguments": arguments}}, drawn_from])


def data_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every Parquet file of a prepared folder, by its path inside."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.parquet"))}


def changes(out: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> Iterator[str]:
    """Yield, in words, what differs between a prepared folder and the build that is asked for.

    Images that were missing when it was built and have come since are not seen here.

    Args:
        out: the prepared folder.
        manifest: its manifest.
        identity: what decides the build that is asked for.
    """
    for key in ("format", "package", "questions", "options", "schema"):
        if manifest.get(key) != json.loads(json.dumps(identity[key], default=str)):
            yield f"another {key}"
    for key, what in (("builder", "argument"), ("tables", "table")):
        before, now = (json.loads(json.dumps(side.get(key, {}), default=str)) for side in (manifest, identity))
        if key == "builder":
            if before.get("name") != now["name"]:
                yield f"another builder ({before.get('name')})"
            # A folder that was prepared before every builder had these arguments notes none, and is as their defaults make it.
            before, now = {"follow_links": False, "private": False} | before.get("arguments", {}), now["arguments"]
        names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if names:
            yield f"another {what} {', '.join(names)}"
    yield from _damage(out, manifest)


def _damage(out: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    sizes = manifest.get("files") or {}
    for name, size in sizes.items():
        path = out / name
        try:
            pq.ParquetFile(path).close()
            whole = path.stat().st_size == size
        except (OSError, pa.ArrowException):
            whole = False
        if not whole:
            yield f"{name} is damaged or missing"
    try:
        moved = sum(not unchanged(fact) for fact in part_rows(out / FILES, ["file", "size", "mtime_ns"]))
    except (OSError, pa.ArrowException):
        yield f"{FILES} is damaged or missing"
        return
    if moved:
        yield f"{moved} image files have changed or are gone"


def stored_manifest(out: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that a build has finished, of whatever format; None if it is no such folder."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "fingerprint" in manifest else None


def refuse(out: Path, reasons: list[str]) -> DataError:
    """Return the error for a folder that holds another build."""
    what = "; ".join(reasons)
    return DataError(
        f"output_dir: {out} already holds files, of another build: {what}; give another folder, or remove it first"
    )
