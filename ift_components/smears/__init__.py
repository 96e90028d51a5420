"""A drawn world of white blood cells with WBCAtt's attributes, in a style to pretrain on and one to tune on.

Every attribute is visible in both styles, so a drawn image and its attribute row are as good as a labelled photograph.
"""

from ift_components.smears.render import contact_sheet, draw_cells
from ift_components.smears.sampler import sample_cells
from ift_components.smears.styles import STYLES

__all__ = ["STYLES", "contact_sheet", "draw_cells", "sample_cells"]
