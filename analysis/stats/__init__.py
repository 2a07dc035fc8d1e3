"""Statistics over rows: moments, bootstrap, slopes, principal components."""

from actcache.analysis.stats.bootstrap import Interval, bootstrap_means
from actcache.analysis.stats.float16 import to_float32
from actcache.analysis.stats.moments import Moments, class_moments
from actcache.analysis.stats.slopes import FitQuality, fit_quality, slopes, split_grid

__all__ = [
    "FitQuality",
    "Interval",
    "Moments",
    "bootstrap_means",
    "class_moments",
    "fit_quality",
    "slopes",
    "split_grid",
    "to_float32",
]
