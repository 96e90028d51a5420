"""Models: builders, the training forward, precision, sharding and checkpoints."""

from ift_components.models.tiny import tiny_llama3_2_vision, tiny_vision_transform

__all__ = ["tiny_llama3_2_vision", "tiny_vision_transform"]
