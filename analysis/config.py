"""What an analysis is asked to do: its settings, checked, and as the command line spells them."""

from collections.abc import Sequence
from dataclasses import dataclass

from actcache.conventions import NAMES, NONE
from actcache.errors import ActcacheError

STAGES = ("vectors", "layers", "sweep", "predictors")
"""In their order. Labelled prompts have no sweep and no predictors, pairs no discriminative layers;
predictors read a sweep, which is run where the folder has none."""

VECTORS = ("caa", "l2s")
"""Whose directions a predictor chooses the layer for: a behavior's own, or learned for each row."""

LOSSES = ("paper", "code")
"""Of the networks of L2S; see `actcache.analysis.predict.l2s.vector_predictor`."""


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """The settings of one analysis; recorded with its results."""

    stages: Sequence[str] = STAGES
    """Of `STAGES`."""

    multipliers: Sequence[float] = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    """Factors λ on the directions."""

    first_steered: str = "fork"
    """First token that is steered; see `actcache.engine.steered_scores`."""

    score: str = "letter"
    """What propensity is made of; see `actcache.engine.steered_scores`."""

    preset: str = NONE
    """Whose conventions these are. It sets nothing here; `presets.sweep_settings` does."""

    layers: Sequence[int] | None = None
    """Layers that the sweep steers; all by default."""

    labels: Sequence[str] | None = None
    """The positive and the negative label, where the data has more than two or another order."""

    normalize: bool = False
    """Project residuals of norm 1 for discriminative layers, as Selective Steering's code does."""

    controls: int = 1
    """Sets of random directions, as long as the behaviors' own, that are swept beside them."""

    draws: int = 1000
    """Bootstrap draws of every interval."""

    batch_tokens: int = 2048
    """Tokens in a pass of the sweep, joined rows included."""

    vectors: Sequence[str] = VECTORS
    """Of `VECTORS`."""

    encoders: Sequence[str] = ("cache",)
    """What prompts are told apart by, as `actcache.encoders` spells it; the first one is used, all
    are compared."""

    base_url: str | None = None
    """Where an `openai:` encoder is asked, where that is not OpenAI itself."""

    embeddings: str | None = None
    """File of what `openai:` encoders were paid for; by default one in the user's cache folder."""

    top: Sequence[int] = (1, 2, 3)
    """K of frequency smoothing (W2S, equation 7)."""

    context_layers: Sequence[int] | None = None
    """Layers whose residual the networks of L2S read; by default about eight, evenly spaced."""

    loss: str = "paper"
    """Of `LOSSES`."""

    seeds: int = 5
    """Trainings of each predictor; their spread is the standard error in the tables."""

    seed: int = 0
    """Of random directions, bootstrap, folds, first weights and batches."""

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise ActcacheError(
                f"stages are {list(self.stages)}, expected some of {', '.join(STAGES)}. "
                "Pass them separated by commas."
            )
        for name, given, known in (
            ("vectors", list(self.vectors), VECTORS),
            ("loss", [self.loss], LOSSES),
        ):
            if not given or not set(given) <= set(known) or len(set(given)) != len(given):
                raise ActcacheError(
                    f"{name} is {given}, expected some of {', '.join(known)}, each once. "
                    "Pass them separated by commas."
                )
        if self.seeds < 1 or not self.top or min(self.top) < 1 or len(self.encoders) < 1:
            raise ActcacheError(
                f"seeds are {self.seeds}, top {list(self.top)}, encoders {list(self.encoders)}; "
                "expected one or more of each, from 1 on."
            )
        for name, least in (("controls", 0), ("draws", 1), ("batch_tokens", 1)):
            if (given_number := getattr(self, name)) < least:
                raise ActcacheError(
                    f"{name} is {given_number}, expected {least} or more. Pass such a number."
                )
        if self.preset not in NAMES:
            raise ActcacheError(
                f"preset is '{self.preset}', expected {', '.join(NAMES)}. Pass one of them."
            )
        if len(set(self.multipliers)) != len(self.multipliers) or len(self.multipliers) < 2:
            raise ActcacheError(
                f"multipliers are {list(self.multipliers)}, expected two or more, each once. "
                "Pass START:STOP:STEP or a list, for example -1.5:1.5:0.5."
            )


def parse_multipliers(text: str) -> tuple[float, ...]:
    """`-1.5:1.5:0.5` (both ends in) or `-1,0,1` as numbers.

    Raises:
        ActcacheError: it is neither.
    """
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        start, stop, step = (float(part) for part in text.split(":"))
        n_steps = round((stop - start) / step)
    except (ValueError, ZeroDivisionError):
        n_steps, start, stop, step = -1, 0.0, 0.0, 0.0
    if n_steps < 1 or abs(start + n_steps * step - stop) > 1e-9:
        raise ActcacheError(
            f"multipliers are '{text}', expected START:STOP:STEP with whole steps or a list of "
            "numbers. For example -1.5:1.5:0.5."
        )
    return tuple(round(start + i * step, 12) for i in range(n_steps + 1))
