"""The Hugging Face Hub: asked once whether it answers, and its errors cut to one sentence."""

import os
import sys
from functools import cache
from pathlib import Path

_SECONDS = 5.0
_CHARACTERS = 300


def prepare_hub(name: str) -> None:
    """Let loaders look into the Hub's cache alone, if `name` is no path and the Hub is silent.

    Otherwise they ask again and again, for most of a minute, before they say so.
    """
    if not Path(name).exists() and not _answers():
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it took a copy when it was imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


@cache
def _answers() -> bool:
    """Ask the Hub once in the life of a process; any answer counts."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # whatever the client raises, for whatever reason: it cannot be reached
        return False
    return True


def first_sentence(error: BaseException) -> str:
    """Cut an error of another package to its first sentence, whole where it is not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:  # a heading of a list
        text = f"{text} {lines[1]}"
    sentence, _, _ = text.partition(". ")
    sentence = f"{sentence.rstrip('.:')}." if len(sentence) <= _CHARACTERS else ""
    return sentence or f"{text[:_CHARACTERS]}…"
