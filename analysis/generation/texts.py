"""Generated texts and the configurations that wrote them: the lines that GEN is made of."""

from dataclasses import dataclass
from typing import Any, Literal

from actcache.analysis.generation.metrics import TextMetrics

UNSTEERED = "unsteered"
"""Method of the texts that all others are compared with."""

UNSTEERED_AGAIN = "unsteered_again"
"""The same under another batch size: their disagreement is noise."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What wrote some texts; configurations.json maps its digest to it."""

    method: str
    behavior: str
    selection: str

    strength: float | None
    """None of `UNSTEERED` and `UNSTEERED_AGAIN`."""

    unit: str
    identity: float | None
    control: bool

    steering: Any = None
    """The steering's document without its arrays; None where nothing or each row has its own."""


@dataclass(frozen=True, kw_only=True)
class GeneratedText(TextMetrics):
    """One text: a line of generations.jsonl."""

    id: str
    """Of the row."""

    behavior: str
    split: Literal["validation", "test"]
    configuration: str
    """Digest of its `Configuration`."""

    sample: int
    text: str
    tokens: tuple[int, ...]

    nll_steered: float | None
    """Per token, under the model that wrote it; None of an empty text."""

    nll_unsteered: float | None

    target: float | None
    """The effect's value; None where it has none, such as an empty text's read_back."""
