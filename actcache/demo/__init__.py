"""A tiny chat model and six behaviors, shipped with the package, so that everything runs offline.

The model is a test bed: it was trained from scratch so that it can be steered, and is no evidence
about language models. `benchmarks/demo_model` trains it and measures it.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def model_path() -> Path:
    """The folder of the model, as `AutoModelForCausalLM.from_pretrained` takes it."""
    return _HERE / "model"


def row_files(*behaviors: str) -> list[Path]:
    """List the files of rows, one a behavior, sorted by name; without names, all six."""
    files = sorted((_HERE / "rows").glob("*.jsonl"))
    return [path for path in files if not behaviors or path.stem in behaviors]


def personas_path() -> Path:
    """The file that gives each behavior's two persona lines."""
    return _HERE / "personas.json"


def concepts_path() -> Path:
    """The text file of 24 concepts, one a line, for `actcache concepts`."""
    return _HERE / "concepts" / "concepts.txt"


def statements_path() -> Path:
    """The text file of 64 statements, one a line."""
    return _HERE / "concepts" / "statements.txt"
