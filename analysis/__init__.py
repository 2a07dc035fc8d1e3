"""From cached residuals to answers: arrays in, frozen results out."""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if __name__ != "actcache.analysis":
    raise ImportError("import actcache.analysis: bare `analysis` would load a second copy of it")

if TYPE_CHECKING:
    from actcache.analysis.directions.difference_of_means import (
        cosine,
        difference_of_means,
        random_directions,
        unit,
    )
    from actcache.analysis.directions.discriminative import (
        LayerScores,
        Projections,
        layer_scores,
        mean_cosine,
        project,
    )
    from actcache.analysis.directions.letter import letter_directions, letter_share, without_letter
    from actcache.analysis.directions.of_store import Directions, label_directions, pair_directions
    from actcache.analysis.directions.token_choice import TokenChoice, choose_tokens, soft_labels
    from actcache.analysis.predict.embedding_space import (
        Projection,
        Silhouette,
        project_to_plane,
        silhouette_by_behavior,
    )
    from actcache.analysis.predict.l2s.vector_predictor import (
        L2SSettings,
        VectorPredictor,
        default_context_layers,
        train_vector_predictor,
    )
    from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor
    from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
    from actcache.analysis.predict.w2s.train_layers import train_layer_predictors
    from actcache.analysis.report.plots import plot_grid, plot_layers, plot_steerability
    from actcache.analysis.stats.bootstrap import Interval, bootstrap_means
    from actcache.analysis.stats.float16 import to_float32
    from actcache.analysis.stats.moments import Moments, class_moments
    from actcache.analysis.stats.slopes import FitQuality, fit_quality, slopes, split_grid
    from actcache.analysis.sweep.steerability import Comparison, Steerability, summarize
    from actcache.analysis.sweep.strategies import CrossFit, LayerChoice

__all__ = [
    "ChosenSetting",
    "Comparison",
    "CrossFit",
    "Directions",
    "FitQuality",
    "Interval",
    "L2SSettings",
    "LayerChoice",
    "LayerPredictor",
    "LayerScores",
    "Moments",
    "Projection",
    "Projections",
    "Silhouette",
    "Steerability",
    "TokenChoice",
    "VectorPredictor",
    "W2SSettings",
    "bootstrap_means",
    "choose_tokens",
    "class_moments",
    "cosine",
    "default_context_layers",
    "difference_of_means",
    "fit_quality",
    "label_directions",
    "layer_scores",
    "letter_directions",
    "letter_share",
    "mean_cosine",
    "pair_directions",
    "plot_grid",
    "plot_layers",
    "plot_steerability",
    "project",
    "project_to_plane",
    "random_directions",
    "silhouette_by_behavior",
    "slopes",
    "soft_labels",
    "split_grid",
    "summarize",
    "to_float32",
    "train_layer_predictors",
    "train_vector_predictor",
    "unit",
    "without_letter",
]

__getattr__ = attach(
    __name__,
    {
        "actcache.analysis.directions.difference_of_means": [
            "cosine",
            "difference_of_means",
            "random_directions",
            "unit",
        ],
        "actcache.analysis.directions.discriminative": [
            "LayerScores",
            "Projections",
            "layer_scores",
            "mean_cosine",
            "project",
        ],
        "actcache.analysis.directions.letter": [
            "letter_directions",
            "letter_share",
            "without_letter",
        ],
        "actcache.analysis.directions.of_store": [
            "Directions",
            "label_directions",
            "pair_directions",
        ],
        "actcache.analysis.directions.token_choice": [
            "TokenChoice",
            "choose_tokens",
            "soft_labels",
        ],
        "actcache.analysis.predict.embedding_space": [
            "Projection",
            "Silhouette",
            "project_to_plane",
            "silhouette_by_behavior",
        ],
        "actcache.analysis.predict.l2s.vector_predictor": [
            "L2SSettings",
            "VectorPredictor",
            "default_context_layers",
            "train_vector_predictor",
        ],
        "actcache.analysis.predict.w2s.layer_predictor": ["LayerPredictor"],
        "actcache.analysis.predict.w2s.settings": ["ChosenSetting", "W2SSettings"],
        "actcache.analysis.predict.w2s.train_layers": ["train_layer_predictors"],
        "actcache.analysis.report.plots": ["plot_grid", "plot_layers", "plot_steerability"],
        "actcache.analysis.stats.bootstrap": ["Interval", "bootstrap_means"],
        "actcache.analysis.stats.float16": ["to_float32"],
        "actcache.analysis.stats.moments": ["Moments", "class_moments"],
        "actcache.analysis.stats.slopes": ["FitQuality", "fit_quality", "slopes", "split_grid"],
        "actcache.analysis.sweep.steerability": ["Comparison", "Steerability", "summarize"],
        "actcache.analysis.sweep.strategies": ["CrossFit", "LayerChoice"],
    },
)
