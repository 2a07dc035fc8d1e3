"""From cached residuals to answers: arrays in, frozen results out."""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if __name__ != "actcache.analysis":
    raise ImportError("import actcache.analysis: bare `analysis` would load a second copy of it")


if TYPE_CHECKING:
    from actcache.analysis.config import AnalyzeConfig
    from actcache.analysis.directions.difference_of_means import (
        Directions,
        cosine,
        difference_of_means,
        directions_of_moments,
        label_directions,
        pair_directions,
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
    from actcache.analysis.directions.fitting.methods import FittedDirections, fit_directions
    from actcache.analysis.directions.letter import letter_directions, letter_share, without_letter
    from actcache.analysis.directions.planes import Plane, SiteScores, find_plane, norm_sites
    from actcache.analysis.directions.token_choice import (
        TokenChoice,
        choose_tokens,
        soft_labels,
    )
    from actcache.analysis.generation.config import SteerConfig
    from actcache.analysis.generation.folder import Generations, open_generations
    from actcache.analysis.generation.run.stage import generate_steered
    from actcache.analysis.generation.summary import GenerationSummary
    from actcache.analysis.pipeline import analyze
    from actcache.analysis.predict.embedding_space import (
        Projection,
        Silhouette,
        project_to_plane,
        silhouette_by_behavior,
    )
    from actcache.analysis.predict.l2s.settings import L2SSettings, default_context_layers
    from actcache.analysis.predict.l2s.vector_predictor import (
        VectorPredictor,
        train_vector_predictor,
    )
    from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor, train_layer_predictors
    from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
    from actcache.analysis.report.findings import Finding, findings
    from actcache.analysis.report.layer_plots import plot_layers
    from actcache.analysis.report.plots import plot_grid, plot_steerability
    from actcache.analysis.report_files import write_report
    from actcache.analysis.results import Results, open_results
    from actcache.analysis.stats.bootstrap import Interval, bootstrap_means
    from actcache.analysis.stats.float16 import to_float32
    from actcache.analysis.stats.moments import Moments, class_moments
    from actcache.analysis.stats.slopes import FitQuality, fit_quality, slopes, split_grid
    from actcache.analysis.summary import Summary
    from actcache.analysis.sweep.open_sweep import Sweep, open_sweep
    from actcache.analysis.sweep.run import run_sweep
    from actcache.analysis.sweep.steerability import (
        BehaviorScores,
        Comparison,
        Steerability,
        steerability,
        summarize,
    )
    from actcache.analysis.sweep.strategies import SteerabilityScores, StrategyScore

__all__ = [
    "AnalyzeConfig",
    "BehaviorScores",
    "ChosenSetting",
    "Comparison",
    "Directions",
    "Finding",
    "FitQuality",
    "FittedDirections",
    "GenerationSummary",
    "Generations",
    "Interval",
    "L2SSettings",
    "LayerPredictor",
    "LayerScores",
    "Moments",
    "Plane",
    "Projection",
    "Projections",
    "Results",
    "Silhouette",
    "SiteScores",
    "SteerConfig",
    "Steerability",
    "SteerabilityScores",
    "StrategyScore",
    "Summary",
    "Sweep",
    "TokenChoice",
    "VectorPredictor",
    "W2SSettings",
    "analyze",
    "bootstrap_means",
    "choose_tokens",
    "class_moments",
    "cosine",
    "default_context_layers",
    "difference_of_means",
    "directions_of_moments",
    "find_plane",
    "findings",
    "fit_directions",
    "fit_quality",
    "generate_steered",
    "label_directions",
    "layer_scores",
    "letter_directions",
    "letter_share",
    "mean_cosine",
    "norm_sites",
    "open_generations",
    "open_results",
    "open_sweep",
    "pair_directions",
    "plot_grid",
    "plot_layers",
    "plot_steerability",
    "project",
    "project_to_plane",
    "random_directions",
    "run_sweep",
    "silhouette_by_behavior",
    "slopes",
    "soft_labels",
    "split_grid",
    "steerability",
    "summarize",
    "to_float32",
    "train_layer_predictors",
    "train_vector_predictor",
    "unit",
    "without_letter",
    "write_report",
]

__getattr__ = attach(__name__, __file__)
