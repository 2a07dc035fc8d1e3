"""The certificate of a build: a few rows run again alone, compared with the store."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actcache.build.provenance import CERTIFICATE_ROWS
from actcache.engine.model import LanguageModel
from actcache.engine.reference import reference_values
from actcache.engine.self_check import relative_error
from actcache.prompts.render import Rendered
from actcache.store.store import Store


def rows_to_certify(n: int, *, seed: int, n_rows: int = CERTIFICATE_ROWS) -> list[int]:
    """Draw the numbers of a few of `n` rows."""
    return sorted(np.random.default_rng(seed).permutation(n)[:n_rows].tolist())


def rows_of_certificate(n: int, *, seed: int, checked: Collection[int]) -> list[int]:
    """Choose the rows that the certificate of a build of `n` rows is about, by their numbers.

    Those of the check before, whose passes alone are there already, and random ones: of a small
    build one in 16, since running a row alone costs twice what the build takes for it.
    """
    n_drawn = min(CERTIFICATE_ROWS, max(2, n // 16))
    return sorted(
        {*sorted(checked)[:CERTIFICATE_ROWS], *rows_to_certify(n, seed=seed, n_rows=n_drawn)}
    )


def certify(
    store: Store,
    model: LanguageModel,
    rows: Mapping[int, Rendered],
    *,
    positions: Sequence[str],
    sites: Sequence[str],
    answer: str,
    alone: Mapping[int, Mapping[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """Run a few rows again, alone and unpadded, and compare them with the store.

    The store may be partial; `rows` are the rows to compare, by their numbers, and `alone` the
    `reference_values` of those of them that have been run alone.

    Returns:
        `rows` (their ids), `positions`, and `largest_relative_error` by layer and, in `sites`, by
        site: the largest difference of any value over the largest absolute value read there.
    """
    layers = store.layers if set(sites) != {"embed"} else np.arange(model.n_layers)
    by_layer, by_site = np.zeros(layers.size), dict.fromkeys(sites, 0.0)
    for i, row in rows.items():
        values = (alone or {}).get(i) or reference_values(
            model, row, positions=positions, answer=answer, sites=sites
        )
        for site in sites:
            for j, position in enumerate(positions):
                stored = torch.from_numpy(np.array(store.resid(position, site=site)[i]))
                true = values[site][:, j]
                if site != "embed":
                    true = true[torch.from_numpy(layers).to(true.device)]
                errors = relative_error(site, stored, true).numpy()
                by_site[site] = max(by_site[site], float(errors.max()))
                if site != "embed":
                    by_layer = np.maximum(by_layer, errors)
    return {
        "rows": [str(store["id"][i]) for i in rows],
        "positions": list(positions),
        "largest_relative_error": by_layer.tolist(),
        "sites": by_site,
    }
