"""Prepare a dataset: reports, questions and a manifest in one folder.

tune run ift_data_recipe --config data_wbcatt.yaml builder.root=PATH output_dir=OUT
"""

import signal
import sys
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ift_components.config import entry_point, instantiate
from ift_components.data.build import BuildOptions, prepare
from ift_components.data.exports import ExportOptions, export
from ift_components.data.mcq import QuestionOptions
from ift_components.data.source import Source


@dataclass
class DataSettings:
    """The keys of a data config.

    Attributes:
        builder: the dataset builder and its arguments; `builder.root` is the dataset's folder.
        output_dir: the prepared folder to write.
        questions: how questions are made.
        report_phrase: how every attribute reads in a report, those too that reports would leave out; null: as the schema says.
        center_crop: keep a square of this many pixels in the middle of every image; null keeps all.
        max_side: reduce larger images to this many pixels on the longer side; null keeps them.
        near_duplicates: also look for images that look alike across splits.
        workers: threads that open images; null takes one a processor.
        export: write the prepared data in another tool's format as well.
    """

    builder: dict[str, Any] = MISSING
    output_dir: str = MISSING
    questions: QuestionOptions = field(default_factory=QuestionOptions)
    report_phrase: str | None = None
    center_crop: int | None = None
    max_side: int | None = None
    near_duplicates: bool = False
    workers: int | None = None
    export: ExportOptions = field(default_factory=ExportOptions)


@entry_point(DataSettings)
def main(cfg: DataSettings) -> None:
    """Prepare a dataset: reports, questions and a manifest in one folder."""
    cfg.export.check()
    options = BuildOptions(cfg.center_crop, cfg.max_side, cfg.near_duplicates, cfg.workers)
    options.check()
    source: Source = instantiate(cfg.builder, "builder")
    if cfg.report_phrase is not None:
        source = source.with_phrase(cfg.report_phrase)
    try:
        manifest = prepare(source, cfg.output_dir, cfg.questions, options)
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'interrupted before anything was written'}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    for kind, counts in manifest["counts"].items():
        print(f"{kind}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    if cfg.export.format:
        print(f"exported to {export(cfg.output_dir, cfg.export)}")


if __name__ == "__main__":
    main()
