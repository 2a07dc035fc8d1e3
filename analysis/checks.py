"""What can be refused before anything runs, and what a user should know is left out.

All settings are held against the store, and names in it against the rule for names, before a model
is loaded or a file is written.
"""

from collections.abc import Sequence

import numpy as np

from actcache.analysis.concepts.stage import check_concepts
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import (
    label_groups,
    prompt_position,
    require_classes,
    two_labels,
)
from actcache.analysis.directions.planes import norm_sites
from actcache.analysis.sweep.direction_files import read_direction_sets
from actcache.analysis.sweep.splits import splits_of
from actcache.conventions import STAGES
from actcache.encoders import parse_encoder
from actcache.encoders.checks import require_encoder
from actcache.errors import MismatchError
from actcache.names import name_problem
from actcache.store.copies.selection import require_all_layers
from actcache.store.store import Store


def check_analysis(store: Store, config: AnalyzeConfig, *, device: str = "auto") -> tuple[str, ...]:
    """Refuse what a stage would refuse later; return what is left out or ignored, in sentences.

    Raises:
        ActcacheError: the store, a name in it or a setting cannot be used; says which.
    """
    if store.kind != "residuals":
        raise MismatchError(
            f"'{store.path}' holds a {store.kind}, expected residuals. Pass what build wrote."
        )
    require_all_layers(store)  # the stages know layers by their place
    _require_provenance(store)
    require_names(store)
    require_classes(store)
    labels = two_labels(store, config.labels) if store.row_kind == "labels" else None
    left_out = _stages_left_out(store, config.stages, labels)
    if labels:
        label_groups(store, labels, pooled=config.pooled)
        prompt_position(store, config.position)
    elif {"sweep", "predictors"} & set(config.stages):
        if device != "auto":
            from actcache.engine.model import pick_device

            pick_device(device)
        _require_layers("layers to steer", config.layers, store)
        splits_of(store, config)
        read_direction_sets(config.directions, store)
        if "predictors" in config.stages:
            _require_predictable(store, config)
    return (*left_out, *_ignored(store, config))


def _require_provenance(store: Store) -> None:
    if not {"name", "weights_sha256"} <= store.provenance.get("model", {}).keys():
        raise MismatchError(
            f"'{store.path}' does not record which model it is of, expected what build and import "
            "write. Build or import it again."
        )


def require_names(store: Store) -> None:
    """Refuse a store whose behaviors, labels or ids break the rule of `actcache.names`."""
    for column in ("behavior", "label", "id"):
        for name in np.unique(store[column]).tolist() if column in store.columns else ():
            problem = name_problem(str(name), is_id=column == "id") if name != "" else None
            if problem:
                raise MismatchError(
                    f"a {column} of '{store.path}' {problem}. Build the store again from rows with "
                    "another name."
                )


def steers(store: Store, config: AnalyzeConfig) -> bool:
    """Whether a stage reads a sweep, which steers the model that the store was built with."""
    if store.kind != "residuals" or any(store["label"].tolist()):
        return False
    return bool({"sweep", "predictors"} & set(config.stages))


def _stages_left_out(
    store: Store, stages: Sequence[str], labels: tuple[str, str] | None
) -> tuple[str, ...]:
    """A sentence on stages that were asked for one by one and cannot run on a store's rows.

    All stages means all that there are. If none can run, or one lacks its split, that is an error.
    """
    paired = not any(store["label"].tolist())
    unfit: tuple[str, ...] = ("sweep", "predictors")
    have, need = "labels", "pairs"
    if paired:
        unfit = () if norm_sites(store) else ("layers",)
        have, need = "pairs", "labels, or sites ln1 and ln2 (flag --sites of build)"
    if "concepts" in stages and tuple(stages) != STAGES:
        check_concepts(store, labels)
    left = [stage for stage in stages if stage in unfit]
    reason = f"{' and '.join(left)}: the rows of '{store.path}' have {have}, expected {need}"
    if left and len(left) == len(stages):
        fit = ",".join(stage for stage in STAGES if stage not in unfit)
        raise MismatchError(f"no stage can run on {reason}. Pass --stages {fit}.")
    if not paired:
        return (reason,) if left and tuple(stages) != STAGES else ()
    if "sweep" in stages and "test" not in store["split"].tolist():
        raise MismatchError(
            f"'{store.path}' has no rows of the split 'test', which the stage sweep reads. Build "
            "from more rows, give rows a split, or pass --stages vectors."
        )
    return ()


def _require_predictable(store: Store, config: AnalyzeConfig) -> None:
    """Refuse before the sweep what predictors would refuse after it."""
    from actcache.analysis.predict.selections import predictor_rows

    _require_layers("context layers", config.context_layers, store)
    for text in config.encoders:
        spec = parse_encoder(text)
        require_encoder(store, spec, base_url=config.base_url, cache=config.embeddings)
    if tuple(config.stages) != STAGES:  # else they are left out, with the reason
        predictor_rows(store, vectors=config.vectors)


def _require_layers(what: str, layers: Sequence[int] | None, store: Store) -> None:
    if layers is not None and not set(layers) <= set(range(store.n_layers)):
        raise MismatchError(
            f"{what} are {list(layers)}, but the store has layers 0 to {store.n_layers - 1}. Pass "
            "some of them."
        )


def _ignored(store: Store, config: AnalyzeConfig) -> tuple[str, ...]:
    """Say which settings that were given change nothing, and why."""
    default = AnalyzeConfig()
    pairs = not any(store["label"].tolist())
    of_labels = ("labels", "position", "pooled", "normalize", "on_calibration")
    unused = dict.fromkeys(of_labels, "the rows have pairs") if pairs else {}
    if not any(text.startswith("openai:") for text in config.encoders):
        unused |= dict.fromkeys(("base_url", "embeddings"), "no encoder is openai:MODEL")
    if not pairs:
        unused |= dict.fromkeys(("directions", "norm"), "the rows have labels")
    elif not {"sweep", "predictors"} & set(config.stages):
        unused |= dict.fromkeys(("directions", "norm"), "no stage steers")
    elif not config.directions and set(config.methods) == {"mean"}:
        unused["norm"] = "the difference of means alone is swept"
    sentences = [
        f"the setting {name}: {reason}"
        for name, reason in unused.items()
        if getattr(config, name) != getattr(default, name)
    ]
    n_layers = len(set(config.layers or range(store.n_layers)))
    large = [str(top) for top in config.top if top > n_layers]
    if large and pairs and "predictors" in config.stages:
        sentences.append(f"top {', '.join(large)}: only {n_layers} layers are steered")
    return tuple(sentences)
