"""Dataset builders, one file each; a config names one by `_component_: ift_components.data.builders.NAME`."""

from ift_components.data.builders.cbis_ddsm import cbis_ddsm
from ift_components.data.builders.image_table import image_table
from ift_components.data.builders.image_text import image_text
from ift_components.data.builders.mimic_cxr import mimic_cxr
from ift_components.data.builders.skincon import skincon
from ift_components.data.builders.wbcatt import wbcatt

__all__ = ["cbis_ddsm", "image_table", "image_text", "mimic_cxr", "skincon", "wbcatt"]
