"""Prepared data in the formats that other tools read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ift_components.data.exports.chat import export_llama_factory, export_ms_swift
from ift_components.data.exports.common import Job
from ift_components.data.exports.hub import export_imagefolder, export_parquet
from ift_components.data.exports.lmms_eval import export_lmms_eval
from ift_components.data.exports.vlmevalkit import export_vlmevalkit
from ift_components.data.prepared import read_manifest
from ift_components.errors import ConfigError, DataError
from ift_components.files import complete_folder, owner_only, partial_folder, require_new_folder

FORMATS: dict[str, Callable[[Job], None]] = {
    "parquet": export_parquet,
    "imagefolder": export_imagefolder,
    "vlmevalkit": export_vlmevalkit,
    "lmms_eval": export_lmms_eval,
    "llama_factory": export_llama_factory,
    "ms_swift": export_ms_swift,
}

_STAMP = ".export.json"  # what was exported: a rerun finds that nothing is left to do


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
    out = Path(options.output_dir or default).expanduser().absolute()
    stamp = json.dumps(
        {"of": str(folder), "fingerprint": manifest["fingerprint"], **asdict(options), "output_dir": str(out)}
    )
    if (out / _STAMP).is_file() and (out / _STAMP).read_text() == stamp:
        print(f"{out}: exported already, nothing to do")
        return out
    require_new_folder(out, "export.output_dir")
    partial, private = partial_folder(out), manifest.get("private", False)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if private:
            partial.mkdir(parents=True)
            partial.chmod(0o700)
        with complete_folder(out) as temporary:
            FORMATS[options.format](Job(folder, manifest, temporary, out, options.instruction))
            (temporary / _STAMP).write_text(stamp)
            if private:
                owner_only(temporary)
    except OSError as error:
        raise DataError(f"export.output_dir: {out} cannot be written: {error.strerror}") from error
    return out
