"""The settings of steered generation; recorded with its texts."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, no_type_check

from actcache.analysis.generation.units import (
    GRIDS,
    Method,
    Tokens,
    Unit,
    require_one_unit,
    require_unit,
)
from actcache.errors import ActcacheError
from actcache.settings import check_words, setting

STEERING, TEXTS, CHOICE, JUDGE = "steering", "texts", "target and choice", "judge"
"""Headings in `actcache steer --help`."""

LAYER_CHOICES = ("fixed", "predicted", "discriminative")


@no_type_check  # users' words: `check_words` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """The settings of one run; `actcache steer` has a flag for each, with the same default.

    Raises:
        ActcacheError: a value is not one that the field takes.
    """

    method: Sequence[Method] = setting(
        ("caa", "random"), group=STEERING, help="how to steer, some of {words}"
    )

    behavior: Sequence[str] | None = setting(
        None, group=STEERING, help="whose directions (default: all that OUT has)"
    )

    layers: str = setting(
        "fixed",
        group=STEERING,
        metavar="fixed|predicted|discriminative|LIST",
        help="layers to steer: the one that was best on train; the one predicted for each prompt; "
        "those that tell two labels apart; or numbers such as 3,5 or 0:12. Rotations steer "
        "discriminative or all norm outputs, or those of the blocks that numbers name; ablation "
        "removes one layer's direction everywhere",
    )

    strength: Sequence[float] | None = setting(
        None,
        group=STEERING,
        metavar="START:STOP:STEP",
        help="strengths to try, both ends included; or a list: multipliers λ, degrees of ss, sas "
        "and aas, the removed share of ablation (default: a grid for each method; around its own "
        "strength for a FILE)",
    )

    unit: Unit | None = setting(
        None,
        group=STEERING,
        help="what --strength is in; refused where a method has another unit (default: the "
        "methods')",
    )

    tokens: Tokens | None = setting(
        None,
        group=STEERING,
        help="tokens to steer: prompt, the last prompt token and all generated ones; completion, "
        "the generated ones; all; front, the prompt's first (default: the method's own)",
    )

    window: str | None = setting(
        None,
        group=STEERING,
        metavar="START:STOP",
        help="decode steps that are steered, STOP left out; step 0 gives the first generated token "
        "(default: all)",
    )

    contrast: str | None = setting(
        None,
        group=STEERING,
        metavar="POSITIVE|NEGATIVE",
        help="two texts whose difference actadd adds to a prompt's first tokens, for example "
        "'I love talking|I hate talking' (default: the behavior's persona sentences)",
    )

    max_new: int = setting(64, group=TEXTS, help="tokens of a text at most")

    temperature: float = setting(0.0, group=TEXTS, help="0 is greedy; above, tokens are drawn")

    samples: int = setting(1, group=TEXTS, help="texts a prompt, with --temperature above 0")

    seed: int = setting(0, group=TEXTS, help="seed of drawn tokens, of random controls, intervals")

    end: str | None = setting(
        None,
        group=TEXTS,
        metavar="TOKEN",
        help="a token that ends a text as well; '' for none, where a tokenizer has no end token",
    )

    limit: int | None = setting(
        None,
        group=TEXTS,
        metavar="N",
        help="first N rows of each behavior and split (default: all)",
    )

    batch_tokens: int = setting(
        8192,
        group=TEXTS,
        help="tokens in a pass, new ones included: the dial of speed against memory",
    )

    target: str = setting(
        "read_back",
        group=CHOICE,
        metavar="read_back|answer|form:REGEX|words:FILE|refusal|judge",
        help="what a text is scored by: its mean residual in the unsteered model, along the train "
        "direction; whether it is the row's positive completion, of rows such as (A) and (B); a "
        "regular expression that is found in it; the phrases of a file, one a line; refusal "
        "phrases; or a judge's verdict",
    )

    budget: float = setting(
        1.5,
        group=CHOICE,
        help="how often its unsteered perplexity a chosen strength may have: exp of the mean "
        "nll_unsteered against that of unsteered texts",
    )

    form: str | None = setting(
        None,
        group=CHOICE,
        metavar="REGEX",
        help="what a well-formed text matches as a whole; '' for anything (default: the "
        "completions of the rows, where they are few, such as (A) and (B))",
    )

    phrases: str | None = setting(
        None,
        group=CHOICE,
        metavar="FILE",
        help="refusal phrases: a file with one a line, or refusal_direction or selective_steering, "
        "as published (default: refusal_direction)",
    )

    within: int | None = setting(
        None,
        group=CHOICE,
        metavar="N",
        help="look for refusal phrases in the first N characters of a text (default: anywhere)",
    )

    scripts: Sequence[str] = setting(
        ("LATIN",),
        group=CHOICE,
        help="scripts that letters are expected in, by their names in Unicode: LATIN, CYRILLIC, "
        "CJK, HIRAGANA, …",
    )

    draws: int = setting(1000, group=CHOICE, help="bootstrap draws of every interval")

    judge: str | None = setting(
        None,
        group=JUDGE,
        metavar="MODEL",
        help="model of a service that speaks OpenAI's protocol; it judges each text once",
    )

    base_url: str | None = setting(
        None,
        group=JUDGE,
        metavar="URL",
        help="address of the judge's service (default: OpenAI's); its key is read from "
        "OPENAI_API_KEY",
    )

    judge_prompt: str | None = setting(
        None,
        group=JUDGE,
        metavar="FILE",
        help="what the judge is asked, with {prompt} and {text}; it answers with a number or yes "
        "or no",
    )

    verdicts: str | None = setting(
        None,
        group=JUDGE,
        metavar="FILE",
        help="file that keeps the verdicts that were paid for (default: one in the user's cache "
        "folder)",
    )

    def __post_init__(self) -> None:
        check_words(self, once=["method"])
        for name, least in (("max_new", 1), ("samples", 1), ("batch_tokens", 1), ("draws", 1)):
            _require_at_least(name, getattr(self, name), least)
        for name in ("limit", "within"):
            if (number := getattr(self, name)) is not None:
                _require_at_least(name, number, 1)
        for name in ("temperature", "budget"):
            value, smallest = getattr(self, name), float(name == "budget")
            if not (math.isfinite(value) and value >= smallest):
                raise ActcacheError(
                    f"{name} is {value}, expected a number from {smallest:g} on. Pass such a "
                    "number."
                )
        if self.samples > 1 and not self.temperature:
            raise ActcacheError(
                f"samples are {self.samples} at temperature 0, where all texts of a prompt are "
                "the same, expected 1. Pass --temperature, for example 1."
            )
        self.layer_numbers  # noqa: B018  # refuses what is no choice of layers
        self.window_steps  # noqa: B018
        self.contrast_texts  # noqa: B018
        self._check_strength()
        self._check_judge()

    @property
    def layer_numbers(self) -> tuple[int, ...] | None:
        """The layers that `layers` lists; None for a choice in words."""
        if self.layers in LAYER_CHOICES:
            return None
        numbers: list[int] = []
        try:
            for part in self.layers.split(","):
                start, colon, stop = part.partition(":")
                numbers += range(int(start), int(stop) if colon else int(start) + 1)
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise ActcacheError(
                f"layers are '{self.layers}', expected {', '.join(LAYER_CHOICES)}, or numbers and "
                "ranges START:STOP, each layer once. For example fixed, or 3,5, or 8:16."
            )
        return tuple(numbers)

    @property
    def window_steps(self) -> tuple[int, int | None] | None:
        """The decode steps `window` as start and stop; None for all."""
        if self.window is None:
            return None
        match = re.fullmatch(r"(\d+):(\d*)", self.window)
        start, stop = (int(match[1]), int(match[2]) if match[2] else None) if match else (0, 0)
        if stop is not None and stop <= start:
            raise ActcacheError(
                f"window is '{self.window}', expected decode steps START:STOP with STOP above "
                "START, or START: alone. For example 0:1 steers the first generated token."
            )
        return start, stop

    @property
    def contrast_texts(self) -> tuple[str, str] | None:
        """The two texts of `contrast`; None where it is not given."""
        if self.contrast is None:
            return None
        positive, bar, negative = self.contrast.partition("|")
        if not (bar and positive.strip() and negative.strip()):
            raise ActcacheError(
                f"contrast is {self.contrast!r}, expected two texts with | between them. For "
                "example 'I love talking|I hate talking'."
            )
        return positive, negative

    def grid(self, unit: str) -> tuple[float, ...]:
        """Strengths to try of a method with that unit."""
        return GRIDS[unit] if self.strength is None else tuple(self.strength)

    def require_unit(self, unit: str, method: str) -> None:
        """Refuse a grid of strengths that is in another unit than the method's."""
        if self.strength is not None:
            require_unit(self.strength, unit, method=method, given=self.unit)

    def require_one_unit(self) -> None:
        """Refuse a grid for methods of several units, or in another unit than theirs."""
        if self.strength is not None:
            require_one_unit(self.strength, self.method, given=self.unit)

    def recorded(self) -> dict[str, Any]:
        """Convert to JSON: what decides texts and numbers, without the dial of memory."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        for name in ("batch_tokens", "verdicts"):  # change nothing beyond rounding
            del fields[name]
        return fields

    def _check_strength(self) -> None:
        if self.strength is None:
            if self.unit is not None:
                raise ActcacheError(
                    f"unit is {self.unit}, expected it beside strengths. Pass --strength, or drop "
                    "--unit."
                )
            return
        grid = [float(value) for value in self.strength]
        object.__setattr__(self, "strength", tuple(grid))  # whole numbers too
        if not grid or len(set(grid)) < len(grid) or not all(map(math.isfinite, grid)):
            raise ActcacheError(
                f"strengths are {grid}, expected one or more finite numbers, each once. Pass "
                "START:STOP:STEP or a list, for example -1:1:0.5."
            )

    def _check_judge(self) -> None:
        if self.judge is None:
            for name in ("base_url", "judge_prompt", "verdicts"):
                if getattr(self, name) is not None:
                    raise ActcacheError(
                        f"{name} is given without a judge, expected the model that judges. Pass "
                        "--judge MODEL."
                    )
            if self.target == "judge":
                raise ActcacheError(
                    "the target is judge and no judge is named, expected a model. Pass --judge "
                    "MODEL, and --base-url for a service other than OpenAI's."
                )
        elif self.target != "judge":
            raise ActcacheError(
                f"a judge is named and the target is {self.target}, expected its verdicts to be "
                "the target. Pass --target judge, or drop --judge."
            )


def _require_at_least(name: str, number: int, least: int) -> None:
    if number < least:
        raise ActcacheError(f"{name} is {number}, expected {least} or more. Pass such a number.")
