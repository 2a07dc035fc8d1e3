"""From cached residuals to answers: arrays in, frozen results out."""

if __name__ != "actcache.analysis":
    raise ImportError("import actcache.analysis: bare `analysis` would load a second copy of it")

from actcache.analysis.directions import cosine, difference_of_means, random_directions, unit
from actcache.analysis.fits import FitQuality, crossfit_halves, fit_quality, slopes
from actcache.analysis.halves import float32_of
from actcache.analysis.layer_choice import CrossFit, LayerChoice
from actcache.analysis.layers import LayerScores, Projections, layer_scores, mean_cosine, project
from actcache.analysis.moments import Moments, class_moments
from actcache.analysis.plots import plot_grid, plot_layers, plot_steerability
from actcache.analysis.statistics import Estimate, bootstrap_means
from actcache.analysis.steerability import Comparison, Steerability, summarize
from actcache.analysis.vectors import Directions, label_directions, pair_directions

__all__ = [
    "Comparison",
    "CrossFit",
    "Directions",
    "Estimate",
    "FitQuality",
    "LayerChoice",
    "LayerScores",
    "Moments",
    "Projections",
    "Steerability",
    "bootstrap_means",
    "class_moments",
    "cosine",
    "crossfit_halves",
    "difference_of_means",
    "fit_quality",
    "float32_of",
    "label_directions",
    "layer_scores",
    "mean_cosine",
    "pair_directions",
    "plot_grid",
    "plot_layers",
    "plot_steerability",
    "project",
    "random_directions",
    "slopes",
    "summarize",
    "unit",
]
