"""Difference-of-means directions, from a store or from moments; random ones of the same length.

A direction set is one array `[layer, d_model]`: the mean residual of the positive class minus that
of the negative class at each layer (CAA; Rimsky et al. 2024, Tan et al. 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from actcache.analysis.directions.shard_groups import store_moments
from actcache.analysis.stats.moments import Moments
from actcache.analysis.stats.units import MapUnits
from actcache.errors import MismatchError
from actcache.store.store import Store


@dataclass(frozen=True)
class Directions:
    """Difference-of-means directions of a store, and the moments that they come from.

    `directions["tidy"]` is one behavior's `[layer, d_model]`.
    """

    names: Sequence[str]
    """Name of each: the behavior, or `<positive label>-<negative label>`."""

    values: Float32[np.ndarray, "k layer d_model"]
    """Mean of the positive residuals minus mean of the negative ones; not scaled."""

    moments: Moments
    """Classes 2·i (positive) and 2·i + 1 (negative) of direction i, over the chosen rows."""

    def __getitem__(self, name: str) -> Float32[np.ndarray, "layer d_model"]:
        """One direction at all layers."""
        if name not in self.names:
            raise MismatchError(
                f"there are directions of {', '.join(self.names)}, none of '{name}'. "
                "Pass one of these names."
            )
        return np.asarray(self.values[list(self.names).index(name)])


def difference_of_means(
    store: Store,
    *,
    rows: Bool[np.ndarray, " n"] | None = None,
    labels: tuple[str, str] | None = None,
    position: str | None = None,
    pooled: bool = False,
) -> Directions:
    """Compute the directions of a store, streaming its residuals once.

    Pairs give one direction for each behavior among `rows`: answer token of the positive minus the
    negative completion. Labelled prompts do likewise, one label minus the other.

    Args:
        store: with the positions positive and negative, or with labels.
        rows: samples that count; by default the base rows of the train split.
        labels: the positive and the negative label; by default the data's two, in its order.
        position: token of labelled prompts; by default as `prompt_position` chooses.
        pooled: one direction of all behaviors' labelled prompts.

    Raises:
        MismatchError: a position was not kept, no row or no row of a label is among `rows`, or
            there are not two labels.
    """
    if rows is None:
        rows = (store["split"] == "train") & (store["variant"] == "base")
    if rows.shape != (store.n,) or not rows.any():
        raise MismatchError(
            f"rows have shape {list(rows.shape)} and choose {int(rows.sum())} samples, expected a "
            f"mask over {store.n} that chooses one or more. Pass for example "
            "store['split'] == 'train'."
        )
    require_classes(store)
    if store.row_kind == "labels":
        return label_directions(
            store, rows=rows, labels=two_labels(store, labels), position=position, pooled=pooled
        )
    return pair_directions(store, rows=rows, behaviors=np.unique(store["behavior"][rows]))


def pair_directions(
    store: Store,
    *,
    rows: Bool[np.ndarray, " n"],
    behaviors: np.ndarray | None = None,
    map_units: MapUnits = map,
) -> Directions:
    """Directions of pairs: answer token of the positive minus the negative completion (CAA).

    Args:
        store: with the positions positive and negative.
        rows: samples that count, for example the train split.
        behaviors: sorted names, those of `rows` among them; by default all of the store. Each
            needs one of `rows`.
        map_units: runs the groups of `store_moments`.
    """
    names = np.unique(store["behavior"]) if behaviors is None else behaviors
    code = np.searchsorted(names, store["behavior"])  # of behaviors without rows: never read
    classes = {
        position: np.where(rows, 2 * code + side, -1)
        for side, position in enumerate(("positive", "negative"))
    }
    moments = store_moments(store, classes, 2 * len(names), map_units=map_units)
    return _directions([str(name) for name in names], moments)


def label_directions(
    store: Store,
    *,
    rows: Bool[np.ndarray, " n"],
    labels: tuple[str, str],
    position: str | None = None,
    pooled: bool = False,
    map_units: MapUnits = map,
) -> Directions:
    """Directions of labelled prompts: one label minus the other, at one token.

    Args:
        store: with labels.
        rows: samples that count; each direction needs one of both labels among them.
        labels: the positive and the negative one.
        position: token to read; by default as `prompt_position` chooses.
        pooled: one direction of all behaviors together, as where `label_groups` has one.
        map_units: runs the groups of `store_moments`.
    """
    code = label_codes(store, labels)
    groups = label_groups(store, labels, pooled=pooled)
    group = np.full(store.n, -1, np.int64)
    for number, members in enumerate(groups.values()):
        group[members] = number
    classes = {prompt_position(store, position): np.where(rows & (code >= 0), 2 * group + code, -1)}
    moments = store_moments(store, classes, 2 * len(groups), map_units=map_units)
    return _directions(list(groups), moments)


def label_groups(
    store: Store, labels: tuple[str, str], *, pooled: bool = False
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Group the rows of labelled prompts that share a direction, by the direction's name.

    Several behaviors have one each. Where no behavior has both labels, as in a file for each label,
    or where there is one behavior alone, all rows share one: `<positive>-<negative>`.

    Raises:
        MismatchError: some behaviors have both labels, and another has one.
    """
    behavior, label = store["behavior"], store["label"]
    names = list(dict.fromkeys(behavior.tolist()))
    of_label = [set(behavior[label == side].tolist()) for side in labels]
    both = of_label[0] & of_label[1]
    if pooled or len(names) == 1 or not both:
        return {"-".join(labels): np.ones(store.n, bool)}
    for name in names:
        if name not in both and any(name in names_of for names_of in of_label):
            only = labels[0] if name in of_label[0] else labels[1]
            raise MismatchError(
                f"behavior '{name}' has rows of the label '{only}' alone, expected both of "
                f"{', '.join(labels)}. Add rows of the other label, or pass --pooled for one "
                "direction of all behaviors."
            )
    return {name: behavior == name for name in names if name in both}


def prompt_position(store: Store, asked: str | None = None) -> str:
    """Choose the token that is read of labelled prompts: the last one, else the mean.

    Raises:
        MismatchError: the store has not kept it.
    """
    have = [name.rpartition("/")[2] for name in store.arrays if name.startswith("resid_post/")]
    candidates = [asked] if asked else ["prompt", "template_-1", "last_-1", "mean"]
    for position in candidates:
        if position in have:
            return position
    raise MismatchError(
        f"'{store.path}' has residuals at {', '.join(have) or 'no token'}, expected "
        f"{asked or 'a token of prompts'}. Pass one of these as --position, or build with "
        f"--positions {_as_built(asked or 'prompt')}."
    )


def _as_built(position: str) -> str:
    """The word of `build` that keeps a position: `template:3` for `template_-3`."""
    return position.replace("_-", ":") if "_-" in position else position


def label_codes(store: Store, labels: tuple[str, str]) -> Int64[np.ndarray, " n"]:
    """0 for the positive label, 1 for the negative one, -1 for any other."""
    of_row = store["label"]
    return np.where(of_row == labels[0], 0, np.where(of_row == labels[1], 1, -1)).astype(np.int64)


def require_classes(store: Store) -> None:
    """Refuse rows between which there is no difference of means: no pairs, and no two labels."""
    if store.row_kind == "prompts":
        raise MismatchError(
            f"the rows of '{store.path}' are prompts alone, expected pairs or two labels: there is "
            "no direction between them. Read them with store.residuals('prompt') or actcache "
            "export; or give the rows labels and build again with --reuse, which runs none again."
        )
    labels = set(store["label"].tolist())
    if store.row_kind == "labels" and len(labels) == 1:
        raise MismatchError(
            f"all rows of '{store.path}' have the label '{labels.pop()}', expected two labels: "
            "there is no direction between them. Join it with a store of another label with "
            "actcache merge, or read the rows with store.residuals('prompt')."
        )


def two_labels(store: Store, asked: Sequence[str] | None = None) -> tuple[str, str]:
    """Choose the positive and the negative label; by default the data's two, in its order."""
    in_data = list(dict.fromkeys(store["label"].tolist()))
    chosen = list(asked) if asked is not None else in_data
    if len(chosen) != 2 or len(set(chosen)) != 2 or not set(chosen) <= set(in_data):
        raise MismatchError(
            f"two labels are needed, positive and negative; asked for {chosen}, found "
            f"{', '.join(in_data)}. Pass --labels POSITIVE,NEGATIVE."
        )
    return chosen[0], chosen[1]


def directions_of_moments(
    moments: Moments, *, positive: int, negative: int
) -> Float32[np.ndarray, "layer d_model"]:
    """Subtract the mean residual of one class from that of another, at every layer.

    The difference is taken in float64 and rounded once. For contrast pairs it equals the mean of
    the pairs' differences. Directions point from the class `negative` to the class `positive`.

    Raises:
        MismatchError: no such class, one without samples, or the same class twice.
    """
    n_classes = len(moments.count)
    for name, k in (("positive", positive), ("negative", negative)):
        if not 0 <= k < n_classes:
            raise MismatchError(
                f"{name} is class {k}, but the moments hold 0 to {n_classes - 1}. Pass one of them."
            )
        if moments.count[k] == 0:
            raise MismatchError(
                f"{name} class {k} has no sample, expected one or more. "
                f"Check the labels and the train split."
            )
    if positive == negative:
        raise MismatchError(
            f"positive and negative are both class {positive}, expected two. Pass two classes."
        )
    return np.asarray(moments.mean[positive] - moments.mean[negative], np.float32)


def unit(directions: Float[np.ndarray, "*batch d_model"]) -> Float[np.ndarray, "*batch d_model"]:
    """Scale each direction to norm 1; a zero direction stays zero, for it points nowhere.

    Norms are float64, the result keeps its dtype.
    """
    length = _norm(directions)
    return np.asarray(directions / np.where(length > 0, length, 1), directions.dtype)


def random_directions(
    directions: Float[np.ndarray, "layer d_model"], rng: np.random.Generator, *, count: int
) -> Float32[np.ndarray, "count layer d_model"]:
    """Draw sets of random directions, at each layer as long as the given one.

    The control of a steering experiment: as strong a push at the same layer, in a direction drawn
    uniformly from the sphere.
    """
    draws = unit(rng.standard_normal((count, *directions.shape)))
    return np.asarray(draws * _norm(directions), np.float32)


def cosine(
    directions: Float[np.ndarray, "layer d_model"], others: Float[np.ndarray, "other d_model"]
) -> Float32[np.ndarray, "layer other"]:
    """Cosine of every direction with every other; 0 where one of the two is zero.

    `cosine(directions, directions)` compares the layers of one set.
    """
    a, b = (np.asarray(unit(d), np.float32) for d in (directions, others))
    return np.asarray(np.clip(a @ b.T, -1, 1))


def _directions(names: list[str], moments: Moments) -> Directions:
    values = [
        directions_of_moments(moments, positive=2 * i, negative=2 * i + 1)
        for i in range(len(names))
    ]
    return Directions(names, np.stack(values), moments)


def _norm(directions: Float[np.ndarray, "*batch d_model"]) -> Float[np.ndarray, "*batch 1"]:
    wide = np.asarray(directions, np.float64)
    return np.asarray(np.linalg.norm(wide, axis=-1, keepdims=True))
