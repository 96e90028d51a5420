"""What answers questions: this package's own engine, a Hugging Face model, or a server; named in a config by `_component_`."""

from ift_components.evaluation.predictors.base import Answer, Predictor, Sampling, Work
from ift_components.evaluation.predictors.huggingface import HuggingFacePredictor
from ift_components.evaluation.predictors.server import ServerPredictor

__all__ = ["Answer", "HuggingFacePredictor", "Predictor", "Sampling", "ServerPredictor", "Work"]
