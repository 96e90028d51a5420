"""Maps of where an answer came from in the picture, and tests of whether they say anything."""

from ift_components.saliency.mapper import CAUTION, AnswerMap, Mapper, relevance_map
from ift_components.saliency.methods import METHODS
from ift_components.saliency.overlay import overlay

__all__ = ["CAUTION", "METHODS", "AnswerMap", "Mapper", "overlay", "relevance_map"]
