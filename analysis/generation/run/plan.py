"""The plan of a run: rows × configurations, checked before any weights are loaded."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.analysis.files import plain
from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.methods import Candidate, candidates, steering_candidates
from actcache.analysis.generation.run.rows import (
    PromptRow,
    data_rows,
    digest_of_rows,
    prompt_rows,
    require_fit,
    store_rows,
)
from actcache.analysis.generation.run.sources import (
    ModelSource,
    open_steering,
    steering_source,
    store_source,
)
from actcache.analysis.generation.texts import UNSTEERED, UNSTEERED_AGAIN, Configuration
from actcache.analysis.results import Results, open_results
from actcache.errors import ActcacheError, MismatchError, StoreNotFoundError
from actcache.prompts.render import Rendering
from actcache.store.store import Store, open_store

if TYPE_CHECKING:
    from actcache.steering.steering import AnySteering
