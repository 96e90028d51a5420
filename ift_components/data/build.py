"""Preparing a dataset: from a builder's records to the prepared folder.

Two passes over the records: the first reads tables alone and collects every bad row, so that a mistake in a table shows
at once; the second opens the images. The folder grows under a hidden name beside the final one and is renamed when it
is complete.
"""

import functools
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ift_components.data.checks import run_checks
from ift_components.data.decode import Preparation, open_image
from ift_components.data.mcq import QuestionMaker, QuestionOptions
from ift_components.data.parts import (
    FILE_SCHEMA,
    PART_ROWS,
    Job,
    Writer,
    is_current,
    merge,
    merge_questions,
    part_rows,
    unchanged,
    write_part,
)
from ift_components.data.prepared import FORMAT_VERSION, SPLITS
from ift_components.data.preview import preview_page
from ift_components.data.schema_file import schema_yaml
from ift_components.data.source import Problems, Source
from ift_components.data.survey import Survey, checked_records, survey_records
from ift_components.errors import DataError
from ift_components.files import (
    complete_folder,
    locked,
    partial_folder,
    require_new_folder,
    sha256,
    write_json,
    write_text,
)

FILES = "files.parquet"
MANY = 20  # more source tables than these are listed as one


@dataclass(frozen=True)
class BuildOptions:
    """What is done to every image, and by how many threads.

    Attributes:
        center_crop: keep a square of this many pixels in the middle of every image, before anything else; None keeps all.
        max_side: reduce larger images to this many pixels on the longer side; None keeps them.
        near_duplicates: also look for images that look alike (difference hash), not only for identical files.
        workers: threads that open images; by default as many as there are processors.
    """

    center_crop: int | None = None
    max_side: int | None = None
    near_duplicates: bool = False
    workers: int | None = None


def prepare(
    source: Source, output_dir: str | Path, questions: QuestionOptions, options: BuildOptions
) -> dict[str, Any]:
    """Write the prepared folder and return its manifest.

    A folder that holds the same build of unchanged sources is left as it is. An interrupted build continues.

    Args:
        source: what a builder returned.
        output_dir: the folder to write; it must be absent, empty or the same build.
        questions: how questions are made.
        options: what is done to images.

    Raises:
        DataError: for bad rows (unless the source skips them), an empty split, or a full disk.
        UserError: if the folder holds something else.
    """
    out = Path(output_dir).expanduser().absolute()
    questions.check()
    identity = _identity(source, questions, options)
    if _is_same_build(out, identity):
        print(f"{out}: unchanged, nothing to do")
        return json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    require_new_folder(out)
    for note in source.notes:
        print(f"note: {note}")
    survey = survey_records(source, questions)
    busy = f"output_dir: another process is preparing {out}; wait for it"
    try:
        with locked(out, busy):
            _discard_other_build(out, identity)
            # What has been written survives an interruption, for the same command to go on with; a bad row removes it.
            with complete_folder(out, keep=(KeyboardInterrupt,)) as partial:
                manifest = _build(source, survey, questions, options, identity=identity, partial=partial)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command continues where this one stopped ({partial_folder(out)})")
        raise
    except OSError as error:
        raise DataError(f"output_dir: {out} cannot be written: {error.strerror}; nothing was left behind") from error
    _print_outcome(manifest)
    return manifest


def _build(
    source: Source,
    survey: Survey,
    questions: QuestionOptions,
    options: BuildOptions,
    *,
    identity: dict[str, Any],
    partial: Path,
) -> dict[str, Any]:
    """Fill the folder in which the build grows and return its manifest."""
    (partial / "parts").mkdir(exist_ok=True)
    (partial / "fingerprint").write_text(fingerprint(identity))
    parts, problems = _write_parts(source, survey, options, questions, partial / "parts")
    counts = _merge_parts(parts, partial)
    _require_usable(source, counts, partial, problems)
    checks = run_checks(source, partial, partial / FILES, near_duplicates=options.near_duplicates)
    manifest = {
        **identity,
        "fingerprint": fingerprint(identity),
        "private": source.private,
        "has_reports": source.has_reports,
        "counts": counts,
        "skipped": {"count": problems.count, "first": problems.first},
        "left_out": dict(problems.left_out),
        "notes": list(source.notes),
        "checks": asdict(checks),
    }
    write_text(partial / "schema.yaml", schema_yaml(source.schema))
    write_text(partial / "preview.html", preview_page(partial, manifest))
    write_json(partial / "manifest.json", manifest)
    shutil.rmtree(partial / "parts")
    (partial / "fingerprint").unlink()
    return manifest


def _discard_other_build(out: Path, identity: dict[str, Any]) -> None:
    """Remove what an interrupted build of other sources or arguments has written."""
    partial = partial_folder(out)
    state = partial / "fingerprint"
    if partial.exists() and not (state.is_file() and state.read_text() == fingerprint(identity)):
        shutil.rmtree(partial)


def _print_outcome(manifest: dict[str, Any]) -> None:
    """Print what a user should know about a build: what was left out, and the warnings of the checks."""
    for reason, count in manifest["left_out"].items():
        print(f"left out: {count} ({reason})")
    skipped = manifest["skipped"]
    if skipped["count"]:
        print(f"skipped: {skipped['count']} bad row(s), the first:\n  " + "\n  ".join(skipped["first"]))
    for warning in manifest["checks"]["warnings"]:
        print(f"warning: {warning}")


def _identity(source: Source, questions: QuestionOptions, options: BuildOptions) -> dict[str, Any]:
    """Return everything that decides a build's content, apart from the images."""
    return {
        "format": FORMAT_VERSION,
        "package": {"name": "instruction-free-tuning", "version": version("instruction-free-tuning")},
        "builder": {"name": source.name, "arguments": dict(source.arguments)},
        "questions": asdict(questions),
        "seed": questions.seed,
        "options": {key: value for key, value in asdict(options).items() if key != "workers"},
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


def fingerprint(identity: dict[str, Any]) -> str:
    """Return the SHA-256 of what decides a build's content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def _is_same_build(out: Path, identity: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        same = manifest["fingerprint"] == fingerprint(identity)
        return same and all(map(unchanged, part_rows(out / FILES, ["file", "size", "mtime_ns"])))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_parts(
    source: Source, survey: Survey, options: BuildOptions, questions: QuestionOptions, folder: Path
) -> tuple[dict[str, list[Path]], Problems]:
    """Write the parts that are not there yet; returns those of each split, in order, and the bad table rows left out."""
    maker, problems = QuestionMaker(source.schema, questions, survey.pools), Problems()
    preparation = Preparation(
        source.square, options.center_crop, options.max_side, options.near_duplicates, source.skip_masks
    )
    open_one = functools.partial(open_image, preparation=preparation)
    waiting: dict[str, list[Job]] = {split: [] for split in SPLITS}
    parts: dict[str, list[Path]] = {split: [] for split in SPLITS}
    workers = options.workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool, tqdm(total=survey.counts.total(), unit="img", desc=source.name) as bar:

        def flush(split: str) -> None:
            jobs = waiting[split]
            if not jobs:
                return
            path = folder / f"{split}-{len(parts[split]):06d}.parquet"
            if is_current(path, [record.id for record, _, _ in jobs]):
                bar.update(len(jobs))
            else:
                write_part(path, jobs, source.images, open_one, pool, done=bar.update)
            parts[split].append(path)
            waiting[split] = []

        for record, report in checked_records(source, problems):
            waiting[record.split].append((record, report, maker.make(record, problems)))
            if len(waiting[record.split]) == PART_ROWS:
                flush(record.split)
        for split in SPLITS:
            flush(split)
    return parts, problems


def _merge_parts(parts: dict[str, list[Path]], folder: Path) -> dict[str, dict[str, int]]:
    """Write the prepared folder's Parquet files; returns the number of reports and questions of each split."""
    counts: dict[str, dict[str, int]] = {"reports": {}, "questions": {}}
    for kind in counts:
        (folder / kind).mkdir(exist_ok=True)
    with Writer(folder / FILES, FILE_SCHEMA, rows=10_000) as files:
        for split in SPLITS:
            counts["reports"][split] = merge(parts[split], folder / "reports" / f"{split}.parquet", files)
            questions = folder / "questions" / f"{split}.parquet"
            counts["questions"][split] = merge_questions(parts[split], questions)
    return counts


def _require_usable(source: Source, counts: dict[str, dict[str, int]], folder: Path, problems: Problems) -> None:
    """Add the images that could not be used to the problems, and stop if that is an error or empties a split."""
    for fact in part_rows(folder / FILES, ["problem", "where"]):
        if fact["problem"] is not None:
            problems.add(fact["where"], fact["problem"])
    if source.on_bad_row == "error":
        problems.raise_if_any(source.name)
    for split in source.splits:
        if not counts["reports"][split]:
            raise DataError(f"{source.name}: no usable image in split '{split}'; {problems.count} row(s) were left out")
