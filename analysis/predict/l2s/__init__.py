"""L2S: predict from a prompt the vector to steer with."""

from actcache.analysis.predict.l2s.settings import L2SSettings, default_context_layers
from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor, train_vector_predictor

__all__ = ["L2SSettings", "VectorPredictor", "default_context_layers", "train_vector_predictor"]
