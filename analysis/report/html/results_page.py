"""report.html of an analysis: findings, charts, single prompts, tables, and how to repeat it."""

from collections.abc import Mapping, Sequence
from typing import Any

from actcache.analysis.concepts.summary import ConceptSummary
from actcache.analysis.names import CAA, strategy_label
from actcache.analysis.report.findings import findings
from actcache.analysis.report.html.columns import columns
from actcache.analysis.report.html.concept_charts import (
    concept_charts,
    concept_content,
    concept_rows,
)
from actcache.analysis.report.html.facts import flat_facts
from actcache.analysis.report.html.page import render
from actcache.analysis.report.html.result_charts import result_charts
from actcache.analysis.report.html.result_rows import (
    Rows,
    class_rows,
    framing_of,
    grid_rows,
    layer_rows,
    letter_rows,
    strategy_rows,
)
from actcache.analysis.report.html.sample_charts import sample_charts
from actcache.analysis.report.html.samples import Samples, sample_columns
from actcache.analysis.report.pages import layer_tables, plane_tables, sweep_tables
from actcache.analysis.report.predictor_tables import predictor_tables
from actcache.analysis.report.tables import Table
from actcache.analysis.summary import Summary

SECTIONS = {
    "findings": "Findings",
    "layers": "Layers",
    "grid": "Multipliers",
    "samples": "Samples",
    "strategies": "Strategies",
    "plane": "Plane",
    "letters": "Letters",
    "predictors": "Predictors",
    "discriminative": "Discriminative layers",
    "concepts": "Concepts",
    "planes": "Norm outputs",
    "settings": "Settings",
}


def results_page(
    summary: Summary,
    *,
    samples: Samples | None = None,
    choices: Rows | None = None,
    concepts: ConceptSummary | None = None,
    commands: Sequence[str],
    again: str,
) -> str:
    """Write the page of a results folder.

    Args:
        summary: every number of the tables.
        samples: single prompts with their slopes and curves; None where nothing was swept.
        choices: share of test samples by behavior, chooser and layer; None without predictors.
        concepts: tokens, masses and scores of concept directions; None without the stage.
        commands: the command lines that repeat the analysis.
        again: the one that makes this page again.
    """
    tables = _tables(summary, choices)
    if concepts is not None:
        tables["masses"] = concept_rows(concepts)
    sample_data = None if samples is None else sample_columns(samples, _fixed_layers(summary))
    content = {
        **_sweep_content(summary, tables),
        **_sample_content(summary, sample_data),
        **_predictor_content(summary, tables),
        **_label_content(summary),
        "concepts": None if concepts is None else concept_content(concepts),
        **_setting_content(summary),
    }
    present = {
        "findings": True,
        "layers": content["behaviors"],
        "grid": content["behaviors"],
        "samples": sample_data,
        "strategies": content["strategy_sets"],
        "plane": content["plane"],
        "letters": content["letters"],
        "predictors": content["predictors"],
        "discriminative": content["classes"],
        "concepts": content["concepts"],
        "planes": content["plane_tables"],
        "settings": True,
    }
    store = summary.store
    facts = (f"{store.n} rows", f"{store.n_layers} layers", f"d_model {store.d_model}")
    return render(
        "results.html",
        charts={
            **result_charts(),
            **(sample_charts() if sample_data else {}),
            **(concept_charts(concepts) if concepts else {}),
        },
        tables={name: columns(rows) for name, rows in tables.items() if rows},
        more={"samples": sample_data},
        title=f"Results of {store.path}",
        subtitle=f"{_model_name(summary)}: {', '.join(facts)}",
        sections=[(anchor, name) for anchor, name in SECTIONS.items() if present[anchor]],
        findings=findings(summary),
        left_out=summary.left_out,
        sentences=_sentences(summary),
        commands=commands,
        again=again,
        **content,
    )


def _tables(summary: Summary, choices: Rows | None) -> dict[str, Rows]:
    """The rows behind the charts, by the table's name."""
    tables = {
        "strategies": strategy_rows(summary),
        "letters": letter_rows(summary),
        "choices": choices or [],
    }
    if summary.sweep is not None:
        tables |= {"layers": layer_rows(summary.sweep), "grid": grid_rows(summary.sweep)}
    if summary.layers and summary.labels:
        tables["classes"] = class_rows(summary.layers, summary.labels)
    return tables


def _sweep_content(summary: Summary, tables: Mapping[str, Rows]) -> dict[str, Any]:
    sweep = summary.sweep
    note = ""
    if sweep is not None:
        note = "Mean propensity over test samples of all framings, as its change from multiplier 0."
        if 0.0 not in sweep.multipliers:
            note = "Mean propensity over test samples, minus its mean over the multipliers."
    return {
        "behaviors": _different(tables.get("layers", []), "behavior"),
        "framings": _different(tables.get("layers", []), "framing"),
        "grid_behaviors": _different(tables.get("grid", []), "behavior"),
        "unit": "" if sweep is None else sweep.unit,
        "grid_note": note,
        "letters": bool(tables["letters"]),
        "sweep_tables": sweep_tables(summary),
        "strategy_sets": _different(tables["strategies"], "vectors"),
        "strategy_behaviors": _different(tables["strategies"], "behavior"),
        "strategy_framings": _different(tables["strategies"], "framing"),
    }


def _sample_content(summary: Summary, data: Mapping[str, Any] | None) -> dict[str, Any]:
    if data is None:
        nothing = {"samples": False, "framings_listed": False, "predicted": False}
        return {**nothing, "filters": [], "plane": ""}
    words = {name: data[name]["words"] for name in ("behavior", "framing", "letter")}
    plane = ""
    if data["plane"] is not None and summary.predictors and summary.predictors.plane:
        how = summary.predictors.plane
        plane = f"Embedded by {summary.predictors.encoder}, {how.method.upper()}"
        if how.explained is not None:
            plane += f" ({sum(how.explained):.0%} of the variance)"
        plane += "."
    return {
        "samples": True,
        "framings_listed": len(words["framing"]) > 1,
        "predicted": data["predicted"] is not None,
        "plane": plane,
        "filters": [
            ("behavior", "Behavior", words["behavior"]),
            ("framing", "Framing", words["framing"]),
            ("letter", "Letter", [word for word in words["letter"] if word]),
            ("best", "Best layer", data["layers"]),
        ],
    }


def _predictor_content(summary: Summary, tables: Mapping[str, Rows]) -> dict[str, Any]:
    scores = summary.predictors
    primary = None if scores is None or CAA not in scores.sets else scores.sets[CAA].primary
    return {
        "predictors": scores is not None,
        "predictor_tables": [] if scores is None else predictor_tables(summary),
        "choices": strategy_label(primary) if primary and tables["choices"] else "",
        "choice_behaviors": _different(tables["choices"], "behavior"),
    }


def _label_content(summary: Summary) -> dict[str, Any]:
    layers = summary.layers or {}
    return {
        "classes": layers if summary.labels else {},
        "layer_tables": layer_tables(summary),
        "plane_tables": plane_tables(summary),
    }


def _setting_content(summary: Summary) -> dict[str, Any]:
    store = summary.store
    numbers = range(store.n_layers)
    vectors = Table(
        "Directions: norm at each layer",
        [
            {
                "behavior": name,
                "n +": str(vector.n_positive),
                "n −": str(vector.n_negative),
                **{f"layer {i}": f"{vector.norm[i]:.3g}" for i in numbers if i < len(vector.norm)},
            }
            for name, vector in (summary.vectors or {}).items()
        ],
    )
    check = {} if summary.sweep is None else {"sweep": summary.sweep.self_check}
    return {
        "settings": flat_facts(summary.config),
        "provenance": {
            "store": store.path,
            "rows": store.n,
            "layers": store.n_layers,
            **flat_facts(store.provenance),
        },
        "certificate": {
            **flat_facts(store.certificate or {"build": "none was made"}),
            **flat_facts(check),
        },
        "data_digest": str(store.provenance.get("data_sha256", "not recorded")),
        "vector_tables": [vectors] if summary.vectors else [],
    }


def _sentences(summary: Summary) -> dict[str, list[str]]:
    """The sentences behind the verdicts, by stage."""
    return {
        "sweep": [f"{v.about}: {v.sentence}" for v in summary.verdicts if v.stage == "sweep"],
        "predictors": [v.sentence for v in summary.verdicts if v.stage == "predictors"],
    }


def _fixed_layers(summary: Summary) -> dict[str, int]:
    if summary.behaviors:
        named = {framing_of(name): s.fixed_layer for name, s in summary.behaviors.items()}
        return {behavior: layer for (behavior, _), layer in named.items()}
    scores = summary.predictors
    return {} if scores is None or CAA not in scores.sets else dict(scores.sets[CAA].fixed_layer)


def _model_name(summary: Summary) -> str:
    model = summary.store.provenance.get("model")
    return str(model.get("name", "a model")) if isinstance(model, dict) else "a model"


def _different(rows: Rows, column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))
