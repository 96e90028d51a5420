"""Writing files and folders so that a reader never sees half of one, and a second writer waits or is refused."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ift_components.errors import UserError

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced and renamed to `path`, on error removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)  # safetensors makes its files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_dir() -> Path:
    """Return the folder for what can be made again: `$IFT_CACHE`, or a folder of our own in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("IFT_CACHE") or Path(base) / "instruction-free-tuning")


def partial_folder(path: Path) -> Path:
    """Return the hidden folder beside `path` in which it grows until it is complete."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def complete_folder(path: Path, *, keep: tuple[type[BaseException], ...] = ()) -> Iterator[Path]:
    """Give `partial_folder(path)` to write into; on success its files are synced and it is renamed to `path`.

    Args:
        path: the folder that appears when it is complete; it must not exist, or be empty.
        keep: errors after which what has been written is kept, for a later call to go on with; after any other it is removed.
    """
    partial = partial_folder(path)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except keep:
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file beside `path`, whatever lies there.

    Args:
        path: the file or folder that one process at a time may write.
        busy: message for another process that comes while it is held; None lets it wait.

    Raises:
        UserError: if the lock is held by another process and `busy` is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if busy is None else 0):
            yield
    except Timeout as error:
        raise UserError(busy or f"{path} is locked") from error


def owner_only(folder: Path) -> None:
    """Make a folder and all that is in it readable and writable by its owner alone."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that is always valid UTF-8: lone surrogates, which a tokenizer can give, are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, complete or not at all."""
    write_text(path, json_text(value, indent=2))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_new_folder(path: Path, key: str = "output_dir") -> Path:
    """Return `path` if it does not exist or is empty, so that no run ever writes over another.

    Args:
        path: the folder that is going to be written.
        key: the config key it came from, for the message.

    Raises:
        UserError: if something is there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{key}: {path} already holds files; give another folder, or remove it first")
    return path
