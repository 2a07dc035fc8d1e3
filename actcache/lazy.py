"""Names of a package that are imported when they are first used.

Some public names need torch or matplotlib. If their package imported those at once, opening a store
and `actcache --help` would take seconds.
"""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> Callable[[str], Any]:
    """Make a package's `__getattr__`, which imports a public name on first use (PEP 562).

    What is imported from where stands once, in the package's own `if TYPE_CHECKING:` block, which
    type checkers and editors read too.

    Args:
        package: the package's `__name__`.
        file: the package's `__file__`.

    Example:
        The last line of an `__init__.py`: `__getattr__ = attach(__name__, __file__)`
    """
    homes = {
        name.name: statement.module
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }

    def getattr_of_package(name: str) -> Any:
        module = homes.get(name)
        if module is None:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        if module == package:  # a module of the package itself
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(module), name)
        setattr(importlib.import_module(package), name, value)  # asked for only once
        return value

    return getattr_of_package
