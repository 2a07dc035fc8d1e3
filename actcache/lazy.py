"""Names of a package that are imported when they are first used.

Some public names need torch or matplotlib. If their package imported those at once, opening a store
and `actcache --help` would take seconds.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make a package's `__getattr__`, which imports a public name on first use (PEP 562).

    Args:
        package: the package's `__name__`.
        modules: for each module, the public names that it is the home of.

    Example:
        In `actcache/__init__.py`: `__getattr__ = attach(__name__, {"actcache.store": ["Store"]})`
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def getattr_of_package(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(homes[name]), name)
        vars(importlib.import_module(package))[name] = value  # not asked for here again
        return value

    return getattr_of_package
