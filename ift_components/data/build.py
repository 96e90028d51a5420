"""Preparing a dataset: from a builder's records to the prepared folder.

Two passes over the records: the first reads tables alone and collects every bad row, so that a mistake in a table shows
at once; the second opens the images. The folder grows under a hidden name beside the final one and is renamed when it
is complete. What has been prepared outlives whatever stops a build.
"""

import functools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ift_components.data.checks import run_checks
from ift_components.data.decode import Preparation, open_image
from ift_components.data.identity import (
    FILES,
    build_identity,
    changes,
    data_files,
    fingerprint,
    refuse,
    shards_fingerprint,
    stored_manifest,
)
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
    write_part,
)
from ift_components.data.prepared import SPLITS
from ift_components.data.preview import preview_page
from ift_components.data.problems import Problems
from ift_components.data.reports import whole_phrases
from ift_components.data.schema_file import schema_yaml
from ift_components.data.source import Source
from ift_components.data.survey import Survey, checked_records, survey_records
from ift_components.errors import ConfigError, DataError
from ift_components.files import (
    complete_folder,
    locked,
    owner_only,
    partial_folder,
    require_new_folder,
    write_json,
    write_text,
)


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

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: naming the key and what it may be.
        """
        for key in ("center_crop", "max_side", "workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key} is {value}, expected a whole number from 1, or null")


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
    options.check()
    content_options = {key: value for key, value in asdict(options).items() if key != "workers"}
    identity = build_identity(source, questions, content_options)
    stored = stored_manifest(out)
    reasons = [] if stored is None else list(changes(out, stored, identity))
    if reasons:
        raise refuse(out, reasons)
    if stored is not None and _nothing_came_since(source, questions, stored):
        print(f"{out}: unchanged, nothing to do")
        return stored
    if stored is not None:
        raise refuse(out, ["images or rows that were left out are there now"])
    require_new_folder(out)
    for note in source.notes:
        print(f"note: {note}")
    survey = survey_records(source, questions)
    busy = f"output_dir: another process is preparing {out}; wait for it"
    partial = partial_folder(out)
    hint = f"the same command continues where this one stopped ({partial})"
    try:
        with locked(out, busy):
            _begin(partial, shards_fingerprint(identity, survey.pools), private=source.private)
            # What is finished outlives an interruption, a bad image and a full disk: for some datasets it took hours.
            with complete_folder(out, keep=(Exception, KeyboardInterrupt)):
                manifest = _build(source, survey, questions, options, identity=identity, partial=partial)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; {hint}") from error
    except DataError as error:
        raise DataError(f"{error}\nthe images that are prepared already are kept; {hint}") from error
    except OSError as error:
        raise DataError(f"output_dir: {out} cannot be written: {error.strerror}; {hint}") from error
    _print_outcome(manifest)
    return manifest


def _nothing_came_since(source: Source, questions: QuestionOptions, manifest: dict[str, Any]) -> bool:
    """Tell whether what a build left out, such as rows without an image, would be left out again."""
    if not manifest["skipped"]["count"] and not manifest["left_out"]:
        return True
    return survey_records(source, questions).outcome() == manifest["surveyed"]


def _begin(partial: Path, shards: str, *, private: bool) -> None:
    """Make the folder in which a build grows, without the shards of a build of other sources or arguments."""
    state = partial / "fingerprint"
    if partial.exists() and not (state.is_file() and state.read_text() == shards):
        shutil.rmtree(partial)
    (partial / "parts").mkdir(parents=True, exist_ok=True)
    if private:
        partial.chmod(0o700)
    state.write_text(shards)


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
    parts, problems = _write_parts(source, survey, options, questions, partial / "parts")
    counts = _merge_parts(parts, partial)
    _require_usable(source, counts, partial, problems)
    checks = run_checks(source, partial, partial / FILES, counts, problems, near=options.near_duplicates)
    manifest = {
        **identity,
        "fingerprint": fingerprint(identity),
        "private": source.private,
        "has_reports": source.has_reports,
        "counts": counts,
        "surveyed": survey.outcome(),
        "skipped": {"count": problems.count, "kinds": problems.by_kind(), "first": problems.first},
        "left_out": dict(problems.left_out),
        "notes": list(source.notes),
        "checks": asdict(checks),
    }
    write_text(partial / "schema.yaml", schema_yaml(source.schema, source.notes))
    write_text(partial / "preview.html", preview_page(partial, manifest))
    shutil.rmtree(partial / "parts")
    (partial / "fingerprint").unlink()
    manifest["files"] = data_files(partial)
    write_json(partial / "manifest.json", manifest)
    if source.private:
        owner_only(partial)
    return manifest


def _print_outcome(manifest: dict[str, Any]) -> None:
    """Print what a user should know about a build: what was left out, and the warnings of the checks."""
    for reason, count in manifest["left_out"].items():
        print(f"left out: {count} ({reason})")
    skipped = manifest["skipped"]
    if skipped["count"]:
        kinds = "\n".join(f"  {count} x {kind}" for kind, count in skipped["kinds"].items())
        examples = "\n".join(f"    {example}" for example in skipped["first"])
        print(f"skipped: {skipped['count']} bad row(s)\n{kinds}\n  such as\n{examples}")
    for warning in manifest["checks"]["warnings"]:
        print(f"warning: {warning}")


def _write_parts(
    source: Source, survey: Survey, options: BuildOptions, questions: QuestionOptions, folder: Path
) -> tuple[dict[str, list[Path]], Problems]:
    """Write the parts that are not there yet; returns those of each split, in order, and the bad table rows left out."""
    maker, problems = QuestionMaker(source.schema, questions, survey.pools), source.problems()
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
            sections = (*record.sections, *whole_phrases(source.schema, record))
            job = replace(record, sections=sections), report, maker.make(record, problems)
            waiting[record.split].append(job)
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
            problems.add(fact["where"], fact["problem"], "image cannot be used")
    if source.on_bad_row == "error":
        problems.raise_if_any(source.name, sum(counts["reports"].values()))
    for split in source.splits:
        if not counts["reports"][split]:
            lost = f"{problems.count} row(s) were left out\n{problems.summary()}"
            raise DataError(f"{source.name}: no usable image in split '{split}'; {lost}")
