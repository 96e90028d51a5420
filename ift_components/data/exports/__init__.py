"""Prepared data in the formats that other tools read."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ift_components.data.exports.chat import export_llama_factory, export_ms_swift
from ift_components.data.exports.common import Job
from ift_components.data.exports.hub import export_imagefolder, export_parquet
from ift_components.data.exports.lmms_eval import export_lmms_eval
from ift_components.data.exports.vlmevalkit import export_vlmevalkit
from ift_components.data.prepared import read_manifest
from ift_components.errors import ConfigError, DataError
from ift_components.files import complete_folder, partial_folder, require_new_folder

FORMATS: dict[str, Callable[[Job], None]] = {
    "parquet": export_parquet,
    "imagefolder": export_imagefolder,
    "vlmevalkit": export_vlmevalkit,
    "lmms_eval": export_lmms_eval,
    "llama_factory": export_llama_factory,
    "ms_swift": export_ms_swift,
}


@dataclass
class ExportOptions:
    """Whether and how a prepared folder is exported.

    Attributes:
        format: parquet, imagefolder, vlmevalkit, lmms_eval, llama_factory or ms_swift; null exports nothing.
        output_dir: the folder to write; by default the prepared folder's name with `-FORMAT` behind it.
        instruction: the user's turn before a report in the chat formats.
    """

    format: str | None = None
    output_dir: str | None = None
    instruction: str = "Describe this medical scan."

    def check(self) -> None:
        """Check the format.

        Raises:
            ConfigError: if it is not one of those there are.
        """
        if self.format is not None and self.format not in FORMATS:
            raise ConfigError(f"export.format is '{self.format}', expected one of: {', '.join(FORMATS)}")


def export(folder: str | Path, options: ExportOptions) -> Path:
    """Write a prepared folder in another format; the folder written is complete or absent.

    Args:
        folder: the prepared folder.
        options: the format, which must be set, and where to write.

    Returns:
        The folder written.

    Raises:
        ConfigError: if the format is unknown.
        DataError: if the folder is not a prepared one or its content does not fit the format, or it cannot be written.
    """
    options.check()
    if options.format is None:
        raise ConfigError(f"export.format is not set; expected one of: {', '.join(FORMATS)}")
    folder = Path(folder).expanduser().absolute()
    manifest = read_manifest(folder)
    default = folder.with_name(f"{folder.name}-{options.format}")
    out = require_new_folder(Path(options.output_dir or default).expanduser().absolute(), "export.output_dir")
    shutil.rmtree(partial_folder(out), ignore_errors=True)
    try:
        with complete_folder(out) as temporary:
            FORMATS[options.format](Job(folder, manifest, temporary, out, options.instruction))
    except OSError as error:
        raise DataError(f"export.output_dir: {out} cannot be written: {error.strerror}") from error
    return out
