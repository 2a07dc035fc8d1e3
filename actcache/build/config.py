"""What a build was asked to do. Written into the store, compared when it is resumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actcache.conventions import NAMES, NONE
from actcache.errors import ActcacheError
from actcache.prompts.positions import PAIR_POSITIONS, SITES, check_sites, expand_positions
from actcache.prompts.render import Rendering

ENGINES = ("torch", "transformer-lens")
"""Hooks on the decoder blocks, batched; or a TransformerBridge's own hooks, a row at a time."""


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

    device_map: str | None = None
    """Spread the blocks over several devices, as Hugging Face's `device_map` does: `auto`, …"""

    engine: str = "torch"
    """`torch`, or as a slow reference `transformer-lens`; both give the same numbers."""

    trust_remote_code: bool = False
    """Run the code that a checkpoint brings."""

    template: str = "auto"
    """Chat template: `auto` is the tokenizer's if it has one; `none`; or a Jinja file."""

    system: str | None = None
    """System message of the rows that bring none."""

    space: str = "one"
    """Between prompt and completion: one space, the completion's and one more, or as it is."""

    bos: str = "auto"
    """BOS tokens: `auto` is one where the tokenizer or the template puts any; `tokenizer` what the
    tokenizer makes of the rendered text; or how many."""

    separator: str = "\n\n"
    """What stands between a persona's sentence and the prompt of user_pos and user_neg."""

    preset: str = NONE
    """Whose conventions these are: rows must hold the conditions that it needs. It sets nothing
    here; `presets.build_settings` does, and what a user gives comes before."""

    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, and list them; by default they stop the build."""

    variants: Sequence[str] = ("base",)
    """Framings of each prompt: base, sys_pos, sys_neg, user_pos, user_neg."""

    positions: Sequence[str] = PAIR_POSITIONS
    """Tokens to read: prompt, fork, positive, negative; also mean (over the prompt's tokens),
    template:K (the last K tokens of the prompt, the same in all) and last:K (the same or not). Of
    labelled prompts those of the prompt alone."""

    sites: Sequence[str] = ("resid_post",)
    """Where to read: resid_post, embed, resid_mid, attn_out, mlp_out, heads; and attention, the
    mass on each row's marked span."""

    answer: str = "first"
    """The answer token of a completion: the first that differs from the other's, or its last."""

    batch_tokens: int = 2048
    """Tokens in a forward pass, padding included. The one dial of speed against memory: on a CPU a
    small model's pass of 2048 stays in the caches (8192 took 2.5 times as long); a large GPU takes
    more."""

    seed: int = 0
    """Of the split into train, validation and test, and of the certificate's rows."""

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ActcacheError(
                f"batch_tokens is {self.batch_tokens}, expected 1 or more. Try 2048."
            )
        _one_of("answer", self.answer, ("first", "last"))
        _one_of("preset", self.preset, NAMES)
        _one_of("store_dtype", self.store_dtype, ("auto", "float32", "float16", "bfloat16"))
        _one_of("engine", self.engine, ENGINES)
        expand_positions(self.positions)
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise ActcacheError(
                f"sites are {list(self.sites)}, expected one or more, each once of "
                f"{', '.join(SITES)}. Pass them separated by commas."
            )
        for site in self.sites:
            _one_of("sites", site, SITES)
        check_sites(self.sites, self.positions)

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
