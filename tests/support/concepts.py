"""Scores of concepts that nobody measured."""

from actcache.analysis.concepts.summary import (
    ATTENDED,
    ConceptScores,
    ConceptSummary,
    ControlScores,
    SetScores,
)
from actcache.analysis.stats.bootstrap import Interval
from tests.support.summaries import LAYERS

TOKENS = ("template_-2", "template_-1")


def planted_concepts(names, *, layers=LAYERS, tokens=TOKENS):
    """Concepts whose tokens are chosen in turns; the last layer of the first one is blind."""
    return ConceptSummary(
        design="same",
        classes=("with", "without"),
        methods=("mean",),
        layers=tuple(layers),
        positions=tuple(tokens),
        concepts={
            name: _planted(tuple(layers), tokens, blind=(layers[-1],) if i == 0 else ())
            for i, name in enumerate(names)
        },
    )


def _planted(layers, tokens, *, blind):
    places = range(len(layers))
    chosen = tuple(tokens[-1 if layers[i] in blind else i % len(tokens)] for i in places)
    mass = {
        token: tuple(
            0.0 if layers[i] in blind else 0.1234 + 0.5 * (token == chosen[i]) for i in places
        )
        for token in tokens
    }
    auc = (Interval(value=0.8765, low=0.7654, high=0.9876),) * len(layers)
    sets = [f"mean-{kind}-{token}" for kind in ("hard", "soft") for token in (ATTENDED, *tokens)]
    return ConceptScores(
        counts={"train": (40, 40), "validation": (10, 10), "test": (20, 20)},
        held_out="test",
        tokens=chosen,
        peak=tuple(max(column) for column in zip(*mass.values(), strict=True)),
        blind=blind,
        mass=mass,
        random_span_tokens=chosen,
        random_span_mass=dict.fromkeys(tokens, (0.05,) * len(layers)),
        layers_by_mass=layers,
        layers_by_score=layers,
        sets={key: SetScores(auc=auc, validation=(0.5,) * len(layers)) for key in sets},
        controls=ControlScores(draws=20, shuffled=auc, random=auc),
    )
