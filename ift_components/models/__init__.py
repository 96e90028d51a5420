"""Models: builders, the training forward, precision, sharding and checkpoints."""

import os

from ift_components.models.tiny import tiny_llama3_2_vision, tiny_vision_transform

# tiktoken keeps a copy of every tokenizer file under the hash of its path, also of local ones, and goes on reading it when
# the file has changed: a new model in the same place would silently get the old tokenizer.
os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")

__all__ = ["tiny_llama3_2_vision", "tiny_vision_transform"]
