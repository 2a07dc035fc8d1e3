"""What a build was asked to do. Written into the store, compared when it is resumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actcache.errors import ActcacheError
from actcache.render import Rendering

PAIR_POSITIONS = ("prompt", "fork", "positive", "negative")
"""Tokens that are read of a pair: the last of the prompt, the last that both completions share, and
the answer token of each completion."""

SITES = ("resid_post", "embed")
"""Where a block is read: after it; or, for `embed`, what enters block 0."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """The settings of one build; `actcache build` has a flag for each, with the same default."""

    model: str
    """Hub id or local folder."""

    revision: str | None = None
    """Branch, tag or commit on the Hub."""

    dtype: str = "auto"
    """What the model computes in; `auto` is the checkpoint's own."""

    store_dtype: str = "auto"
    """What residuals are kept in; `auto` is the model's."""

    device: str = "auto"
    """`auto` (cuda, else mps, else cpu) or a torch device."""

    template: str = "auto"
    """Chat template: `auto` is the tokenizer's if it has one; `none`; or a Jinja file."""

    system: str | None = None
    """System message of the rows that bring none."""

    space: str = "one"
    """Between prompt and completion: one space, the completion's and one more, or as it is."""

    bos: str = "auto"
    """BOS tokens; `auto` is one where the tokenizer or the template puts any."""

    variants: Sequence[str] = ("base",)
    """Framings of each prompt: base, sys_pos, sys_neg, user_pos, user_neg."""

    positions: Sequence[str] = PAIR_POSITIONS
    """Tokens to read; of labelled prompts `prompt` alone."""

    sites: Sequence[str] = ("resid_post",)
    """Where to read: resid_post, embed."""

    answer: str = "first"
    """The answer token of a completion: the first that differs from the other's, or its last."""

    batch_tokens: int = 8192
    """Tokens in a forward pass, padding included. The one dial of speed against memory."""

    seed: int = 0
    """Of the split into train, validation and test, and of the certificate's rows."""

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ActcacheError(
                f"batch_tokens is {self.batch_tokens}, expected 1 or more. Try 8192."
            )
        _one_of("answer", self.answer, ("first", "last"))
        _one_of("store_dtype", self.store_dtype, ("auto", "float32", "float16", "bfloat16"))
        for field, values, known in (
            ("positions", self.positions, PAIR_POSITIONS),
            ("sites", self.sites, SITES),
        ):
            if not values or len(set(values)) != len(values):
                raise ActcacheError(
                    f"{field} are {list(values)}, expected one or more, each once of "
                    f"{', '.join(known)}. Pass them separated by commas."
                )
            for value in values:
                _one_of(field, value, known)

    @property
    def rendering(self) -> Rendering:
        """The part that turns text into tokens."""
        return Rendering(template=self.template, system=self.system, space=self.space, bos=self.bos)

    def recorded(self) -> dict[str, Any]:
        """As JSON, for the store."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def _one_of(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ActcacheError(f"{field}: '{value}' is unknown, expected {', '.join(known)}.")
