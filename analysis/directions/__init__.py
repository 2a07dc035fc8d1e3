"""Directions and planes, the letter's own, and what tells layers, sites and tokens apart."""

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
from actcache.analysis.directions.planes import (
    ClassMeans,
    Plane,
    SiteScores,
    class_means,
    find_plane,
    norm_sites,
    plane_of_means,
)
from actcache.analysis.directions.token_choice import TokenChoice, choose_tokens, soft_labels

__all__ = [
    "ClassMeans",
    "Directions",
    "LayerScores",
    "Plane",
    "Projections",
    "SiteScores",
    "TokenChoice",
    "choose_tokens",
    "class_means",
    "cosine",
    "difference_of_means",
    "directions_of_moments",
    "find_plane",
    "label_directions",
    "layer_scores",
    "letter_directions",
    "letter_share",
    "mean_cosine",
    "norm_sites",
    "pair_directions",
    "plane_of_means",
    "project",
    "random_directions",
    "soft_labels",
    "unit",
    "without_letter",
]
