"""Predictors off the cache: the layer for each input (W2S), the vector for each input (L2S)."""
