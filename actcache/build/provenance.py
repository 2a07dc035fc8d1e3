"""What a store records about its rows and where its numbers come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from actcache.conventions import ATTENTION, ATTENTION_CONTROL
from actcache.data.messages import history_text
from actcache.data.samples import HISTORY, TEXT_COLUMNS, samples_digest
from actcache.data.spans import CONTROL_SPAN, SPAN
from actcache.prompts.render import PARTS
from actcache.store.documents import encode, root_document
from actcache.store.schema import Ragged, RowArray
from actcache.store.writing.contents import StoreContents

if TYPE_CHECKING:  # both import torch
    from actcache.build.plan import BuildPlan
    from actcache.engine.model import LanguageModel

CERTIFICATE_ROWS = 8
"""How many random rows a build runs again at its end, at most; and how many of those of the check
before it compares with the store, at most."""

MODE = "hugging face numerics: no folding, no centering; layer = output of the decoder block"


def columns(plan: "BuildPlan") -> dict[str, Any]:
    """Collect a store's columns, readable without model, tokenizer or data files."""
    samples, rendered = plan.samples, plan.rendered
    texts = {
        name: [str(getattr(sample, name) or "") for sample in samples] for name in TEXT_COLUMNS
    }
    if any(sample.history for sample in samples):
        texts[HISTORY] = [history_text(sample.history) for sample in samples]
    tokens = {
        f"{part}_tokens": Ragged.of([getattr(row, part) for row in rendered]) for part in PARTS
    }
    numbers = {"n_tokens": np.array([row.length for row in rendered], np.int64)}
    if ATTENTION in plan.config.sites:
        numbers[SPAN] = np.array([row.span for row in rendered], np.int64)
    if ATTENTION_CONTROL in plan.config.sites:
        numbers[CONTROL_SPAN] = np.array([row.control_span for row in rendered], np.int64)
    return {**texts, **tokens, **numbers, **plan.row_columns.values}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a store says about its model; whoever has no model can write the store with it."""

    identity: Mapping[str, Any]
    """The fields of `actcache.identity.IDENTITY`."""

    commit: str | None
    """On the Hub."""

    attention: str
    """Which implementation it runs."""

    device: str
    versions: Mapping[str, str]
    widths: Mapping[str, int]
    """Values at each site that is read."""

    @classmethod
    def of(cls, model: "LanguageModel", sites: Sequence[str]) -> "ModelFacts":
        """Ask a loaded model."""
        return cls(
            identity=model_identity(model),
            commit=getattr(model.hf.config, "_commit_hash", None),
            attention=model.hf.config._attn_implementation,
            device=str(model.device),
            versions=versions(),
            widths={site: model.width_of(site) for site in sites},
        )


def build_contents(
    plan: "BuildPlan",
    arrays: Sequence[RowArray],
    provenance: Mapping[str, Any],
    *,
    shard_rows: int | None = None,
) -> StoreContents:
    """Collect all of a build's store but the values of its row arrays."""
    return StoreContents(
        kind="residuals",
        n=plan.n,
        arrays=arrays,
        columns=columns(plan),
        config=plan.config.recorded(),
        provenance=provenance,
        left_out=plan.left_out,
        shard_rows=shard_rows,
    )


def require_storable(
    plan: "BuildPlan", *, shard_rows: int | None = None, reused: Sequence[str] = ()
) -> None:
    """Refuse before the model is loaded what its store could not hold.

    Encodes everything once, with a stand-in for what the model alone says of itself.

    Args:
        plan: from `plan_build`.
        shard_rows: rows of a shard.
        reused: digests of the stores whose rows are reused.

    Raises:
        MismatchError: a column is no text or numbers of n rows, or the settings and the provenance
            are longer than a document may be.
        FormatError: the name of a column cannot be that of a file.
    """
    arrays, shape = plan.arrays, plan.model_config
    n_layers = max(array.n_layers for array in arrays)
    facts = ModelFacts(
        identity={
            "family": str(shape.model_type),
            "n_layers": n_layers,
            "d_model": shape.hidden_size,
            "dtype": "bfloat16",
            "weights_sha256": "0" * 64,
        },
        commit="0" * 40,
        attention="flash_attention_2",
        device="cuda:0",
        versions=versions(),
        widths={},
    )
    recorded = provenance(plan, facts)
    if reused:
        sources = [{"digest": digest, "rows": plan.n} for digest in reused]
        recorded["reused"] = {"rows": plan.n, "of": sources}
    root = build_contents(plan, arrays, recorded, shard_rows=shard_rows).encode().root
    number = -1 / 3 * 1e-300  # as long as a number can be in JSON
    certificate = {
        "rows": sorted((sample.id for sample in plan.samples), key=len)[-2 * CERTIFICATE_ROWS :],
        "positions": list(plan.positions),
        "largest_relative_error": [number] * n_layers,
        "sites": dict.fromkeys(plan.config.sites, number),
        "self_check": {"largest_relative_error": number, "bound": number},
    }
    encode(root_document(replace(root, complete=True, certificate=certificate)))


def provenance(plan: "BuildPlan", facts: ModelFacts) -> dict[str, Any]:
    """Collect where a store's numbers come from."""
    return {
        "model": {
            **facts.identity,
            "name": plan.config.model,
            "commit": facts.commit,
            "attention": facts.attention,
        },
        "tokenizer": plan.tokenizer,
        "data_sha256": samples_digest(plan.samples),
        "leaks": {behavior: counts.recorded() for behavior, counts in plan.leaks.items()},
        "conditions": plan.conditions.recorded(),
        "mode": MODE,
        "device": facts.device,
        "versions": dict(facts.versions),
    }


@cache  # a look-up reads the metadata of every package from its file
def versions() -> Mapping[str, str]:
    """Look up the versions of the packages that decide what a forward pass computes."""
    installed = {}
    for package in ("actcache", "torch", "transformers", "transformer-lens", "tokenizers"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def model_identity(model: "LanguageModel") -> dict[str, Any]:
    """Identify a model: the fields of `actcache.identity.IDENTITY`."""
    config = model.hf.config
    return {
        "family": str(config.model_type),
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": model.dtype,
        "weights_sha256": model.digest,
    }
