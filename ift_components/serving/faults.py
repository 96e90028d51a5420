"""Faults of the server itself, in its log."""

import logging
import traceback
from pathlib import Path

_LOG = logging.getLogger(__name__)


def log_fault(error: Exception) -> str:
    """Log the kind and place of an error, not its message, which may hold what somebody asked; return what clients are told."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    _LOG.error("%s in %s, line %s", kind, Path(where.filename).name, where.lineno)
    return f"the server failed ({kind})"
