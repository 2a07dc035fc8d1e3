"""The summary of generated texts: every number of its tables, typed; GEN/summary.json in memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actcache.analysis.files import DocumentError, typed, write_json
from actcache.analysis.stats.bootstrap import Interval
from actcache.errors import FormatError


@dataclass(frozen=True, kw_only=True)
class StrengthScores:
    """What texts of one split show at one strength: means over rows, samples averaged first."""

    strength: float

    n: int
    """Rows."""

    target: float | None
    """Mean of the target; None where no row has one."""

    effect: Interval | None
    """Target minus that of the unsteered text, paired by row."""

    nll_unsteered: float | None
    """Mean negative log-probability per token under the unsteered model, in nats."""

    nll_steered: float | None
    """The same under the model that wrote the text: a collapsed text can be low here."""

    perplexity_ratio: float | None
    """exp of the mean difference of nll_unsteered to the unsteered text of the same row."""

    form: float
    """Share of texts that are not empty and, where a form is asked for, well-formed."""

    ended: float
    empty: float
    refusal: float

    tokens: float
    n_bytes: float
    """Mean lengths; compression depends on the latter."""

    repetition: float | None
    compression: float | None
    script: float | None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The strength chosen on validation rows, tested once on test rows."""

    strength: float | None
    """None: no strength is within the budget and keeps the form."""

    reason: str
    """Why there is none; empty where there is one."""

    validation: StrengthScores | None
    test: StrengthScores | None

    over_control: dict[str, Interval]
    """Test effect minus that of each control at the same strength, paired by row."""

    shown: bool
    """Whether the effect's interval, and that over every control, is above 0 on test rows."""

    best_on_test: StrengthScores | None
    """The strength that the test rows themselves would choose under the same rules: biased
    upwards, for comparison alone."""

    window: tuple[float, float] | None
    """Strengths around the identity at which validation texts keep form and ending, ends
    included; without an identity, the longest such range. None: there is none."""


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """One method on one behavior, with one selection of layers or sites."""

    behavior: str
    method: str

    selection: str
    """Which layers or sites: `fixed`, `discriminative`, `all sites`, `random half`, …"""

    control: bool
    """Whether it is there for comparison alone: random vectors, random planes."""

    unit: str
    """Of the strength: `multiplier`, `degrees`, `share`, `projection`."""

    identity: float | None
    """The strength that changes nothing."""

    curves: dict[str, tuple[StrengthScores, ...]]
    """By split, `validation` and `test`: every strength, ascending."""

    choice: Choice | None
    """None for a control."""

    choices_kept: float | None = None
    """Test rows with two completions: share whose likelier one is, at the chosen strength, still
    the one of the unsteered model. None where it was not asked for."""

    others_kept: float | None = None
    """The same of rows of other behaviors, which steering is not meant to change. None where there
    are none, or each prompt has a steering of its own."""

    norm_error: float | None = None
    """Largest relative change of a steered value's norm in the run's dtype, of an operator that
    keeps norms; None for others."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Two runs of the unsteered model under two batch sizes: what rounding alone changes."""

    n: int
    """Texts."""

    equal: int
    """Texts that are the same in both runs."""

    target: float | None
    """Mean absolute difference of the target."""

    nll_unsteered: float | None
    """Mean absolute difference, in nats per token."""


@dataclass(frozen=True, kw_only=True)
class SiteScores:
    """Class means of train rows at one site on the common direction (Selective Steering, 4)."""

    site: str
    layer: int
    mean_positive: float
    mean_negative: float

    discriminative: bool
    """Whether the two means have opposite signs."""


@dataclass(frozen=True, kw_only=True)
class GenerationSummary:
    """All that `steer` found."""

    model: str
    dtype: str

    source: str
    """The results folder or steering file."""

    target: str
    """The effect that strengths are chosen by: `read_back`, `form:…`, …"""

    budget: float
    """Largest ratio of perplexities that a chosen strength may have."""

    tokens: str
    """Which tokens are steered."""

    max_new: int
    samples: int

    unsteered: dict[str, dict[str, StrengthScores]]
    """By behavior and split."""

    methods: tuple[MethodScores, ...]
    noise: Noise | None

    sites: dict[str, tuple[SiteScores, ...]] | None = None
    """By behavior."""

    judge: str | None = None
    """Model and endpoint that judged the texts, texts without a verdict; None without a judge."""

    left_out: tuple[str, ...] = ()
    """What was asked for and could not run, each with the reason."""

    format: Literal[1] = 1
    """Of summary.json."""

    def write(self, path: Path) -> None:
        """Write summary.json."""
        write_json(path, self)

    @classmethod
    def read(cls, path: Path) -> "GenerationSummary":
        """Read what `write` wrote.

        Raises:
            FormatError: it is damaged, or something else.
        """
        try:
            return typed(cls, json.loads(path.read_text(encoding="utf-8")))
        except (DocumentError, ValueError, RecursionError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise FormatError(
                f"'{path}' is not what steer writes ({reason}), expected its summary. Choose "
                "another folder with -o, or run steer with --overwrite."
            ) from None
