"""A running model, steered: what is done as data, hooks that do it, and a loop that writes text.

Names are imported on first use, since torch takes seconds; the steering objects need NumPy alone.
"""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache.steering.gates import PromptGate, TokenGate
    from actcache.steering.hooks import steer
    from actcache.steering.loop import check_generation, generate
    from actcache.steering.prompt_gates import decide_gates
    from actcache.steering.sampling import Continuation, Request
    from actcache.steering.scoring import TextScores, score_choices, score_texts
    from actcache.steering.source import Calibration, SteeringSource
    from actcache.steering.steering import AnySteering, Steering, SteeringSum

__all__ = [
    "AnySteering",
    "Calibration",
    "Continuation",
    "PromptGate",
    "Request",
    "Steering",
    "SteeringSource",
    "SteeringSum",
    "TextScores",
    "TokenGate",
    "check_generation",
    "decide_gates",
    "generate",
    "score_choices",
    "score_texts",
    "steer",
]

__getattr__ = attach(__name__, __file__)
