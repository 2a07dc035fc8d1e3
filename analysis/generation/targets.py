"""The target of steering: the number by which a text shows the effect that is asked for."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Float64

from actcache.analysis.directions.difference_of_means import unit
from actcache.analysis.generation.metrics import has_phrase
from actcache.analysis.generation.phrases import load_phrases
from actcache.analysis.results import Results
from actcache.errors import ActcacheError, MismatchError

TargetKind = Literal["read_back", "answer", "form", "words", "refusal", "judge"]
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What texts are scored by."""

    kind: TargetKind = "read_back"

    form: re.Pattern[str] | None = None
    """Of `form`: what the text is searched for."""

    words: tuple[str, ...] = ()
    """Of `words`: phrases, matched as whole words."""

    def score(
        self,
        text: str,
        *,
        refusal: bool = False,
        read_back: float | None = None,
        verdict: float | None = None,
        completions: tuple[str, str] | None = None,
    ) -> float | None:
        """Score one text; None where it has no score.

        Args:
            text: the text.
            refusal: `TextMetrics.refusal` of it.
            read_back: its projection, from `ReadBack.project`; None or NaN of an empty text.
            verdict: of the judge; None without one.
            completions: the row's positive and negative one, for `answer`: 1 or 0 where the text
                is one of them, None where it is neither.
        """
        match self.kind:
            case "form":
                assert self.form is not None
                return float(self.form.search(text) is not None)
            case "words":
                return float(has_phrase(text, self.words, whole=True))
            case "refusal":
                return float(refusal)
            case "judge":
                return verdict
            case "answer":
                assert completions is not None
                positive, negative = (completion.strip() for completion in completions)
                return {negative: 0.0, positive: 1.0}.get(text.strip())
            case _:
                return None if read_back is None or np.isnan(read_back) else read_back


def parse_target(text: str) -> Target:
    """Read a target as the command line has it, such as read_back or form:REGEX.

    Raises:
        ActcacheError: it is none of them, its expression does not compile, or its file is none of
            phrases.
    """
    word, colon, argument = text.partition(":")
    kind = next((kind for kind in TARGET_KINDS if kind == word), None)
    if kind is None or (kind in ("form", "words")) != bool(argument) or (colon and not argument):
        raise ActcacheError(
            f"target is '{text}', expected read_back, answer, form:REGEX, words:FILE, refusal "
            "or judge. Pass one of them."
        )
    if kind == "form":
        return Target(kind=kind, form=compile_form(argument))
    if kind == "words":
        return Target(kind=kind, words=load_phrases(Path(argument)).phrases)
    return Target(kind=kind)


def compile_form(expression: str) -> re.Pattern[str]:
    r"""Compile the regular expression of a form, such as `\(\s*[AB]\s*\)`.

    Raises:
        ActcacheError: it does not compile.
    """
    try:
        return re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise ActcacheError(
            f"'{expression}' is no regular expression ({error}), expected one of Python. Correct "
            "it, or escape its special characters with a backslash."
        ) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadBack:
    """Where and along what the unsteered model's mean residual over a text is read."""

    layer: int
    direction: Float32[np.ndarray, " d"]
    """The train direction there, of norm 1."""

    def project(self, mean_residual: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Project mean residuals of that layer on the direction; NaN stays NaN."""
        return np.asarray(mean_residual.astype(np.float64) @ self.direction.astype(np.float64))


def read_backs(results: Results, behaviors: Iterable[str]) -> dict[str, ReadBack]:
    """Find each behavior's train direction at its fixed layer.

    The fixed layer is the one that the sweep chose on train samples; of labelled rows, which are
    not swept, the common layer of the stage `layers`.

    Raises:
        MismatchError: a behavior has no direction, or no layer was chosen.
    """
    made = {}
    for behavior in behaviors:
        if behavior not in results.directions:
            raise MismatchError(
                f"'{results.path}' has no direction of '{behavior}', expected one of "
                f"{', '.join(results.directions)}. Pass one of them with --behavior."
            )
        layer = fixed_layer(results, behavior)
        vector = unit(results.directions[behavior])[layer]
        made[behavior] = ReadBack(layer=layer, direction=vector)
    return made


def fixed_layer(results: Results, behavior: str) -> int:
    """Find the layer that was chosen for a behavior on train samples.

    Raises:
        MismatchError: neither the sweep nor the stage `layers` ran.
    """
    summary = results.summary
    if behavior in summary.behaviors:
        return summary.behaviors[behavior].fixed_layer
    if summary.layers and behavior in summary.layers:
        return summary.layers[behavior].common_layer
    raise MismatchError(
        f"'{results.path}' has no chosen layer of '{behavior}', expected the stage sweep, or of "
        "labelled rows the stage layers. Run analyze with it, or pass another --target."
    )
