"""What an encoder is called: `cache:6`, `hf:FOLDER:mean`, `openai:MODEL`. Encodes nothing."""

import re
from dataclasses import dataclass
from typing import Literal, cast

from actcache.errors import ActcacheError

Kind = Literal["cache", "hf", "openai"]
Pooling = Literal["cls", "mean"]

KNOWN = (
    "cache",
    "cache:LAYER",
    "cache:mean:LAYER",
    "hf:NAME_OR_FOLDER[:cls|mean]",
    "openai:MODEL[:DIMENSIONS]",
)
"""What can be asked for."""

_CACHE = re.compile(r"cache(?::(prompt|mean))?(?::(\d{1,6}))?")
_HF = re.compile(r"hf:(.+?)(?::(cls|mean))?")
_OPENAI = re.compile(r"openai:(.+?)(?::([1-9]\d{0,5}))?")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Which encoder is meant, and the parts of its name."""

    text: str
    """The name as it was given."""

    kind: Kind
    """Where embeddings come from: the store, a model that runs here, or a service."""

    position: str = "prompt"
    """Of `cache`: whose residual, the prompt's last token's or the mean over the prompt."""

    layer: int | None = None
    """Of `cache`: after which block; None is the middle one, `n_layers // 2`."""

    model: str = ""
    """Of `hf` and `openai`: Hub id, folder, or the service's name of the model."""

    pooling: Pooling | None = None
    """Of `hf`: how tokens become one vector; None leaves it to what the folder says."""

    dimensions: int | None = None
    """Of `openai`: the width to ask for; None is the model's own."""


def parse_encoder(text: str) -> EncoderSpec:
    """Read the name of an encoder.

    - `cache:LAYER`: the residual of the last prompt token after that block, free and offline;
      `cache` alone is the middle layer; `cache:mean:LAYER` the mean over the prompt's tokens.
    - `hf:NAME_OR_FOLDER`: a BERT or a sentence encoder that transformers loads; `:cls` or `:mean`
      at the end says how its tokens are pooled.
    - `openai:MODEL`: a service that speaks OpenAI's protocol; a number at the end asks for that
      many dimensions. Other colons belong to the model's name (`openai:nomic-embed-text:v1.5`).

    Raises:
        ActcacheError: it is none of these.

    Example:
        >>> spec = parse_encoder("hf:bert-base-uncased:cls")
        >>> spec.kind, spec.model, spec.pooling
        ('hf', 'bert-base-uncased', 'cls')
    """
    if found := _CACHE.fullmatch(text):
        layer = None if found[2] is None else int(found[2])
        return EncoderSpec(text=text, kind="cache", position=found[1] or "prompt", layer=layer)
    if found := _HF.fullmatch(text):
        pooling = cast("Pooling | None", found[2])
        return EncoderSpec(text=text, kind="hf", model=found[1], pooling=pooling)
    if found := _OPENAI.fullmatch(text):
        width = None if found[2] is None else int(found[2])
        return EncoderSpec(text=text, kind="openai", model=found[1], dimensions=width)
    raise ActcacheError(
        f"the encoder is '{text}', expected {', '.join(KNOWN[:-1])} or {KNOWN[-1]}. Pass one of "
        "them; cache needs neither a model nor the network."
    )
