"""Where numbers come from: model, weights, tokenizer, data, versions. Compared before they mix."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from actcache.errors import MismatchError

if TYPE_CHECKING:  # importing it means importing torch
    from actcache.engine.model import LanguageModel

MODE = "hugging face numerics: no folding, no centering; layer = output of the decoder block"


def versions() -> dict[str, str]:
    """Of the packages that decide what a forward pass gives."""
    found = {}
    for package in ("actcache", "torch", "transformers", "transformer-lens", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


IDENTITY = ("family", "n_layers", "d_model", "dtype", "weights_sha256")
"""Fields that two stages' models must agree on before their numbers mix."""


def model_identity(model: "LanguageModel") -> dict[str, Any]:
    """Which model it is: the fields of `IDENTITY`."""
    config = model.hf.config
    return {
        "family": str(config.model_type),
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": model.dtype,
        "weights_sha256": model.digest,
    }


def require_same(found: Any, stored: Any, *, what: str, remedy: str) -> None:
    """Compare two JSON values, field by field.

    Raises:
        MismatchError: names the first field that differs and both values.
    """
    difference = first_difference(stored, found)
    if difference is not None:
        field, old, new = difference
        raise MismatchError(f"{what} differ in '{field}': stored {old!r}, found {new!r}. {remedy}")


def first_difference(stored: Any, found: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two JSON values differ: its dotted name and both values."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for name in [*stored, *(name for name in found if name not in stored)]:
            at = f"{field}.{name}".lstrip(".")
            if name not in stored or name not in found:
                return at, stored.get(name), found.get(name)
            if (inner := first_difference(stored[name], found[name], at)) is not None:
                return inner
        return None
    return None if stored == found else (field, stored, found)
