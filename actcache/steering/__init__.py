"""A running model, steered: what is done as data, hooks that do it, and a loop that writes text.

Names are imported on first use, since torch takes seconds; the steering objects need NumPy alone.
"""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache.steering.hooks import steer
    from actcache.steering.loop import check_generation, generate
    from actcache.steering.sampling import Continuation, Request
    from actcache.steering.steering import (
        AnySteering,
        PromptGate,
        Steering,
        SteeringSum,
        TokenGate,
    )

__all__ = [
    "AnySteering",
    "Continuation",
    "PromptGate",
    "Request",
    "Steering",
    "SteeringSum",
    "TokenGate",
    "check_generation",
    "generate",
    "steer",
]

__getattr__ = attach(__name__, __file__)
