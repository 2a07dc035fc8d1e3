"""Which token at a prompt's end attends most to the marked span, layer by layer, and how much.

The choice of the token to read, the soft labels of its samples and the ranking of layers, as
attention-guided steering makes them (Davarmanesh et al. 2026, arXiv 2602.00333), from the masses
that a build with the site `attention` keeps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from actcache.conventions import ATTENTION
from actcache.errors import MismatchError
from actcache.store.store import Store

Masses = Mapping[str, Float[np.ndarray, "_n _layer _head"]]
"""For each position, by its name in the store, how much attention each head puts on the span."""


@dataclass(frozen=True)
class TokenChoice:
    """For each layer the token to read, and how strongly it attends to the marked span."""

    positions: tuple[str, ...]
    """Those that were compared, in the order of the text."""

    place: Int64[np.ndarray, " layer"]
    """Index into `positions`: the one whose mass is largest in any scanned sample, the first of
    equals; the last token in a blind layer."""

    peak: Float64[np.ndarray, " layer"]
    """Its mass in that sample, mean over heads."""

    mass: Float64[np.ndarray, " layer"]
    """Its mass, mean over heads and scanned samples."""

    by_position: Float64[np.ndarray, "position layer"]
    """The same of every position."""

    order: Int64[np.ndarray, " layer"]
    """Layers by falling `mass`; equal ones by number."""

    @property
    def tokens(self) -> list[str]:
        """The chosen position of each layer."""
        return [self.positions[place] for place in self.place]

    @property
    def blind(self) -> Bool[np.ndarray, " layer"]:
        """Tell the layers where no token of any scanned sample sees the span.

        So it is with a sliding window that is shorter than the text.
        """
        return np.asarray(self.peak == 0)


def choose_tokens(store: Store, *, rows: Bool[np.ndarray, " n"] | None = None) -> TokenChoice:
    """Choose a token for every layer of a store, among the positions that it holds.

    Args:
        store: with the site `attention`.
        rows: samples that count; by default the base rows of the train split that mark a span. The
            published code scans prompts of its own.

    Raises:
        MismatchError: the store has no attention masses, or no row counts.
    """
    if rows is None:
        start, end = store["span"].T if "span" in store.columns else np.zeros((2, store.n))
        rows = (store["split"] == "train") & (store["variant"] == "base") & (end > start)
    return token_choice(read_masses(store, rows))


def read_masses(
    store: Store, rows: Bool[np.ndarray, " n"], *, site: str = ATTENTION
) -> dict[str, Float[np.ndarray, "b layer head"]]:
    """Read the attention masses of some rows at every position that has them.

    Raises:
        MismatchError: there are none; says what to build.
    """
    prefix = f"{site}/"
    names = [name for name in store.arrays if name.startswith(prefix)]
    if not names:
        raise MismatchError(
            f"'{store.path}' has {', '.join(store.sites)} at {', '.join(store.positions)}, "
            f"expected the site {ATTENTION}. Build it with --sites resid_post,{ATTENTION} "
            "--positions template:K."
        )
    chosen = np.flatnonzero(rows)
    return {name.removeprefix(prefix): np.asarray(store.array(name)[chosen]) for name in names}


def token_choice(masses: Masses) -> TokenChoice:
    """Choose a token for every layer: the largest mass over samples, then over tokens.

    With `A[i, ℓ, k]` the mean over heads, `place[ℓ] = argmax_k max_i A[i, ℓ, k]` over tokens in the
    order of the text, as in the published code. That code ranks layers by a test that was not
    released; here it is the mean.

    Example:
        >>> near, far = np.zeros((2, 3, 2, 4), np.float32)  # 3 rows, 2 layers, 4 heads
        >>> near[1, 0] = 0.25  # one row's token looks at the span in the first layer
        >>> far[:, 1] = 0.5
        >>> choice = token_choice({"template_-1": near, "template_-2": far})
        >>> choice.tokens, choice.order
        (['template_-1', 'template_-2'], array([1, 0]))
    """
    positions = text_order(masses)
    mean = _head_means(masses, positions)  # [position, n, layer]
    if not mean.shape[1]:
        raise MismatchError(
            "attention masses of no row were to be compared, expected one or more. Scan the rows "
            "that mark a span."
        )
    peaks = mean.max(1)  # [position, layer]
    place = np.where(peaks.max(0) > 0, peaks.argmax(0), len(positions) - 1)
    layers = np.arange(place.size)
    by_position = mean.mean(1)
    mass = by_position[place, layers]
    return TokenChoice(
        tuple(positions),
        place.astype(np.int64),
        peaks[place, layers],
        mass,
        by_position,
        np.argsort(-mass, kind="stable").astype(np.int64),
    )


def soft_labels(
    masses: Masses, choice: TokenChoice, *, positive: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, "n layer"]:
    """How much each sample shows the concept: the mass of the chosen token, 0 for negatives.

    Scaled to [0, 1] over all samples, layer by layer, as in the published code; where all are equal
    they are 0.

    `masses` are as `token_choice` takes them, of any rows; `positive` ones hold the concept.
    """
    n_layers = choice.place.size
    shapes = {values.shape[:2] for values in masses.values()}
    if shapes != {(positive.size, n_layers)} or not set(choice.positions) <= masses.keys():
        raise MismatchError(
            f"masses at {', '.join(masses)} of {sorted(shapes)} rows and layers were given with a "
            f"choice among {', '.join(choice.positions)} for {n_layers} layers and "
            f"{positive.size} labels, expected the same. Pass the positions that were chosen from."
        )
    mean = _head_means(masses, choice.positions)
    labels = mean[choice.place, :, np.arange(n_layers)].T  # [n, layer]
    labels = np.where(positive[:, None], labels, 0.0)
    low, high = labels.min(0), labels.max(0)
    return np.asarray((labels - low) / np.where(high > low, high - low, 1.0))


def text_order(positions: Iterable[str]) -> list[str]:
    """Sort positions as their tokens follow one another; those that are no prompt token last."""
    return sorted(positions, key=_from_the_end, reverse=True)


def _from_the_end(position: str) -> int:
    """Count from the prompt's end to a position, 1 for the last token; later ones are 0."""
    if position == "prompt":
        return 1
    kind, _, back = position.rpartition("_-")
    return int(back) if kind in ("template", "last") else 0


def _head_means(
    masses: Masses, positions: "list[str] | tuple[str, ...]"
) -> Float64[np.ndarray, "position n layer"]:
    shapes = {values.shape for values in masses.values()}
    if len(shapes) != 1:
        raise MismatchError(
            f"attention masses of {len(masses)} positions have the shapes {sorted(shapes)}, "
            "expected one shape [n, layer, head] for one or more. Pass arrays of one store."
        )
    return np.stack([masses[name].mean(-1, dtype=np.float64) for name in positions])
