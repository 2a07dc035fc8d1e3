"""How many threads a command computes with: one for a small model, where more wait for each other.

Threads of a small matrix product spend their time waiting, and where another process keeps a core
busy, they wait for whole slices of its time: with two threads a pass took 4 to 11 times as long.
"""

import json
import os
import sys
from pathlib import Path

from actcache.cli.terminal.console import say

SMALL = 512
"""Width of the residual up to which a model is small."""

_VARIABLE = "OMP_NUM_THREADS"
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")


def choose_threads(width: int | None) -> None:
    """Compute with one thread if the model is of at most that width, and say so.

    A number in `OMP_NUM_THREADS` is kept. Must be called before torch is imported to hold for all
    libraries; a torch that is there already is told.
    """
    if os.environ.get(_VARIABLE) or width is None or width > SMALL:
        return
    os.environ[_VARIABLE] = "1"
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
    say(f"actcache: one thread, since the model is small; {_VARIABLE}=N sets another number")


def width_of(model: str | Path) -> int | None:
    """Read a model's width off its config, in its folder or in the Hub's cache; None if unknown."""
    path: Path | str | None = Path(model, "config.json")
    if not Path(model).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(str(model), "config.json")
        except HFValidationError:  # no id
            return None
        path = cached if isinstance(cached, str) else None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        config = config.get("text_config", config)
        return next((int(config[name]) for name in _WIDTHS if name in config), None)
    except (OSError, ValueError, TypeError, AttributeError):  # refused where it is loaded
        return None
