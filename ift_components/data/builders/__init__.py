"""Dataset builders, one file each; a config names one by `_component_: ift_components.data.builders.NAME`."""

from ift_components.data.builders.cbis_ddsm import cbis_ddsm
from ift_components.data.builders.image_table import image_table
from ift_components.data.builders.image_text import image_text
from ift_components.data.builders.medpix2 import medpix2
from ift_components.data.builders.mimic_cxr import mimic_cxr
from ift_components.data.builders.pmc_vqa import pmc_vqa
from ift_components.data.builders.roco import roco
from ift_components.data.builders.skincon import skincon
from ift_components.data.builders.slake import slake
from ift_components.data.builders.vqa_rad import vqa_rad
from ift_components.data.builders.wbcatt import wbcatt

__all__ = [
    "cbis_ddsm",
    "image_table",
    "image_text",
    "medpix2",
    "mimic_cxr",
    "pmc_vqa",
    "roco",
    "skincon",
    "slake",
    "vqa_rad",
    "wbcatt",
]
