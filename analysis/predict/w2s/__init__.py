"""W2S: predict from a prompt which layer to steer at."""

from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor, train_layer_predictors
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings

__all__ = ["ChosenSetting", "LayerPredictor", "W2SSettings", "train_layer_predictors"]
