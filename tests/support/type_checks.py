"""Check the types of actcache's calls while tests run: shapes of arrays where arrays are named.

jaxtyping would wrap every function: binding the arguments and checking them twice took a third of
the tests' time. Only a function that has an array among its types needs that, since shapes must
agree within a call; beartype alone checks the others, with the same strictness.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from types import FunctionType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf

_jaxtyped = jaxtyping.jaxtyped
_ERRORS = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
"""The same error from both, a `TypeError`."""


def checked(call: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Decorate a function or a dataclass, as `jaxtyping.jaxtyped` does."""
    if call is None:
        return partial(checked, typechecker=typechecker)
    if is_dataclass(call) and isinstance(call, type):
        hints = [field.type for field in fields(call)]
        if not any(map(_needs_shapes, hints)) and isinstance(call.__init__, FunctionType):
            call.__init__ = checked(call.__init__, typechecker=typechecker)  # type: ignore[method-assign]
            return call
    elif isinstance(call, FunctionType):
        hints = list(call.__annotations__.values())
        if not any(map(_needs_shapes, hints)):
            checks_itself = "isinstance" in call.__code__.co_names
            return typechecker(_with_dimensions(call) if checks_itself else call, conf=_ERRORS)
    return _jaxtyped(call, typechecker=typechecker)


def _with_dimensions(call: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the names of dimensions that `isinstance(array, Float[Array, "rows"])` sets in a body."""

    @wraps(call)
    def scoped(*args: Any, **settings: Any) -> Any:
        with _jaxtyped("context"):
            return call(*args, **settings)

    return scoped


def _needs_shapes(hint: Any) -> bool:
    """Whether a type names arrays, or is a name that jaxtyping must look up."""
    if isinstance(hint, list):
        return any(map(_needs_shapes, hint))
    return (
        isinstance(hint, str)
        or hasattr(hint, "array_type")
        or hasattr(hint, "__forward_arg__")
        or any(map(_needs_shapes, get_args(hint)))
    )
