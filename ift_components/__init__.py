"""Instruction-free tuning of medical vision-language models, as an extension of torchtune."""

import os
from importlib.metadata import version

# tiktoken keeps a copy of every tokenizer file under the hash of its path, also of local ones, and goes on reading it when
# the file has changed: a new model in the same place would silently get the old tokenizer.
os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")

__version__ = version("instruction-free-tuning")
