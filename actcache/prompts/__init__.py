"""Samples as tokens: rendering, marked spans, checks of rows, positions, token trees."""

from actcache.prompts.checks import CheckedRows, CheckSummary, check_rows
from actcache.prompts.render import Rendered, Renderer, Rendering
from actcache.prompts.token_tree import Tree, TreeBatch, pack_trees

__all__ = [
    "CheckSummary",
    "CheckedRows",
    "Rendered",
    "Renderer",
    "Rendering",
    "Tree",
    "TreeBatch",
    "check_rows",
    "pack_trees",
]
