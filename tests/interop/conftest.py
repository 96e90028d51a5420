"""Checkpoints as the stages write them: folders that other tools must be able to use as they are."""

import pytest
from interop import tune_miniature


@pytest.fixture(scope="session")
def full_checkpoint(prepared, world, tmp_path_factory):
    """A full checkpoint after two steps in Meta's layout."""
    return tune_miniature(prepared, tmp_path_factory.mktemp("full"), world, "max_steps=2", "batch_size=2")
