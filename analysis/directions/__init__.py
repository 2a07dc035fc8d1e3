"""Directions: from moments or a store, the letter's own, and what tells layers and tokens apart."""

from actcache.analysis.directions.difference_of_means import (
    Directions,
    cosine,
    difference_of_means,
    directions_of_moments,
    label_directions,
    pair_directions,
    random_directions,
    unit,
)
from actcache.analysis.directions.discriminative import (
    LayerScores,
    Projections,
    layer_scores,
    mean_cosine,
    project,
)
from actcache.analysis.directions.letter import letter_directions, letter_share, without_letter
from actcache.analysis.directions.token_choice import TokenChoice, choose_tokens, soft_labels

__all__ = [
    "Directions",
    "LayerScores",
    "Projections",
    "TokenChoice",
    "choose_tokens",
    "cosine",
    "difference_of_means",
    "directions_of_moments",
    "label_directions",
    "layer_scores",
    "letter_directions",
    "letter_share",
    "mean_cosine",
    "pair_directions",
    "project",
    "random_directions",
    "soft_labels",
    "unit",
    "without_letter",
]
