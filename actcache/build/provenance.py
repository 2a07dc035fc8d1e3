"""What a store records about its rows and where its numbers come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from actcache.conventions import ATTENTION, ATTENTION_CONTROL
from actcache.data.messages import history_text
from actcache.data.samples import HISTORY, TEXT_COLUMNS, samples_digest
from actcache.data.spans import CONTROL_SPAN, SPAN
from actcache.prompts.render import PARTS
from actcache.store.schema import Ragged

if TYPE_CHECKING:  # both import torch
    from actcache.build.plan import BuildPlan
    from actcache.engine.model import LanguageModel

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
        "left_out": list(plan.left_out),
        "conditions": plan.conditions.recorded(),
        "mode": MODE,
        "device": facts.device,
        "versions": dict(facts.versions),
    }


def versions() -> dict[str, str]:
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
