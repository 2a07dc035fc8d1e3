"""Tables of direction sets that were swept beside the difference of means."""

from collections import Counter

from actcache.analysis.report.tables import Table
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.summary import ComparedSets, SetSlopes, Summary

_NORMS = {
    "caa": "All sets have the norm of the difference of means in each layer.",
    "residual": "All sets have the mean norm of the residuals in each layer.",
    "raw": "Directions are as their files have them: a longer one has a larger slope.",
}


def comparison_tables(compared: ComparedSets, summary: Summary) -> list[Table]:
    """Make the table of all sets at their fixed layers, and that of every layer."""
    unit = summary.sweep.unit if summary.sweep else ""
    note = (
        f"{_NORMS[compared.norm]} Slopes ({unit} per unit multiplier) are means over behaviors of "
        "their base test samples; intervals resample behaviors and samples. Fixed layers are "
        "chosen on train samples, for each behavior."
    )
    first = Table(
        "Direction sets at fixed layers",
        [_row(name, slopes) for name, slopes in compared.sets.items()],
        note,
    )
    by_layer = [
        {"layer": str(layer)}
        | {name: str(slopes.by_layer[place]) for name, slopes in compared.sets.items()}
        for place, layer in enumerate(compared.layers)
    ]
    return [first, Table("Direction sets, mean slope by layer", by_layer)]


def _row(name: str, slopes: SetSlopes) -> dict[str, str]:
    layers = Counter(slopes.fixed_layers.values())
    return {
        "directions": name,
        "slope": str(slopes.fixed),
        "fixed layers": ", ".join(f"{layer} ({n}×)" for layer, n in sorted(layers.items())),
        "minus difference of means": _or_dash(slopes.over_caa),
        "minus random": _or_dash(slopes.over_random),
    }


def _or_dash(value: Interval | None) -> str:
    return "-" if value is None else str(value)
