"""Where numbers come from: model, weights, versions."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

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
