"""Dataset builders, one file each; a config names one by `_component_: ift_components.data.builders.NAME`."""

from ift_components.data.builders.image_table import image_table
from ift_components.data.builders.wbcatt import wbcatt

__all__ = ["image_table", "wbcatt"]
