"""The settings of an analysis; recorded with its results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

from actcache.conventions import (
    NO_PRESET,
    STAGES,
    VECTORS,
    FirstSteered,
    FitMethod,
    Loss,
    Norm,
    PresetName,
    Score,
    Stage,
    Vectors,
)
from actcache.errors import ActcacheError
from actcache.settings import MAX_SEED, check_numbers, check_words, setting

SWEEP, PREDICTORS, CONCEPTS = "sweep", "predictors", "concepts"
"""Headings in `actcache analyze --help`."""

MAX_GRID = 1000
"""Multipliers of a sweep; a grid that is finer is a slip of the keyboard."""

MAX_MULTIPLIER = 1_000_000
"""Of either sign. Nothing of the residual is left long before, and float32 overflows after."""

SERIES_OF_BUILD = ("template", "dtype", "device", "batch_tokens", "trust_remote_code")
"""Settings of build that `actcache concepts` takes, beside the model and positions."""

SERIES_OF_ANALYSIS = ("methods", "shuffles", "draws")
"""The same of analyze."""


@no_type_check  # users' words: `check_words` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """The settings of one analysis; `actcache analyze` has a flag for each, with the same default.

    Raises:
        ActcacheError: a value is not one that the field takes.
    """

    stages: Sequence[Stage] = setting(STAGES, help="what to run")

    multipliers: Sequence[float] = setting(
        (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5),
        group=SWEEP,
        metavar="START:STOP:STEP",
        least=-MAX_MULTIPLIER,
        most=MAX_MULTIPLIER,
        help="factors λ on the directions, both ends included; or a list",
    )

    first_steered: FirstSteered = setting(
        "fork", group=SWEEP, help="first token that is steered, with all after it"
    )

    score: Score = setting("letter", group=SWEEP, help="how a completion is scored")

    preset: PresetName = setting(
        NO_PRESET,
        group=SWEEP,
        help="the conventions of a published code (default: those that the store was built with)",
    )
    """It sets no other field here: `conventions.sweep_settings` does."""

    layers: Sequence[int] | None = setting(
        None,
        group=SWEEP,
        least=0,
        help="layers to steer, for example 3,5 or 0:12 (default: all)",
    )

    labels: Sequence[str] | None = setting(
        None,
        metavar="POSITIVE,NEGATIVE",
        help="which labels, where the data has more than two or another order",
    )

    position: str | None = setting(
        None,
        metavar="NAME",
        help="token of labelled prompts that is read, such as template_-2 (default: the last one, "
        "else the mean)",
    )

    pooled: bool = setting(
        False, help="one direction of all behaviors' labelled prompts, not one each"
    )

    normalize: bool = setting(
        False,
        help="scale residuals to norm 1 for discriminative layers, as Selective Steering's code "
        "does",
    )

    on_calibration: bool = setting(
        False,
        help="read discriminative layers on the train samples that directions are made of, as "
        "Selective Steering does (equation 9 on the calibration set), instead of on the others",
    )

    methods: Sequence[FitMethod] = setting(
        ("mean",),
        group=CONCEPTS,
        help="how directions are fitted: {words}",
    )

    shuffles: int = setting(
        20,
        group=CONCEPTS,
        least=20,
        most=10_000,
        help="shufflings of the labels, and random directions, that concepts are compared with",
    )

    controls: int = setting(
        1,
        group=SWEEP,
        least=0,
        most=1000,
        help="sets of random directions, of the same lengths, that are swept as controls",
    )

    control_rows: int = setting(
        64,
        group=SWEEP,
        least=16,
        most=2**31 - 1,
        help="test rows of each behavior and framing that random directions are read on, drawn "
        "with the seed: 64 make the interval of their mean slope half as wide as the slopes' "
        "standard deviation",
    )

    all_rows: bool = setting(
        False,
        group=SWEEP,
        help="sweep every row with every direction; without it only those that a figure reads: "
        "base prompts of train, all framings of test",
    )

    splits: int = setting(
        1,
        group=SWEEP,
        least=1,
        most=100,
        help="splits of the base prompts that the fixed layer is chosen and read on, for its "
        "standard error: the store's own, and random ones. Each random split has directions of "
        "its own, one more set that the sweep steers its train and test rows with; learned vectors "
        "are of the store's own split alone",
    )

    draws: int = setting(1000, least=1, most=100_000, help="bootstrap draws of every interval")

    directions: Sequence[str] = setting(
        (),
        group=SWEEP,
        metavar="FILE[:KEY]",
        help="directions to steer with besides, one norm a layer: safetensors or GGUF",
    )

    norm: Norm = setting("caa", group=SWEEP, help="how long these are")

    batch_tokens: int = setting(
        2048,
        group=SWEEP,
        least=1,
        most=2**31 - 1,
        help="tokens in a pass of the sweep, joined rows included",
    )

    vectors: Sequence[Vectors] = setting(
        VECTORS, group=PREDICTORS, help="whose directions the predictors choose the layer for"
    )

    encoders: Sequence[str] = setting(
        ("cache",),
        group=PREDICTORS,
        help="what turns prompts into vectors: cache:LAYER, cache:mean:LAYER, hf:NAME_OR_FOLDER, "
        "openai:MODEL; cache alone is the middle layer. The first is used, all are compared",
    )

    base_url: str | None = setting(
        None,
        group=PREDICTORS,
        metavar="URL",
        help="address of the service of an openai: encoder (default: OpenAI's); its key is read "
        "from OPENAI_API_KEY",
    )

    embeddings: str | None = setting(
        None,
        group=PREDICTORS,
        metavar="FILE",
        help="file that keeps the embeddings that were paid for (default: one in the user's cache "
        "folder)",
    )

    top: Sequence[int] = setting(
        (1, 2, 3),
        group=PREDICTORS,
        least=1,
        help="K of frequency smoothing of labels (W2S, equation 7)",
    )

    context_layers: Sequence[int] | None = setting(
        None,
        group=PREDICTORS,
        least=0,
        help="layers whose residuals the networks of L2S read (default: about 8, evenly spaced)",
    )

    loss: Loss = setting("paper", group=PREDICTORS, help="training loss of L2S")

    seeds: int = setting(
        5,
        group=PREDICTORS,
        least=1,
        most=1000,
        help="trainings of each predictor; their spread is the standard error in the tables",
    )

    seed: int = setting(
        0,
        least=0,
        most=MAX_SEED,
        help="seed of random directions, bootstrap, folds, first weights and batches",
    )

    def __post_init__(self) -> None:
        n_multipliers = len(self.multipliers)
        if len(set(self.multipliers)) != n_multipliers or not 2 <= n_multipliers <= MAX_GRID:
            shown = list(self.multipliers) if n_multipliers <= MAX_GRID else n_multipliers
            raise ActcacheError(
                f"multipliers are {shown}, expected 2 to {MAX_GRID}, each once. Pass "
                "--multipliers START:STOP:STEP or a list, for example -1.5:1.5:0.5."
            )
        check_numbers(self)
        if self.base_url is not None:  # it is recorded, whether an encoder needs it or not
            from actcache.encoders.connection import endpoint_of

            object.__setattr__(self, "base_url", endpoint_of(self.base_url))
        once = ["vectors", "encoders", "layers", "context_layers", "top", "methods"]
        check_words(self, once=once)
        for name in ("top", "encoders", "layers", "context_layers"):
            if getattr(self, name) is not None and not getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                raise ActcacheError(f"{name} are [], expected one or more. Pass some to {flag}.")
