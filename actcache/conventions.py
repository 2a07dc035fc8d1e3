"""The words of settings, and the presets: whole sets of settings that published codes use.

Each word is spelled here and nowhere else; the module that acts on a word imports it. A preset
holds what one code does: Tan et al. 2024 as in dtch1997/steering-bench and dtch1997/repepo, and
Rimsky et al. 2024 as in nrimsky/CAA.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from actcache.errors import ActcacheError

# --- rows ----------------------------------------------------------------------------------------

Variant = Literal["base", "sys_pos", "sys_neg", "user_pos", "user_neg"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""How a prompt is framed (Tan et al. 2024): as it is, or with a persona sentence for or against the
behavior, as the system message or in front of the prompt."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Design = Literal["same", "published"]
"""How the rows of a concept are made."""

PrefixPlace = Literal["user", "system"]
"""The message that the prefix of a concept stands in."""

# --- prompts -------------------------------------------------------------------------------------

Space = Literal["one", "add", "none", "strip"]
SPACES: tuple[Space, ...] = get_args(Space)
"""What goes between prompt and completion."""

Bos = Literal["auto", "0", "1", "2", "tokenizer"]
BOS: tuple[Bos, ...] = get_args(Bos)
"""How many BOS tokens come first. With `tokenizer`, what the tokenizer adds after the text is
dropped; steering-bench so gets two where template and tokenizer each add one."""

# --- what is read --------------------------------------------------------------------------------

Position = Literal["prompt", "fork", "positive", "negative"]
PAIR_POSITIONS: tuple[Position, ...] = get_args(Position)
"""Tokens that are read of a pair: the last of the prompt, the last that both completions share, and
the answer token of each completion."""

MEAN: Final = "mean"
"""The mean over all tokens of the prompt, BOS and chat template included, taken in float32."""

POSITIONS = (*PAIR_POSITIONS, MEAN, "template:K", "last:K")
"""Every position that can be asked for."""

Site = Literal[
    "resid_post",
    "embed",
    "resid_mid",
    "attn_out",
    "mlp_out",
    "heads",
    "ln1",
    "ln2",
    "ln1_post",
    "ln2_post",
    "attention",
    "attention_control",
]
SITES: tuple[Site, ...] = get_args(Site)
"""The residual after a block; what enters block 0; the residual between attention and MLP; what
attention and MLP add to the residual; the heads' outputs before the output projection, head after
head, `n_heads · head_dim` wide (ITI); the outputs of a block's norms; and the attention mass on a
marked span and on a random one of equal length, `n_heads` wide."""

NORM_SITES: tuple[Site, ...] = ("ln1", "ln1_post", "ln2", "ln2_post")
"""Outputs of a block's norms, learned gain included, in the order in which they are computed: what
attention and MLP read (`ln1`, `ln2`), and what they add to the residual where a norm comes after
them (`ln1_post`, `ln2_post`: Gemma 2 and 3, OLMo 2)."""

ATTENTION: Final = "attention"
"""The site of attention masses: how much of the read token's attention, after the softmax, each
head puts on the marked span of the prompt; from 0 to 1."""

ATTENTION_CONTROL: Final = "attention_control"
"""The same of a random span of as many tokens, elsewhere in the prompt: what any words get."""

MASS_SITES: Final = (ATTENTION, ATTENTION_CONTROL)

Answer = Literal["first", "last"]
"""The answer token of a completion."""

# --- the model -----------------------------------------------------------------------------------

Engine = Literal["torch", "transformer-lens"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
StoreDtype = Literal["auto", "float32", "float16", "bfloat16"]

# --- the analysis --------------------------------------------------------------------------------

Stage = Literal["vectors", "layers", "concepts", "sweep", "predictors"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In their order. Labelled prompts have no sweep and no predictors, pairs no discriminative layers
but of norm outputs; concepts need attention masses; predictors read a sweep, which is run where the
results folder has none."""

FirstSteered = Literal["fork", "prompt", "completion"]
FIRST_STEERED: tuple[FirstSteered, ...] = get_args(FirstSteered)
"""First token that is steered; all later tokens are too."""

Score = Literal["letter", "logprob", "logit", "probability"]
SCORES: tuple[Score, ...] = get_args(Score)
"""How a completion is scored; propensity is the positive's score minus the negative's."""

Vectors = Literal["caa", "l2s"]
VECTORS: tuple[Vectors, ...] = get_args(Vectors)
"""Whose directions a predictor chooses the layer for."""

FitMethod = Literal["mean", "pca", "ridge", "logistic", "lda", "rfm"]
FIT_METHODS: tuple[FitMethod, ...] = get_args(FitMethod)
"""How a direction is fitted to labels, in each layer."""

Norm = Literal["caa", "residual", "raw"]
NORMS: tuple[Norm, ...] = get_args(Norm)
"""How long the directions of `--directions` and `--methods` are when they steer."""

Loss = Literal["paper", "code"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
"""Training losses of L2S; `code` takes several times as long."""

PresetName = Literal["none", "steering-bench", "repepo", "caa"]
PRESET_NAMES: tuple[PresetName, ...] = get_args(PresetName)
NO_PRESET: Final = "none"
"""Every setting has its own default."""

MEANINGS: Mapping[Any, Mapping[str, str]] = {
    Space: {
        "one": "exactly one space",
        "add": "one more space than the completion brings (steering-bench)",
        "none": "only what the completion brings",
        "strip": "one space, with prompt and completion stripped (repepo, CAA)",
    },
    Bos: {
        "auto": "one if the template or the tokenizer adds any",
        "0, 1, 2": "so many",
        "tokenizer": "what the tokenizer adds to the rendered text (steering-bench)",
    },
    Design: {
        "same": "the same statements with the prefix and without, split by statement",
        "published": "two pools, one with the prefix and one without, in the order of their files "
        "(Davarmanesh et al. 2026)",
    },
    PrefixPlace: {
        "user": "before the statement",
        "system": "as the system message",
    },
    Answer: {
        "first": "the first token that differs from the other completion's",
        "last": "the completion's last token",
    },
    Engine: {
        "torch": "hooks on the decoder blocks, in batches",
        "transformer-lens": "a TransformerBridge's own hooks, one row at a time: slow, the same "
        "numbers",
    },
    FirstSteered: {
        "fork": "the last token that both completions share",
        "prompt": "the last prompt token (repepo, CAA)",
        "completion": "the completion's first token (steering-bench)",
    },
    Score: {
        "letter": "logit of the first token that differs",
        "logprob": "log-probability of all tokens from there on (steering-bench)",
        "logit": "the same with raw logits (repepo)",
        "probability": "the positive letter's share of both letters (CAA)",
    },
    Vectors: {
        "caa": "the behavior's own direction",
        "l2s": "a direction learned for each prompt",
    },
    Norm: {
        "caa": "as the behavior's difference of means, in each layer",
        "residual": "as the mean residual of its answer tokens, and the difference of means too",
        "raw": "as they are",
    },
    Loss: {
        "paper": "squared error",
        "code": "squared plus absolute error minus a share of the cosine, as in the public code",
    },
}
"""One sentence for each word that `--help` explains."""


def expand_positions(positions: Sequence[str]) -> list[str]:
    """Spell out `template:K` as `template_-1` … `template_-K`; `last:K` likewise."""
    expanded: list[str] = []
    for name in positions:
        if match := re.fullmatch(r"(template|last):([1-9]\d{0,3})", name):
            expanded += [f"{match[1]}_-{back}" for back in range(1, int(match[2]) + 1)]
        elif name in (*PAIR_POSITIONS, MEAN):
            expanded.append(name)
        else:
            raise ActcacheError(
                f"positions: '{name}' is unknown, expected {', '.join(POSITIONS)} with K = 1 or "
                "more. Pass some of them, separated by commas."
            )
    if not expanded or len(set(expanded)) != len(expanded):
        raise ActcacheError(
            f"positions are {list(positions)}, expected one or more, each once of "
            f"{', '.join(POSITIONS)}. Pass them separated by commas."
        )
    return expanded


def check_sites(sites: Sequence[str], positions: Sequence[str]) -> None:
    """Refuse attention at the mean: all tokens' attention would be a square of them."""
    if ATTENTION_CONTROL in sites and ATTENTION not in sites:
        raise ActcacheError(
            f"the site {ATTENTION_CONTROL} is asked for without {ATTENTION}, expected both. Add "
            f"{ATTENTION} to the sites."
        )
    if ATTENTION in sites and MEAN in positions:
        raise ActcacheError(
            f"the site {ATTENTION} is asked for at the position {MEAN}, expected single tokens. "
            f"Leave out {MEAN}, or build it as a store of its own."
        )


# --- presets -------------------------------------------------------------------------------------

SYSTEM = "You are a helpful, honest and concise assistant."
"""System message of steering-bench and repepo."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of one published code, and what it takes for granted about rows."""

    code: str = ""
    """The repository."""

    build: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `BuildConfig` and what the code does."""

    sweep: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `AnalyzeConfig` and what the code does."""

    conditions: tuple[str, ...] = ()
    """Names in `prompts.checks.CONDITIONS` that every row must fulfil."""


_INDEX = ("letter", "one_after", "equal")  # all three read the token at index -2
_STRIPPED = {"space": "strip", "bos": "auto", "answer": "first", "separator": "\n\n"}
_GRID = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)

PRESETS: Mapping[str, Preset] = {
    "steering-bench": Preset(
        code="dtch1997/steering-bench",
        # The chat template's text is tokenized with special tokens on: two BOS where both add one.
        build={
            "system": SYSTEM,
            "space": "add",
            "bos": "tokenizer",
            "answer": "first",
            "separator": "",
        },
        sweep={"first_steered": "completion", "score": "logprob", "multipliers": _GRID},
        conditions=(*_INDEX, "special"),  # its score skips special tokens
    ),
    "repepo": Preset(
        code="dtch1997/repepo",
        build={"system": SYSTEM, **_STRIPPED},
        sweep={"first_steered": "prompt", "score": "logit", "multipliers": _GRID},
        conditions=(*_INDEX, "bos", "one_space"),
    ),
    "caa": Preset(
        code="nrimsky/CAA",
        # Has no user variants; the separator is the default's.
        build={"system": None, **_STRIPPED},
        sweep={"first_steered": "prompt", "score": "probability", "multipliers": (-1.0, 0.0, 1.0)},
        conditions=(*_INDEX, "bos", "one_space"),
    ),
}
"""Every preset by its name."""

BUILD_FIELDS = frozenset(name for preset in PRESETS.values() for name in preset.build)
SWEEP_FIELDS = frozenset(name for preset in PRESETS.values() for name in preset.sweep)
"""What presets set: their flags have no default, so that a given value is told from none."""


def find_preset(name: str) -> Preset:
    """Look up a preset; `NO_PRESET` sets nothing."""
    if name not in PRESET_NAMES:
        raise ActcacheError(
            f"preset is '{name}', expected {', '.join(PRESET_NAMES)}. Pass one of them."
        )
    return PRESETS.get(name, Preset())


def build_settings(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings of a build: given values win over the preset's.

    None means not given, an empty `system` means no system message. All fields that neither sets
    have the defaults of `BuildConfig`.

    Example:
        >>> build_settings("caa", {"space": "one", "bos": None})["space"]
        'one'
    """
    settings = _merged(preset, find_preset(preset).build, given)
    return {**settings, "system": settings.get("system") or None}


def sweep_settings(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings of an analysis as `build_settings` merges those of a build.

    Example:
        >>> sweep_settings("repepo", {"score": None})["score"]
        'logit'
    """
    return _merged(preset, find_preset(preset).sweep, given)


def _merged(preset: str, settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, **{k: v for k, v in given.items() if v is not None}, "preset": preset}
