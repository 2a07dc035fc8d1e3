"""Fit a direction in every layer: mean, PCA, ridge, logistic, LDA, RFM."""

from actcache.analysis.directions.fitting.methods import FittedDirections, fit_directions

__all__ = ["FittedDirections", "fit_directions"]
