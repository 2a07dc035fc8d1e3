"""Builds: data files and a model's name in, a finished store out."""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache.build.config import BuildConfig
    from actcache.build.forecast import TimeEstimate, forecast_build
    from actcache.build.pipeline import build_store, plan_store
    from actcache.build.plan import BuildPlan, plan_build
    from actcache.build.run import run_build
    from actcache.build.workers import run_with_workers

__all__ = [
    "BuildConfig",
    "BuildPlan",
    "TimeEstimate",
    "build_store",
    "forecast_build",
    "plan_build",
    "plan_store",
    "run_build",
    "run_with_workers",
]

__getattr__ = attach(__name__, __file__)
