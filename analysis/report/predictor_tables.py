"""The tables of "Where to Steer", filled from a summary: what is worth what, where, and for whom.

Reads the part `predictors` of `summary.json` and nothing else, so a report can be made again from a
results folder. Refuses to compute.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actcache.analysis.predict.selections import CROSSFIT, SHUFFLED, w2s
from actcache.analysis.report.tables import Table
from actcache.analysis.sweep.ways import FIXED

KINDS = {
    "caa": "CAA",
    "l2s": "L2S",
    "l2s_without_letter": "L2S less letter",
    "oracle_vectors": "own difference",
    "random": "random vector",
}
"""Direction sets by name, as tables call them."""


def short_table(found: Mapping[str, Any]) -> Table:
    """The first table without what is there for comparison alone: for a terminal."""
    kinds = [kind for kind in KINDS if kind in found["worth"]]
    ways = (FIXED, CROSSFIT, SHUFFLED, "oracle")
    return _worth_table(found, kinds, only=lambda way: way in ways or way in _tops(found))


def predictor_tables(found: Mapping[str, Any]) -> list[Table]:
    """All tables of a summary's `predictors`."""
    kinds = [kind for kind in KINDS if kind in found["worth"]]
    tables = [
        _worth_table(found, kinds, only=lambda _way: True),
        _behavior_table(found, kinds),
        *([_variant_table(found, kinds)] if len(found["variants"]) > 1 else []),
        *([_letter_table(found, kinds)] if found["letters"] else []),
        _active_table(found, kinds),
        _training_table(found, kinds),
    ]
    if found["networks"]:
        tables.append(_network_table(found["networks"]))
    tables.append(_encoder_table(found["encoders"]))
    return tables


def _worth_table(
    found: Mapping[str, Any], kinds: Sequence[str], *, only: Callable[[str], bool]
) -> Table:
    n_behaviors = len(found["behaviors"])
    return Table(
        title="Steerability on test samples, mean over behaviors",
        columns=("layer chosen by", "steerability (SE)", "steerable (SE)", "gain over fixed"),
        rows=[
            [
                f"{KINDS[kind]}, {_called(way)}",
                f"{each['slope']['value']:.3f} ({each['slope_error']:.3f})",
                f"{each['share']:.3f} ({each['share_error']:.3f})",
                _gain(each["gain"]) if way != FIXED else "",
            ]
            for kind in kinds
            for way, each in found["worth"][kind]["base"]["mean"].items()
            if only(way)
        ],
        note=(
            f"Slope of propensity per unit multiplier; {n_behaviors} behavior"
            f"{'s' if n_behaviors > 1 else ''}, each counting the same. SE: over "
            f"{found['seeds']} trainings of the predictor, 0 where nothing is trained. Gain: with "
            "its 95 % interval, samples resampled. Oracle, second, third and fourth look at the "
            "test samples' own slopes; cross-fitted chooses with one half of the multipliers and "
            "is read with the other, so its slope and gain are of halves of the grid."
        ),
    )


def _behavior_table(found: Mapping[str, Any], kinds: Sequence[str]) -> Table:
    def row(behavior: str, kind: str) -> list[str]:
        worth = found["worth"][kind]["base"]["behaviors"][behavior]
        ways = (FIXED, _primary(found, kind), SHUFFLED, "oracle")
        return [
            behavior,
            KINDS[kind],
            str(found["fixed_layer"][kind][behavior]),
            *(_slope_share(worth[way]) if way in worth else "-" for way in ways),
        ]

    return Table(
        title="Steerability by behavior",
        columns=("behavior", "vector", "layer", "fixed layer", "W2S", "W2S shuffled", "oracle"),
        rows=[row(behavior, kind) for behavior in found["behaviors"] for kind in kinds],
        note=(
            "Steerability / share of steerable samples. W2S: with the K that gained most in "
            f"cross-validation ({', '.join(_primaries(found, kinds))})."
        ),
    )


def _variant_table(found: Mapping[str, Any], kinds: Sequence[str]) -> Table:
    variants = list(found["variants"])
    return Table(
        title="Other framings of the test prompts, mean over behaviors",
        columns=("layer chosen by", *variants),
        rows=[
            [
                f"{KINDS[kind]}, {_called(way)}",
                *(_slope_share(found["worth"][kind][v]["mean"][way]) for v in variants),
            ]
            for kind in kinds
            for way in (FIXED, _primary(found, kind), "oracle")
            if way in found["worth"][kind]["base"]["mean"]
        ],
        note=(
            "Steerability / share of steerable samples. Directions, networks, fixed layers and "
            "predictors are of base train samples alone."
        ),
    )


def _letter_table(found: Mapping[str, Any], kinds: Sequence[str]) -> Table:
    letters = list(found["letters"])
    return Table(
        title="By the letter of the positive completion, mean over behaviors",
        columns=("layer chosen by", *letters),
        rows=[
            [
                f"{KINDS[kind]}, {_called(way)}",
                *(_slope_share(found["by_letter"][kind][x][way]) for x in letters),
            ]
            for kind in kinds
            for way in (FIXED, _primary(found, kind), "oracle")
            if all(way in found["by_letter"][kind][x] for x in letters)
        ],
        note=(
            "Steerability / share of steerable samples. A vector that moves the letter instead of "
            "the behavior is steerable for one letter and not for the other."
        ),
    )


def _active_table(found: Mapping[str, Any], kinds: Sequence[str]) -> Table:
    shown = [(kind, w2s(top)) for kind in _trained(found, kinds) for top in found["top"]]
    return Table(
        title=f"Active layers after pruning, of {len(found['layers'])}",
        columns=("behavior", *(f"{KINDS[kind]}, {way}" for kind, way in shown)),
        rows=[
            [
                behavior,
                *(
                    str(len(found["training"][kind][behavior][way]["active_layers"]))
                    for kind, way in shown
                ),
            ]
            for behavior in found["behaviors"]
        ],
        note="Layers that are the (smoothed) best one of some train sample.",
    )


def _training_table(found: Mapping[str, Any], kinds: Sequence[str]) -> Table:
    return Table(
        title="Layer predictors in cross-validation on train samples",
        columns=("predictor", "rate", "width", "depth", "decay", "epochs", "value", "gain (SE)"),
        rows=[
            [
                f"{behavior}, {KINDS[kind]}, {way}",
                *(f"{value:g}" for value in each["chosen"].values()),
                f"{each['cv_crossfit']:.3f}",
                f"{each['cv_gain']:+.3f} ({each['cv_gain_error']:.3f})",
            ]
            for kind in _trained(found, kinds)
            for behavior, by_way in found["training"][kind].items()
            for way, each in by_way.items()
        ],
        note=(
            "Value: mean slope at the layers predicted for held-out folds, without the bias of "
            "choosing the setting on them (BBC-CV). Gain: over one layer for all, chosen in each "
            "fold's own train part."
        ),
    )


def _trained(found: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if found["primary"][kind] is not None]


def _network_table(networks: Mapping[str, Any]) -> Table:
    return Table(
        title="Networks of L2S",
        columns=(
            *("behavior", "steered layer", "context layer", "rate", "epochs"),
            *("validation loss", "of the mean", "along the letter"),
        ),
        rows=[
            [
                behavior,
                str(each["fixed_layer"]),
                str(each["context_layer"]),
                f"{each['rate']:g}",
                str(each["epochs"]),
                f"{each['validation_loss']:.4g}",
                f"{each['mean_loss']:.4g}",
                f"{each['letter_share']:.0%}" if each["letter_share"] is not None else "-",
            ]
            for behavior, each in networks.items()
        ],
        note=(
            "At the fixed layer, which the samples' own differences choose. Of the mean: the loss "
            "of one vector for all. Along the letter: the mean share of a predicted vector's "
            "squared norm that lies in the letter direction."
        ),
    )


def _encoder_table(encoders: Mapping[str, Any]) -> Table:
    return Table(
        title="Encoders of the prompt",
        columns=(
            "encoder",
            "dimensions",
            "silhouette",
            "accuracy",
            "steerability",
            "gain over fixed",
        ),
        rows=[
            [
                name,
                str(each["n_dimensions"]),
                "-" if each["silhouette"] is None else f"{each['silhouette']:.3f}",
                f"{each['accuracy']:.3f}",
                f"{each['value']:.3f}",
                f"{each['value'] - each['fixed']:+.3f}",
            ]
            for name, each in encoders.items()
        ],
        note=(
            "Silhouette: of the behaviors, cosine distance, base test samples. Accuracy: share of "
            "test samples whose best layer is predicted, CAA vectors, Top-1."
        ),
    )


def _tops(found: Mapping[str, Any]) -> list[str]:
    return [w2s(top) for top in found["top"]]


def _primaries(found: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    return [f"{KINDS[kind]}: Top-{found['primary'][kind]}" for kind in _trained(found, kinds)]


def _primary(found: Mapping[str, Any], kind: str) -> str:
    top = found["primary"][kind]
    return "" if top is None else w2s(top)


def _called(way: str) -> str:
    return {
        "fixed": "fixed layer",
        "random": "random layer",
        "random active": "random active layer",
    }.get(way, way)


def _slope_share(each: Mapping[str, Any]) -> str:
    return f"{each['slope']['value']:.3f} / {each['share']:.3f}"


def _gain(gain: Mapping[str, float]) -> str:
    return f"{gain['value']:+.3f} [{gain['low']:.3f}, {gain['high']:.3f}]"
