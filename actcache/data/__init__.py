"""Data files as samples: readers, formats, personas, splits. Text only, no tokens."""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache.data.formats import read_samples
    from actcache.data.personas import Persona, expand_variants, load_personas
    from actcache.data.samples import Sample
    from actcache.data.splits import assign_splits, count_leaks, n_leaked, plain_splits

__all__ = [
    "Persona",
    "Sample",
    "assign_splits",
    "count_leaks",
    "expand_variants",
    "load_personas",
    "n_leaked",
    "plain_splits",
    "read_samples",
]

__getattr__ = attach(__name__, __file__)
