"""Tokens and a model to tensors: the forward pass over token trees, and the exact sweep.

Names are imported on first use, since torch and transformers take seconds.
"""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache.engine.batching import Budget, plan_batches, run_batches
    from actcache.engine.model import (
        LanguageModel,
        adopt_model,
        load_config,
        load_model,
        load_tokenizer,
    )
    from actcache.engine.reference import BridgeCapture, reference_capture, reference_cell
    from actcache.engine.self_check import check_capture
    from actcache.engine.steered_scores import SteeringRule, score_grid
    from actcache.engine.tree_capture import capture, tokens_run

__all__ = [
    "BridgeCapture",
    "Budget",
    "LanguageModel",
    "SteeringRule",
    "adopt_model",
    "capture",
    "check_capture",
    "load_config",
    "load_model",
    "load_tokenizer",
    "plan_batches",
    "reference_capture",
    "reference_cell",
    "run_batches",
    "score_grid",
    "tokens_run",
]

__getattr__ = attach(__name__, __file__)
