"""The settings of a build. Written into the store, and compared when a build is resumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, no_type_check

from actcache.conventions import (
    NO_PRESET,
    PAIR_POSITIONS,
    Answer,
    Bos,
    Dtype,
    Engine,
    PresetName,
    Site,
    Space,
    StoreDtype,
    Variant,
    check_sites,
    expand_positions,
)
from actcache.settings import MAX_SEED, check_numbers, check_words, setting

MODEL, PROMPTS, KEPT, RUN = "model", "prompts", "what is kept", "how it runs"
"""Headings in `actcache build --help`."""

MAX_BATCH_TOKENS = 2**31 - 1


@no_type_check  # users' words: `check_words` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """The settings of one build; `actcache build` has a flag for each, with the same default.

    Raises:
        ActcacheError: a value is not one that the field takes.
    """

    model: str = setting(group=MODEL, help="Hub id or local folder")

    revision: str | None = setting(None, group=MODEL, help="branch, tag or commit on the Hub")

    dtype: Dtype = setting(
        "auto",
        group=MODEL,
        metavar="DTYPE",
        help="what the model computes in: float32, bfloat16, float16; auto: the checkpoint's own",
    )

    store_dtype: StoreDtype = setting(
        "auto",
        group=KEPT,
        metavar="DTYPE",
        help="what residuals are stored in: float32, bfloat16, float16; auto: the model's",
    )

    device: str = setting("auto", group=MODEL, help="auto (cuda, mps, cpu) or a torch device")

    device_map: str | None = setting(
        None,
        group=MODEL,
        metavar="MAP",
        help="spread the blocks over several devices, as Hugging Face does: auto, balanced, …",
    )

    engine: Engine = setting("torch", group=MODEL, help="what runs the model")

    trust_remote_code: bool = setting(
        False, group=MODEL, help="run the Python code that a checkpoint brings"
    )

    template: str = setting(
        "auto",
        group=PROMPTS,
        metavar="auto|none|FILE",
        help="chat template; auto: the tokenizer's, if it has one; none; or a Jinja file",
    )

    system: str | None = setting(
        None,
        group=PROMPTS,
        help="system message of the rows that bring none; '' for none, whatever the preset sets "
        "(default: none)",
    )

    space: Space = setting("one", group=PROMPTS, help="between prompt and completion")

    bos: Bos = setting("auto", group=PROMPTS, help="BOS tokens at the start")

    separator: str = setting(
        "\n\n",
        group=PROMPTS,
        help="between a persona's sentence and the prompt of user_pos and user_neg",
    )

    preset: PresetName = setting(
        NO_PRESET, group=PROMPTS, help="the conventions of a published code"
    )
    """It sets no other field here: `conventions.build_settings` does. Rows are held to it."""

    skip_bad_rows: bool = setting(
        False, group=RUN, help="leave out and list the rows that cannot be used"
    )

    variants: Sequence[Variant] = setting(
        ("base",), group=PROMPTS, help="framings of each prompt, of {words}"
    )

    positions: Sequence[str] = setting(
        PAIR_POSITIONS,
        group=KEPT,
        help="tokens to read (of labelled prompts only those of the prompt); also mean, over the "
        "prompt's tokens; template:K, its last K tokens, the same in all prompts; last:K, the "
        "same in all or not",
    )

    sites: Sequence[Site] = setting(
        ("resid_post",),
        group=KEPT,
        help="where to read, of {words}; ln1 and ln2 are the outputs of a block's norms, _post of "
        "those after attention and MLP (Gemma 2 and 3); attention is its mass on the part of the "
        'prompt that a row marks under "span", attention_control that on a random part of equal '
        "length",
    )

    answer: Answer = setting("first", group=KEPT, help="the answer token of a completion")

    batch_tokens: int = setting(
        2048,
        group=MODEL,
        least=1,
        most=MAX_BATCH_TOKENS,
        help="tokens in a forward pass, padding included: the dial of speed against memory; a "
        "large GPU takes more",
    )
    # On a CPU, 2048 tokens of a small model stay in the caches; 8192 took 2.5 times as long.

    seed: int = setting(
        0,
        group=KEPT,
        least=0,
        most=MAX_SEED,
        help="seed of the splits and of the certificate's rows",
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        check_words(self, once=["sites", "variants"])
        expand_positions(self.positions)
        check_sites(self.sites, self.positions)

    def recorded(self) -> dict[str, Any]:
        """Convert to JSON, for the store."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
