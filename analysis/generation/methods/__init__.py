"""Methods by name, each as steerings at any strength: from a results folder and its store."""

from actcache.analysis.generation.methods.behavior import MethodSettings
from actcache.analysis.generation.methods.candidate import Candidate
from actcache.analysis.generation.methods.registry import candidates

__all__ = ["Candidate", "MethodSettings", "candidates"]
